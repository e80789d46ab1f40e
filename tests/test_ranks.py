"""Rank policies and the allotment, on spectra written by hand: integers in, integers out."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases, dense_spectra, exact_ranks, feasible

from tnmpo import (
    EntropyFraction,
    MaxRank,
    MPOShape,
    ParameterBudget,
    Tolerance,
    allot_ranks,
    mpo_decompose,
    truncate,
)
from tnmpo._allot import RankChoice


def n_parameters(sizes, ranks):
    return sum(left * size * right for left, size, right in zip(ranks, sizes, ranks[1:], strict=False))


@pytest.mark.parametrize(
    ("policy", "spectra", "sizes", "ranks"),
    [
        (MaxRank(3), [[1, 1], [1] * 8, [1] * 3], (2, 4, 4, 3), (1, 2, 3, 3, 1)),
        (MaxRank(99), [[1, 1], [1] * 6], (2, 5, 6), (1, 2, 6, 1)),
        (MaxRank(30, multiple_of=8), [[1] * 12, [1] * 192], (12, 16, 192), (1, 12, 24, 1)),
        (MaxRank(8, multiple_of=8), [[1] * 12], (12, 12), (1, 8, 1)),
        # 0.5^2 + 0.1^2 of 1.26 is within (0.46 ||W||)^2, 0.5^2 more than that is not
        (Tolerance(0.46), [[1.0, 0.5, 0.1]], (3, 3), (1, 1, 1)),
        (Tolerance(0.45), [[1.0, 0.5, 0.1]], (3, 3), (1, 2, 1)),
        (Tolerance(0.08), [[1.0, 0.5, 0.1]], (3, 3), (1, 3, 1)),
        # the edge is at sqrt(0.25 / 1.25) = 0.44721
        (Tolerance(0.4472), [[1.0, 0.5]], (3, 3), (1, 2, 1)),
        (Tolerance(0.4473), [[1.0, 0.5]], (3, 3), (1, 1, 1)),
        (Tolerance(0), [[1.0, 0.5, 0.0]], (3, 3), (1, 2, 1)),
        (Tolerance(1e300), [[1.0, 0.5, 0.1]], (3, 3), (1, 1, 1)),
        (Tolerance(1e-300), [[1e300, 1e200, 0]], (3, 3), (1, 2, 1)),
        (Tolerance(0.5), [[0.0, 0.0]], (3, 3), (1, 1, 1)),
        # two bonds, the same tail: the dearer core shrinks first
        (Tolerance(0.1), [[1.0, 0.09], [1.0, 0.09]], (2, 30, 2), (1, 1, 2, 1)),
        # 4 + 8 + 4 = 16 entries at ranks 2, 2; 2 + 4 + 4 = 10 with one bond cut to 1; 6 at rank one
        (ParameterBudget(20), [[3.0, 2.0], [3.0, 2.0]], (2, 2, 2), (1, 2, 2, 1)),
        (ParameterBudget(8), [[3.0, 2.0], [3.0, 2.0]], (2, 2, 2), (1, 1, 1, 1)),
        (ParameterBudget(6), [[3.0, 2.0], [3.0, 2.0]], (2, 2, 2), (1, 1, 1, 1)),
        (ParameterBudget(10**9), [[3.0, 2.0]], (2, 2), (1, 2, 1)),
        # the bond core of U M V: its two bonds rise and fall together; r (10 + r + 10) parameters
        (ParameterBudget(68), [[4.0, 3, 2, 1], [4.0, 3, 2, 1]], (10, 1, 10), (1, 2, 2, 1)),
        (ParameterBudget(69), [[4.0, 3, 2, 1], [4.0, 3, 2, 1]], (10, 1, 10), (1, 3, 3, 1)),
        # four equal weights carry ln(2)/2 each
        (EntropyFraction(0.5), [[1.0] * 4], (4, 4), (1, 2, 1)),
        (EntropyFraction(0.51), [[1.0] * 4], (4, 4), (1, 3, 1)),
        (EntropyFraction(1.0), [[1.0] * 4], (4, 4), (1, 4, 1)),
        (EntropyFraction(1.0), [[1e200, 1e200, 0.0]], (4, 4), (1, 2, 1)),
        (EntropyFraction(0.9), [[5.0, 0.0, 0.0]], (4, 4), (1, 1, 1)),
        (EntropyFraction(0.9), [[0.0, 0.0]], (4, 4), (1, 1, 1)),
        # p = 0.9 carries less than half of the entropy, so bond 2 needs three and lifts bond 1 from one to two
        (EntropyFraction(0.5), [[1, 1], np.sqrt([0.9, 0.034, 0.033, 0.033])], (2, 2, 4), (1, 2, 3, 1)),
    ],
)
def test_policies(policy, spectra, sizes, ranks):
    assert policy.choose([np.array(s, dtype=float) for s in spectra], sizes) == ranks


spectra_of_length = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.floats(0, 10), min_size=n, max_size=n).map(lambda s: np.array(sorted(s, reverse=True)))
)


@given(st.lists(st.tuples(spectra_of_length, st.integers(6, 9), st.integers(6, 9)), min_size=1, max_size=3), st.data())
def test_two_site_trains_against_brute_force(trains, data):
    """The greedy choice loses at most what one direction weighs per parameter times what is left over."""
    spectra, sizes = [[s] for s, _, _ in trains], [(a, b) for _, a, b in trains]
    costs = [a + b for a, b in sizes]
    budget = data.draw(st.integers(sum(costs), sum(costs) * 6))
    chosen = [ranks[1] for ranks in allot_ranks(spectra, sizes, budget)]
    assert sum(r * cost for r, cost in zip(chosen, costs, strict=True)) <= budget
    for k, (rank, cost) in enumerate(zip(chosen, costs, strict=True)):
        rest = budget - sum(r * c for r, c in zip(chosen, costs, strict=True))
        assert cost > rest or rank == len(spectra[k][0])

    def loss(ranks):
        return sum(float(np.sum(np.square(s[0][r:]))) for s, r in zip(spectra, ranks, strict=True))

    every = itertools.product(*(range(1, len(s[0]) + 1) for s in spectra))
    best = min(loss(r) for r in every if sum(x * c for x, c in zip(r, costs, strict=True)) <= budget)
    largest = max((float(s[0][1]) ** 2 for s in spectra if len(s[0]) > 1), default=0.0)
    # a knapsack: the greedy solution is worse than the best one by less than one item's worth
    assert best - 1e-9 <= loss(chosen) <= best + largest * max(costs) / min(costs) + 1e-9


@given(st.lists(spectra_of_length, min_size=1, max_size=3), st.integers(0, 60))
def test_equal_costs_make_the_greedy_choice_optimal(train_spectra, extra):
    sizes = [(6, 6)] * len(train_spectra)
    budget = 12 * len(sizes) + extra
    chosen = [ranks[1] for ranks in allot_ranks([[s] for s in train_spectra], sizes, budget)]
    values = sorted((v for s in train_spectra for v in s[1:]), reverse=True)
    expected = sum(v**2 for v in values[budget // 12 - len(sizes) :])
    actual = sum(float(np.sum(s[r:] ** 2)) for s, r in zip(train_spectra, chosen, strict=True))
    assert math.isclose(actual, expected, abs_tol=1e-9)


def estimate(spectra, ranks):
    """The squared relative error if the cuts of different bonds are independent: 1 - prod w_k."""
    kept = [np.sum(np.square(s[:r])) / np.sum(np.square(s)) for s, r in zip(spectra, ranks[1:-1], strict=True)]
    return 1 - math.prod(kept)


def every_ranks(shape):
    inner = itertools.product(*(range(1, full + 1) for full in shape.full_ranks[1:-1]))
    return [ranks for r in inner if feasible(ranks := (1, *r, 1), shape.site_sizes)]


@given(cases(2, 5, dtypes=("float64", "complex64"), backends=("numpy",)), st.floats(0, 1.1))
def test_a_budget_is_kept_and_leaves_nothing_for_any_single_bond(case, share):
    sizes, full = case.shape.site_sizes, case.shape.full_ranks
    spectra = dense_spectra(case.dense, case.shape)
    budget = sum(sizes) + round(share * (n_parameters(sizes, full) - sum(sizes)))
    (ranks,) = allot_ranks([spectra], [sizes], budget)
    assert n_parameters(sizes, ranks) <= budget
    assert feasible(ranks, sizes)
    for bond in range(1, len(sizes)):
        raised = (*ranks[:bond], ranks[bond] + 1, *ranks[bond + 1 :])
        assert raised[bond] > full[bond] or not feasible(raised, sizes) or n_parameters(sizes, raised) > budget


@given(st.integers(0, 10**6), st.floats(0, 1.1))
def test_the_estimate_is_close_to_its_least(seed, share):
    rng = np.random.default_rng(seed)
    shape = MPOShape((2, 3, 2), (3, 2, 2))
    W = rng.normal(size=(12, 12)) * np.logspace(0, -rng.integers(0, 4), 12)
    spectra = dense_spectra(W, shape)
    least = sum(shape.site_sizes)
    budget = least + round(share * (shape.n_parameters(shape.full_ranks) - least))
    (ranks,) = allot_ranks([spectra], [shape.site_sizes], budget)
    best = min(estimate(spectra, r) for r in every_ranks(shape) if shape.n_parameters(r) <= budget)
    # a heuristic, but never more than a third of the way from the best ranks to rank one
    assert estimate(spectra, ranks) <= best + (estimate(spectra, (1, 1, 1, 1)) - best) / 3 + 1e-12


def small_matrices(decay, count, rows, cols):
    """Random matrices with the singular values exp(-decay k)."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        u, s, vh = np.linalg.svd(rng.normal(size=(rows, cols)), full_matrices=False)
        yield (u * np.exp(-decay * np.arange(len(s)))) @ vh


def excesses(matrices, shape, shares):
    """How much larger the true error of ``ParameterBudget`` is than that of the best ranks, relative to the latter."""
    for W in matrices:
        mpo = mpo_decompose(W, shape)
        errors = {ranks: truncate(mpo, ranks).truncation.error for ranks in every_ranks(shape)}
        for budget in (math.floor(share * W.size) for share in shares):
            best = min(error for ranks, error in errors.items() if shape.n_parameters(ranks) <= budget)
            yield errors[truncate(mpo, ParameterBudget(budget)).ranks] / best - 1


@pytest.mark.parametrize(
    ("shape", "decay", "mean", "largest"),
    [
        (MPOShape((2, 3, 2), (2, 3, 2)), 0.0, 0.0073, 0.09),
        (MPOShape((2, 3, 2), (2, 3, 2)), 0.3, 0.015, 0.106),
        (MPOShape((2, 3, 2), (2, 3, 2)), 1.0, 0.011, 0.108),
        (MPOShape((2, 2, 2, 2), (2, 2, 2, 2)), 0.3, 0.041, 0.152),
    ],
)
def test_the_gap_to_the_best_ranks(shape, decay, mean, largest):
    """Measured with numpy's generator of seed 0, with a tenth of headroom; see ``docs/ranks.md``."""
    found = list(excesses(small_matrices(decay, 10, *shape.matrix_shape), shape, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)))
    assert min(found) >= -1e-9
    assert np.mean(found) <= mean
    assert max(found) <= largest


@given(st.lists(spectra_of_length.filter(lambda s: s[0] > 0), min_size=1, max_size=4), st.data())
def test_what_a_cut_adds_to_the_estimate(spectra, data):
    """The growth of ``N (1 - prod w_k)`` between two choices of ranks, also far below the rounding of its values."""
    lower, upper = ((1, *(data.draw(st.integers(1, len(s))) for s in spectra), 1) for _ in range(2))
    lower, upper = tuple(map(min, lower, upper)), tuple(map(max, lower, upper))
    spectra = [s / np.linalg.norm(s) for s in spectra]
    kept = [[sum(Fraction(x) ** 2 for x in s[: r[k + 1]]) for k, s in enumerate(spectra)] for r in (lower, upper)]
    choice = RankChoice(spectra, (100,) * (len(spectra) + 1), scale=1.0)
    growth = choice.error2_between(lower, upper)
    assert math.isclose(growth, math.prod(kept[1]) - math.prod(kept[0]), rel_tol=1e-12, abs_tol=1e-300)
    # of one bond it is the discarded weight, to the last digit: low-rank shapes are dealt by that
    if len(spectra) == 1:
        assert growth == choice.weight_between(lower, upper)


def test_a_deep_cut_spares_no_bond_at_the_cost_of_another():
    """Two flat bonds that share a core: the sum of their discarded weights would be least at very unequal ranks."""
    flat = np.ones(64)
    (ranks,) = allot_ranks([[flat, flat]], [(64, 4, 64)], 2 * 64 * 16 + 4 * 16 * 16)
    assert ranks == (1, 16, 16, 1)


def test_bonds_around_a_unit_site_are_one_cut():
    """U M V loses what U V loses, not twice that, so it is dealt the same share (but for the few entries of M)."""
    spectrum = np.exp(-0.1 * np.arange(40))
    plain, core = allot_ranks([[spectrum], [spectrum, spectrum]], [(500, 500), (500, 1, 500)], 40 * 1000)
    assert core[1] == core[2]
    assert abs(plain[1] - core[1]) <= 1


def test_one_budget_goes_where_the_weight_is():
    flat, steep = np.ones(4) / 2, np.array([1.0, 0.1, 0.01, 0.001])
    assert allot_ranks([[flat], [steep]], [(4, 4), (4, 4)], 40) == [(1, 4, 1), (1, 1, 1)]
    # the same worth per direction, but the second train's directions cost ten times as much
    assert allot_ranks([[flat], [flat]], [(4, 4), (40, 40)], 8 * 4 + 80 * 1) == [(1, 4, 1), (1, 1, 1)]
    assert allot_ranks([[flat], [10 * flat]], [(4, 4), (40, 40)], 8 * 1 + 80 * 4) == [(1, 1, 1), (1, 4, 1)]
    # one dear direction frees more than needed; what is left over raises the bonds of U M V, both at once
    dear, cheap = np.array([1.2, 1.2]), np.array([0.5, 0.4, 0.3])
    assert allot_ranks([[dear], [cheap, cheap]], [(50, 50), (5, 1, 5)], 150) == [(1, 1, 1), (1, 3, 3, 1)]


def test_the_allotment_takes_what_bond_spectra_gives():
    values = [0.9, 0.3, 0.1]
    expected = [(1, 2, 1)]
    for spectrum in (values, np.array(values), torch.tensor(values), torch.tensor(values, requires_grad=True)):
        assert allot_ranks([[spectrum]], [(4, 4)], 16) == expected
    assert allot_ranks([], [], 1) == []
    assert allot_ranks([[]], [(7,)], 7) == [(1, 1)]
    assert allot_ranks([[np.zeros(4)]], [(4, 4)], 17) == [(1, 2, 1)]
    assert allot_ranks([[1e200 * np.ones(4)]], [(4, 4)], 17) == [(1, 2, 1)]


def test_fractions_that_binary_misses_by_a_hair():
    W = np.random.default_rng(0).normal(size=(10, 10))
    # 0.28 * 100 = 28.000000000000004, 0.29 * 100 = 28.999999999999996: both mean whole parameters
    assert mpo_decompose(W, ((10, 1), (1, 10)), 0.6).n_parameters == 60
    assert mpo_decompose(W, ((5, 2), (5, 2)), 0.29).n_parameters == 29
    assert mpo_decompose(W, ((5, 2), (5, 2)), np.float32(0.58)).n_parameters <= 58


class Half:
    def choose(self, spectra, sizes):
        return (1, *(len(s) // 2 for s in spectra), 1)


def test_anything_with_a_choose_is_a_policy():
    assert mpo_decompose(np.eye(12), ((3, 4), (3, 4)), Half()).ranks == (1, 4, 1)


policies = st.one_of(
    st.integers(1, 9),
    st.floats(1.0, 1.5),
    st.builds(MaxRank, st.integers(4, 9), multiple_of=st.integers(1, 4)),
    st.builds(Tolerance, st.floats(0, 1)),
    st.builds(EntropyFraction, st.floats(0.1, 1)),
)


@given(cases(1, 5, dtypes=("float64",), backends=("numpy",)), policies, policies, policies, st.data())
def test_both_of_two_is_the_smaller_rank_at_every_bond(case, first, second, third, data):
    def ranks(rank):
        return mpo_decompose(case.W, case.shape, rank).ranks

    exact = data.draw(exact_ranks(case.shape))
    tolerance = Tolerance(data.draw(st.floats(0, 1)))
    both = ranks(tolerance & first)
    assert both == ranks(first & tolerance) == tuple(map(min, ranks(tolerance), ranks(first)))
    assert feasible(both, case.shape.site_sizes)
    assert ranks(tolerance & tolerance) == ranks(tolerance)
    assert ranks(tolerance & exact) == ranks(exact & tolerance) == tuple(map(min, ranks(tolerance), (1, *exact, 1)))
    assert ranks((tolerance & second) & third) == ranks(second & (third & tolerance))


def test_what_combines():
    W = np.random.default_rng(0).normal(size=(12, 12))
    shape = ((3, 4), (3, 4))
    assert mpo_decompose(W, shape, Half() & Tolerance(0)).ranks == (1, 4, 1)
    assert mpo_decompose(W, shape, Tolerance(0) & Half()).ranks == (1, 4, 1)
    assert mpo_decompose(W, shape, Tolerance(0) & "same").ranks == (1, 5, 1)
    assert mpo_decompose(W, shape, Tolerance(0) & 0.7).ranks == (1, 4, 1)
    assert mpo_decompose(W, shape, np.int64(3) & MaxRank(7)).ranks == (1, 3, 1)
    assert repr(Tolerance(0.1) & 8) == "Tolerance(relative=0.1) & MaxRank(rank=8, multiple_of=1)"
    assert Tolerance(0.1) & 8 == Tolerance(0.1) & MaxRank(8)
    assert len({Tolerance(0.1) & 8, Tolerance(0.1) & MaxRank(8)}) == 1
