"""What a cut must not do: densify, lose what it was not asked to cut, or say a record is another one's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import tnmpo
from tnmpo import MPO, TT, MPOShape, Tolerance, Weight, mpo_decompose, truncate

BLIND = Weight(np.array([1.0, 1, 0, 0, 0, 1]), np.array([1.0, 0, 1, 1, 0]))  # to half of the rows and of the columns


@pytest.mark.parametrize(
    "shape", [MPOShape.low_rank((6, 5)), MPOShape.low_rank((6, 5), bond_core=True), ((3, 2), (1, 5))]
)
def test_a_full_rank_keeps_what_the_metric_does_not_see(shape):
    W = np.random.default_rng(0).normal(size=(6, 5))
    mpo = mpo_decompose(W, shape, 100, weight=BLIND)
    assert np.allclose(mpo.to_matrix(), W, atol=1e-12)
    assert mpo.truncation.error == 0
    again = truncate(mpo, 100, weight=BLIND)
    assert np.allclose(again.to_matrix(), W, atol=1e-12)


def test_a_low_rank_train_has_no_more_values_than_its_bond():
    W = np.random.default_rng(0).normal(size=(6, 5))
    narrow = mpo_decompose(W, MPOShape.low_rank((6, 5)), 4)
    same, less = (truncate(narrow, rank, weight=BLIND) for rank in (8, 2))
    assert same.ranks == (1, 4, 1)
    assert len(same.truncation.spectra[0]) == 4
    assert np.allclose(same.to_matrix(), narrow.to_matrix(), atol=1e-12)
    distance = BLIND.norm(narrow.to_matrix() - less.to_matrix())
    assert less.truncation.error == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_long_train_of_16_bits_is_cut_without_its_dense_array(dtype, weighted):
    """2^40 entries."""
    order, rng = 40, torch.Generator().manual_seed(0)
    ranks = [1, *[3] * (order - 1), 1]
    cores = [torch.randn(a, 2, 1, b, generator=rng) / (2 * a) ** 0.5 for a, b in itertools.pairwise(ranks)]
    mpo = MPO([core.to(dtype) for core in cores])
    weight = Weight(rows=tuple(np.array([1.0, 2.0]) for _ in range(order))) if weighted else None
    cut = truncate(mpo, 2, weight=weight)
    double = MPO([core.double() for core in mpo.cores])
    result = MPO([core.double() for core in cut.cores])
    if weight is not None:
        scale = torch.tensor([1.0, 2.0**0.5], dtype=torch.float64)[None, :, None, None]
        double, result = (MPO([core * scale for core in train.cores]) for train in (double, result))
    assert cut.truncation.error == pytest.approx(float(tnmpo.norm(double - result)), rel=1e-6)


def test_the_record_says_in_which_norm_it_is():
    W = np.random.default_rng(0).normal(size=(12, 18))
    shape, covariance = ((3, 4), (3, 6)), np.cov(np.random.default_rng(1).normal(size=(18, 40)))
    by_site = Weight(cols=(np.arange(1.0, 4), np.ones(6)))
    joint = Weight(cols=covariance)
    assert mpo_decompose(W, shape, 5).truncation.norm == "plain"
    assert mpo_decompose(W, shape, 5, weight=by_site).truncation.norm == "product"
    assert mpo_decompose(W, MPOShape.low_rank(W.shape), 5, weight=joint).truncation.norm == "product"
    assert mpo_decompose(W, shape, 5, weight=joint).truncation.norm == "joint"


def test_records_are_told_apart_and_can_be_keys():
    W = np.random.default_rng(0).normal(size=(12, 18))
    one, other = (mpo_decompose(W, ((3, 4), (3, 6)), Tolerance(0.3)).truncation for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_a_tt_of_16_bits_too():
    tt = TT([core.to(torch.bfloat16) for core in tnmpo.random.tt((2,) * 40, 4, seed=0, backend="torch").cores])
    assert 0 < truncate(tt, 2).truncation.relative_error < 1
