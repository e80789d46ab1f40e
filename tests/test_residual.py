"""The certificates of a residual: its norm at the output, its spectral norm, how near a cut is to the best one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    SLACK,
    array_of,
    backend_of,
    cases,
    dense_of,
    dense_root,
    dtype_of,
    exact_ranks,
    metrics,
    mpos,
    norm,
    numpy_of,
)

import tnmpo
from tnmpo import MPOShape, Weight, _backend, mpo_decompose, output_error, spectral_norm_bounds

SOURCES = st.sampled_from(("array", "train", "train of another shape"))


@st.composite
def residuals(draw, min_order=1):
    """A matrix, as an array or as an MPO, an MPO near it, and both dense."""
    # a jax array is known by its type to the residual, which works on numpy's: a fixed case is enough, below
    case = draw(cases(min_order=min_order, max_order=4, backends=("numpy", "torch")))
    mpo = mpo_decompose(case.W, case.shape, draw(exact_ranks(case.shape)))
    source = draw(SOURCES)
    shape = case.shape if source == "train" else MPOShape.low_rank(case.shape.matrix_shape)
    W = case.W if source == "array" else mpo_decompose(case.W, shape)
    return W, mpo, case.dense, dense_of(mpo.cores)


@given(residuals(), st.data())
def test_the_error_at_the_output(residual, data):
    W, mpo, dense, near = residual
    dtype = dtype_of(mpo.cores[0])
    size = dense.shape[1]
    backend = data.draw(st.sampled_from(("numpy", "torch")))  # a covariance may come from another library
    sites = data.draw(st.booleans())
    if sites and mpo.shape == getattr(W, "shape", None):
        C = tuple(
            np.ones(d) if metric is None else metric
            for d in mpo.shape.cols
            for metric in [data.draw(metrics(d, "numpy", dtype.startswith("complex")))]
        )
        root = np.ones((1, 1))
        for part, d in zip(C, mpo.shape.cols, strict=True):
            root = np.kron(root, dense_root(part, d))
    else:
        C = data.draw(metrics(size, backend, dtype.startswith("complex")))
        root = dense_root(C, size)
    expected, whole = norm((dense - near) @ root), norm(dense @ root)
    # single precision rounds the decomposition into W itself; roots of singular metrics are exact to 1e-8 of a part
    slack = 4 * SLACK[dtype] * norm(dense) * norm(root)
    assert output_error(W, mpo, C) == pytest.approx(expected, abs=slack)
    if whole > 1e3 * slack:
        assert output_error(W, mpo, C, relative=True) == pytest.approx(expected / whole, abs=slack / whole)


def test_the_error_at_the_output_is_what_samples_show():
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(12, 18)), rng.normal(size=(18, 30)) * np.linspace(1, 3, 18)[:, None]
    mpo = mpo_decompose(W, ((2, 3, 2), (3, 3, 2)), 3)
    shown = np.sqrt(np.mean(np.sum((W @ x - mpo @ x) ** 2, axis=0)))
    covariance = x @ x.T / 30
    assert output_error(W, mpo, covariance) == pytest.approx(shown, rel=1e-12)
    assert output_error(W, mpo, covariance) == pytest.approx(
        Weight(cols=covariance).norm(W - mpo.to_matrix()), rel=1e-12
    )
    low_rank = mpo_decompose(W, MPOShape.low_rank(W.shape), 4, weight=Weight(cols=covariance))
    assert output_error(W, low_rank, covariance) == pytest.approx(low_rank.truncation.error, rel=1e-10)


def test_relative_to_nothing():
    mpo = mpo_decompose(np.eye(4), ((2, 2), (2, 2)))
    assert output_error(np.zeros((4, 4)), mpo, np.ones(4), relative=True) == math.inf
    assert output_error(np.eye(4), mpo, np.zeros(4), relative=True) == 0
    assert output_error(mpo, mpo, np.ones(4), relative=True) == 0


def test_no_dense_array_of_two_trains():
    """2^40 rows and columns: the matrix has 10^24 entries, a side has 10^12."""
    rng = np.random.default_rng(0)
    A = tnmpo.MPO([rng.normal(size=(3 if k else 1, 2, 2, 3 if k < 39 else 1)) for k in range(40)])
    C = (np.array([1.0, 4.0]),) * 40
    assert output_error(A + A, A, C) == pytest.approx(output_error(A, 0 * A, C), rel=1e-12)
    assert output_error(2 * A, A, C, relative=True) == pytest.approx(0.5, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# The spectral norm
# ---------------------------------------------------------------------------------------------------------------------


@given(residuals(), st.integers(0, 99), st.sampled_from((0.01, 0.1, 0.5)))
def test_the_spectral_norm_is_between_its_bounds(residual, seed, gap):
    W, mpo, dense, near = residual
    difference = dense - near
    largest = np.max(np.abs(difference))
    exact = largest * np.linalg.norm(difference / largest, 2) if largest > 0 else 0.0
    bounds = spectral_norm_bounds(W, mpo, gap=gap, seed=seed)
    slack = 4 * SLACK[dtype_of(mpo.cores[0])] * norm(dense)
    assert bounds.lower <= exact + slack
    assert exact <= bounds.upper + slack
    assert bounds.upper <= (1 + gap) * bounds.lower * (1 + 1e-12) + slack
    assert bounds.frobenius == pytest.approx(norm(difference), abs=slack)
    assert bounds.lower <= bounds.upper <= max(bounds.frobenius, bounds.lower)
    assert bounds.failure in (0, 1e-9)
    if bounds.failure == 0:
        assert bounds.upper in (bounds.frobenius, bounds.lower)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_a_large_matrix(complex_, wide):
    rng = np.random.default_rng(0)
    W = rng.normal(size=(150, 200)) + (1j * rng.normal(size=(150, 200)) if complex_ else 0)
    W = W if wide else W.T
    shape = MPOShape((10, 15), (20, 10)) if wide else MPOShape((20, 10), (10, 15))
    mpo = mpo_decompose(W, shape, 20)
    exact = np.linalg.norm(W - mpo.to_matrix(), 2)
    for source in (W, mpo_decompose(W, shape)):
        bounds = spectral_norm_bounds(source, mpo)
        assert 0 < bounds.failure <= 1e-9
        assert bounds.lower <= exact * (1 + 1e-12)
        assert exact <= bounds.upper <= 1.05 * bounds.lower
        assert bounds.products < 100
    alone = spectral_norm_bounds(mpo)
    assert alone.lower <= np.linalg.norm(mpo.to_matrix(), 2) * (1 + 1e-12) <= alone.upper * (1 + 1e-12)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("fraction", [0.5, 0.7, 0.8, 0.9])
def test_the_upper_bound_fails_no_more_often_than_stated(complex_, fraction):
    """Spectra as near to the worst case as Chebyshev makes them, with a failure of one in ten allowed."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(80, 80)) + (1j * rng.normal(size=(80, 80)) if complex_ else 0)
    basis, _ = np.linalg.qr(basis)
    values = np.concatenate([[1.0], fraction * np.cos(np.linspace(0, np.pi / 2, 79))])
    W = (basis * values) @ basis.conj().T
    bounds = [spectral_norm_bounds(W, gap=0.3, failure=0.1, seed=seed) for seed in range(400)]
    failures = sum(bound.upper < 1 - 1e-12 for bound in bounds)
    assert {bound.failure for bound in bounds} == {0.1}
    assert all(bound.lower <= 1 + 1e-12 for bound in bounds)
    assert failures <= 40 + 3 * 6  # three standard deviations
    if not complex_ and fraction == 0.5:
        assert failures > 0  # the bound is not empty: what it allows happens


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_a_matrix_of_few_directions(scale):
    """The Krylov space ends after three steps: the bounds hold, and nothing is divided by zero."""
    rng = np.random.default_rng(0)
    W = scale * rng.normal(size=(90, 3)) @ rng.normal(size=(3, 80))
    bounds = spectral_norm_bounds(W)
    exact = scale * np.linalg.norm(W / scale, 2)
    assert bounds.lower == pytest.approx(exact, rel=1e-12)
    assert exact <= bounds.upper * (1 + 1e-12)
    identity = spectral_norm_bounds(scale * np.eye(80))
    assert identity.lower == pytest.approx(scale, rel=1e-12)
    assert identity.lower <= identity.upper <= 1.05 * identity.lower


def test_zero():
    bounds = spectral_norm_bounds(np.zeros((90, 80)))
    assert (bounds.lower, bounds.upper, bounds.failure, bounds.frobenius) == (0, 0, 0, 0)


def test_a_matrix_of_34_gigabytes():
    """2^16 rows and columns; of a Kronecker product the norm is known."""
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=(4, 4)) for _ in range(8)]
    mpo = tnmpo.MPO([factor.reshape(1, 4, 4, 1) for factor in factors])
    exact = math.prod(np.linalg.norm(factor, 2) for factor in factors)
    bounds = spectral_norm_bounds(mpo, gap=0.5)
    assert bounds.lower <= exact * (1 + 1e-10)
    assert exact <= bounds.upper <= 1.5 * bounds.lower
    assert bounds.frobenius == pytest.approx(math.prod(np.linalg.norm(factor) for factor in factors), rel=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_precisions_may_differ(backend):
    """A float32 matrix and an MPO in bfloat16: the residual is taken in double precision."""
    kinds = ("float64", "float32") if backend == "numpy" else ("float32", "bfloat16")
    W = np.random.default_rng(0).normal(size=(12, 18))
    mpo = mpo_decompose(array_of(W, backend, kinds[1]), ((2, 3, 2), (3, 3, 2)), 4)
    W = array_of(W, backend, kinds[0])
    difference = numpy_of(W) - dense_of(mpo.cores)
    assert spectral_norm_bounds(W, mpo).lower == pytest.approx(np.linalg.norm(difference, 2), rel=1e-12)
    assert output_error(W, mpo, np.ones(18)) == pytest.approx(norm(difference), rel=1e-12)


def test_arrays_that_want_a_gradient():
    W = torch.randn(12, 18, dtype=torch.float64, requires_grad=True)
    mpo = mpo_decompose(W, ((2, 3, 2), (3, 3, 2)), 4)
    exact = np.linalg.norm(numpy_of(W) - dense_of(mpo.cores), 2)
    assert spectral_norm_bounds(W, mpo).upper == pytest.approx(exact, rel=1e-10)
    assert output_error(W, mpo, torch.ones(18)) == pytest.approx(mpo.truncation.error, rel=1e-10)


@settings(max_examples=20)
@given(mpos(backends=("torch",)))
def test_nothing_is_written_into(mpo):
    before = [core.clone() for core in mpo.cores]
    spectral_norm_bounds(mpo, 2 * mpo)
    output_error(mpo, 2 * mpo, np.ones(mpo.matrix_shape[1]))
    assert all(torch.equal(one, other) for one, other in zip(mpo.cores, before, strict=True))
    assert backend_of(mpo.cores[0]) == "torch"


# ---------------------------------------------------------------------------------------------------------------------
# How near the best
# ---------------------------------------------------------------------------------------------------------------------


@given(cases(min_order=2, max_order=4, dtypes=("float64", "complex128"), backends=("numpy", "torch")), st.data())
def test_quasi_optimality(case, data):
    record = mpo_decompose(case.W, case.shape, data.draw(exact_ranks(case.shape))).truncation
    constant = record.quasi_optimality_constant
    assert constant == math.sqrt(case.shape.order - 1)
    if record.error > 1e-10 * norm(case.dense):
        assert 1 - 1e-9 <= record.quasi_optimality <= record.upper_bound / record.lower_bound * (1 + 1e-9)
        assert record.upper_bound / record.lower_bound <= constant * (1 + 1e-9)


def test_quasi_optimality_where_nothing_is_known():
    W = np.random.default_rng(0).normal(size=(12, 18))
    C = np.cov(np.random.default_rng(1).normal(size=(18, 40)))
    measured = mpo_decompose(W, ((2, 3, 2), (3, 3, 2)), 3, weight=Weight(cols=C)).truncation
    assert measured.quasi_optimality == math.inf
    assert replace(measured, error=0.0).quasi_optimality == 1
    assert mpo_decompose(W, ((12,), (18,)), 1).truncation.quasi_optimality_constant == 1


@pytest.mark.parametrize(
    ("covariance", "error", "message"),
    [
        (
            np.ones(12),
            ValueError,
            "covariance: has size 12, the matrix (12, 18) has 18 cols; pass a metric",
        ),
        (np.ones((2, 3)), ValueError, "covariance: got shape (2, 3), expected a vector"),
        (-np.eye(18), ValueError, "covariance: got a matrix with the negative eigenvalue -1"),
        ([1.0] * 18, TypeError, "covariance: got list, expected a numpy array"),
        (np.eye(18) * (1 + 0j), TypeError, "covariance: is complex, the matrix float64; convert the matrix"),
        (
            (np.ones(3), np.ones(6)),
            ValueError,
            "covariance: has site metrics of sizes (3, 6), the sites have (3, 3, 2)",
        ),
    ],
)
def test_errors_name_the_covariance(covariance, error, message):
    mpo = mpo_decompose(np.random.default_rng(0).normal(size=(12, 18)), ((2, 3, 2), (3, 3, 2)), 3)
    with pytest.raises(error) as caught:
        output_error(mpo, mpo, covariance)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "complex64", "complex128"]),
    backend=st.sampled_from(["numpy", "torch"]),
    decade=st.integers(-150, 150),
    size=st.integers(1, 12),
    block=st.integers(1, 13),
)
def test_a_norm_is_the_root_of_all_squares_at_any_scale(dtype, backend, decade, size, block):
    rng = np.random.default_rng(size)
    scale = 10.0**decade if dtype in ("float64", "complex128") else 1.0
    values = ((rng.normal(size=(2, size)) + 1j * rng.normal(size=(2, size))) * scale).astype("complex128")
    array = (values if dtype.startswith("complex") else values.real).astype(dtype)
    tensor = torch.from_numpy(array) if backend == "torch" else array
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "_BLOCK", block)
        assert _backend.frobenius_norm(tensor) == pytest.approx(
            float(np.linalg.norm(array.astype("complex128") / scale)) * scale, rel=1e-12
        )


def test_the_norm_of_nothing_but_zeros():
    assert _backend.frobenius_norm(np.zeros((2, 3))) == 0.0
