"""The laws of decomposing and cutting, each against the dense matrix, on every backend that is installed."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import threading
from itertools import pairwise

import numpy as np
import pytest
import tensorly as tl
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import (
    BACKENDS,
    DTYPES,
    HALF_SLACK,
    SLACK,
    Case,
    WeightedCase,
    array_of,
    backend_of,
    cases,
    dense_of,
    dense_root,
    dense_spectra,
    dtype_of,
    exact_ranks,
    feasible,
    metrics,
    mpos,
    norm,
    numpy_of,
    unfolding,
    weighted,
    weighted_cases,
)

import tnmpo
from tnmpo import (
    MPO,
    EntropyFraction,
    MaxRank,
    MPOShape,
    ParameterBudget,
    Tolerance,
    Weight,
    bond_spectra,
    canonicalize,
    entanglement_entropy,
    is_canonical,
    mpo_decompose,
    truncate,
)

# Weights come in many kinds, and each combination of two must have its turn.
MANY = settings(max_examples=200)
REAL = {"float32": "float32", "complex64": "float32", "float64": "float64", "complex128": "float64"}


def assert_close(actual, expected, slack):
    assert np.max(np.abs(numpy_of(actual) - numpy_of(expected)), initial=0.0) <= slack


def assert_isometries(mpo: MPO, center: int):
    slack = SLACK[dtype_of(mpo.cores[0])]
    for site, core in enumerate(map(numpy_of, mpo.cores)):
        left = core.reshape(-1, core.shape[3])
        right = core.reshape(core.shape[0], -1).T
        for unfolded in ([left] if site < center else []) + ([right] if site > center else []):
            assert_close(unfolded.conj().T @ unfolded, np.eye(unfolded.shape[1]), slack)


def assert_schmidt_basis(mpo: MPO):
    """On every bond the basis on the far side of the center is the one of the singular vectors."""
    dense = dense_of(mpo.cores)
    largest = np.max(np.abs(dense), initial=0.0)
    if largest == 0:
        return
    dense, shape = dense / largest, mpo.shape
    slack = SLACK[dtype_of(mpo.cores[0])] * norm(dense) ** 2
    for bond in range(1, mpo.order):
        matrix = unfolding(dense, shape, bond)
        values = np.linalg.svd(matrix, compute_uv=False)[: mpo.ranks[bond]] ** 2
        if bond <= mpo.center:
            basis = side_basis(mpo.cores[:bond])
            gram = basis.conj().T @ (matrix @ matrix.conj().T) @ basis
        else:
            basis = side_basis([core_reversed(core) for core in mpo.cores[: bond - 1 : -1]], reverse=True)
            gram = basis.conj().T @ (matrix.T @ matrix.conj()) @ basis
        assert_close(gram, np.diag(values), slack)


def core_reversed(core):
    return np.transpose(numpy_of(core), (3, 1, 2, 0))


def side_basis(cores, reverse=False):
    """The vectors that the cores on one side of a bond span, as columns."""
    total = np.ones((1, 1))
    for core in map(numpy_of, cores):
        pieces = core.reshape(core.shape[0], -1, core.shape[3])
        order = "asb,xa->sxb" if reverse else "asb,xa->xsb"
        total = np.einsum(order, pieces, total).reshape(-1, core.shape[3])
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Decomposing without a cut, and moving the gauge
# ---------------------------------------------------------------------------------------------------------------------


@given(cases(), st.data())
def test_a_decomposition_is_the_matrix(case: Case, data):
    center = data.draw(st.none() | st.integers(0, case.shape.order - 1))
    mpo = mpo_decompose(case.W, case.shape, center=center)
    assert mpo.shape == case.shape
    assert mpo.ranks == case.shape.full_ranks
    assert mpo.truncation is None
    assert mpo.center == (case.shape.order // 2 if center is None else center)
    assert_close(mpo.to_matrix(), case.W, case.slack)
    assert_close(dense_of(mpo.cores), case.W, case.slack)
    assert_isometries(mpo, mpo.center)
    assert is_canonical(mpo)
    assert_schmidt_basis(mpo)


@given(cases(), st.data())
def test_results_live_where_the_input_lives(case: Case, data):
    for rank in (None, data.draw(exact_ranks(case.shape))):
        mpo = mpo_decompose(case.W, case.shape, rank)
        arrays = [*mpo.cores, mpo.to_matrix(), *canonicalize(mpo, 0).cores, *truncate(mpo, 2).cores]
        assert {backend_of(array) for array in arrays} == {case.backend}
        assert {dtype_of(array) for array in arrays} == {case.dtype}
        assert {array.device for array in arrays} == {case.W.device}
        spectra = [*bond_spectra(mpo), *entanglement_entropy(mpo)]
        assert {dtype_of(values) for values in spectra} <= {REAL[case.dtype]}
        if case.backend == "torch":
            assert all(isinstance(values, torch.Tensor) for values in spectra)


@given(mpos(), st.data())
def test_gauge_moves_keep_the_matrix(mpo: MPO, data):
    dense = dense_of(mpo.cores)
    slack = SLACK[dtype_of(mpo.cores[0])] * norm_of_cores(mpo)
    for center in range(mpo.order):
        moved = canonicalize(mpo, center)
        assert moved.center == center
        assert moved.shape == mpo.shape
        assert_close(moved.to_matrix(), dense, slack)
        assert is_canonical(moved)
        assert is_canonical(moved, center)
        assert_isometries(moved, center)
        assert all(r <= full for r, full in zip(moved.ranks, mpo.shape.full_ranks, strict=True))
        assert all(r <= before for r, before in zip(moved.ranks, mpo.ranks, strict=True))
    assert canonicalize(mpo).center == mpo.order // 2


def norm_of_cores(mpo: MPO) -> float:
    """What rounding in a train of no gauge scales with: cores in no gauge may cancel."""
    return math.prod(norm(numpy_of(core)) for core in mpo.cores)


@given(mpos(min_order=2))
def test_a_train_in_no_gauge_is_not_canonical(mpo: MPO):
    assert not is_canonical(mpo)  # its center is not known
    scaled = MPO([3 * core for core in canonicalize(mpo).cores], center=mpo.order // 2)
    assert not is_canonical(scaled)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_no_isometry_is_not_taken_for_one(dtype):
    """Not in 16 bits either, where a tenth is far more than rounding."""
    mpo = mpo_decompose(array_of(np.random.default_rng(0).normal(size=(16, 16)), "torch", dtype), ((4, 4), (4, 4)), 4)
    assert is_canonical(mpo)
    assert not is_canonical(MPO([1.1 * mpo.cores[0], mpo.cores[1]], center=1))
    assert not is_canonical(MPO([torch.ones_like(core) / 2 for core in mpo.cores], center=1))


EXTREME = {"float64": 300, "complex128": 300, "float32": 36, "complex64": 36}


@st.composite
def unbalanced(draw):
    """A train of norm around 1 whose cores have opposite extreme scales, and the same with plain cores."""
    plain = draw(mpos(min_order=2, max_order=5))
    dtype = dtype_of(plain.cores[0])
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shapes = [core.shape for core in plain.cores]
    cores = [rng.normal(size=shape) / math.sqrt(shape[0] * shape[3]) for shape in shapes]
    if dtype.startswith("complex"):
        cores = [core * np.exp(2j * np.pi * rng.random(core.shape)) for core in cores]
    decades = draw(st.lists(st.integers(-EXTREME[dtype], EXTREME[dtype]), min_size=len(cores), max_size=len(cores)))
    rest = sum(decades)
    for k, decade in enumerate(decades):  # so that the product is in range again
        step = max(-EXTREME[dtype] - decade, min(EXTREME[dtype] - decade, -rest))
        decades[k], rest = decade + step, rest + step
    backend = backend_of(plain.cores[0])
    return tuple(
        MPO([array_of(core * 10.0**decade, backend, dtype) for core, decade in zip(cores, of_cores, strict=True)])
        for of_cores in (decades, [0] * len(cores))
    )


@given(unbalanced(), st.data())
def test_every_verb_takes_cores_of_opposite_extreme_scales(pair, data):
    mpo, plain = pair
    dtype, dense = dtype_of(mpo.cores[0]), dense_of(plain.cores)
    slack = 100 * SLACK[dtype] * norm_of_cores(plain)
    assert_close(mpo.to_matrix(), dense, slack)
    assert_close(mpo @ array_of(np.eye(dense.shape[1]), backend_of(mpo.cores[0]), dtype), dense, slack)
    assert float(tnmpo.norm(mpo)) == pytest.approx(norm(dense), abs=slack)
    center = data.draw(st.integers(0, mpo.order - 1))
    moved = canonicalize(mpo, center)
    assert is_canonical(moved)
    assert_close(dense_of(moved.cores), dense, slack)
    for spectrum, expected in zip(bond_spectra(mpo), dense_spectra(dense, plain.shape), strict=True):
        kept = min(len(spectrum), len(expected))
        assert_close(spectrum[:kept], expected[:kept], slack)
    cut = truncate(moved if data.draw(st.booleans()) else mpo, data.draw(st.integers(1, 3)))
    assert cut.truncation.error == pytest.approx(norm(dense - dense_of(cut.cores)), abs=slack)
    assert is_canonical(cut)
    assert_close((3 * mpo / 3).to_matrix(), dense, slack)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("sign", "word"), [(1, "overflows"), (-1, "underflows")])
def test_a_norm_beyond_the_dtype_is_refused_by_name(dtype, sign, word):
    scale = 10.0 ** (sign * EXTREME[dtype])
    for backend in BACKENDS:
        mpo = MPO([array_of(np.full((1, 2, 2, 1), scale), backend, dtype)] * 2)
        way = "down" if sign > 0 else "up"
        size = f"1e[+-]{2 * EXTREME[dtype] + (1 if sign > 0 else -1)}"
        for verb in (canonicalize, bond_spectra, lambda train: truncate(train, 1)):
            with pytest.raises(
                ValueError,
                match=f"^train: got a norm of about {size}, which {word} {dtype}; scale its cores {way} first$",
            ):
                verb(mpo)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "jax"])  # whose arrays cannot be written into
def test_results_of_order_one_are_no_views(backend):
    W = array_of(np.ones((4, 4)), backend, "float64")
    tt = tnmpo.TT([W.reshape(1, 16, 1)])
    results = [
        mpo_decompose(W, ((4,), (4,))),
        mpo_decompose(W, ((4,), (4,)), 1),
        tnmpo.tt_decompose(W.reshape(16)),
        tnmpo.tt_decompose(W.reshape(16), 1),
        canonicalize(tt),
        truncate(tt, 1),
    ]
    W *= 5
    for result in results:
        assert numpy_of(result.cores[0]).max() == 1


def test_results_of_order_one_are_plain_arrays():
    W = np.ones((4, 4), ">f8")
    W.flags.writeable = False
    tt = tnmpo.TT([W.reshape(1, 16, 1)])
    for result in (
        mpo_decompose(W, ((4,), (4,))),
        tnmpo.tt_decompose(W.reshape(16)),
        canonicalize(tt),
        truncate(tt, 1),
    ):
        assert result.cores[0].flags.writeable
        assert result.cores[0].dtype.isnative


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_more_sites_than_numpy_has_axes(backend):
    W = array_of(np.random.default_rng(0).normal(size=(4, 6)), backend, "float64")
    mpo = mpo_decompose(W, ((2, 2) + (1,) * 40, (1,) * 40 + (2, 3)))
    assert mpo.order == 42
    assert_close(mpo.to_matrix(), W, 1e-13)
    assert_close(
        truncate(mpo, 1).to_matrix(), truncate(mpo_decompose(W, ((2, 2, 1, 1), (1, 1, 2, 3))), 1).to_matrix(), 1e-12
    )


@given(mpos(), st.data())
def test_the_matrix_of_any_train(mpo: MPO, data):
    assert_close(mpo.to_matrix(), dense_of(mpo.cores), SLACK[dtype_of(mpo.cores[0])] * norm_of_cores(mpo))


@given(mpos())
def test_the_tensorly_bridge_is_exact_and_copies_nothing(mpo: MPO):
    bridge = mpo.to_tensorly()
    back = MPO.from_tensorly(bridge)
    assert all(a is b for a, b in zip(back.cores, mpo.cores, strict=True))
    assert tuple(bridge.rank) == mpo.ranks
    assert tuple(bridge.shape) == (*mpo.shape.rows, *mpo.shape.cols)
    assert mpo.n_parameters == sum(math.prod(core.shape) for core in mpo.cores)


# ---------------------------------------------------------------------------------------------------------------------
# Spectra and entropies
# ---------------------------------------------------------------------------------------------------------------------


@given(cases())
def test_bond_spectra_are_the_singular_values_of_the_unfoldings(case: Case):
    spectra = [numpy_of(s) for s in bond_spectra(mpo_decompose(case.W, case.shape))]
    assert len(spectra) == case.shape.order - 1
    for actual, expected in zip(spectra, dense_spectra(case.dense, case.shape), strict=True):
        assert_close(actual, expected, case.slack)
        assert abs(norm(actual) - norm(case.dense)) <= case.slack
        assert np.all(np.diff(actual) <= 0)
        assert np.all(actual >= 0)


@given(mpos())
def test_bond_spectra_do_not_depend_on_the_gauge(mpo: MPO):
    dense, slack = dense_of(mpo.cores), SLACK[dtype_of(mpo.cores[0])] * norm_of_cores(mpo)
    for state in (mpo, canonicalize(mpo, 0), canonicalize(mpo, mpo.order - 1)):
        for actual, expected in zip(bond_spectra(state), dense_spectra(dense, mpo.shape), strict=True):
            actual = numpy_of(actual)
            assert_close(actual, expected[: len(actual)], slack)
            assert norm(expected[len(actual) :]) <= slack


@given(
    cases(dtypes=("float64", "complex128", "float32")), st.sampled_from([0.0, 0.5, 1, 1.0001, 2, 7.5, 1e4, math.inf])
)
def test_entropies_lie_between_zero_and_ln_r(case: Case, alpha):
    mpo = mpo_decompose(case.W, case.shape)
    entropies = entanglement_entropy(mpo, alpha)
    assert len(entropies) == case.shape.order - 1
    for entropy, rank in zip(entropies, mpo.ranks[1:-1], strict=True):
        assert 0 <= float(entropy) <= math.log(rank) * (1 + 1e-6)


@given(
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=12),
    st.sampled_from(BACKENDS),
    st.sampled_from([1, 1e-150, 1e150]),
)
def test_entropies_are_those_of_the_squared_normalised_values(spectrum, backend, scale):
    values = np.sort(np.array(spectrum))[::-1]
    p = values**2 / np.sum(values**2)
    array = array_of(values * scale, backend, "float64")
    assert float(entanglement_entropy(array)) == pytest.approx(-np.sum(p * np.log(p)), abs=1e-12)
    assert float(entanglement_entropy(array, 2)) == pytest.approx(-np.log(np.sum(p**2)), abs=1e-12)
    assert float(entanglement_entropy(array, 0.5)) == pytest.approx(2 * np.log(np.sum(np.sqrt(p))), abs=1e-12)
    assert float(entanglement_entropy(array, 0)) == pytest.approx(np.log(len(p)), abs=1e-12)
    assert float(entanglement_entropy(array, math.inf)) == pytest.approx(-np.log(np.max(p)), abs=1e-12)
    family = [float(entanglement_entropy(array, alpha)) for alpha in (0, 0.3, 1 - 1e-9, 1, 1 + 1e-7, 3, 1e5, math.inf)]
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(family))
    assert family[2] == pytest.approx(family[3], abs=1e-7)
    assert family[3] == pytest.approx(family[4], abs=1e-6)
    assert family[-2] == pytest.approx(family[-1], abs=1e-3)


def test_entropies_of_product_and_empty_states():
    for backend in BACKENDS:
        for spectrum in ([1.0, 0.0, 0.0], [3.0], [0.0, 0.0]):
            entropy = float(entanglement_entropy(array_of(np.array(spectrum), backend, "float32")))
            assert entropy == 0
            assert math.copysign(1, entropy) == 1
    assert entanglement_entropy(mpo_decompose(np.eye(4), ((4,), (4,)))) == []
    assert bond_spectra(mpo_decompose(np.eye(4), ((4,), (4,)))) == []


# ---------------------------------------------------------------------------------------------------------------------
# Cutting
# ---------------------------------------------------------------------------------------------------------------------


@given(cases(), st.data())
def test_a_cut_has_its_ranks_its_exact_error_and_its_bounds(case: Case, data):
    ranks = data.draw(exact_ranks(case.shape))
    mpo = mpo_decompose(case.W, case.shape, ranks)
    record = mpo.truncation
    assert mpo.ranks == record.ranks == (1, *ranks, 1)
    error = norm(case.dense - dense_of(mpo.cores))
    assert abs(record.error - error) <= case.slack
    total = norm(case.dense)
    assert record.relative_error == pytest.approx(record.error / total if total else 0.0)
    spectra = dense_spectra(case.dense, case.shape)
    for actual, expected in zip(record.spectra, spectra, strict=True):
        assert actual.dtype == np.float64
        assert_close(actual, expected, case.slack)
    local = [norm(spectrum[rank:]) for spectrum, rank in zip(spectra, ranks, strict=True)]
    assert abs(record.lower_bound - max(local, default=0.0)) <= case.slack
    assert abs(record.upper_bound - norm(np.array(local))) <= case.slack
    assert record.lower_bound - case.slack <= error <= record.upper_bound + case.slack
    # No matrix of these ranks is closer than the lower bound, so this is the distance to the best one.
    assert error <= math.sqrt(max(case.shape.order - 1, 0)) * record.lower_bound + case.slack
    assert_isometries(mpo, mpo.center)
    assert_schmidt_basis(mpo)


@given(cases(), st.data())
def test_raising_a_rank_never_raises_the_bounds(case: Case, data):
    ranks = data.draw(exact_ranks(case.shape))
    bounds = mpo_decompose(case.W, case.shape, ranks).truncation
    for bond in range(len(ranks)):
        raised = (*ranks[:bond], ranks[bond] + 1, *ranks[bond + 1 :])
        if feasible((1, *raised, 1), case.shape.site_sizes):
            higher = mpo_decompose(case.W, case.shape, raised).truncation
            assert higher.upper_bound <= bounds.upper_bound
            assert higher.lower_bound <= bounds.lower_bound


@given(mpos(), st.integers(1, 5), st.data())
def test_truncating_a_train_in_any_gauge(mpo: MPO, cap, data):
    dense, slack = dense_of(mpo.cores), SLACK[dtype_of(mpo.cores[0])] * norm_of_cores(mpo)
    center = data.draw(st.none() | st.integers(0, mpo.order - 1))
    state = mpo if center is None else canonicalize(mpo, center)
    cut = truncate(state, cap)
    assert cut.center == (mpo.order // 2 if center is None else center)
    assert all(r <= min(cap, full) for r, full in zip(cut.ranks, mpo.shape.full_ranks, strict=True))
    assert abs(cut.truncation.error - norm(dense - dense_of(cut.cores))) <= slack
    assert cut.truncation.error <= cut.truncation.upper_bound + slack
    assert_isometries(cut, cut.center)


@given(cases(min_order=2, dtypes=("float64", "complex128")), st.data())
def test_truncate_after_decompose_is_decompose_with_a_rank(case: Case, data):
    ranks = data.draw(exact_ranks(case.shape))
    at_once, later = mpo_decompose(case.W, case.shape, ranks), truncate(mpo_decompose(case.W, case.shape), ranks)
    assert abs(at_once.truncation.error - later.truncation.error) <= case.slack
    second = truncate(later, ranks)  # nothing is left to cut, and the record counts from the cut matrix
    assert second.truncation.error == 0
    assert_close(second.to_matrix(), later.to_matrix(), case.slack)


@given(cases(dtypes=("float64", "complex128")), st.data())
def test_backends_agree(case: Case, data):
    ranks = data.draw(exact_ranks(case.shape))
    other = array_of(case.dense, "torch" if case.backend == "numpy" else "numpy", case.dtype)
    one, two = (mpo_decompose(W, case.shape, ranks).truncation for W in (case.W, other))
    assert abs(one.error - two.error) <= case.slack
    for a, b in zip(one.spectra, two.spectra, strict=True):
        assert_close(a, b, case.slack)


# ---------------------------------------------------------------------------------------------------------------------
# What rank asks for
# ---------------------------------------------------------------------------------------------------------------------


@given(cases(), st.integers(1, 400))
def test_an_int_caps_every_bond(case: Case, cap):
    expected = tuple(min(cap, full) for full in case.shape.full_ranks)
    assert mpo_decompose(case.W, case.shape, cap).ranks == expected
    assert mpo_decompose(case.W, case.shape, MaxRank(cap)).ranks == expected
    assert mpo_decompose(case.W, case.shape, np.int64(cap)).ranks == expected


@given(cases(), st.floats(0, 1.2))
def test_a_tolerance_is_kept(case: Case, tolerance):
    mpo = mpo_decompose(case.W, case.shape, Tolerance(tolerance))
    total = norm(case.dense)
    # singles are rounded on the way; the squares of values below 1e-154 of the largest vanish
    rounding = case.slack if case.dtype in ("float32", "complex64") else 1e-150 * total
    assert mpo.truncation.upper_bound <= tolerance * total * (1 + 1e-12) + rounding
    assert norm(case.dense - dense_of(mpo.cores)) <= tolerance * total + case.slack


@given(cases(dtypes=("float64",)), st.floats(0.001, 0.9))
def test_a_tolerance_is_not_wasted(case: Case, tolerance):
    ranks = mpo_decompose(case.W, case.shape, Tolerance(tolerance)).ranks
    spectra = dense_spectra(case.dense, case.shape)
    for bond in range(1, case.shape.order):
        lower = (*ranks[:bond], ranks[bond] - 1, *ranks[bond + 1 :])
        if lower[bond] and feasible(lower, case.shape.site_sizes):
            upper = norm(np.array([norm(s[r:]) for s, r in zip(spectra, lower[1:-1], strict=True)]))
            assert upper >= tolerance * norm(case.dense) * (1 - 1e-9)


@given(cases(), st.floats(0, 1.3))
def test_a_budget_is_kept_and_not_wasted(case: Case, share):
    sizes = case.shape.site_sizes
    least, most = sum(sizes), case.shape.n_parameters(case.shape.full_ranks)
    budget = least + round(share * (most - least))
    mpo = mpo_decompose(case.W, case.shape, ParameterBudget(budget))
    assert mpo.n_parameters <= budget
    for bond in range(1, case.shape.order):
        raised = (*mpo.ranks[:bond], mpo.ranks[bond] + 1, *mpo.ranks[bond + 1 :])
        if feasible(raised, sizes):
            assert case.shape.n_parameters(raised) > budget


@given(cases(), st.floats(0.01, 1.2))
def test_a_fraction_is_respected_exactly(case: Case, fraction):
    dense = math.prod(case.shape.matrix_shape)
    assume(fraction * dense >= sum(case.shape.site_sizes))
    mpo = mpo_decompose(case.W, case.shape, fraction)
    assert mpo.n_parameters <= fraction * dense * (1 + 1e-12)
    assert mpo.ranks == mpo_decompose(case.W, case.shape, ParameterBudget(math.floor(fraction * dense + 1e-9))).ranks


def test_same_is_the_fraction_one_and_cuts_an_interleaved_matrix():
    W, shape = np.random.default_rng(0).normal(size=(64, 64)), ((4, 4, 4), (4, 4, 4))
    same = mpo_decompose(W, shape, "same")
    assert same.ranks == mpo_decompose(W, shape, 1.0).ranks == mpo_decompose(W, shape, np.float32(1)).ranks
    assert same.n_parameters <= 64 * 64 < mpo_decompose(W, shape).n_parameters


@given(cases(dtypes=("float64", "complex128")), st.floats(0.05, 1))
def test_an_entropy_fraction_is_kept_and_minimal(case: Case, fraction):
    ranks = mpo_decompose(case.W, case.shape, EntropyFraction(fraction)).ranks
    wanted = [1]
    for spectrum in dense_spectra(case.dense, case.shape):
        p = (spectrum / (norm(spectrum) or 1)) ** 2
        kept = np.cumsum(-p * np.log(np.where(p > 0, p, 1)))
        # from both sides, as rounding may decide a tie
        low, high = (int(np.searchsorted(kept, fraction * kept[-1] * (1 + sign * 1e-6))) + 1 for sign in (-1, 1))
        # and an entropy of the order of the rounding says nothing
        wanted.append((low, min(high, len(p))) if kept[-1] > 1e-9 else (1, len(p)))
    wanted.append(1)
    for bond in range(1, case.shape.order):
        low, high = wanted[bond]
        assert ranks[bond] >= low
        lower = (*ranks[:bond], ranks[bond] - 1, *ranks[bond + 1 :])
        # above its own need a bond is only where a neighbour needs it
        assert ranks[bond] <= high or not feasible(lower, case.shape.site_sizes)


# ---------------------------------------------------------------------------------------------------------------------
# Half precision
# ---------------------------------------------------------------------------------------------------------------------


HALF_PRECISION = [
    ("numpy", "float16"),
    ("torch", "float16"),
    ("torch", "bfloat16"),
    ("jax", "float16"),
    ("jax", "bfloat16"),
]


@settings(max_examples=15)
@pytest.mark.parametrize(("backend", "dtype"), [kind for kind in HALF_PRECISION if kind[0] in BACKENDS])
@given(data=st.data())
def test_half_precision(backend, dtype, data):
    most = 2 if backend == "jax" else 6  # sites: jax compiles anew for every rank
    case = data.draw(cases(max_order=most, dtypes=("float32",), backends=(backend,), scales=False))
    W = array_of(case.dense, backend, dtype)
    dense, slack = numpy_of(W), HALF_SLACK[dtype] * norm(numpy_of(W))
    full = mpo_decompose(W, case.shape)
    assert {dtype_of(core) for core in full.cores} == {dtype}
    assert_close(dense_of(full.cores), dense, slack)
    assert is_canonical(full)
    ranks = data.draw(exact_ranks(case.shape))
    for source, cut in ((W, mpo_decompose(W, case.shape, ranks)), (full, truncate(full, ranks))):
        assert {dtype_of(core) for core in cut.cores} == {dtype}
        assert {dtype_of(spectrum) for spectrum in bond_spectra(cut)} <= {"float32"}
        # exact, the rounding of the cores to 16 bits included
        before = dense_of(source.cores) if isinstance(source, MPO) else numpy_of(source)
        error = norm(before - dense_of(cut.cores))
        assert cut.truncation.error == pytest.approx(error, rel=1e-4, abs=2e-6 * norm(dense))


# ---------------------------------------------------------------------------------------------------------------------
# Weighted norms
# ---------------------------------------------------------------------------------------------------------------------


def weighted_slack(case: WeightedCase, result: np.ndarray) -> float:
    """Rounding happens in the matrix, and the metrics amplify it by at most their norms."""
    amplification = math.prod(
        float(np.linalg.norm(dense_root(metric, size), 2))
        for metric, size in zip((case.weight.rows, case.weight.cols), case.shape.matrix_shape, strict=True)
    )
    return SLACK[case.dtype] * amplification * (norm(case.dense) + norm(result))


@MANY
@given(weighted_cases(), st.data())
def test_a_weighted_cut_is_the_optimum_and_its_error_is_exact(case: WeightedCase, data):
    full = min(case.shape.matrix_shape)
    rank = data.draw(st.integers(1, full))
    mpo = mpo_decompose(case.W, case.shape, rank, weight=case.weight)
    result, record = dense_of(mpo.cores), mpo.truncation
    slack = weighted_slack(case, result)
    spectrum = np.linalg.svd(weighted(case.dense, case.weight), compute_uv=False)
    error = norm(weighted(case.dense - result, case.weight))
    assert mpo.ranks == record.ranks == (1, *[rank] * (case.shape.order - 1), 1)
    assert abs(error - norm(spectrum[rank:])) <= slack
    assert abs(record.error - error) <= slack
    assert record.lower_bound == record.error
    assert record.upper_bound == pytest.approx(record.error * math.sqrt(case.shape.order - 1))
    for values in record.spectra:
        assert_close(values, spectrum, slack)
    plain = dense_of(mpo_decompose(case.W, case.shape, rank).cores)
    assert error <= norm(weighted(case.dense - plain, case.weight)) + slack + weighted_slack(case, plain)
    assert {dtype_of(core) for core in mpo.cores} == {case.dtype}
    assert {backend_of(core) for core in mpo.cores} == {case.backend}
    assert_isometries(mpo, mpo.center)
    assert_schmidt_basis(mpo)


@MANY
@given(weighted_cases(), st.data())
def test_truncating_in_a_weighted_norm_is_decomposing_in_it(case: WeightedCase, data):
    rank = data.draw(st.integers(1, min(case.shape.matrix_shape)))
    at_once = mpo_decompose(case.W, case.shape, rank, weight=case.weight)
    later = truncate(mpo_decompose(case.W, case.shape), rank, weight=case.weight)
    slack = weighted_slack(case, dense_of(later.cores)) + weighted_slack(case, dense_of(at_once.cores))
    assert at_once.ranks == later.ranks
    assert abs(at_once.truncation.error - later.truncation.error) <= slack
    assert abs(later.truncation.error - norm(weighted(case.dense - dense_of(later.cores), case.weight))) <= slack
    for a, b in zip(at_once.truncation.spectra, later.truncation.spectra, strict=True):
        assert_close(a, b, slack)


@given(weighted_cases())
def test_without_a_cut_a_weight_changes_nothing(case: WeightedCase):
    mpo = mpo_decompose(case.W, case.shape, weight=case.weight)
    assert mpo.truncation is None
    assert_close(mpo.to_matrix(), case.W, case.slack)


@MANY
@given(weighted_cases(), st.floats(0, 1))
def test_policies_hold_in_the_weighted_norm(case: WeightedCase, share):
    mpo = mpo_decompose(case.W, case.shape, Tolerance(share), weight=case.weight)
    result = dense_of(mpo.cores)
    bound = share * norm(weighted(case.dense, case.weight))
    assert norm(weighted(case.dense - result, case.weight)) <= bound + weighted_slack(case, result)
    least = sum(case.shape.site_sizes)
    budget = least + round(share * (case.shape.n_parameters(case.shape.full_ranks) - least))
    mpo = mpo_decompose(case.W, case.shape, ParameterBudget(budget), weight=case.weight)
    raised = (1, *[mpo.ranks[1] + 1] * (case.shape.order - 1), 1)
    assert mpo.n_parameters <= budget
    assert raised[1] > min(case.shape.matrix_shape) or case.shape.n_parameters(raised) > budget


@given(weighted_cases())
def test_the_weighted_norm_is_a_trace(case: WeightedCase):
    assert case.weight.norm(case.W) == pytest.approx(norm(weighted(case.dense, case.weight)), rel=1e-6, abs=1e-9)
    identity = Weight(rows=np.ones(case.dense.shape[0]), cols=np.eye(case.dense.shape[1]))
    assert identity.norm(case.W) == pytest.approx(norm(case.dense))
    assert Weight().norm(case.W) == pytest.approx(norm(case.dense))


@given(cases(min_order=2, max_order=2, dtypes=("float64", "complex128"), scales=False), st.data())
def test_a_flat_weight_is_no_weight(case: Case, data):
    shape = MPOShape.low_rank(case.shape.matrix_shape)
    rank = data.draw(st.integers(1, min(shape.matrix_shape)))
    plain = mpo_decompose(case.W, shape, rank)
    flat = mpo_decompose(case.W, shape, rank, weight=Weight(rows=np.full(shape.matrix_shape[0], 4.0)))
    assert flat.truncation.error == pytest.approx(2 * plain.truncation.error, abs=2 * case.slack)
    assert flat.truncation.relative_error == pytest.approx(plain.truncation.relative_error, abs=1e-12)


@given(st.sampled_from(["float16", "bfloat16"]), st.data())
def test_half_precision_in_a_weighted_norm(dtype, data):
    W = array_of(np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(9, 7)), "torch", dtype)
    weight = Weight(cols=data.draw(metrics(7, "torch")))
    mpo = mpo_decompose(W, MPOShape.low_rank((9, 7)), 3, weight=weight)
    exact = norm(weighted(numpy_of(W) - dense_of(mpo.cores), weight))
    assert mpo.truncation.error == pytest.approx(exact, rel=1e-4, abs=1e-6 * weight.norm(W))


# ---------------------------------------------------------------------------------------------------------------------
# The surroundings: gradients, global state, memory layouts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [((2, 3, 2), (3, 2, 2)), ((12,), (12,)), ((12, 1), (1, 12)), ((4, 3), (2, 6))])
def test_gradients_flow_through_a_decomposition(dtype, shape):
    W = array_of(np.random.default_rng(0).normal(size=(12, 12)), "torch", dtype).requires_grad_()
    mpo_decompose(W, shape).to_matrix().abs().square().sum().backward()
    # the tolerance is that of differentiating through the gauge, whose eigenvalue gaps cancel only in the sum
    assert_close(W.grad, 2 * W, 1e-2 if dtype in ("float32", "complex64") else 1e-8)


def test_gradients_flow_through_a_cut_to_what_is_kept():
    W = torch.tensor(np.random.default_rng(0).normal(size=(12, 12)), requires_grad=True)
    cut = mpo_decompose(W, MPOShape.low_rank((12, 12)), rank=3)
    cut.to_matrix().square().sum().backward()  # the derivative of the sum of the kept s^2
    assert_close(W.grad, 2 * cut.to_matrix(), 1e-8)
    W = torch.tensor(np.random.default_rng(0).normal(size=(12, 12)), requires_grad=True)
    sum(entanglement_entropy(mpo_decompose(W, ((3, 4), (4, 3))))).backward()
    assert torch.isfinite(W.grad).all()
    assert abs(np.sum(numpy_of(W.grad) * numpy_of(W))) < 1e-8  # an entropy does not see the scale


def test_tensorlys_global_backend_is_neither_read_nor_written():
    W, shape = np.random.default_rng(0).normal(size=(12, 12)), ((2, 3, 2), (3, 2, 2))
    errors = {}

    def work(name):
        with tl.backend_context(name, local_threadsafe=True):
            for kind in BACKENDS:
                array = array_of(W, kind, "float64")
                mpo = mpo_decompose(array, shape, rank=3)
                assert backend_of(truncate(canonicalize(mpo, 0), 2).to_matrix()) == kind
                errors[name, kind] = mpo.truncation.error, float(sum(entanglement_entropy(mpo)))
                assert tl.get_backend() == name

    before = tl.get_backend()
    names = ["numpy", "pytorch", *(name for name in BACKENDS if name not in ("numpy", "torch"))]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tl.get_backend() == before
    assert set(errors) == set(itertools.product(names, BACKENDS))
    for name, kind in errors:
        assert errors[name, kind] == errors["numpy", kind]


def layouts(W):
    """The same numbers in memory in other ways."""
    padded = np.zeros((24, 36))
    padded[::2, ::3] = W
    read_only = W.copy()
    read_only.flags.writeable = False
    yield from (np.asfortranarray(W), padded[::2, ::3], W[::-1][::-1], read_only, W.astype(">f8"))
    tensor = torch.tensor(W)
    yield from (tensor.T.contiguous().T, torch.tensor(padded)[::2, ::3], torch.nn.Parameter(tensor))


def test_the_layout_in_memory_does_not_matter():
    W, shape = np.random.default_rng(0).normal(size=(12, 12)), [[2, 3, 2], [3, 2, 2]]
    expected = mpo_decompose(W, shape, [3, 4])
    weight = Weight(rows=np.arange(1.0, 13))
    low_rank = MPOShape.low_rank((12, 12))
    for array in layouts(W):
        before = numpy_of(array).copy()
        mpo = mpo_decompose(array, shape, [3, 4])
        assert mpo.truncation.error == pytest.approx(expected.truncation.error, rel=1e-12)
        assert_close(mpo.to_matrix(), expected.to_matrix(), 1e-12)
        assert mpo_decompose(array, low_rank, 3, weight=weight).truncation.error == pytest.approx(
            mpo_decompose(W, low_rank, 3, weight=weight).truncation.error, rel=1e-12
        )
        assert np.array_equal(numpy_of(array), before)  # the input is left as it was


EXTREME_SHAPES = [
    ((1, 1), None),
    ((1, 1), ((1,), (1,))),
    ((1, 30), None),
    ((31, 1), None),
    ((13, 17), ((13, 1, 1), (1, 1, 17))),
    ((13, 17), ((1, 13), (17, 1))),
    ((16, 16), ((2, 2, 2, 2, 1, 1, 1, 1), (1, 1, 1, 1, 2, 2, 2, 2))),
    ((256, 256), ((2,) * 8, (2,) * 8)),
]


@pytest.mark.parametrize(
    ("backend", "matrix_shape", "shape"),
    # jax compiles seconds for eight sites
    [(backend, *case) for backend in BACKENDS for case in EXTREME_SHAPES[: 6 if backend == "jax" else None]],
)
def test_extreme_shapes(backend, matrix_shape, shape):
    W = array_of(np.random.default_rng(0).normal(size=matrix_shape), backend, "float64")
    mpo = mpo_decompose(W, shape)
    assert_close(mpo.to_matrix(), W, 1e-12)
    assert mpo_decompose(W, shape, 10**9).ranks == mpo.ranks
    for cut in (mpo_decompose(W, shape, 2), truncate(mpo, 2)):
        assert max(cut.ranks) <= 2
        assert cut.truncation.error == pytest.approx(norm(numpy_of(W) - dense_of(cut.cores)), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float64", 1e-310),
        ("float64", 1e300),
        ("complex128", 1e-310),
        ("complex128", 1e300),
        ("float32", 1e-40),
        ("float32", 1e34),
        ("complex64", 1e-40),
        ("complex64", 1e34),
    ],
)
def test_the_ends_of_a_dtypes_range(backend, dtype, scale):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(24, 33)) + (1j * rng.normal(size=(24, 33)) if dtype.startswith("complex") else 0)
    if backend == "jax" and scale < 1:  # its compiler takes denormal numbers for zeros: the smallest normal ones then
        scale *= 1e4
    W = array_of(dense * scale, backend, dtype)
    mpo = mpo_decompose(W, ((2, 2, 2, 3), (3, 11, 1, 1)), 3)
    error = norm(numpy_of(W) - dense_of(mpo.cores))
    assert mpo.truncation.error == pytest.approx(error, rel=1e-3, abs=0)  # the smallest numbers have few digits
    assert 0.3 < mpo.truncation.relative_error < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_dependent_columns(dtype):
    """In single precision complex, torch's QR of such matrices has returned NaN."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        column = rng.normal(size=(20, 1)) + (1j * rng.normal(size=(20, 1)) if dtype.startswith("complex") else 0)
        W = array_of(1e-9 * column * (rng.random(6) < 0.6), "torch", dtype)
        for shape in (((20, 1), (1, 6)), ((2, 10), (3, 2)), ((5, 2, 2), (1, 3, 2))):
            assert_close(mpo_decompose(W, shape).to_matrix(), W, SLACK[dtype] * norm(numpy_of(W)))
            assert mpo_decompose(W, shape, 1).truncation.relative_error <= SLACK[dtype] * 10 or shape[0] != (20, 1)
            assert_close(canonicalize(mpo_decompose(W, shape), 0).to_matrix(), W, SLACK[dtype] * norm(numpy_of(W)))


def test_rows_of_no_weight_are_regressed_on_the_others():
    """Weighted on both sides, what has no weight follows the rows that have some, as it does with one side weighted."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 8))
    counts = rng.integers(1, 9, size=30).astype(float)
    counts[10:20] = 0
    for weight in (Weight(rows=counts), Weight(rows=counts, cols=np.cov(rng.normal(size=(8, 40))))):
        assert np.allclose(mpo_decompose(W, MPOShape.low_rank(W.shape), 3, weight=weight).to_matrix(), W)


def test_the_record_and_the_value_print_and_travel():
    mpo = mpo_decompose(torch.ones(12, 12), ((2, 3, 2), (3, 2, 2)), 2)
    assert repr(mpo).startswith("MPO: 12 x 12 matrix (pytorch, float32)")
    assert "bonds  1-2-2-1, center 1" in repr(mpo)
    assert "relative error" in repr(mpo)
    assert "spectra" not in repr(mpo.truncation)
    for twin in (copy.deepcopy(mpo), pickle.loads(pickle.dumps(mpo))):
        assert twin.ranks == mpo.ranks
        assert_close(twin.to_matrix(), mpo.to_matrix(), 0)
    assert tnmpo.MPO([np.ones((1, 2, 2, 1))]).center is None
