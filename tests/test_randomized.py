"""The laws of the randomised decomposition, against the dense matrix and against the exact sweep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    SLACK,
    Case,
    array_of,
    backend_of,
    cases,
    dense_of,
    dense_spectra,
    dtype_of,
    exact_ranks,
    norm,
    numpy_of,
    unfolding,
)

from tnmpo import (
    TT,
    MaxRank,
    MPOShape,
    Sketch,
    is_canonical,
    mpo_decompose,
    randomized_decompose,
    randomized_tt_decompose,
)

MANY = settings(max_examples=150)
SHAPE = MPOShape((4, 4, 4), (4, 4, 4))

sketches = st.builds(Sketch, st.integers(0, 4), st.integers(0, 3))
seeds = st.integers(0, 9)


def side(cores, right=False):
    """The vectors that the cores on one side of a bond span, as columns."""
    total = np.ones((1, 1))
    for core in map(numpy_of, cores[::-1] if right else cores):
        pieces = core.reshape(core.shape[0], -1, core.shape[3])
        total = np.einsum("asb,xb->sxa" if right else "asb,xa->xsb", pieces, total)
        total = total.reshape(-1, total.shape[2])
    return total


def assert_schmidt_form(mpo):
    """On every bond, the basis on the far side of the center is the one of the singular vectors."""
    dense = dense_of(mpo.cores)
    largest = np.max(np.abs(dense), initial=0.0) or 1.0
    slack = SLACK[dtype_of(mpo.cores[0])]
    for bond in range(1, mpo.order):
        left = bond <= mpo.center
        basis = side(mpo.cores[:bond]) if left else side(mpo.cores[bond:], right=True)
        assert np.allclose(basis.conj().T @ basis, np.eye(basis.shape[1]), atol=10 * slack)
        matrix = unfolding(dense / largest, mpo.shape, bond)
        gram = matrix @ matrix.conj().T if left else matrix.T @ matrix.conj()
        values = np.linalg.svd(matrix, compute_uv=False)[: mpo.ranks[bond]] ** 2
        assert np.allclose(basis.conj().T @ gram @ basis, np.diag(values), atol=slack * norm(matrix) ** 2)


def assert_certified(mpo, case, ranks):
    """The record is true: exact error, and bounds that hold for every MPO of these ranks and for this one."""
    record = mpo.truncation
    assert mpo.ranks == record.ranks == (1, *ranks, 1)
    error = norm(case.dense - dense_of(mpo.cores))
    assert abs(record.error - error) <= case.slack
    total = norm(case.dense)
    assert record.relative_error == pytest.approx(record.error / total if total else 0.0, abs=SLACK[case.dtype])
    assert record.lower_bound - case.slack <= error <= record.upper_bound + case.slack
    spectra = dense_spectra(case.dense, case.shape)
    tails = [norm(spectrum[rank:]) for spectrum, rank in zip(spectra, ranks, strict=True)]
    assert record.lower_bound <= max(tails, default=0.0) + case.slack  # so no MPO of these ranks is closer
    for seen, spectrum in zip(record.spectra, spectra, strict=True):
        assert seen.dtype == np.float64
        assert np.all(seen <= spectrum[: len(seen)] + case.slack)
    return error, max(tails, default=0.0)


@MANY
@given(cases(), sketches, seeds, st.data())
def test_the_error_is_exact_and_the_bounds_hold(case: Case, sketch, seed, data):
    ranks = data.draw(exact_ranks(case.shape))
    center = data.draw(st.none() | st.integers(0, case.shape.order - 1))
    mpo = randomized_decompose(case.W, case.shape, ranks, seed=seed, sketch=sketch, center=center)
    assert mpo.center == (case.shape.order // 2 if center is None else center)
    error, optimum = assert_certified(mpo, case, ranks)
    assert error >= optimum - case.slack
    assert is_canonical(mpo)
    assert_schmidt_form(mpo)
    assert {backend_of(core) for core in mpo.cores} == {case.backend}
    assert {dtype_of(core) for core in mpo.cores} == {case.dtype}
    assert {core.device for core in mpo.cores} == {case.W.device}


def low_rank(rng, shape, rank, dtype="float64"):
    """A matrix whose every bond has at most this rank: a random train."""
    ranks = [1, *(rank,) * (shape.order - 1), 1]
    cores = [rng.normal(size=(ranks[k], shape.rows[k], shape.cols[k], ranks[k + 1])) for k in range(shape.order)]
    if dtype.startswith("complex"):
        cores = [core * np.exp(2j * np.pi * rng.random(core.shape)) for core in cores]
    return dense_of(cores)


@given(
    st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    st.sampled_from([b for b in BACKENDS if b != "jax"]),
    st.integers(0, 99),
    st.sampled_from([0, 2]),
)
@settings(max_examples=25)
def test_a_matrix_of_these_ranks_is_found_again(dtype, backend, seed, iterations):
    shape = MPOShape((3, 4, 2, 5), (4, 2, 4, 3))
    dense = low_rank(np.random.default_rng(seed), shape, 3, dtype)
    mpo = randomized_decompose(array_of(dense, backend, dtype), shape, 3, seed=seed, sketch=Sketch(2, iterations))
    assert mpo.ranks == (1, 3, 3, 3, 1)
    assert norm(dense - dense_of(mpo.cores)) <= SLACK[dtype] * norm(dense)
    assert mpo.truncation.error <= SLACK[dtype] * norm(dense)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_an_error_far_below_the_norm_is_right(scale):
    """Not the root of a difference of squares, which would end at 1e-8 of the norm."""
    rng = np.random.default_rng(0)
    dense = scale * (low_rank(rng, SHAPE, 3) + 1e-11 * rng.normal(size=(64, 64)))
    mpo = randomized_decompose(dense, SHAPE, 3, sketch=Sketch(4, 1))
    error = norm(dense - dense_of(mpo.cores))
    assert error < 1e-9 * norm(dense)
    assert mpo.truncation.error == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("shape", [SHAPE, MPOShape((8, 8), (8, 8)), MPOShape.low_rank((64, 64), bond_core=True)])
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_it_comes_near_the_exact_sweep(shape, decay):
    """Over twenty seeds, for singular values ``k^-decay``: within 4 % on average without, 1 % with iterations."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(2))
    dense = (u * np.arange(1, 65.0) ** -decay) @ v
    exact = mpo_decompose(dense, shape, 8).truncation.error
    means = []
    for iterations in (0, 2):
        errors = [
            randomized_decompose(dense, shape, 8, seed=seed, sketch=Sketch(5, iterations)).truncation.error / exact
            for seed in range(20)
        ]
        means.append(np.mean(errors))
        assert max(errors) <= (1.35 if iterations == 0 else 1.1)
    assert means[1] <= means[0]
    assert means[1] <= 1.03


def test_a_spectrum_of_known_tail_is_within_the_theorem():
    """Halko et al., theorem 10.5, on average over seeds: order 2, no iterations."""
    rng = np.random.default_rng(2)
    values = 0.9 ** np.arange(80.0)
    u, v = (np.linalg.qr(rng.normal(size=(80, 80)))[0] for _ in range(2))
    dense, rank, over = (u * values) @ v, 6, 6
    shape = MPOShape.low_rank((80, 80))
    errors = [
        randomized_decompose(dense, shape, rank, seed=seed, sketch=Sketch(over, 0)).truncation.error
        for seed in range(40)
    ]
    assert np.mean(errors) <= math.sqrt(1 + rank / (over - 1)) * norm(values[rank:])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_a_seed_gives_the_same_result_on_every_backend(dtype):
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(64, 64)) * (1 if dtype == "float64" else np.exp(1j * rng.random((64, 64))))
    found = {}
    for backend in BACKENDS:
        W = array_of(dense, backend, dtype)
        once, again, other = (randomized_decompose(W, SHAPE, 6, seed=s, sketch=Sketch(4)) for s in (1, 1, 2))
        assert all(np.array_equal(numpy_of(a), numpy_of(b)) for a, b in zip(once.cores, again.cores, strict=True))
        assert norm(dense_of(once.cores) - dense_of(other.cores)) > 1e-6
        found[backend] = once
    for mpo in found.values():
        assert norm(dense_of(mpo.cores) - dense_of(found["numpy"].cores)) <= 1e-10 * norm(dense)
        assert mpo.truncation.error == pytest.approx(found["numpy"].truncation.error, rel=1e-12)


def test_ranks_that_leave_nothing_to_sketch_are_decomposed_exactly():
    dense = np.random.default_rng(4).normal(size=(64, 64))
    for rank in (64, (16, 16), MaxRank(10)):
        mpo, exact = randomized_decompose(dense, SHAPE, rank), mpo_decompose(dense, SHAPE, rank)
        assert mpo.truncation.error == exact.truncation.error
        assert mpo.ranks == exact.ranks
    assert randomized_decompose(dense, MPOShape((64,), (64,)), 3).truncation.error == 0


def test_ranks_are_asked_for_as_in_mpo_decompose():
    dense = np.random.default_rng(5).normal(size=(256, 256))
    shape = MPOShape((4, 4, 4, 4), (4, 4, 4, 4))
    for rank in (5, np.int64(20), (7, 9, 5), [1, 7, 9, 5, 1], MaxRank(21, multiple_of=4)):
        assert randomized_decompose(dense, shape, rank).ranks == mpo_decompose(dense, shape, rank).ranks
    assert randomized_decompose(dense, None, 5).ranks == mpo_decompose(dense, None, 5).ranks


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float16"), ("torch", "float16"), ("torch", "bfloat16")])
def test_half_precision_counts_its_rounding(backend, dtype):
    W = array_of(np.random.default_rng(6).normal(size=(64, 64)), backend, dtype)
    mpo = randomized_decompose(W, SHAPE, 6, sketch=Sketch(4))
    assert {dtype_of(core) for core in mpo.cores} == {dtype}
    assert mpo.truncation.error == pytest.approx(norm(numpy_of(W) - dense_of(mpo.cores)), rel=1e-5)
    assert is_canonical(mpo)
    assert mpo.truncation.relative_error == pytest.approx(mpo.truncation.error / norm(numpy_of(W)), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors, and derivatives
# ---------------------------------------------------------------------------------------------------------------------


@MANY
@given(cases(), sketches, seeds, st.data())
def test_of_a_tensor_the_error_is_exact_too(case: Case, sketch, seed, data):
    """A TT is the MPO of the tensor as one long column."""
    ranks, sizes = data.draw(exact_ranks(case.shape)), case.shape.site_sizes
    center = data.draw(st.none() | st.integers(0, case.shape.order - 1))
    tt = randomized_tt_decompose(case.W.reshape(sizes), ranks, seed=seed, sketch=sketch, center=center)
    assert (type(tt), tt.shape, tt.ranks) == (TT, sizes, (1, *ranks, 1))
    assert is_canonical(tt)
    assert {dtype_of(core) for core in tt.cores} == {case.dtype}
    assert {backend_of(core) for core in tt.cores} == {case.backend}
    column = MPOShape(sizes, (1,) * len(sizes))
    found = dense_of([core.reshape((core.shape[0], -1, 1, core.shape[2])) for core in tt.cores])
    dense = case.dense.reshape(-1, 1)
    assert abs(tt.truncation.error - norm(dense - found)) <= case.slack
    mpo = randomized_decompose(case.W.reshape((-1, 1)), column, ranks, seed=seed, sketch=sketch, center=center)
    assert abs(tt.truncation.error - mpo.truncation.error) <= case.slack
    assert tt.truncation.lower_bound <= tt.truncation.error + case.slack


# jax compiles every step anew for every dtype, shape and center
CUBE, PAIR = (MPOShape((3, 3, 3), (3, 3, 3)), (4, 3)), (MPOShape((4, 2), (2, 4)), (3,))
DIFFERENTIATED = [("torch", dtype, *CUBE, center) for dtype in ("float64", "complex128") for center in (0, 2)]
DIFFERENTIATED += [("jax", "complex128", *PAIR, 1)] * ("jax" in BACKENDS)


@pytest.mark.parametrize(("backend", "dtype", "shape", "ranks", "center"), DIFFERENTIATED)
def test_derivatives_pass(backend, dtype, shape, ranks, center):
    """Along random directions, against central differences of the numpy values."""
    rng = np.random.default_rng(7)
    sketch = Sketch(2, 1)

    def gaussian():
        real = rng.normal(size=shape.matrix_shape)
        return real if dtype == "float64" else real + 1j * rng.normal(size=shape.matrix_shape)

    dense, weights = gaussian(), gaussian()

    def inner(W):
        mpo = randomized_decompose(W, shape, ranks, sketch=sketch, center=center)
        return (like_of(weights.conj(), W) * mpo.to_matrix()).sum().real

    def like_of(values, W):
        return values if isinstance(W, np.ndarray) else array_of(values, backend, dtype)

    W = array_of(dense, backend, dtype)
    if backend == "torch":
        (gradient,) = torch.autograd.grad(inner(W.requires_grad_()), W)
        gradient = numpy_of(gradient)
    else:
        import jax

        gradient = numpy_of(jax.grad(inner)(W)).conj()  # jax's are the conjugates
    for _ in range(4):
        direction = gaussian()
        change = (inner(dense + 1e-6 * direction) - inner(dense - 1e-6 * direction)) / 2e-6
        assert np.sum(gradient.conj() * direction).real == pytest.approx(change, rel=1e-6)
