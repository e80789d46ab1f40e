"""Shapes and ranks for every targeted matrix: decides, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch.layer import decompose_weight
from .calibration import Calibration
from .config import MPOConfig
from .lowrank import LowRankBasis, low_rank_basis
from .targets import Target, matches_name

Result = tuple[tnmpo.MPO, float | None]  # the MPO and its relative error, None where nothing was cut

_ROUNDING = 1e-6  # relative errors below it are single precision's own


@dataclass(frozen=True, eq=False)
class Plan:
    """What one matrix becomes. Order 1 keeps it whole: one core, exact, as large as the matrix.

    A low-rank plan has the basis that its cuts project to. A plan that was tried has the result.
    """

    target: Target
    shape: tnmpo.MPOShape
    rank: Any
    metric: tnmpo.Weight | None
    basis: LowRankBasis | None = None
    result: Result | None = None

    @property
    def n_parameters(self) -> int:
        """Of a low-rank plan, whose rank is a number."""
        return self.shape.n_parameters(tuple(min(self.rank, full) for full in self.shape.full_ranks))


def plan_model(targets: Sequence[Target], config: MPOConfig, calibration: Calibration | None) -> list[Plan]:
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
        if not all(map(math.isfinite, torch.stack(torch.aminmax(target.weight.detach())).tolist())):
            raise ValueError(f"model: the weight of {target.name} holds NaN or Inf; load a sound checkpoint")
    planner = _Planner(config, calibration)
    if config.is_lossless:
        return [planner.interleaved(target, None) for target in targets]
    if config.ratio is not None and config.allot == "model":
        plans = planner.share_budget(targets, config.ratio)
    else:
        pairs = list(zip(targets, _ranks_by_module(targets, config), strict=True))
        plans = [planner.alone(target, rank) for target, rank in _progress(pairs, "spectra")]
    if config.shape == "auto":
        plans = [planner.challenge(plan) for plan in _progress(plans, "choose shapes")]
    return plans


class _Planner:
    def __init__(self, config: MPOConfig, calibration: Calibration | None) -> None:
        self.config = config
        self.calibration = calibration

    def interleaved(self, target: Target, rank: Any) -> Plan:
        shape = self.config.interleaved_shape(_size(target), is_embedding=target.is_embedding)
        return Plan(target, shape, rank, self._metric(target))

    def low_rank(self, target: Target, rank: Any) -> Plan:
        metric = self._metric(target)
        with _naming(target):
            basis = low_rank_basis(target.weight, metric)
        return Plan(target, tnmpo.MPOShape.low_rank(_size(target)), rank, metric, basis)

    def alone(self, target: Target, rank: Any) -> Plan:
        """The plan of a matrix that has its budget to itself; ``rank`` None keeps it whole."""
        is_interleaved = self.config.shape == "interleaved" or rank is None
        plan = self.interleaved(target, rank) if is_interleaved else self.low_rank(target, rank)
        if isinstance(rank, float):
            # Of an interleaved one, the paper's baseline: one cap for all bonds of the matrix.
            return replace(plan, rank=_largest_cap(plan.shape, target, rank))
        return self._settled(plan, rank) if isinstance(rank, tnmpo.Tolerance) else plan

    def share_budget(self, targets: Sequence[Target], ratio: float) -> list[Plan]:
        """One budget over all matrices, by relative (weighted) discarded weight per parameter."""
        make = self.interleaved if self.config.shape == "interleaved" else self.low_rank
        plans, spectra = [], []
        for target in _progress(targets, "spectra"):
            plan = make(target, None)
            plans.append(plan)
            spectra.append(_relative_spectra(plan))
        budget = math.floor(ratio * sum(math.prod(_size(target)) for target in targets) + 1e-9)
        ranks = tnmpo.allot_ranks(spectra, [plan.shape.site_sizes for plan in plans], budget)
        return [
            replace(plan, rank=chosen if plan.basis is None else chosen[1])
            for plan, chosen in zip(plans, ranks, strict=True)
        ]

    def _settled(self, plan: Plan, tolerance: tnmpo.Tolerance) -> Plan:
        """Find the ranks that a tolerance needs; a matrix whose factors would be larger than itself stays whole."""
        if plan.basis is None:
            return self._settled_interleaved(plan, tolerance.relative)
        _, rank, _ = tolerance.choose([plan.basis.spectrum], plan.shape.site_sizes)
        return _whole(plan) if rank > _break_even(plan.target) else replace(plan, rank=rank)

    def _settled_interleaved(self, plan: Plan, wanted: float) -> Plan:
        """An interleaved MPO is cut in the unweighted norm: cut less until the weighted error is small enough."""
        limit = wanted
        while True:
            mpo, error = decompose(replace(plan, rank=tnmpo.Tolerance(limit)))
            if error is None or error <= wanted or limit < _ROUNDING:
                return replace(plan, rank=mpo.ranks, result=(mpo, error))
            limit *= 0.95 * wanted / error

    def challenge(self, plan: Plan) -> Plan:
        """Take an interleaved MPO instead, where it has the lower error with no more parameters."""
        if plan.basis is None:
            return plan
        size, error = plan.n_parameters, plan.basis.relative_error(plan.rank)
        is_cap = self.config.rank is not None
        rival = self.interleaved(plan.target, plan.rank if is_cap else tnmpo.ParameterBudget(size))
        if rival.shape.n_parameters((1,) * (rival.shape.order + 1)) > size:
            return plan
        mpo, rival_error = decompose(rival)
        if mpo.n_parameters <= size and (rival_error or 0.0) < error:
            return replace(rival, rank=mpo.ranks, result=(mpo, rival_error))
        return plan

    def _metric(self, target: Target) -> tnmpo.Weight | None:
        return self.calibration.weight(target.name) if self.calibration is not None else None


def decompose(plan: Plan) -> Result:
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


def _relative_error(plan: Plan, mpo: tnmpo.MPO) -> float:
    weight = plan.target.weight.detach()
    rows, cols = weight.shape
    norm = _norm(weight, plan.metric)
    # of 16-bit cores in single precision: their product would be rounded once more
    dense = tnmpo.MPO([core.to(torch.promote_types(core.dtype, torch.float32)) for core in mpo.cores]).to_matrix()
    return _norm(weight - dense[:rows, :cols], plan.metric) / norm if norm else 0.0


def _norm(matrix: torch.Tensor, metric: tnmpo.Weight | None) -> float:
    """``sqrt(tr(R E C E^T))``, without the roots of the metrics."""
    wide = turned = matrix.double()
    rows: Any = None if metric is None else metric.rows
    cols: Any = None if metric is None else metric.cols
    if rows is not None:
        turned = rows.to(wide.device)[:, None] * wide
    if cols is not None:
        turned = turned @ cols.to(wide.device)
    return math.sqrt(max(0.0, float(torch.vdot(turned.reshape(-1), wide.reshape(-1)))))


@contextmanager
def _naming(target: Target) -> Iterator[None]:
    """Say whose matrix it is that a factorisation fails for."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        error.args = (f"{target.name}: {error}",)
        raise


def _relative_spectra(plan: Plan) -> list[np.ndarray]:
    if plan.basis is not None:
        # beyond the break-even a low-rank layer would be larger and slower than a dense one
        return [plan.basis.spectrum[: _break_even(plan.target)] / (plan.basis.norm or 1.0)]
    mpo, _ = decompose(replace(plan, rank=max(plan.shape.full_ranks), metric=None))
    assert mpo.truncation is not None
    spectra = mpo.truncation.spectra
    norm = math.hypot(*spectra[0]) if spectra else 0.0
    return [spectrum / (norm or 1.0) for spectrum in spectra]


def _break_even(target: Target) -> int:
    """The largest rank at which ``U V`` is smaller than the matrix."""
    rows, cols = _size(target)
    return max(1, (rows * cols - 1) // (rows + cols))


def _whole(plan: Plan) -> Plan:
    rows, cols = _size(plan.target)
    return replace(plan, shape=tnmpo.MPOShape((rows,), (cols,)), rank=None, basis=None)


def _largest_cap(shape: tnmpo.MPOShape, target: Target, ratio: float) -> int:
    """The largest single cap at which the MPO keeps no more than ``ratio`` of the matrix."""
    budget = ratio * math.prod(_size(target)) + 1e-9
    caps = range(1, max(shape.full_ranks) + 1)
    fitting = [cap for cap in caps if shape.n_parameters([min(cap, full) for full in shape.full_ranks]) <= budget]
    if not fitting:
        raise ValueError(
            f"ratio: got {ratio}, which is below the rank-one size of {target.name} {_size(target)}; raise it"
        )
    return fitting[-1]


def _ranks_by_module(targets: Sequence[Target], config: MPOConfig) -> list[Any]:
    if config.ratio is not None:
        return [float(config.ratio)] * len(targets)
    if config.tol is not None:
        return [tnmpo.Tolerance(config.tol)] * len(targets)
    if not isinstance(config.rank, Mapping):
        return [config.rank] * len(targets)
    for pattern in config.rank:
        if not any(_names_any(pattern, target) for target in targets):
            raise ValueError(
                f"rank: the pattern {pattern!r} matches none of the targeted modules "
                f"({', '.join(target.name for target in targets[:5])}, ...); correct it"
            )
    return [
        next((rank for pattern, rank in config.rank.items() if _names_any(pattern, target)), None) for target in targets
    ]


def _names_any(pattern: str, target: Target) -> bool:
    return any(matches_name(pattern, name) for name in target.names)


def _size(target: Target) -> tuple[int, int]:
    rows, cols = target.weight.shape
    return rows, cols


def _progress(items: Sequence[Any], what: str) -> Any:
    return transformers_logging.tqdm(items, desc=what, leave=False)
