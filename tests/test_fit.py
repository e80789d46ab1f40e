"""Alternating least squares: monotone, never worse than its start, and stationary where it stops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from strategies import Case, array_of, backend_of, cases, dense_of, dtype_of, exact_ranks, norm, numpy_of, tts
from test_weighted import covariance, dense_weights, product_weights, slack_of, weigh

from tnmpo import MPO, TT, MPOShape, Weight, als_fit, is_canonical, mpo_decompose, random, truncate, tt_decompose

FEW = settings(max_examples=30)
SHAPE = ((2, 3, 4), (4, 3, 2))


@FEW
@given(cases(max_order=5, scales=False), st.data())
def test_it_improves_or_keeps_every_start(case: Case, data):
    ranks = data.draw(exact_ranks(case.shape))
    start = mpo_decompose(case.W, case.shape, ranks)
    fit = als_fit(case.W, start, sweeps=4)
    errors = np.array(fit.errors)
    assert np.all(np.diff(errors) <= 0)
    assert abs(errors[0] - start.truncation.error) <= case.slack
    assert abs(errors[-1] - norm(case.dense - dense_of(fit.train.cores))) <= case.slack
    assert fit.norm == pytest.approx(norm(case.dense), rel=1e-6)
    assert fit.train.ranks == start.ranks
    assert fit.train.center == start.center
    assert is_canonical(fit.train)
    assert {backend_of(core) for core in fit.train.cores} == {case.backend}
    assert {dtype_of(core) for core in fit.train.cores} == {case.dtype}


@FEW
@given(cases(min_order=2, max_order=4, scales=False), st.booleans(), st.data())
def test_it_improves_or_keeps_every_start_in_a_weighted_norm(case: Case, product, data):
    weight = data.draw(product_weights(case) if product else dense_weights(case))
    start = mpo_decompose(case.W, case.shape, data.draw(exact_ranks(case.shape)))
    fit = als_fit(case.W, start, weight=weight, sweeps=3)
    result = dense_of(fit.train.cores)
    slack = slack_of(case, weight, result, dense_of(start.cores))
    assert np.all(np.diff(fit.errors) <= 0)
    assert abs(fit.errors[0] - norm(weigh(case.dense - dense_of(start.cores), weight))) <= slack
    assert abs(fit.errors[-1] - norm(weigh(case.dense - result, weight))) <= slack


def best_core(mpo, site, dense, weight):
    """The error with one core replaced by the best one, by a dense least squares problem."""
    cores = [np.array(core) for core in mpo.cores]
    columns = []
    for entry in range(cores[site].size):
        unit = np.zeros(cores[site].size)
        unit[entry] = 1
        changed = [*cores[:site], unit.reshape(cores[site].shape), *cores[site + 1 :]]
        columns.append(weigh(dense_of(changed), weight).ravel())
    system, wanted = np.array(columns).T, weigh(dense, weight).ravel()
    solution = np.linalg.lstsq(system, wanted, rcond=1e-12)[0]
    return float(np.linalg.norm(wanted - system @ solution))


@pytest.mark.parametrize(
    "weight",
    [
        Weight(),
        Weight(cols=covariance(np.random.default_rng(1), 24)),
        Weight(rows=covariance(np.random.default_rng(2), 24, 2), cols=covariance(np.random.default_rng(3), 24, 2)),
        Weight(rows=np.random.default_rng(4).integers(0, 4, size=24).astype(float)),
        Weight(rows=tuple(covariance(np.random.default_rng(5), size, 2) for size in SHAPE[0])),
    ],
    ids=["plain", "columns", "both", "counts", "product"],
)
def test_where_it_stops_no_core_alone_can_gain(weight):
    """The oracle solves for each core densely; what it could still gain is of the order of a sweep's last gain."""
    W = np.random.default_rng(0).normal(size=(24, 24))
    start = mpo_decompose(W, SHAPE, (3, 4))
    plain = weight.rows is None and weight.cols is None
    fit = als_fit(W, start, weight=None if plain else weight, sweeps=300, tolerance=1e-6)
    assert fit.converged
    assert fit.errors[-1] < 0.995 * fit.errors[0]
    for site in range(3):
        assert fit.errors[-1] * (1 - 1e-4) <= best_core(fit.train, site, W, weight) <= fit.errors[-1] * (1 + 1e-9)


def test_the_first_sweep_is_that_of_solving_each_core_exactly():
    """Conjugate gradients stop early, yet one sweep does nearly what exact solutions do."""
    rng = np.random.default_rng(0)
    W, weight = rng.normal(size=(24, 24)), Weight(rows=covariance(rng, 24, 2), cols=covariance(rng, 24, 3))
    start = mpo_decompose(W, SHAPE, 3)
    first = als_fit(W, start, weight=weight, sweeps=1).errors
    assert min(best_core(start, site, W, weight) for site in range(3)) > first[1]


@FEW
@given(cases(min_order=2, max_order=4, scales=False), st.data())
def test_a_train_and_its_matrix_are_the_same_target(case: Case, data):
    start = mpo_decompose(case.W, case.shape, data.draw(exact_ranks(case.shape)))
    dense, train = (
        als_fit(case.W, start, sweeps=3, tolerance=0),
        als_fit(mpo_decompose(case.W, case.shape), start, sweeps=3, tolerance=0),
    )
    steps = min(len(dense.errors), len(train.errors))
    assert np.max(np.abs(np.array(dense.errors[:steps]) - train.errors[:steps])) <= 5 * case.slack


def test_what_has_those_ranks_is_found_again():
    rng = np.random.default_rng(0)
    exact = TT([rng.normal(size=(1, 4, 3)), rng.normal(size=(3, 5, 2)), rng.normal(size=(2, 6, 1))])
    start = TT([rng.normal(size=core.shape) for core in exact.cores])
    fit = als_fit(exact.to_tensor(), start, sweeps=100, tolerance=0)
    assert fit.relative_error < 1e-10
    assert fit.train.shape == exact.shape
    assert np.allclose(fit.train.to_tensor(), exact.to_tensor())


def test_how_far_the_start_was():
    W = np.random.default_rng(0).normal(size=(24, 24))
    fit = als_fit(W, mpo_decompose(W, SHAPE, 3), sweeps=50)
    assert fit.excess == pytest.approx(fit.errors[0] / fit.errors[-1] - 1)
    assert 0.005 < fit.excess < 0.1
    assert f"the start was {fit.excess:.3g} above it" in str(fit)
    assert als_fit(W, mpo_decompose(W, SHAPE)).relative_error < 1e-14
    zero = als_fit(0 * W, mpo_decompose(0 * W, SHAPE, 2))
    assert zero.errors == (0.0,)
    assert zero.converged
    assert zero.relative_error == zero.excess == 0


def test_gradients_flow_through_a_sweep():
    """At a stationary point the residual is orthogonal to what the cores can reach: d error^2 / dW = 2 residual."""
    W = torch.tensor(np.random.default_rng(0).normal(size=(12, 12)), requires_grad=True)
    shape = ((2, 3, 2), (3, 2, 2))
    fit = als_fit(W, mpo_decompose(W.detach(), shape, 2), sweeps=400, tolerance=1e-13)
    residual = W - fit.train.to_matrix()
    residual.square().sum().backward()
    assert torch.allclose(W.grad, 2 * residual, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "fragment"),
    [
        (lambda W, m: als_fit(W, W), TypeError, "initial: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
        (lambda W, m: als_fit(W[:12], m), ValueError, "target: got shape (12, 24), expected (24, 24), that of initial"),
        (lambda W, m: als_fit([1.0], m), TypeError, "target: got list, expected a numpy array"),
        (lambda W, m: als_fit(np.nan * W, m), ValueError, "target: got NaN or Inf among its entries"),
        (lambda W, m: als_fit(torch.tensor(W), m), TypeError, "target: got Tensor, initial has ndarray; convert one"),
        (
            lambda W, m: als_fit(1j * W, m),
            TypeError,
            "target: got complex128, initial has float64; make initial complex",
        ),
        (lambda W, m: als_fit(tt_decompose(W), m), TypeError, "target: got TT, expected a tnmpo.MPO"),
        (
            lambda W, m: als_fit(mpo_decompose(W, ((24,), (24,))), m),
            ValueError,
            "target: got sites ((24, 24),), initial has ((2, 4), (3, 3), (4, 2)); both need the same",
        ),
        (lambda W, m: als_fit(W, m, sweeps=0), ValueError, "sweeps: got 0, expected a positive integer"),
        (
            lambda W, m: als_fit(W, m, tolerance=-1),
            ValueError,
            "tolerance: got -1, expected a number from 0 to below 1",
        ),
        (lambda W, m: als_fit(W, m, tolerance="a"), ValueError, "tolerance: got 'a', expected a number from 0"),
        (lambda W, m: als_fit(W, m, weight=np.ones(24)), TypeError, "weight: got ndarray, expected tnmpo.Weight"),
        (
            lambda W, m: als_fit(W, tt_decompose(W), weight=Weight(rows=np.ones(24))),
            TypeError,
            "initial: got TT, expected a tnmpo.MPO",
        ),
        (lambda W, m: als_fit(W, m, weight=Weight(rows=np.ones(3))), ValueError, "weight: rows has size 3, the matrix"),
        (
            lambda W, m: truncate(m, 2, weight=Weight(rows=(np.ones(4), np.ones(6)))),
            ValueError,
            "weight: rows has site metrics of sizes (4, 6), the sites have (2, 3, 4); pass one of each size",
        ),
        (lambda W, m: Weight(cols=()), ValueError, "Weight: cols: got an empty tuple, expected one metric a site"),
        (lambda W, m: Weight(cols=(np.ones(3), -np.ones(3))), ValueError, "Weight: cols: got a negative entry"),
        (lambda W, m: Weight(cols=(np.ones(3), None)), TypeError, "Weight: cols: got NoneType, expected a numpy array"),
    ],
)
def test_a_bad_call_is_refused(call, error, fragment):
    W = np.random.default_rng(0).normal(size=(24, 24))
    refused(lambda: call(W, mpo_decompose(W, SHAPE, 3)), error, fragment)


def test_the_backends_agree():
    W = np.random.default_rng(0).normal(size=(12, 12))
    shape, weight = ((2, 3, 2), (3, 2, 2)), Weight(cols=covariance(np.random.default_rng(1), 12, 2))
    for metric in (None, weight):
        errors = [
            als_fit(array, mpo_decompose(array, shape, 2), weight=metric, sweeps=2).errors
            for array in (array_of(W, backend, "float64") for backend in ("numpy", "torch", "jax"))
        ]
        assert np.allclose(errors[0], errors[1], rtol=1e-9)
        assert np.allclose(errors[0], errors[2], rtol=1e-9)


def test_it_is_a_value_of_mpos():
    W = np.random.default_rng(0).normal(size=(24, 24))
    assert isinstance(als_fit(W, mpo_decompose(W, SHAPE, 3)).train, MPO)


@FEW
@given(tts(min_order=2, max_order=4, dtypes=("float64",)), st.integers(0, 10**6), st.booleans())
def test_superfluous_bonds_go_and_the_rest_stays(target, seed, weighted):
    """Bonds larger than they can need to be, as sums of trains have, in what is fitted and in the target."""
    rng = np.random.default_rng(seed)
    sizes, dense = target.shape, dense_of(target.cores).reshape(target.shape)
    ranks = [1, *map(int, rng.integers(1, 9, size=target.order - 1)), 1]
    cores = [rng.normal(size=(a, size, b)) for a, size, b in zip(ranks, sizes, ranks[1:], strict=False)]
    if weighted:
        weight = Weight(rows=covariance(rng, dense.size))
        fit = als_fit(dense.reshape(-1, 1), MPO([core[:, :, None, :] for core in cores]), weight=weight, sweeps=2)
        error = norm(weigh(dense.reshape(-1, 1) - fit.train.to_matrix(), weight))
    else:
        start = TT([array_of(core, backend_of(target.cores[0]), "float64") for core in cores])
        fit = als_fit(target, start, sweeps=2)
        error = norm(dense - numpy_of(fit.train.to_tensor()))
    assert fit.errors[-1] == pytest.approx(error, abs=1e-10 * (fit.errors[0] + norm(dense)))
    assert np.all(np.diff(fit.errors) <= 0)
    assert fit.train.ranks == MPOShape(sizes, (1,) * target.order).clip_ranks(ranks)


def test_a_sum_is_a_start():
    rng = np.random.default_rng(0)
    tt = TT([rng.normal(size=shape) for shape in ((1, 2, 4), (4, 8, 4), (4, 8, 1))])
    assert als_fit(tt, tt + tt).train.ranks == (1, 2, 8, 1)
    assert als_fit(tt, tt).relative_error < 1e-14


@pytest.mark.parametrize("weight", [None, Weight(cols=np.linspace(0, 2, 24))], ids=["plain", "weighted"])
@pytest.mark.parametrize("rank", [3, 12])
@pytest.mark.parametrize(("backend", "dtype"), [("torch", "float16"), ("torch", "bfloat16"), ("numpy", "float16")])
def test_in_half_precision_the_errors_are_those_of_the_rounded_train(backend, dtype, rank, weight):
    """The start was rounded as well: where a sweep gains less than rounding loses, it stays."""
    W = array_of(np.random.default_rng(rank).normal(size=(24, 24)) / 8, backend, dtype)
    start = mpo_decompose(W, SHAPE, rank)
    fit = als_fit(W, start, weight=weight, sweeps=5, tolerance=0)
    measure = Weight().norm if weight is None else weight.norm
    for error, train in ((fit.errors[0], start), (fit.errors[-1], fit.train)):
        assert error == pytest.approx(measure(numpy_of(W) - dense_of(train.cores)), rel=1e-9)
    assert np.all(np.diff(fit.errors) <= 0)
    assert fit.train.ranks == start.ranks
    assert {dtype_of(core) for core in fit.train.cores} == {dtype}


def test_what_rounding_would_undo_is_not_done():
    exact = random.mpo(((4, 4, 4), (4, 4, 4)), rank=4, seed=0).to_matrix()
    W = (exact / np.linalg.norm(exact)).astype("float16")
    start = mpo_decompose(W, ((4, 4, 4), (4, 4, 4)), 4)
    fit = als_fit(W, start)
    assert fit.errors[-1] <= start.truncation.error * (1 + 1e-9)
    assert fit.errors[-1] == pytest.approx(norm(W - dense_of(fit.train.cores)), rel=1e-9)


@pytest.mark.parametrize(
    ("scale", "of_rows", "of_cols"),
    [(1e150, 1e6, 1e6), (1e-150, 1e-20, 1e-20), (1e150, 1e-150, 1e-150), (1e-150, 1e150, 1.0), (1.0, 1e150, 1e150)],
)
def test_units_of_the_matrix_and_of_the_metrics_cancel(scale, of_rows, of_cols):
    rng = np.random.default_rng(0)
    W, rows, cols = rng.normal(size=(24, 24)), covariance(rng, 24), covariance(rng, 24, 2)
    start = mpo_decompose(W, SHAPE, 3)
    fit = als_fit(W, start, weight=Weight(rows, cols), sweeps=3)
    assert len(fit.errors) == 4
    scaled = als_fit(scale * W, scale * start, weight=Weight(of_rows * rows, of_cols * cols), sweeps=3)
    unit = scale * math.sqrt(of_rows) * math.sqrt(of_cols)
    assert np.allclose(np.array(scaled.errors) / unit, fit.errors, rtol=1e-6)
    assert np.allclose(scaled.train.to_matrix() / scale, fit.train.to_matrix(), atol=1e-6)
    cut = mpo_decompose(scale * W, SHAPE, 3, weight=Weight(of_rows * rows, of_cols * cols)).truncation
    assert cut.relative_error == pytest.approx(
        mpo_decompose(W, SHAPE, 3, weight=Weight(rows, cols)).truncation.relative_error, rel=1e-6
    )


@pytest.mark.parametrize("shape", [SHAPE, MPOShape.low_rank((24, 24))], ids=["long", "low-rank"])
def test_a_metric_is_a_constant(shape):
    rng = np.random.default_rng(0)
    W = torch.tensor(rng.normal(size=(24, 24)))
    basis = torch.linalg.qr(torch.tensor(rng.normal(size=(24, 24))))[0]
    rows = torch.linspace(0, 2, 24, dtype=torch.float64).requires_grad_()
    cols = (basis[:, :12] @ basis[:, :12].T).requires_grad_()  # singular and degenerate: its root has no derivative
    weight = Weight(rows, cols)
    mpo = mpo_decompose(W, shape, 3, weight=weight)
    fit = als_fit(W, mpo, weight=weight, sweeps=1)
    assert not any(core.requires_grad for train in (mpo, fit.train) for core in train.cores)
    W.requires_grad_()
    mpo_decompose(W, shape, 3, weight=weight).to_matrix().sum().backward()
    assert W.grad is not None
    assert torch.isfinite(W.grad).all()
    assert rows.grad is None
    assert cols.grad is None


def test_a_target_whose_cores_are_out_of_range_one_by_one():
    rng = np.random.default_rng(0)
    scales = (1e-200, 1e-200, 1e300, 1e100)
    sizes, ranks = (2, 3, 3, 2), (1, 2, 3, 2, 1)
    cores = [rng.normal(size=(ranks[k], sizes[k], ranks[k + 1])) for k in range(4)]
    plain = TT(cores)
    extreme = TT([core * scale for core, scale in zip(cores, scales, strict=True)])
    fit, expected = (als_fit(target, truncate(target, 1)) for target in (extreme, plain))
    assert fit.errors[-1] == pytest.approx(expected.errors[-1], rel=1e-9)
