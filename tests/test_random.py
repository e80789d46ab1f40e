"""Random trains have the ranks, the norm and the spectra that were asked for, the same on every backend."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    DTYPES,
    SLACK,
    backend_of,
    dense_of,
    dense_spectra,
    dtype_of,
    exact_ranks,
    norm,
    numpy_of,
    shapes,
)

from tnmpo import MPOShape, is_canonical, random

SHAPE = ((2, 3, 2), (3, 2, 2))


def normalised(spectrum):
    return np.asarray(spectrum) / norm(np.asarray(spectrum))


@given(shapes(max_size=600), st.data(), st.sampled_from(DTYPES), st.sampled_from([1.0, 1e-15, 1e15, 3]))
def test_ranks_and_norm_are_those_asked_for(shape, data, dtype, total):
    ranks = data.draw(exact_ranks(shape))
    mpo = random.mpo(shape, ranks, norm=total, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    assert mpo.ranks == (1, *ranks, 1)
    assert mpo.shape == shape
    assert {dtype_of(core) for core in mpo.cores} == {dtype}
    assert norm(dense_of(mpo.cores)) == pytest.approx(total, rel=max(1e-12, 10 * SLACK[dtype]))
    # the scale is shared: no core is out of range
    sizes = [norm(numpy_of(core)) for core in mpo.cores]
    assert max(sizes) <= 1e3 * max(total ** (1 / mpo.order), 1)


@given(shapes(max_size=600), st.floats(1e-150, 1e150))
def test_any_norm_of_doubles(shape, total):
    assert norm(dense_of(random.mpo(shape, 2, norm=total, seed=0).cores)) == pytest.approx(total, rel=1e-12)


def test_a_rank_means_what_it_means_elsewhere():
    shape = MPOShape((4, 4, 4), (4, 4, 4))
    assert random.mpo(shape, seed=0).ranks == (1, 16, 16, 1)
    assert random.mpo(shape, 5, seed=0).ranks == (1, 5, 5, 1)
    assert random.mpo(shape, 100, seed=0).ranks == (1, 16, 16, 1)
    assert random.mpo(shape, 0.1, seed=0).n_parameters <= 0.1 * 64 * 64
    assert random.tt((4, 5, 6), (2, 3), seed=0).ranks == (1, 2, 3, 1)
    assert random.tt((4,), seed=0).ranks == (1, 1)


def test_without_a_norm_the_entries_have_variance_one():
    squares = [
        np.mean(np.abs(random.tt((20, 20, 20), 4, norm=None, dtype=dtype, seed=seed).to_tensor()) ** 2)
        for seed in range(40)
        for dtype in ("float64", "complex128")
    ]
    assert np.mean(squares) == pytest.approx(1, abs=0.2)


def test_no_basis_of_a_site_is_preferred():
    """The mean of ``W W^T`` over many seeds is a multiple of the identity."""
    draws = [random.mpo(((3,), (2,)), seed=seed).to_matrix() for seed in range(4000)]
    assert np.allclose(sum(W @ W.T for W in draws) / len(draws), np.eye(3) / 3, atol=0.02)
    assert np.allclose(sum(draws) / len(draws), 0, atol=0.03)


# ---------------------------------------------------------------------------------------------------------------------
# Given spectra
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(shapes(min_order=2, max_size=600), st.data(), st.sampled_from([0.1, 0.5, 0.8]), st.sampled_from(DTYPES))
def test_a_decay_is_every_bonds_spectrum(shape, data, decay, dtype):
    # one rank throughout: bonds of the same spectrum are always possible
    rank = data.draw(st.integers(1, min(shape.full_ranks[1:-1])))
    mpo = random.mpo(shape, [rank] * (shape.order - 1), spectra=decay, norm=7.0, dtype=dtype, seed=1)
    wanted = 7 * normalised(decay ** np.arange(rank))
    for spectrum in dense_spectra(dense_of(mpo.cores), shape):
        assert np.allclose(spectrum[:rank], wanted, rtol=0, atol=max(7e-10 / 7, 7 * SLACK[dtype]))
        assert norm(spectrum[rank:]) <= 7 * SLACK[dtype]
    assert mpo.center == 0
    assert is_canonical(mpo)


@pytest.mark.parametrize(
    ("sizes", "spectra"),
    [
        ((4, 4, 4), [[3.0, 2, 1], [3, 2, 1]]),
        ((4, 4, 4, 4), [[1.0, 1], [2, 1, 0.5, 0.1], [1.0, 0.5]]),
        ((2, 2, 2, 2), [[1.0, 0.9], [1.0, 0.9, 0.8, 0.7], [1.0, 0.9]]),
        ((5, 1, 5), [[1.0, 0.5, 0.1], [1.0, 0.5, 0.1]]),
        ((3, 2, 4), [[1.0, 1, 1], [1.0, 1, 1, 1]]),  # the slow flat one
        ((6, 6), [[1.0, 1e-3, 1e-6, 1e-9]]),
        ((7,), []),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_spectra_of_any_form_are_met(sizes, spectra, dtype):
    tt = random.tt(sizes, spectra=[np.array(s) for s in spectra], norm=2.0, seed=5, dtype=dtype)
    dense = dense_of(tt.cores)
    assert tt.ranks == (1, *map(len, spectra), 1)
    assert norm(dense) == pytest.approx(2)
    for actual, wanted in zip(dense_spectra(dense, sizes), spectra, strict=True):
        assert np.allclose(actual[: len(wanted)], 2 * normalised(wanted), rtol=0, atol=1e-12)
        assert norm(actual[len(wanted) :]) < 1e-12


def test_spectra_as_a_function_and_in_their_own_norm():
    power = random.tt((8, 8, 8), 6, spectra=lambda k: 1 / (1 + k), norm=1.0, seed=0)
    assert np.allclose(
        dense_spectra(power.to_tensor(), (8, 8, 8))[1][:6], normalised(1 / np.arange(1.0, 7)), atol=1e-12
    )
    own = random.tt((8, 8, 8), spectra=[[3.0, 4.0][::-1], [5.0]], norm=None, seed=0)
    assert np.allclose(dense_spectra(own.to_tensor(), (8, 8, 8))[0][:2], [4, 3])


def test_flat_spectra_at_full_bonds_are_isometries():
    tt = random.tt((2, 2, 2, 2), spectra=1.0, norm=2.0, seed=0)
    unfolded = tt.to_tensor().reshape(4, 4)
    assert np.allclose(unfolded @ unfolded.T, np.eye(4), atol=1e-12)


def test_impossible_spectra_are_refused():
    """Weight that a small site cannot carry over is seen at once, the rest by not settling."""
    with pytest.raises(
        ValueError, match=r"spectra: got 1 of the squared norm in the first 1 of bond 1, expected no more"
    ):
        random.tt((4, 2, 8), spectra=[[1.0], [1.0, 1.0, 1.0]], seed=0)
    with pytest.raises(ValueError, match=r"first 1 of bond 2, .* of the first 2 of bond 1, for a site of size 2"):
        random.tt((4, 2, 4), spectra=[[1.0, 1.0, 1.0, 1.0], [1.0, 0.1]], seed=0)
    # the quiver with two arrows has no stable representation of dimensions (3, 5)
    with pytest.raises(ValueError, match=r"spectra: got some for bonds 1 and 2 that do not settle in 2000 sweeps"):
        random.tt((3, 2, 5), spectra=[np.ones(3), np.ones(5)], seed=0)


# ---------------------------------------------------------------------------------------------------------------------
# Seeds, backends, arguments
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "bfloat16"])
def test_the_numbers_are_the_same_on_every_backend(backend, dtype):
    if (backend, dtype) == ("numpy", "bfloat16"):
        with pytest.raises(ValueError, match="dtype: got 'bfloat16' on numpy, which has none; use torch or jax"):
            random.mpo(SHAPE, 3, seed=0, dtype=dtype)
        return
    reference = random.mpo(SHAPE, 3, seed=11, dtype="complex128" if dtype.startswith("complex") else "float64")
    mpo = random.mpo(SHAPE, 3, seed=11, dtype=dtype, backend=backend)
    eps = {"float16": 1e-3, "bfloat16": 1e-2}.get(dtype, 1e-6 if dtype in ("float32", "complex64") else 0)
    for core, expected in zip(mpo.cores, reference.cores, strict=True):
        assert (backend_of(core), dtype_of(core)) == (backend, dtype)
        assert np.allclose(numpy_of(core), expected, rtol=eps, atol=eps)


def test_a_seed_is_an_int_or_a_generator_and_no_global_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (random.mpo(SHAPE, 3, seed=4) for _ in range(2))
    assert np.array_equal(one.to_matrix(), two.to_matrix())
    assert np.array_equal(random.mpo(SHAPE, 3, seed=np.random.default_rng(4)).to_matrix(), one.to_matrix())
    generator = np.random.default_rng(4)
    assert not np.array_equal(
        random.mpo(SHAPE, 3, seed=generator).to_matrix(), random.mpo(SHAPE, 3, seed=generator).to_matrix()
    )
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_numpy_needs_no_other_backend():
    code = "import sys; from tnmpo import random; random.tt((2, 2), seed=0); print({'torch', 'jax'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "error", "fragment"),
    [
        ({"seed": None}, TypeError, "seed: got None, expected an int >= 0 or a numpy Generator"),
        ({"seed": -1}, TypeError, "seed: got -1, expected an int >= 0"),
        ({"seed": True}, TypeError, "seed: got True, expected an int >= 0"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5, expected an int >= 0"),
        ({"norm": -1.0}, ValueError, "norm: got -1.0, expected a number > 0 within the range of float64"),
        ({"norm": 0}, ValueError, "norm: got 0, expected a number > 0"),
        ({"norm": math.nan}, ValueError, "norm: got nan, expected a number > 0"),
        (
            {"norm": 1e39, "dtype": "float32"},
            ValueError,
            "norm: got 1e+39, expected a number > 0 within the range of float32",
        ),
        (
            {"norm": 1e5, "dtype": "float16"},
            ValueError,
            "norm: got 100000.0, expected a number > 0 within the range of float16",
        ),
        ({"norm": "1"}, TypeError, "norm: got '1', expected a number > 0, or None"),
        ({"norm": True}, TypeError, "norm: got True, expected a number > 0, or None"),
        ({"rank": 0}, ValueError, "rank: got 0, expected a positive integer"),
        ({"rank": (7, 3)}, ValueError, "rank: got 7 for bond 1, whose full bond is 6"),
        ({"dtype": "int64"}, ValueError, "dtype: got 'int64', expected one of bfloat16, complex128"),
        (
            {"backend": "matlab"},
            ValueError,
            "backend: got 'matlab', expected one of cupy, jax, numpy, tensorflow, torch",
        ),
        ({"spectra": 1.5}, ValueError, "spectra: got the decay 1.5, expected a number in (0, 1]"),
        ({"spectra": 0.0}, ValueError, "spectra: got the decay 0.0, expected a number in (0, 1]"),
        ({"spectra": True}, ValueError, "spectra: got the decay True, expected a number in (0, 1]"),
        ({"spectra": 0.5, "norm": None}, TypeError, "norm: got None beside a decay, expected a number"),
        (
            {"spectra": [np.ones(2)]},
            ValueError,
            "spectra: got [array([1., 1.])], expected a number, a function or one array",
        ),
        (
            {"spectra": "flat"},
            ValueError,
            "spectra: got 'flat', expected a number, a function or one array for each of 2 bonds",
        ),
        (
            {"spectra": [[1.0], [1.0]], "rank": 1},
            TypeError,
            "rank: got 1 beside arrays of spectra, whose lengths are the ranks",
        ),
        (
            {"spectra": [[1.0, 0.0], [1.0]]},
            ValueError,
            "spectra: got [1.0, 0.0], expected positive descending numbers; for",
        ),
        ({"spectra": [[1.0, 2.0], [1.0]]}, ValueError, "spectra: got [1.0, 2.0], expected positive descending numbers"),
        ({"spectra": [[[1.0]], [1.0]]}, ValueError, "spectra: got [[1.0]], expected positive descending numbers"),
        (
            {"spectra": lambda k: k, "rank": 2},
            ValueError,
            "spectra: got array([0., 1.]), expected 2 positive descending",
        ),
        (
            {"spectra": [[1.0], [2.0]], "norm": None},
            ValueError,
            "spectra: got norms from 1 to 2, expected the same on all bonds",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, fragment):
    with pytest.raises(error) as caught:
        random.mpo(SHAPE, **{"seed": 0, **arguments})
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_shapes_are_refused():
    with pytest.raises(TypeError, match=r"shape: got None, expected \(rows, columns\)"):
        random.mpo(None, seed=0)
    with pytest.raises(ValueError, match="shape: got 0, expected a positive integer"):
        random.tt((3, 0), seed=0)
