"""Shapes and ranks for every targeted matrix: decides, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch.layer import decompose_weight
from .calibration import Calibration
from .config import MPOConfig
from .lowrank import LowRankBasis, low_rank_basis, weighted_norm
from .targets import matches_name

Result = tuple[tnmpo.MPO, float | None]  # the MPO and its relative error, None where nothing was cut

_ROUNDING = 1e-6  # relative errors below it are single precision's own


class Matrix(Protocol):
    """What is decided about: a ``Target`` in a model, or a matrix in a file."""

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modules that hold it, its own first."""

    @property
    def is_embedding(self) -> bool: ...

    @property
    def weight(self) -> torch.Tensor:
        """Where only its size is wanted, one on the meta device will do."""


M = TypeVar("M", bound=Matrix)


@dataclass(frozen=True, eq=False)
class Plan(Generic[M]):
    """What one matrix becomes. Order 1 keeps it whole: one core, exact, as large as the matrix.

    A low-rank plan has the basis that its cuts project to. A plan that was tried has the result.
    """

    target: M
    shape: tnmpo.MPOShape
    rank: Any
    metric: tnmpo.Weight | None
    basis: LowRankBasis | None = None
    result: Result | None = None

    @property
    def n_parameters(self) -> int:
        """Of a low-rank plan, whose rank is a number."""
        return self.shape.n_parameters(tuple(min(self.rank, full) for full in self.shape.full_ranks))


def plan_model(targets: Sequence[M], config: MPOConfig, calibration: Calibration | None) -> list[Plan[M]]:
    """Choose the shape and the ranks of every target.

    Raises
    ------
    ValueError
        If a weight is not finite, a pattern of a rank dictionary matches no target, or the ratio is
        below the rank-one size.

    Notes
    -----
    Of every low-rank plan a basis is kept until it is carried out, together no larger than the weights.
    """
    for target in targets:
        check_finite(target)
    planner = Planner(config)
    metrics = [calibration.weight(target.name) if calibration is not None else None for target in targets]
    if shares_budget(config):
        plans, spectra = [], []
        for target, metric in _progress(list(zip(targets, metrics, strict=True)), "spectra"):
            plan = planner.draft(target, metric)
            plans.append(plan)
            spectra.append(relative_spectra(plan))
        ranks = allot(targets, spectra, config)
        plans = [replace(plan, rank=rank) for plan, rank in zip(plans, ranks, strict=True)]
    else:
        each = list(zip(targets, metrics, own_ranks(targets, config), strict=True))
        plans = [planner.alone(*arguments) for arguments in _progress(each, "spectra")]
    if config.shape == "auto":
        plans = [planner.challenge(plan) for plan in _progress(plans, "choose shapes")]
    return plans


def check_finite(matrix: Matrix) -> None:
    """Refuse a weight that no decomposition could be of.

    Raises
    ------
    ValueError
        If it holds NaN or Inf.
    """
    if not all(map(math.isfinite, torch.stack(torch.aminmax(matrix.weight.detach())).tolist())):
        raise ValueError(f"model: the weight of {matrix.name} holds NaN or Inf; load a sound checkpoint")


def shares_budget(config: MPOConfig) -> bool:
    """Whether all spectra must be known before any matrix is cut."""
    return config.ratio is not None and config.allot == "model"


def allot(matrices: Sequence[Matrix], spectra: Sequence[Sequence[np.ndarray]], config: MPOConfig) -> list[Any]:
    """The ranks of drafts under one budget, by relative (weighted) discarded weight per parameter."""
    assert config.ratio is not None
    budget = math.floor(config.ratio * sum(math.prod(_size(matrix)) for matrix in matrices) + 1e-9)
    shapes = [_first_shape(matrix, config) for matrix in matrices]
    ranks = tnmpo.allot_ranks(spectra, [shape.site_sizes for shape in shapes], budget)
    if config.shape == "interleaved":
        return list(ranks)
    return [_rounded_down(chosen[1], config.rank_multiple) for chosen in ranks]


def own_ranks(matrices: Sequence[Matrix], config: MPOConfig) -> list[Any]:
    """What every matrix is cut to by itself; None keeps it whole.

    Raises
    ------
    ValueError
        If a pattern of a rank dictionary matches no matrix.
    """
    if config.ratio is not None:
        return [float(config.ratio)] * len(matrices)
    if config.tol is not None:
        return [tnmpo.Tolerance(config.tol)] * len(matrices)
    if not isinstance(config.rank, Mapping):
        return [config.rank] * len(matrices)
    for pattern in config.rank:
        if not any(_names_any(pattern, matrix) for matrix in matrices):
            raise ValueError(
                f"rank: the pattern {pattern!r} matches none of the targeted modules "
                f"({', '.join(matrix.name for matrix in matrices[:5])}, ...); correct it"
            )
    return [
        next((rank for pattern, rank in config.rank.items() if _names_any(pattern, matrix)), None)
        for matrix in matrices
    ]


def _first_shape(matrix: Matrix, config: MPOConfig) -> tnmpo.MPOShape:
    """Before a challenge."""
    if config.shape == "interleaved":
        return config.interleaved_shape(_size(matrix), is_embedding=matrix.is_embedding)
    return tnmpo.MPOShape.low_rank(_size(matrix))


class Planner:
    """Decides about one matrix at a time, in the norm of ``metric``."""

    def __init__(self, config: MPOConfig) -> None:
        self.config = config

    def draft(self, matrix: M, metric: tnmpo.Weight | None) -> Plan[M]:
        """A plan whose rank is not known yet."""
        is_interleaved = self.config.shape == "interleaved"
        return self._interleaved(matrix, metric, None) if is_interleaved else self._low_rank(matrix, metric, None)

    def alone(self, matrix: M, metric: tnmpo.Weight | None, rank: Any) -> Plan[M]:
        """The plan of a matrix that has its budget to itself; ``rank`` None keeps it whole."""
        is_interleaved = self.config.shape == "interleaved" or rank is None
        plan = self._interleaved(matrix, metric, rank) if is_interleaved else self._low_rank(matrix, metric, rank)
        if isinstance(rank, float):
            # Of an interleaved one, the paper's baseline: one cap for all bonds of the matrix.
            cap = _largest_cap(plan.shape, matrix, rank)
            return replace(plan, rank=cap if is_interleaved else _rounded_down(cap, self.config.rank_multiple))
        return self._settled(plan, rank) if isinstance(rank, tnmpo.Tolerance) else plan

    def challenge(self, plan: Plan[M]) -> Plan[M]:
        """Take an interleaved MPO instead, where it has the lower error with no more parameters."""
        if plan.basis is None:
            return plan
        size, error = plan.n_parameters, plan.basis.relative_error(plan.rank)
        is_cap = self.config.rank is not None
        rank = plan.rank if is_cap else tnmpo.ParameterBudget(size)
        rival = self._interleaved(plan.target, plan.metric, rank)
        if rival.shape.n_parameters((1,) * (rival.shape.order + 1)) > size:
            return plan
        mpo, rival_error = decompose(rival)
        if mpo.n_parameters <= size and (rival_error or 0.0) < error:
            return replace(rival, rank=mpo.ranks, result=(mpo, rival_error))
        return plan

    def _interleaved(self, matrix: M, metric: tnmpo.Weight | None, rank: Any) -> Plan[M]:
        shape = self.config.interleaved_shape(_size(matrix), is_embedding=matrix.is_embedding)
        return Plan(matrix, shape, rank, metric)

    def _low_rank(self, matrix: M, metric: tnmpo.Weight | None, rank: Any) -> Plan[M]:
        with _naming(matrix):
            basis = low_rank_basis(matrix.weight, metric)
        return Plan(matrix, tnmpo.MPOShape.low_rank(_size(matrix)), rank, metric, basis)

    def _settled(self, plan: Plan[M], tolerance: tnmpo.Tolerance) -> Plan[M]:
        """Find the ranks that a tolerance needs; a matrix whose factors would be larger than itself stays whole."""
        if plan.basis is None:
            return self._settled_interleaved(plan, tolerance.relative)
        _, rank, _ = tolerance.choose([plan.basis.spectrum], plan.shape.site_sizes)
        most = _break_even(plan.target)
        rounded = -(-rank // self.config.rank_multiple) * self.config.rank_multiple
        return _whole(plan) if rank > most else replace(plan, rank=rounded if rounded <= most else rank)

    def _settled_interleaved(self, plan: Plan[M], wanted: float) -> Plan[M]:
        """An interleaved MPO is cut in the unweighted norm: cut less until the weighted error is small enough."""
        limit = wanted
        while True:
            mpo, error = decompose(replace(plan, rank=tnmpo.Tolerance(limit)))
            if error is None or error <= wanted or limit < _ROUNDING:
                return replace(plan, rank=mpo.ranks, result=(mpo, error))
            limit *= 0.95 * wanted / error


def decompose(plan: Plan[Any]) -> Result:
    """Carry out the decomposition of a plan; also its relative error in the calibrated norm.

    The error is None where nothing was cut.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a factorisation does not converge; the message begins with the name of the module.
    """
    if plan.result is not None:
        return plan.result
    weight = plan.target.weight.detach()
    with _naming(plan.target):
        if plan.basis is not None:
            mpo = plan.basis.cut(plan.rank)
            is_exact = torch.finfo(weight.dtype).bits >= 32  # rounding the cores to 16 bits is seen
            return mpo, plan.basis.relative_error(plan.rank) if is_exact else _relative_error(plan, mpo)
        mpo = decompose_weight(weight, plan.shape, plan.rank, None)
    if mpo.truncation is None:
        return mpo, None  # nothing was cut
    if plan.metric is None and plan.shape.matrix_shape == weight.shape:
        return mpo, mpo.truncation.relative_error
    return mpo, _relative_error(plan, mpo)  # the record is in another norm, or counts the padding


def _relative_error(plan: Plan[Any], mpo: tnmpo.MPO) -> float:
    weight = plan.target.weight.detach()
    rows, cols = weight.shape
    norm = weighted_norm(weight, plan.metric)
    # of 16-bit cores in single precision: their product would be rounded once more
    dense = tnmpo.MPO([core.to(torch.promote_types(core.dtype, torch.float32)) for core in mpo.cores]).to_matrix()
    return weighted_norm(weight - dense[:rows, :cols], plan.metric) / norm if norm else 0.0


@contextmanager
def _naming(target: Matrix) -> Iterator[None]:
    """Say whose matrix it is that a factorisation fails for."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        error.args = (f"{target.name}: {error}",)
        raise


def relative_spectra(plan: Plan[Any]) -> list[np.ndarray]:
    """Of every bond of a draft, over the norm of its matrix: what a shared budget is allotted by."""
    if plan.basis is not None:
        # beyond the break-even a low-rank layer would be larger and slower than a dense one
        return [plan.basis.spectrum[: _break_even(plan.target)] / (plan.basis.norm or 1.0)]
    mpo, _ = decompose(replace(plan, rank=max(plan.shape.full_ranks), metric=None))
    assert mpo.truncation is not None
    spectra = mpo.truncation.spectra
    norm = math.hypot(*spectra[0]) if spectra else 0.0
    return [spectrum / (norm or 1.0) for spectrum in spectra]


def _break_even(target: Matrix) -> int:
    """The largest rank at which ``U V`` is smaller than the matrix."""
    rows, cols = _size(target)
    return max(1, (rows * cols - 1) // (rows + cols))


def _whole(plan: Plan[M]) -> Plan[M]:
    rows, cols = _size(plan.target)
    return replace(plan, shape=tnmpo.MPOShape((rows,), (cols,)), rank=None, basis=None)


def _largest_cap(shape: tnmpo.MPOShape, target: Matrix, ratio: float) -> int:
    """The largest single cap at which the MPO keeps no more than ``ratio`` of the matrix."""
    budget = ratio * math.prod(_size(target)) + 1e-9
    caps = range(1, max(shape.full_ranks) + 1)
    fitting = [cap for cap in caps if shape.n_parameters([min(cap, full) for full in shape.full_ranks]) <= budget]
    if not fitting:
        raise ValueError(
            f"ratio: got {ratio}, which is below the rank-one size of {target.name} {_size(target)}; raise it"
        )
    return fitting[-1]


def _rounded_down(rank: int, multiple: int) -> int:
    """To a multiple, unless nothing is left."""
    return rank // multiple * multiple or rank


def _names_any(pattern: str, target: Matrix) -> bool:
    return any(matches_name(pattern, name) for name in target.names)


def _size(target: Matrix) -> tuple[int, int]:
    rows, cols = target.weight.shape
    return rows, cols


def _progress(items: Sequence[Any], what: str) -> Any:
    return transformers_logging.tqdm(items, desc=what, leave=False)
