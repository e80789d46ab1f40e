"""Low-rank cuts of a weight matrix, of every rank, from one eigendecomposition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tnmpo

_BLOCK = 4096  # columns


@dataclass(frozen=True, eq=False)
class LowRankBasis:
    """The directions that the low-rank cuts of a matrix keep, those that carry most first.

    With a metric ``C`` of the columns, ``W' = U_r U_r^T W`` is the best cut, ``U`` the left singular vectors of
    ``W C^{1/2}``; with one of the rows it is ``W V_r V_r^T``, the same of the transpose.

    Attributes
    ----------
    weight : (I, J) Tensor
        What is cut, not a copy.
    basis : (n, k) Tensor
        ``U`` or ``V``, k = min(I, J): no larger than the weight.
    spectrum : (k,) array
        The singular values in the metric, in double precision.
    is_right : bool
        Whether it is ``V``.
    """

    weight: Tensor
    basis: Tensor
    spectrum: np.ndarray
    is_right: bool

    @property
    def norm(self) -> float:
        """Of the weight, in the metric."""
        return math.hypot(*self.spectrum)

    def relative_error(self, rank: int) -> float:
        """Of the cut to ``rank``, in the metric; rounding to the dtype of the weight comes on top."""
        return math.hypot(*self.spectrum[rank:]) / self.norm if self.norm else 0.0

    def cut(self, rank: int) -> tnmpo.MPO:
        """The best MPO of this rank, in the plain Schmidt basis with its center at site 1."""
        side = self.basis[:, :rank]
        matrix = self.weight.T if self.is_right else self.weight
        adjoint = side.double().T
        rest = torch.cat([(adjoint @ block).to(side.dtype) for block in _blocks(matrix)], dim=1)  # (r, m)
        shape = tnmpo.MPOShape.low_rank((rest.shape[0], rest.shape[1]))
        pair = tnmpo.mpo_decompose(rest, shape, center=0 if self.is_right else 1)
        turn, rest = (core.reshape(core.shape[0] * core.shape[1], -1) for core in pair.cores)
        return self._train(side @ turn.reshape(len(turn), -1), rest.reshape(turn.shape[1], -1))

    def _train(self, side: Tensor, rest: Tensor) -> tnmpo.MPO:
        left, right = (rest.T, side.T) if self.is_right else (side, rest)
        cores = [left[None, :, None, :], right[:, None, :, None]]
        return tnmpo.MPO([core.to(self.weight.dtype) for core in cores], center=1)


@torch.no_grad()
def low_rank_basis(weight: Tensor, metric: tnmpo.Weight | None = None) -> LowRankBasis:
    """Find the directions of an (I, J) weight in the norm of a metric.

    Parameters
    ----------
    weight : (I, J) Tensor
    metric : tnmpo.Weight, optional
        Of the rows or of the columns, as calibrations have it, not of both.

    Raises
    ------
    numpy.linalg.LinAlgError
        If no factorisation converges.

    Notes
    -----
    Weights in single and half precision go through the Gram matrix ``W C W^T`` in double precision, which needs no root
    of ``C`` and resolves singular values to 1e-8 of the largest. Cost: O(I J k), and O(I J^2) for a metric of all
    columns.
    """
    weight = weight.detach()
    rows, cols = weight.shape
    of_rows = None if metric is None else metric.rows
    of_cols = None if metric is None else metric.cols
    assert of_rows is None or of_cols is None
    is_right = of_rows is not None or (of_cols is None and rows > cols)
    side, values = _left_vectors(weight.T, of_rows) if is_right else _left_vectors(weight, of_cols)
    kind = torch.promote_types(weight.dtype, torch.float32)
    return LowRankBasis(weight, side.to(kind), values.cpu().numpy(), is_right)


def weighted_norm(matrix: Tensor, metric: tnmpo.Weight | None) -> float:
    """``sqrt(tr(R E C E^T))``, without the roots of the metrics."""
    wide = turned = matrix.double()
    rows: Any = None if metric is None else metric.rows
    cols: Any = None if metric is None else metric.cols
    if rows is not None:
        turned = rows.to(wide.device)[:, None] * wide
    if cols is not None:
        turned = turned @ cols.to(wide.device)
    return math.sqrt(max(0.0, float(torch.vdot(turned.reshape(-1), wide.reshape(-1)))))


def _left_vectors(matrix: Tensor, metric: Any) -> tuple[Tensor, Tensor]:
    """The left singular vectors (n, k) and values (k,) of ``matrix metric^{1/2}``, in double precision."""
    core, isometry = matrix, None
    if matrix.shape[0] > matrix.shape[1]:
        isometry, core = torch.linalg.qr(matrix.double())
    vectors, values = _of_root(core, metric) if matrix.dtype is torch.float64 else _of_gram(core, metric)
    return vectors if isometry is None else isometry @ vectors, values


def _of_gram(core: Tensor, metric: Any) -> tuple[Tensor, Tensor]:
    if metric is not None and metric.ndim == 2:
        wide = core.double()
        gram = wide @ metric.to(wide.device) @ wide.T
    else:
        gram = torch.zeros(core.shape[0], core.shape[0], dtype=torch.float64, device=core.device)
        for part, of_part in zip(_blocks(core), _blocks(_diagonal(core, metric)), strict=True):
            gram += (part * of_part) @ part.T
    try:
        squares, vectors = torch.linalg.eigh(gram)  # ascending
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return _of_root(core, metric)  # with more drivers to try
    return vectors.flip(1), squares.flip(0).clamp(min=0).sqrt()


def _of_root(core: Tensor, metric: Any) -> tuple[Tensor, Tensor]:
    wide, shape = core.double(), (core.shape[0], core.shape[1])
    root: Any = tnmpo.Weight(cols=metric).roots(shape, wide)[1]
    if root is not None:
        wide = wide * root if root.ndim == 1 else wide @ root
    left, right = tnmpo.mpo_decompose(wide, tnmpo.MPOShape.low_rank(shape), center=1).cores
    return left[0, :, 0, :], torch.linalg.vector_norm(right, dim=(1, 2, 3))


def _diagonal(core: Tensor, metric: Any) -> Tensor:
    if metric is None:
        return torch.ones(1, core.shape[1], dtype=torch.float64, device=core.device)
    return metric[None, :].to(core.device)


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    """The columns, some at a time, in double precision: of a whole vocabulary that would be a large copy."""
    return (block.double() for block in matrix.split(_BLOCK, dim=1))
