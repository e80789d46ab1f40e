"""Shapes and ranks for every targeted matrix: decides, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch.layer import decompose_weight
from .calibration import Calibration
from .config import MPOConfig
from .targets import Target, matches_name

_ROUNDING = 1e-6  # relative errors below it are single precision's own


@dataclass(frozen=True)
class Plan:
    """What one matrix becomes. Order 1 keeps it whole: one core, exact, as large as the matrix."""

    target: Target
    shape: tnmpo.MPOShape
    rank: Any
    metric: tnmpo.Weight | None


def plan_model(targets: Sequence[Target], config: MPOConfig, calibration: Calibration | None) -> list[Plan]:
    """Choose the shape and the ranks of every target.

    Raises
    ------
    ValueError
        If a weight is not finite, a pattern of a rank dictionary matches no target, or the ratio is
        below the rank-one size.
    """
    for target in targets:
        if not torch.isfinite(target.weight).all():
            raise ValueError(f"model: the weight of {target.name} holds NaN or Inf; load a sound checkpoint")
    planner = _Planner(config, calibration)
    if config.is_lossless:
        return [planner.interleaved(target, None) for target in targets]
    if config.ratio is not None and config.allot == "model":
        plans = planner.share_budget(targets, config.ratio)
    else:
        ranks = _ranks_by_module(targets, config)
        plans = [planner.alone(target, rank) for target, rank in zip(targets, ranks, strict=True)]
    if config.tol is not None:
        plans = [planner.settle(plan) for plan in _progress(plans, "spectra")]
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
        return Plan(target, tnmpo.MPOShape.low_rank(_size(target)), rank, self._metric(target))

    def alone(self, target: Target, rank: Any) -> Plan:
        """The plan of a matrix that has its budget to itself; ``rank`` None keeps it whole."""
        if self.config.shape == "interleaved" or rank is None:
            plan = self.interleaved(target, rank)
            # The paper's baseline: one cap for all bonds of the matrix.
            return replace(plan, rank=_largest_cap(plan.shape, target, rank)) if isinstance(rank, float) else plan
        return self.low_rank(target, rank)

    def share_budget(self, targets: Sequence[Target], ratio: float) -> list[Plan]:
        """One budget over all matrices, by relative (weighted) discarded weight per parameter."""
        make = self.interleaved if self.config.shape == "interleaved" else self.low_rank
        plans = [make(target, None) for target in targets]
        spectra = [_relative_spectra(plan) for plan in _progress(plans, "spectra")]
        if self.config.shape != "interleaved":
            # beyond that a low-rank layer would be larger and slower than a dense one
            spectra = [[train[0][: _break_even(target)]] for train, target in zip(spectra, targets, strict=True)]
        budget = math.floor(ratio * sum(math.prod(_size(target)) for target in targets) + 1e-9)
        ranks = tnmpo.allot_ranks(spectra, [plan.shape.site_sizes for plan in plans], budget)
        return [replace(plan, rank=chosen) for plan, chosen in zip(plans, ranks, strict=True)]

    def settle(self, plan: Plan) -> Plan:
        """Find the ranks that a tolerance needs; a matrix whose factors would be larger than itself stays whole."""
        if not plan.shape.is_low_rank:
            return self._settle_interleaved(plan)
        ranks = decompose(plan)[0].ranks
        return _whole(plan) if max(ranks) > _break_even(plan.target) else replace(plan, rank=ranks)

    def _settle_interleaved(self, plan: Plan) -> Plan:
        """An interleaved MPO is cut in the unweighted norm: cut less until the weighted error is small enough."""
        wanted = limit = self.config.tol or 0.0
        while True:
            mpo, error = decompose(replace(plan, rank=tnmpo.Tolerance(limit)))
            if error is None or error <= wanted or limit < _ROUNDING:
                return replace(plan, rank=mpo.ranks)
            limit *= 0.95 * wanted / error

    def challenge(self, plan: Plan) -> Plan:
        """Take an interleaved MPO instead, where it has the lower error with no more parameters."""
        if not plan.shape.is_low_rank:
            return plan
        ours, error = _try(plan)
        budget = plan.rank if isinstance(plan.rank, int) else tnmpo.ParameterBudget(ours.n_parameters)
        rival = self.interleaved(plan.target, budget)
        if rival.shape.n_parameters((1,) * (rival.shape.order + 1)) > ours.n_parameters:
            return plan
        theirs, rival_error = _try(rival)
        if theirs.n_parameters <= ours.n_parameters and rival_error < error:
            return replace(rival, rank=theirs.ranks)
        return plan

    def _metric(self, target: Target) -> tnmpo.Weight | None:
        return self.calibration.weight(target.name) if self.calibration is not None else None


def decompose(plan: Plan) -> tuple[tnmpo.MPO, float | None]:
    """Carry out the decomposition of a plan; also its relative error in the calibrated norm.

    The error is None where nothing was cut.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a factorisation does not converge; the message begins with the name of the module.
    """
    weight = plan.target.weight.detach()
    cut_in = plan.metric if plan.shape.is_low_rank else None
    try:
        mpo = decompose_weight(weight, plan.shape, plan.rank, cut_in)
    except np.linalg.LinAlgError as error:
        error.args = (f"{plan.target.name}: {error}",)
        raise
    if mpo.truncation is None:
        return mpo, None  # nothing was cut
    if plan.shape.is_low_rank or (plan.metric is None and plan.shape.matrix_shape == weight.shape):
        return mpo, mpo.truncation.relative_error
    # The record is in another norm, or counts the padding.
    metric = plan.metric or tnmpo.Weight()
    rows, cols = weight.shape
    norm = metric.norm(weight)
    return mpo, metric.norm(weight - mpo.to_matrix()[:rows, :cols]) / norm if norm else 0.0


def _try(plan: Plan) -> tuple[tnmpo.MPO, float]:
    mpo, error = decompose(plan)
    return mpo, 0.0 if error is None else error


def _relative_spectra(plan: Plan) -> list[Any]:
    uncut = max(plan.shape.full_ranks)
    mpo, _ = decompose(replace(plan, rank=uncut))
    assert mpo.truncation is not None
    spectra = mpo.truncation.spectra
    norm = math.sqrt(sum(float(value) ** 2 for value in spectra[0])) if spectra else 0.0
    return [spectrum / norm if norm else spectrum for spectrum in spectra]


def _break_even(target: Target) -> int:
    """The largest rank at which ``U V`` is smaller than the matrix."""
    rows, cols = _size(target)
    return max(1, (rows * cols - 1) // (rows + cols))


def _whole(plan: Plan) -> Plan:
    rows, cols = _size(plan.target)
    return replace(plan, shape=tnmpo.MPOShape((rows,), (cols,)), rank=None)


def _largest_cap(shape: tnmpo.MPOShape, target: Target, ratio: float) -> int:
    """The largest single cap at which the MPO keeps no more than ``ratio`` of the matrix."""
    budget = ratio * math.prod(_size(target))
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
