"""Bad calls of the algebra and of the certificates, in the manner of ``test_bad_input.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused

from tnmpo import (
    MPO,
    TT,
    MPOShape,
    apply,
    hadamard,
    inner,
    kron,
    mpo_decompose,
    norm,
    output_error,
    spectral_norm_bounds,
    trace,
    tt_decompose,
)

W = np.random.default_rng(0).normal(size=(12, 18))
SHAPE = ((2, 3, 2), (3, 3, 2))
A = mpo_decompose(W, SHAPE)
TURNED = mpo_decompose(W, ((3, 2, 2), (3, 3, 2)))
SINGLE = mpo_decompose(W.astype("float32"), SHAPE)
COMPLEX = mpo_decompose(W + 0j, SHAPE)
HALF = mpo_decompose(W.astype("float16"), SHAPE)
OF_TORCH = mpo_decompose(torch.tensor(W), SHAPE)
META = MPO([core.to("meta") for core in OF_TORCH.cores])
X = tt_decompose(W[0].reshape(3, 3, 2))
NAN = MPO([np.full((1, 2, 2, 1), np.nan)])
C = np.ones(18)
ones = np.ones

PAIRS = [
    (call, error, fragment)
    for operation in (inner, hadamard, lambda one, other: one + other, lambda one, other: one - other)
    for call, error, fragment in [
        (lambda do=operation: do(A, X), TypeError, "other: got a TT, expected a MPO as the first"),
        (lambda do=operation: do(A, TURNED), ValueError, "other: got sites ((3, 3), (2, 3), (2, 2)), expected ((2, 3)"),
        (lambda do=operation: do(A, SINGLE), TypeError, "other: got numpy float32 on cpu, expected numpy float64"),
        (lambda do=operation: do(A, COMPLEX), TypeError, "other: got numpy complex128 on cpu, expected numpy float64"),
        (lambda do=operation: do(A, OF_TORCH), TypeError, "other: got pytorch float64 on cpu, expected numpy float64"),
    ]
]
OF_ONE = [
    (lambda do=operation: do(W, A), TypeError, "one: got ndarray, expected a tnmpo.MPO or a tnmpo.TT")
    for operation in (inner, hadamard, kron)
] + [
    (lambda do=operation: do(A, None), TypeError, "other: got NoneType, expected a tnmpo.MPO or a tnmpo.TT")
    for operation in (inner, hadamard, kron)
]
BAD_CALLS = [
    *PAIRS,
    *OF_ONE,
    # one device
    (lambda: OF_TORCH + META, TypeError, "other: got pytorch float64 on meta, expected pytorch float64 on cpu"),
    (lambda: OF_TORCH @ META.T, TypeError, "convert them to one backend, dtype and device"),
    # scalars
    (lambda: A * A, TypeError, "scalar: got MPO, expected a number; products are @ and tnmpo.hadamard"),
    (lambda: A / X, TypeError, "scalar: got TT, expected a number"),
    (lambda: A * W, TypeError, "scalar: got an array of 2 axes, expected a number; for products use @"),
    (lambda: W * A, TypeError, "scalar: got an array of 2 axes, expected a number; for products use @"),
    (lambda: A * torch.tensor(2.0), TypeError, "scalar: got a Tensor, expected a number or an array of numpy"),
    (lambda: OF_TORCH * np.array(2.0), TypeError, "scalar: got a ndarray, expected a number or an array of pytorch"),
    (lambda: A * np.array(2), TypeError, "scalar: got dtype int64, expected one of"),
    (lambda: A * float("nan"), ValueError, "scalar: got nan, expected a finite number within the range of float64"),
    (lambda: np.array(np.inf) * A, ValueError, "scalar: got inf, expected a finite number within the range of float64"),
    (lambda: SINGLE * 1e39, ValueError, "scalar: got 1e+39, expected a finite number within the range of float32"),
    (lambda: HALF * 1e5, ValueError, "expected a finite number within the range of float16; scale in steps"),
    (lambda: HALF * 1j, TypeError, "scalar: got the complex 1j, which float16 has no partner for; convert the cores"),
    (lambda: A / 0, ZeroDivisionError, "scalar: got 0, expected a number that divides"),
    (lambda: A / np.array(0.0), ZeroDivisionError, "scalar: got 0, expected a number that divides"),
    # products
    (
        lambda: A @ A,
        ValueError,
        "other: got sites of dimensions (2, 3, 2), expected (3, 3, 2), the columns of the first",
    ),
    (lambda: A @ TT([ones((1, 18, 1))]), ValueError, "other: got sites of dimensions (18,), expected (3, 3, 2)"),
    (lambda: X @ A, ValueError, "other: got sites of dimensions (3, 3, 2), expected (2, 3, 2)"),
    (lambda: A @ SINGLE.T, TypeError, "other: got numpy float32 on cpu, expected numpy float64 on cpu"),
    (lambda: A @ ones(12), ValueError, "other: got shape (12,), expected 18 entries on the axis that is summed over"),
    (lambda: A @ ones((3, 18)), ValueError, "the matrix is 12 x 18, for batches of rows use x @ mpo.T"),
    (lambda: ones((12, 3)) @ A, ValueError, "other: got shape (3, 12), expected 12 entries"),
    (lambda: A @ np.array(1.0), ValueError, "other: got shape (), expected 18 entries on the axis"),
    (lambda: A @ ones(18, int), TypeError, "other: got dtype int64, expected one of bfloat16"),
    (lambda: A @ ones(18, "float32"), TypeError, "other: got numpy float32 on cpu, expected numpy float64 on cpu"),
    (lambda: A @ torch.ones(18), TypeError, "other: got pytorch float32 on cpu, expected numpy float64 on cpu"),
    (lambda: torch.ones(12) @ A, TypeError, "other: got pytorch float32 on cpu, expected numpy float64 on cpu"),
    (lambda: kron(A, X), TypeError, "other: got a TT, expected a MPO as the first; only a product @ takes one of each"),
    (lambda: kron(A, SINGLE), TypeError, "other: got numpy float32 on cpu, expected numpy float64 on cpu"),
    (lambda: apply(X, A), TypeError, "mpo: got TT, expected a tnmpo.MPO"),
    (lambda: apply(A, W), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
    (lambda: apply(A, X, 0), ValueError, "rank: got 0, expected a positive integer"),
    # of one train
    (lambda: norm(W), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
    (lambda: norm(NAN), ValueError, "train: got NaN or Inf in core 0, expected finite numbers"),
    (lambda: trace(X), TypeError, "mpo: got TT, expected a tnmpo.MPO"),
    (lambda: trace(A), ValueError, "mpo: got rows (2, 3, 2) and cols (3, 3, 2), expected sites with i_k = j_k or a"),
    (lambda: trace(mpo_decompose(W, MPOShape.low_rank(W.shape))), ValueError, "a square low-rank shape; decompose it"),
    # certificates
    (lambda: output_error("W", A, C), TypeError, "W: got str, expected a numpy array"),
    (lambda: output_error(X, A, C), TypeError, "W: got TT, expected a numpy array"),
    (lambda: output_error(ones(12), A, C), ValueError, "W: got 1 axes, expected a matrix or a tnmpo.MPO; reshape it"),
    (lambda: output_error(W * np.nan, A, C), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: output_error(W, W, C), TypeError, "mpo: got ndarray, expected a tnmpo.MPO"),
    (lambda: output_error(W.T, A, C), ValueError, "mpo: got a (12, 18) matrix, expected (18, 12) as of W"),
    (lambda: output_error(W, OF_TORCH, C), TypeError, "mpo: got pytorch on cpu, expected numpy on cpu as W; convert"),
    (lambda: output_error(W, A, ones(12)), ValueError, "covariance: has size 12, the matrix (12, 18)"),
    (lambda: output_error(W, A, -C), ValueError, "covariance: got a negative entry in the diagonal, expected"),
    (lambda: output_error(W, A, [1.0]), TypeError, "covariance: got list, expected a numpy array"),
    (lambda: spectral_norm_bounds(X), TypeError, "W: got TT, expected a numpy array"),
    (lambda: spectral_norm_bounds(NAN), ValueError, "W: got NaN or Inf in core 0"),
    (lambda: spectral_norm_bounds(W, W), TypeError, "mpo: got ndarray, expected a tnmpo.MPO"),
    (lambda: spectral_norm_bounds(W, A, gap=0), ValueError, "gap: got 0, expected a number above 0 and below inf"),
    (lambda: spectral_norm_bounds(W, A, gap="5%"), ValueError, "gap: got '5%', expected a number above 0"),
    (
        lambda: spectral_norm_bounds(W, A, failure=1),
        ValueError,
        "failure: got 1, expected a number above 0 and below 1",
    ),
    (lambda: spectral_norm_bounds(W, A, failure=True), ValueError, "failure: got True, expected a number above 0"),
    (lambda: spectral_norm_bounds(W, A, seed=-1), ValueError, "seed: got -1, expected an integer >= 0"),
    (lambda: spectral_norm_bounds(W, A, seed=None), ValueError, "seed: got None, expected an integer >= 0"),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment):
    argument, rest = refused(call, error, fragment)
    assert argument.isidentifier()
    assert "got" in rest or "has" in rest
    assert "expected" in rest or ";" in rest


@pytest.mark.parametrize(
    "call",
    [
        lambda: A + W,
        lambda: W + A,
        lambda: A - W,
        lambda: W - A,
        lambda: torch.tensor(W) - OF_TORCH,
        lambda: A + 1,
        lambda: 1 - A,
        lambda: A + None,
    ],
)
def test_a_sum_with_what_is_no_train_is_refused(call):
    with pytest.raises(TypeError, match=r"other: got \w+, expected a tnmpo.MPO; decompose it in the same"):
        call()


@pytest.mark.parametrize("call", [lambda: np.array(A), lambda: np.linalg.norm(A)])
def test_numpys_functions_are_told_what_to_take(call):
    with pytest.raises(TypeError, match=r"array: got MPO, expected an array; to_matrix\(\) makes one, tnmpo.norm"):
        call()
