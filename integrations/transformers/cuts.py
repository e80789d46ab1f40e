"""What a matrix loses when it is cut to a share of its parameters, low-rank and interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import tnmpo

from ..torch.layer import decompose_weight
from .lowrank import LowRankBasis, weighted_norm

RATIOS = (0.75, 0.5, 0.33, 0.25, 0.1)  # descending
TOLERANCES = (0.05, 0.1, 0.2)

_NUMERICAL = 1e-7  # of the largest: smaller singular values are rounding


@dataclass(frozen=True)
class Cut:
    """One matrix cut to a share of its parameters, in both shapes with the same number of them.

    Attributes
    ----------
    ratio : float
    rank : int or None
        Of the low-rank cut; None where even rank one is above the budget.
    error : float or None
        Its relative error, in the calibrated norm where the matrix has one.
    interleaved_ranks : tuple of int or None
        With the boundary ones.
    interleaved_error : float or None
    """

    ratio: float
    rank: int | None
    error: float | None
    interleaved_ranks: tuple[int, ...] | None = None
    interleaved_error: float | None = None


def low_rank_cuts(basis: LowRankBasis) -> tuple[Cut, ...]:
    """The best cut for every ratio."""
    return tuple(_low_rank_cut(basis, ratio) for ratio in RATIOS)


def _low_rank_cut(basis: LowRankBasis, ratio: float) -> Cut:
    rows, cols = basis.weight.shape
    largest = np.count_nonzero(basis.spectrum > _NUMERICAL * basis.spectrum[0])
    rank = min(_budget(ratio, basis.weight) // (rows + cols), max(1, int(largest)))
    return Cut(ratio, rank, basis.relative_error(rank)) if rank else Cut(ratio, None, None)


def parameters_needed(basis: LowRankBasis, tol: float) -> int:
    """Those that the low-rank cut needs to keep a relative error, at most those of the whole matrix."""
    rows, cols = basis.weight.shape
    _, rank, _ = tnmpo.Tolerance(tol).choose([basis.spectrum], (rows, cols))
    return min(rank * (rows + cols), rows * cols)


def interleaved_cuts(
    weight: Tensor, shape: tnmpo.MPOShape, metric: tnmpo.Weight | None, low_rank: Sequence[Cut]
) -> tuple[tuple[np.ndarray, ...], tuple[Cut, ...]]:
    """The spectra of the bonds over their norm, and every cut with an interleaved one of as many parameters beside it.

    Notes
    -----
    Each cut starts from the one before, which is smaller than the whole; its error is measured on the matrix.
    """
    mpo = decompose_weight(weight, shape, max(shape.full_ranks), None)
    assert mpo.truncation is not None  # a rank was asked for
    total = math.hypot(*mpo.truncation.spectra[0]) if mpo.order > 1 else 0.0
    spectra = tuple(np.asarray(spectrum) / (total or 1.0) for spectrum in mpo.truncation.spectra)
    norm = weighted_norm(weight, metric)
    cuts = []
    for cut in low_rank:
        budget = (cut.rank or 0) * sum(weight.shape) or _budget(cut.ratio, weight)
        if budget < shape.n_parameters((1,) * (shape.order + 1)):
            cuts.append(cut)
            continue
        wanted = tnmpo.ParameterBudget(budget).choose(spectra, shape.site_sizes)
        ranks = tuple(min(pair) for pair in zip(wanted, mpo.ranks, strict=True))
        mpo = tnmpo.truncate(mpo, ranks)
        error = weighted_norm(weight - mpo.to_matrix()[: weight.shape[0], : weight.shape[1]], metric)
        cuts.append(Cut(cut.ratio, cut.rank, cut.error, mpo.ranks, error / norm if norm else 0.0))
    return spectra, tuple(cuts)


def _budget(ratio: float, weight: Tensor) -> int:
    return math.floor(ratio * weight.numel() + 1e-9)
