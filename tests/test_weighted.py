"""Weighted norms on MPOs of any shape: products over the sites, and metrics that are none."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    SLACK,
    Case,
    array_of,
    backend_of,
    cases,
    dense_of,
    dense_root,
    dtype_of,
    exact_ranks,
    metrics,
    norm,
    numpy_of,
    shapes,
)

from tnmpo import MaxRank, MPOShape, ParameterBudget, Tolerance, Weight, is_canonical, mpo_decompose, truncate

MANY = settings(max_examples=100)
FEW = settings(max_examples=30)


def dense_metric(side, size):
    """One side of a weight as a dense matrix."""
    if side is None:
        return np.eye(size)
    parts = [numpy_of(part) for part in (side if isinstance(side, tuple) else (side,))]
    return functools.reduce(np.kron, [np.diag(part) if part.ndim == 1 else part for part in parts])


def weigh(dense, weight):
    rows, cols = (
        dense_root(dense_metric(*pair), pair[1]) for pair in zip((weight.rows, weight.cols), dense.shape, strict=True)
    )
    return rows @ dense @ cols


def slack_of(case, weight, *results):
    """Rounding happens in the matrix, and the metrics amplify it by at most their norms."""
    amplification = math.prod(
        float(np.linalg.norm(dense_root(dense_metric(*pair), pair[1]), 2))
        for pair in zip((weight.rows, weight.cols), case.dense.shape, strict=True)
    )
    return SLACK[case.dtype] * amplification * sum(map(norm, (case.dense, *results)))


@st.composite
def product_weights(draw, case):
    """A metric a site, a whole side on one site, or none."""
    complex_ = case.dtype.startswith("complex")
    sides = []
    for sizes, size in ((case.shape.rows, case.dense.shape[0]), (case.shape.cols, case.dense.shape[1])):
        kind = draw(st.sampled_from(["sites", "sites", "none"] + ["dense"] * (max(sizes) == size)))
        if kind == "sites":
            drawn = [draw(metrics(part, "numpy", complex_)) for part in sizes]
            sides.append(
                tuple(np.ones(part) if metric is None else metric for part, metric in zip(sizes, drawn, strict=True))
            )
        else:
            sides.append(draw(metrics(size, "numpy", complex_)) if kind == "dense" else None)
    return Weight(*sides)


@st.composite
def dense_weights(draw, case):
    complex_ = case.dtype.startswith("complex")
    return Weight(*(draw(metrics(size, "numpy", complex_)) for size in case.dense.shape))


@MANY
@given(cases(max_order=4, scales=False), st.data())
def test_a_metric_that_is_a_product_over_the_sites(case: Case, data):
    weight, ranks = data.draw(product_weights(case)), data.draw(exact_ranks(case.shape))
    mpo = mpo_decompose(case.W, case.shape, ranks, weight=weight)
    record, result = mpo.truncation, dense_of(mpo.cores)
    plain = dense_of(mpo_decompose(case.W, case.shape, ranks).cores)
    slack = slack_of(case, weight, result, plain)
    error = norm(weigh(case.dense - result, weight))
    assert mpo.ranks == record.ranks == (1, *ranks, 1)
    assert abs(record.error - error) <= slack
    assert error <= norm(weigh(case.dense - plain, weight)) + slack
    assert record.lower_bound - slack <= error <= record.upper_bound + slack
    assert error <= math.sqrt(max(1, case.shape.order - 1)) * record.lower_bound + slack
    heavy = weigh(case.dense, weight)
    for bond, values in enumerate(record.spectra, start=1):
        assert norm(values) == pytest.approx(norm(heavy), rel=1e-6, abs=slack)
        assert len(values) == case.shape.full_ranks[bond]
    assert {dtype_of(core) for core in mpo.cores} == {case.dtype}
    assert {backend_of(core) for core in mpo.cores} == {case.backend}
    assert is_canonical(mpo)


@FEW
@given(cases(min_order=2, max_order=4, scales=False), st.data())
def test_any_metric(case: Case, data):
    weight, ranks = data.draw(dense_weights(case)), data.draw(exact_ranks(case.shape))
    mpo = mpo_decompose(case.W, case.shape, ranks, weight=weight)
    record, result = mpo.truncation, dense_of(mpo.cores)
    plain = dense_of(mpo_decompose(case.W, case.shape, ranks).cores)
    slack = slack_of(case, weight, result, plain)
    error = norm(weigh(case.dense - result, weight))
    assert mpo.ranks == record.ranks == (1, *ranks, 1)
    assert abs(record.error - error) <= slack
    assert error <= norm(weigh(case.dense - plain, weight)) + slack
    assert record.lower_bound - slack <= error <= record.upper_bound + slack
    assert {dtype_of(core) for core in mpo.cores} == {case.dtype}
    assert {backend_of(core) for core in mpo.cores} == {case.backend}
    later = truncate(mpo_decompose(case.W, case.shape), ranks, weight=weight)
    assert abs(later.truncation.error - norm(weigh(case.dense - dense_of(later.cores), weight))) <= slack
    assert later.truncation.error <= norm(weigh(case.dense - plain, weight)) + slack


@FEW
@given(cases(min_order=2, max_order=4, scales=False), st.floats(0, 1), st.booleans(), st.data())
def test_policies_hold_in_any_weighted_norm(case: Case, share, product, data):
    weight = data.draw(product_weights(case) if product else dense_weights(case))
    mpo = mpo_decompose(case.W, case.shape, Tolerance(share), weight=weight)
    result = dense_of(mpo.cores)
    heavy = norm(weigh(case.dense, weight))
    assert norm(weigh(case.dense - result, weight)) <= share * heavy + slack_of(case, weight, result)
    least = sum(case.shape.site_sizes)
    budget = least + round(share * (case.shape.n_parameters(case.shape.full_ranks) - least))
    assert mpo_decompose(case.W, case.shape, ParameterBudget(budget), weight=weight).n_parameters <= budget


@FEW
@given(cases(max_order=4, dtypes=("float64", "complex128"), scales=False), st.booleans(), st.data())
def test_without_a_cut_a_weight_changes_nothing(case: Case, product, data):
    weight = data.draw(product_weights(case) if product else dense_weights(case))
    for rank in (None, 10**6):
        mpo = mpo_decompose(case.W, case.shape, rank, weight=weight)
        assert np.max(np.abs(numpy_of(mpo.to_matrix()) - case.dense)) <= case.slack
        assert mpo.truncation is None or mpo.truncation.error <= slack_of(case, weight)


@given(cases(max_order=4, scales=False), st.data())
def test_the_norm_of_a_product_is_that_of_its_dense_metric(case: Case, data):
    weight = data.draw(product_weights(case))
    rows, cols = (dense_metric(*pair) for pair in zip((weight.rows, weight.cols), case.dense.shape, strict=True))
    trace = np.trace(rows @ case.dense @ cols @ case.dense.conj().T).real
    amplification = np.linalg.norm(rows, 2) * np.linalg.norm(cols, 2)
    assert weight.norm(case.W) ** 2 == pytest.approx(trace, rel=1e-5, abs=1e-11 * amplification * norm(case.dense) ** 2)


def covariance(rng, size, decades=3):
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (basis * np.logspace(0, -decades, size)) @ basis.T


SHAPE = ((2, 3, 4), (4, 3, 2))


def test_a_product_said_in_two_ways_is_one():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(24, 24))
    parts = [covariance(rng, size) for size in SHAPE[0]]
    site_by_site = mpo_decompose(W, SHAPE, 4, weight=Weight(rows=tuple(parts)))
    multiplied = mpo_decompose(W, SHAPE, 4, weight=Weight(rows=functools.reduce(np.kron, parts)))
    # a dense metric is not asked whether it is a product: it goes through ALS, from the same sweep
    assert multiplied.truncation.error <= site_by_site.truncation.error * (1 + 1e-9)
    assert multiplied.truncation.error == pytest.approx(site_by_site.truncation.error, rel=0.05)
    low_rank = MPOShape.low_rank(W.shape)
    pair = (covariance(rng, 24), np.array([2.0]))
    assert mpo_decompose(W, low_rank, 4, weight=Weight(rows=pair)).truncation.error == pytest.approx(
        mpo_decompose(W, low_rank, 4, weight=Weight(rows=2 * pair[0])).truncation.error
    )


def test_rows_of_no_weight_follow_the_others():
    """They are free, and what comes is the regression on the rows that count, not zero and not noise."""
    rng = np.random.default_rng(0)
    left, middle = rng.normal(size=(24, 2)), rng.normal(size=(2, 24))
    W = left @ middle
    counts = rng.integers(1, 9, size=24).astype(float)
    counts[[3, 7, 8]] = 0
    shape = ((24, 1, 1), (1, 4, 6))  # the whole row index on one site: a product, two bonds
    mpo = mpo_decompose(W, shape, (2, 6), weight=Weight(rows=counts))
    assert mpo.truncation.error < 1e-12
    assert np.allclose(mpo.to_matrix(), W)


def test_the_weighted_answer_is_far_better_than_the_plain_one():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(24, 24))
    for weight in (
        Weight(cols=covariance(rng, 24)),
        Weight(rows=rng.exponential(size=24) ** 3),
        Weight(rows=covariance(rng, 24), cols=covariance(rng, 24)),
        Weight(rows=tuple(covariance(rng, size) for size in SHAPE[0]), cols=covariance(rng, 24)),
    ):
        plain = weight.norm(W - mpo_decompose(W, SHAPE, 4).to_matrix())
        assert mpo_decompose(W, SHAPE, 4, weight=weight).truncation.error < 0.8 * plain


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    rng = np.random.default_rng(0)
    W = array_of(rng.normal(size=(24, 24)), "torch", dtype)
    for weight in (Weight(cols=covariance(rng, 24)), Weight(rows=tuple(covariance(rng, size) for size in SHAPE[0]))):
        mpo = mpo_decompose(W, SHAPE, 4, weight=weight)
        exact = norm(weigh(numpy_of(W) - dense_of(mpo.cores), weight))
        assert mpo.truncation.error == pytest.approx(exact, rel=1e-4)
        assert mpo.truncation.relative_error == pytest.approx(exact / weight.norm(W), rel=1e-4)


def real_looking(rng, rows, cols, decay=0.05):
    """A matrix and an input covariance whose spectra fall as those of trained layers do."""
    basis = np.linalg.qr(rng.normal(size=(cols, cols)))[0]
    covariance = (basis * np.exp(-2 * decay * np.arange(cols))) @ basis.T
    W = rng.normal(size=(rows, cols)) * np.exp(-decay * np.arange(cols))
    return W, Weight(cols=covariance)


def test_a_bond_between_all_rows_and_all_columns_has_the_weighted_spectrum():
    W, weight = real_looking(np.random.default_rng(3), 24, 36)
    shape = MPOShape((4, 6, 1, 1), (1, 1, 6, 6))
    record = mpo_decompose(W, shape, 10, weight=weight).truncation
    truth = np.linalg.svd(weigh(W, weight), compute_uv=False)
    np.testing.assert_allclose(record.spectra[1], truth, rtol=1e-10, atol=1e-12 * truth[0])


def test_both_factors_cut_into_sites_keep_what_low_rank_keeps():
    W, weight = real_looking(np.random.default_rng(4), 24, 36)
    low_rank = mpo_decompose(W, MPOShape.low_rank(W.shape), 8, weight=weight)
    further = mpo_decompose(W, MPOShape((4, 6, 1, 1), (1, 1, 6, 6)), (4, 8, 6), weight=weight)
    assert further.truncation.error == pytest.approx(low_rank.truncation.error, rel=1e-9)


@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_a_tolerance_in_a_metric_without_its_spectra_is_not_wasted(tolerance):
    W, weight = real_looking(np.random.default_rng(5), 64, 64)
    shape = MPOShape((4, 4, 4), (4, 4, 4))
    mpo = mpo_decompose(W, shape, Tolerance(tolerance), weight=weight)
    assert 0.75 * tolerance <= mpo.truncation.relative_error <= tolerance  # one rank less would lose too much
    capped = mpo_decompose(W, shape, Tolerance(tolerance) & MaxRank(5), weight=weight)
    assert capped.ranks == tuple(min(rank, 5) for rank in mpo.ranks)


def covariance_of_few(rng, size):
    samples = rng.normal(size=(size, (size + 1) // 2))
    return samples @ samples.T / size


@settings(max_examples=15)
@given(shapes(min_order=2, max_order=3, max_size=400), st.integers(0, 10**6), st.floats(0.05, 0.7), st.booleans())
def test_no_bond_alone_could_be_lowered_within_a_tolerance(shape, seed, tolerance, singular):
    rng = np.random.default_rng(seed)
    metric = covariance_of_few if singular else covariance
    weight = Weight(*(metric(rng, size) for size in shape.matrix_shape))
    W = rng.normal(size=shape.matrix_shape)
    mpo = mpo_decompose(W, shape, Tolerance(tolerance), weight=weight)
    assert mpo.truncation.relative_error <= tolerance
    for bond in range(1, shape.order):
        lower = list(mpo.ranks)
        lower[bond] -= 1
        if lower[bond] > 0 and shape.clip_ranks(lower) == tuple(lower):
            assert mpo_decompose(W, shape, lower, weight=weight).truncation.relative_error > tolerance


def test_a_tolerance_takes_hardly_more_parameters_than_the_best_ranks():
    """Here the ranks that the marginals' spectra choose take 1.6 times as many."""
    rng = np.random.default_rng(3)
    W, sides = rng.normal(size=(36, 36)), []
    for _ in range(2):
        samples = rng.normal(size=(36, 20))
        sides.append(samples @ samples.T / 36)
    weight, shape = Weight(*sides), MPOShape((3, 4, 3), (3, 4, 3))
    cuts = [mpo_decompose(W, shape, ranks, weight=weight) for ranks in itertools.product(range(3, 9), repeat=2)]
    fewest = min(cut.n_parameters for cut in cuts if cut.truncation.relative_error <= 0.1)
    assert mpo_decompose(W, shape, Tolerance(0.1), weight=weight).n_parameters <= 1.05 * fewest


def test_integer_counts_are_a_metric():
    W = np.random.default_rng(0).normal(size=(4, 6))
    counts = np.array([3, 0, 2, 5])
    assert Weight(rows=counts).rows.dtype == np.float64
    assert Weight(rows=torch.tensor(counts), cols=(np.array([1, 2], "uint8"), np.eye(3, dtype=int))).norm(W) == (
        pytest.approx(norm(np.sqrt(counts)[:, None] * W * np.sqrt([1, 1, 1, 2, 2, 2])))
    )
    assert Weight(rows=counts).norm(W) == Weight(rows=counts.astype(float)).norm(W)


def test_a_negative_eigenvalue_shows_on_first_use():
    weight = Weight(np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="Weight: rows: got a matrix with the negative eigenvalue -1"):
        weight.norm(np.ones((2, 2)))


def test_a_padded_weight_ignores_what_was_added():
    W, weight = real_looking(np.random.default_rng(6), 7, 11)
    weight = Weight(rows=np.arange(7.0), cols=weight.cols)
    larger = np.pad(W, [(0, 2), (0, 1)], constant_values=5.0)
    assert weight.padded(W.shape, larger.shape).norm(larger) == pytest.approx(weight.norm(W))
    by_site = Weight(cols=(np.array([1.0, 4.0]), np.ones(3)))
    np.testing.assert_array_equal(by_site.padded((1, 6), (1, 7)).cols, [1, 1, 1, 4, 4, 4, 0])
    assert all(a is b for a, b in zip(by_site.padded((5, 6), (5, 6)).cols, by_site.cols, strict=True))
    with pytest.raises(ValueError, match=r"to: got \(7, 10\), expected at least \(7, 11\)"):
        weight.padded((7, 11), (7, 10))
