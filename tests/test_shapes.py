"""Shapes are integers: factors, bonds, counts, costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense_of, feasible

from tnmpo import MPOShape, contraction_plan, padded_size, plan_shape

# The shapes of Liu et al. (ACL 2021) and their full bonds.
EMBEDDING = MPOShape((5, 10, 10, 10, 6), (2, 2, 4, 4, 2))
FFN_UP = MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4))
FFN_DOWN = MPOShape((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
ATTENTION = MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))
UNBALANCED = MPOShape((4, 4, 4, 4, 3), (4, 4, 4, 4, 3))


@pytest.mark.parametrize(
    ("shape", "matrix_shape", "bonds", "expansion"),
    [
        (EMBEDDING, (30000, 128), (10, 200, 480, 12), 1.070),
        (FFN_UP, (3072, 768), (12, 192, 384, 16), 1.078),
        (FFN_DOWN, (768, 3072), (12, 192, 384, 16), 1.078),
        (ATTENTION, (768, 768), (12, 192, 192, 12), 1.125),
        (UNBALANCED, (768, 768), (16, 256, 144, 9), None),
        (MPOShape((5, 8, 8, 8, 12), (4, 4, 4, 4, 3)), (30720, 768), (20, 640, 1152, 36), None),
    ],
)
def test_the_papers_shapes(shape, matrix_shape, bonds, expansion):
    assert shape.order == 5
    assert shape.matrix_shape == matrix_shape
    assert shape.full_ranks == (1, *bonds, 1)
    if expansion:
        assert shape.n_parameters(shape.full_ranks) / math.prod(matrix_shape) == pytest.approx(expansion, abs=5e-4)


def albert(embedding_cap, ffn_cap, attention_cap):
    """The parameters of ALBERT-base with every matrix an MPO: one layer, shared, and 175,872 others."""
    parts = [(EMBEDDING, embedding_cap), (FFN_UP, ffn_cap), (FFN_DOWN, ffn_cap), *[(ATTENTION, attention_cap)] * 5]
    return 175_872 + sum(shape.n_parameters([min(r, cap) for r in shape.full_ranks]) for shape, cap in parts)


def test_the_papers_parameter_counts():
    assert albert(10**6, 10**6, 10**6) == 12_693_748
    assert albert(385, 308, 208) == 10_895_892
    assert EMBEDDING.n_parameters([min(r, 240) for r in EMBEDDING.full_ranks]) == 2_075_444


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6), st.data())
def test_counts_are_those_of_the_cores(sites, data):
    rows, cols = zip(*sites, strict=True)
    shape = MPOShape(list(rows), list(cols))
    assert (shape.rows, shape.cols) == (rows, cols)
    assert shape.matrix_shape == (math.prod(rows), math.prod(cols))
    assert shape.site_sizes == tuple(i * j for i, j in sites)
    for bond, full in enumerate(shape.full_ranks):
        assert full == min(math.prod(shape.site_sizes[:bond]), math.prod(shape.site_sizes[bond:]))
    ranks = [1, *(data.draw(st.integers(1, 5)) for _ in sites[1:]), 1]
    cores = [np.empty((ranks[k], *sites[k], ranks[k + 1])) for k in range(len(sites))]
    assert shape.n_parameters(ranks) == sum(core.size for core in cores)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5), st.data())
def test_clipped_ranks_are_the_largest_that_a_train_can_have(sites, data):
    shape = MPOShape(*(tuple(side) for side in zip(*sites, strict=True)))
    wanted = (1, *(data.draw(st.integers(1, 6)) for _ in sites[1:]), 1)
    clipped = shape.clip_ranks(wanted)
    every = itertools.product(*(range(1, rank + 1) for rank in wanted))
    # trains are closed under the entrywise maximum, so there is one largest
    assert clipped == tuple(map(max, zip(*(r for r in every if feasible(r, shape.site_sizes)), strict=True)))


def test_low_rank_shapes():
    pair, triple = MPOShape.low_rank((30, 20)), MPOShape.low_rank((30, 20), bond_core=True)
    assert (pair.rows, pair.cols) == ((30, 1), (1, 20))
    assert (triple.rows, triple.cols) == ((30, 1, 1), (1, 1, 20))
    assert pair.full_ranks == (1, 20, 1)
    assert triple.full_ranks == (1, 20, 20, 1)
    assert pair.n_parameters((1, 7, 1)) == 7 * 50
    assert triple.n_parameters((1, 7, 7, 1)) == 7 * 50 + 49
    assert pair.is_low_rank
    assert triple.is_low_rank
    assert MPOShape((5, 1, 1, 1), (1, 1, 1, 6)).is_low_rank
    for other in (FFN_UP, MPOShape((30,), (20,)), MPOShape((1, 30), (20, 1)), MPOShape((30, 1), (2, 10))):
        assert not other.is_low_rank


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 8))
def test_a_planned_shape_multiplies_to_the_matrix(rows, cols, order):
    shape = plan_shape((rows, cols), order)
    assert shape.matrix_shape == (rows, cols)
    assert shape.order == order
    assert shape.rows[order // 2] == max(shape.rows)
    assert shape.cols[order // 2] == max(shape.cols)


def factorisations(size, order):
    if order == 1:
        yield (size,)
    else:
        for first in (d for d in range(1, size + 1) if size % d == 0):
            yield from ((first, *rest) for rest in factorisations(size // first, order - 1))


@given(st.integers(1, 400), st.integers(1, 4))
def test_a_planned_shape_has_the_least_sum(size, order):
    assert sum(plan_shape((size, 1), order).rows) == min(map(sum, factorisations(size, order)))


@pytest.mark.parametrize(
    ("matrix_shape", "order", "rows", "cols"),
    [
        ((1, 1), 1, (1,), (1,)),
        ((7, 6), 3, (1, 7, 1), (1, 3, 2)),
        ((5087, 4), 5, (1, 1, 5087, 1, 1), (1, 2, 2, 1, 1)),
        ((64, 64), 3, (4, 4, 4), (4, 4, 4)),
    ],
)
def test_planned_shapes(matrix_shape, order, rows, cols):
    shape = plan_shape(matrix_shape, order)
    assert sorted(shape.rows) == sorted(rows)
    assert sorted(shape.cols) == sorted(cols)


@given(st.integers(1, 20000), st.integers(1, 6))
def test_a_padded_size_is_the_next_balanced_one(size, order):
    padded = padded_size(size, order)
    assert padded >= size
    assert padded <= 2**14 * 2  # the next power of two is always balanced enough
    assert max(plan_shape((padded, 1), order).rows) <= 2 * padded ** (1 / order) + 1e-9
    for smaller in itertools.islice(range(padded - 1, size - 1, -1), 5):
        assert max(plan_shape((smaller, 1), order).rows) > 2 * smaller ** (1 / order)


def test_known_padded_sizes():
    assert padded_size(30522) == 30576
    assert padded_size(768) == 768
    assert padded_size(1) == 1
    assert padded_size(30522, order=1) == 30522


def test_numpy_integers_are_integers():
    assert MPOShape(tuple(np.array([2, 3])), [np.int64(4), 5]) == MPOShape((2, 3), (4, 5))
    assert plan_shape((np.int32(6), 4), np.int64(2)).matrix_shape == (6, 4)
    assert all(type(entry) is int for entry in MPOShape(tuple(np.array([2, 3])), (4, 5)).rows)


# ---------------------------------------------------------------------------------------------------------------------
# What a contraction costs, counted by hand: a product of (a, b) and (b, c) is 2 a b c FLOPs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_single_site_is_a_dense_product():
    plan = contraction_plan(((6,), (5,)), (1, 1), batch=7)
    assert (plan.rebuild_flops, plan.dense_flops, plan.factored_flops) == (0, 2 * 7 * 6 * 5, 2 * 7 * 6 * 5)
    assert plan.execution == "dense"
    assert plan.relative_cost == 1


@pytest.mark.parametrize("bond_core", [False, True])
def test_a_low_rank_layer(bond_core):
    shape = MPOShape.low_rank((30, 20), bond_core=bond_core)
    ranks = (1, 4, 4, 1) if bond_core else (1, 4, 1)
    plan = contraction_plan(shape, ranks, batch=100)
    core = 2 * 4 * 4
    assert plan.factored_flops == 2 * 100 * 4 * (20 + 30) + (100 * core if bond_core and 100 < 20 else 0) + (
        # with many tokens M is absorbed into the smaller outer core first
        core * 20 if bond_core else 0
    )
    assert plan.rebuild_flops == 2 * 4 * 30 * 20 + (core * 20 if bond_core else 0)
    assert plan.dense_flops == 2 * 100 * 30 * 20
    assert plan.execution == "factored"
    assert plan.relative_cost == plan.factored_flops / plan.dense_flops


def test_two_interleaved_sites():
    plan = contraction_plan(((2, 3), (5, 7)), (1, 4, 1), batch=11)
    # from the left: (token, j1 j2) x (j1, i1 r) -> (token j2, i1 r), then x (r j2, i2); or from the right
    from_left = 2 * 11 * 7 * 5 * 2 * 4 + 2 * 11 * 2 * 4 * 7 * 3
    from_right = 2 * 11 * 5 * 7 * 3 * 4 + 2 * 11 * 3 * 4 * 5 * 2
    assert plan.factored_flops == min(from_left, from_right, plan.rebuild_flops + plan.dense_flops)
    assert plan.rebuild_flops == 2 * 4 * (2 * 5) * (3 * 7)
    assert plan.dense_flops == 2 * 11 * 6 * 35


def test_three_sites_are_rebuilt_in_the_cheaper_order():
    sizes, ranks = (2 * 3, 2 * 2, 5 * 1), (1, 2, 4, 1)
    from_left = 2 * sizes[0] * 2 * sizes[1] * 4 + 2 * sizes[0] * sizes[1] * 4 * sizes[2]
    from_right = 2 * 2 * sizes[1] * 4 * sizes[2] + 2 * sizes[0] * 2 * sizes[1] * sizes[2]
    assert contraction_plan(((2, 2, 5), (3, 2, 1)), ranks).rebuild_flops == min(from_left, from_right)


def test_the_papers_layer_is_faster_dense_and_tiny_bonds_are_not():
    capped = [min(rank, 100) for rank in FFN_UP.full_ranks]
    assert contraction_plan(FFN_UP, capped, batch=512).execution == "dense"
    assert contraction_plan(FFN_UP, [min(rank, 2) for rank in FFN_UP.full_ranks], batch=512).execution == "factored"
    assert contraction_plan(FFN_UP, capped, batch=512).relative_cost > 1


def test_what_is_moved_between_the_products_counts_too():
    shape, ranks = ((3, 4), (2, 5)), (1, 6, 1)
    plan = contraction_plan(shape, ranks, batch=1)
    vectors, first, second = 10, 6 * 6, 6 * 20
    orders = {
        vectors + first + (one := 5 * 3 * 6) + one + second + 12,
        vectors + second + (two := 2 * 4 * 6) + two + first + 12,
    }
    assert plan.factored_moves in orders
    assert plan.rebuild_moves == 2 * 12 * 10
    assert contraction_plan(MPOShape.low_rank((20, 30)), (1, 4, 1)).factored_moves == 0
    # fewer numbers change places between products of eight columns
    small = contraction_plan(((3, 4, 4, 4, 2), (4, 4, 6, 4, 4)), (1, 8, 8, 8, 8, 1), batch=4096)
    assert small.factored_flops < small.dense_flops
    assert small.faster(rebuild=False) == small.execution == "dense"


def test_the_start_of_a_product_counts_where_it_takes_time():
    shape, ranks = ((4, 4, 4), (4, 4, 4)), (1, 3, 3, 1)
    plan = contraction_plan(shape, ranks, batch=2)
    assert (plan.rebuild_products, plan.factored_products) == (3, 3)  # two merges, and the weight put together
    assert plan.faster(rebuild=False, move=0) == "factored"
    assert plan.faster(rebuild=False, move=0, call=1e9) == "dense"  # one product, where the weight is at hand
    assert plan.faster(rebuild=True, move=0, call=1e9) == "factored"  # three, where it is three more
    assert plan.cost("factored", rebuild=True, move=2, call=5) == plan.factored_flops + 2 * plan.factored_moves + 3 * 5
    assert plan.cost("dense", rebuild=False, move=2, call=5) == plan.dense_flops + 5
    built = plan.rebuild_flops + 2 * plan.rebuild_moves + 3 * 5
    assert plan.cost("dense", rebuild=True, move=2, call=5) == plan.dense_flops + 5 + built
    assert contraction_plan(((6,), (5,)), (1, 1)).rebuild_products == 0
    assert contraction_plan(MPOShape.low_rank((20, 30)), (1, 4, 1)).factored_products == 2


def test_a_plans_equation_and_path_compute_the_layer():
    import opt_einsum

    shape, ranks, rng = MPOShape((2, 3, 2), (3, 1, 4)), (1, 2, 3, 1), np.random.default_rng(0)
    cores = [rng.normal(size=(ranks[k], shape.rows[k], shape.cols[k], ranks[k + 1])) for k in range(3)]
    plan, x = contraction_plan(shape, ranks, batch=5), rng.normal(size=(5, 12))
    y = opt_einsum.contract(plan.equation, x.reshape(5, *shape.cols), *cores, optimize=list(plan.path))
    assert np.allclose(y.reshape(5, 12), x @ dense_of(cores).T)
