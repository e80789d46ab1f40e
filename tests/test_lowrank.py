"""low_rank_basis against a dense SVD of the weighted matrix, in the metrics that calibrations have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tnmpo.integrations.transformers.lowrank import low_rank_basis

import tnmpo

SIZES = [(7, 19), (19, 7), (12, 12), (1, 5), (5, 1)]


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factor_of(kind, rows, cols):
    """``F`` of the metric ``F F^T``: a vector for one of the rows."""
    if kind == "rows":
        return random(rows).abs() + 0.5
    return random(cols, cols if kind == "cols" else max(1, min(cols, 20) // 3))


def metric_of(kind, rows, cols):
    if kind is None:
        return None
    factor = factor_of(kind, rows, cols)
    return tnmpo.Weight(rows=factor**2) if kind == "rows" else tnmpo.Weight(cols=factor @ factor.T)


def weighted(matrix, kind):
    """What has the singular values that count: the same as ``R^{1/2} matrix C^{1/2}``."""
    matrix = matrix.double()
    if kind is None:
        return matrix.numpy()
    factor = factor_of(kind, *matrix.shape)
    return (factor[:, None] * matrix if kind == "rows" else matrix @ factor).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [None, "rows", "cols", "singular"])
@pytest.mark.parametrize(("rows", "cols"), SIZES)
def test_every_cut_is_the_best_one_and_its_error_is_known(rows, cols, kind, dtype):
    weight, full = random(rows, cols, seed=1).to(dtype), min(rows, cols)
    basis = low_rank_basis(weight, metric_of(kind, rows, cols))
    values = np.linalg.svd(weighted(weight, kind), compute_uv=False)
    values = np.pad(values, (0, full - len(values)))
    # a root of a singular metric that is rounded knows 1e-8 of the largest value, as a Gram matrix does
    floor = 1e-12 if dtype is torch.float64 and kind != "singular" else 1e-7
    np.testing.assert_allclose(basis.spectrum, values, rtol=floor, atol=floor * values[0])
    for rank in {1, 2, full // 2, full} & set(range(1, full + 1)):
        mpo = basis.cut(rank)
        assert mpo.ranks == (1, rank, 1)
        assert mpo.cores[0].dtype == dtype
        error = np.linalg.norm(weighted(weight - mpo.to_matrix(), kind)) / math.hypot(*values)
        best = math.hypot(*values[rank:]) / math.hypot(*values)
        assert basis.relative_error(rank) == pytest.approx(best, abs=10 * floor)
        assert error == pytest.approx(best, abs=2e-6 if dtype is torch.float32 else 10 * floor)


@pytest.mark.parametrize("kind", [None, "rows", "cols"])
@pytest.mark.parametrize(("rows", "cols"), [(7, 19), (19, 7), (12, 12)])
def test_a_cut_is_in_the_plain_schmidt_basis(rows, cols, kind):
    mpo = low_rank_basis(random(rows, cols).float(), metric_of(kind, rows, cols)).cut(4)
    assert mpo.center == 1
    assert tnmpo.is_canonical(mpo)
    right = mpo.cores[1].reshape(4, -1).double()
    gram = right @ right.T
    torch.testing.assert_close(
        gram.diag().sqrt(), torch.as_tensor(tnmpo.bond_spectra(mpo)[0]).double(), rtol=1e-5, atol=0
    )
    assert (gram - gram.diag().diag()).abs().max() < 1e-5 * gram.max()


@pytest.mark.parametrize("kind", [None, "rows"])
def test_a_vocabulary_is_taken_in_blocks(kind):
    weight = random(5000, 9).float()
    basis = low_rank_basis(weight, metric_of(kind, 5000, 9))
    np.testing.assert_allclose(basis.spectrum, np.linalg.svd(weighted(weight, kind), compute_uv=False), rtol=1e-7)
    mpo = basis.cut(4)
    error = np.linalg.norm(weighted(weight - mpo.to_matrix(), kind)) / basis.norm
    assert error == pytest.approx(basis.relative_error(4), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_scale(scale, dtype):
    weight = random(6, 9)
    one, other = (low_rank_basis(each.to(dtype)) for each in (weight, weight * scale))
    np.testing.assert_allclose(other.spectrum, one.spectrum * scale, rtol=1e-6)
    assert other.relative_error(3) == pytest.approx(one.relative_error(3), rel=1e-5)


def test_a_zero_matrix():
    basis = low_rank_basis(torch.zeros(4, 6))
    assert basis.relative_error(1) == 0
    assert not basis.cut(2).to_matrix().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    weight = random(8, 20).to(dtype)
    basis = low_rank_basis(weight)
    assert basis.basis.dtype == torch.float32
    mpo = basis.cut(8)
    assert {core.dtype for core in mpo.cores} == {dtype}
    torch.testing.assert_close(mpo.to_matrix().float(), weight.float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", [None, "rows", "cols"])
@pytest.mark.parametrize(("rows", "cols"), [(7, 19), (19, 7)])
def test_where_the_eigendecomposition_fails_a_singular_value_decomposition_takes_over(monkeypatch, rows, cols, kind):
    weight, metric = random(rows, cols).float(), metric_of(kind, rows, cols)
    expected = low_rank_basis(weight, metric)

    def fail(_):
        raise torch.linalg.LinAlgError("eigh: did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    found = low_rank_basis(weight, metric)
    np.testing.assert_allclose(found.spectrum, expected.spectrum, rtol=1e-6)
    torch.testing.assert_close(found.cut(3).to_matrix(), expected.cut(3).to_matrix(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "rows", "cols"])
@pytest.mark.parametrize(("rows", "cols"), [(7, 19), (19, 7), (12, 12)])
def test_it_holds_no_more_than_the_weight(rows, cols, kind):
    weight = random(rows, cols).float()
    basis = low_rank_basis(weight, metric_of(kind, rows, cols))
    assert basis.weight.data_ptr() == weight.data_ptr()
    assert basis.basis.numel() <= weight.numel()
    assert basis.basis.untyped_storage().nbytes() == 4 * basis.basis.numel()
