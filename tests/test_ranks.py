"""Rank policies and the allotment, on spectra written by hand: integers in, integers out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import feasible

from tnmpo import EntropyFraction, MaxRank, ParameterBudget, Tolerance, allot_ranks, mpo_decompose


def n_parameters(sizes, ranks):
    return sum(left * size * right for left, size, right in zip(ranks, sizes, ranks[1:], strict=False))


def lost(spectra, ranks):
    """The squared upper bound."""
    return sum(float(np.sum(np.square(s[r:]))) for s, r in zip(spectra, ranks[1:-1], strict=True))


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


@given(st.integers(0, 10**6), st.floats(0, 1.1))
def test_bonds_that_share_cores(seed, share):
    """Longer trains: within the budget, nothing left for any single bond, close to the best."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(12, 12)) * np.logspace(0, -rng.integers(0, 4), 12)
    mpo = mpo_decompose(W, ((2, 3, 2), (3, 2, 2)), 1)
    spectra, sizes = mpo.truncation.spectra, mpo.shape.site_sizes
    full = mpo.shape.full_ranks
    budget = sum(sizes) + round(share * (n_parameters(sizes, full) - sum(sizes)))
    (ranks,) = allot_ranks([spectra], [sizes], budget)
    assert n_parameters(sizes, ranks) <= budget
    assert feasible(ranks, sizes)
    for bond in (1, 2):
        raised = (*ranks[:bond], ranks[bond] + 1, *ranks[bond + 1 :])
        assert raised[bond] > full[bond] or not feasible(raised, sizes) or n_parameters(sizes, raised) > budget
    every = [(1, a, b, 1) for a in range(1, full[1] + 1) for b in range(1, full[2] + 1)]
    fitting = [r for r in every if feasible(r, sizes) and n_parameters(sizes, r) <= budget]
    best, rank_one = min(lost(spectra, r) for r in fitting), lost(spectra, (1, 1, 1, 1))
    # a heuristic, but never more than half of the way from the best ranks to rank one
    assert lost(spectra, ranks) <= best + 0.5 * (rank_one - best) + 1e-12


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


def test_anything_with_a_choose_is_a_policy():
    class Half:
        def choose(self, spectra, sizes):
            return (1, *(len(s) // 2 for s in spectra), 1)

    assert mpo_decompose(np.eye(12), ((3, 4), (3, 4)), Half()).ranks == (1, 4, 1)
