"""Dimension squeezing: lower the bonds of a whole model step by step, where it costs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

import tnmpo

from ..torch import MPOLayer
from .calibration import Calibration
from .surgery import share_cores, truncate_layer
from .targets import require_mpo_layers

_CRITERIA = ("per_parameter", "error")


@dataclass(frozen=True)
class SqueezeStep:
    """One bond lowered.

    Attributes
    ----------
    number : int
        From 1.
    module : str
    bond : int
        From 1, the bond between the first two sites.
    rank, new_rank : int
    loss : float
        The discarded weight over the matrix's squared norm (of a low-rank layer in the calibrated norm where there is
        one): an estimate for the whole model, exact for this matrix before fine-tuning.
    parameters : int
        Of all MPO weights of the model at rest, afterwards.
    score : float
        ``evaluate(model)`` after fine-tuning.
    kept : bool
        Whether the score stayed within ``max_drop``; the model was put back otherwise.
    """

    number: int
    module: str
    bond: int
    rank: int
    new_rank: int
    loss: float
    parameters: int
    score: float
    kept: bool


@dataclass
class SqueezeLog:
    """Every step of a squeeze; ``print`` shows it as a table.

    Attributes
    ----------
    baseline : float
        The score before the first step.
    parameters : int
        Of all MPO weights at rest, before the first step.
    steps : list of SqueezeStep
    stopped : str
        ``"max_drop"``, ``"max_steps"`` or ``"rank one"``; ``"running"`` before the end.
    """

    baseline: float
    parameters: int
    steps: list[SqueezeStep] = field(default_factory=list)
    stopped: str = "running"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SqueezeLog:
        """The log that ``to_dict`` wrote, to go on from."""
        return cls(**{**values, "steps": [SqueezeStep(**step) for step in values["steps"]]})

    def __str__(self) -> str:
        width = max([len(step.module) for step in self.steps], default=6)
        lines = [f"{'step':>4}  {'module':{width}}  bond  {'rank':>11}  {'loss':>8}  {'parameters':>12}  {'score':>7}"]
        lines.append(f"{0:4}  {'':{width}}  {'':4}  {'':11}  {'':8}  {self.parameters:12,}  {self.baseline:7.4f}")
        for step in self.steps:
            ranks = f"{step.rank} -> {step.new_rank}"
            lines.append(
                f"{step.number:4}  {step.module:{width}}  {step.bond:4}  {ranks:>11}  {step.loss:8.2e}  "
                f"{step.parameters:12,}  {step.score:7.4f}" + ("" if step.kept else "  put back")
            )
        return "\n".join([*lines, f"stopped: {self.stopped}"])


def squeeze(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    finetune: Callable[[nn.Module], Any],
    *,
    max_drop: float,
    max_steps: int,
    step: int = 1,
    criterion: str = "per_parameter",
    calibration: Calibration | None = None,
    on_step: Callable[[SqueezeLog], None] | None = None,
    log: SqueezeLog | None = None,
) -> SqueezeLog:
    """Lower bond dimensions one after another, with light fine-tuning in between.

    Each step lowers the bond whose loss is least, re-gauges its train first, fine-tunes, and
    evaluates. It ends when the score has fallen by more than ``max_drop`` below the first one;
    the model is left as the last state within it.

    Parameters
    ----------
    model : nn.Module
        Compressed; changed in place. Call ``freeze_central`` first for lightweight fine-tuning.
    evaluate : callable(model) -> float
        Higher is better. It decides when to stop, so report another split's score afterwards.
    finetune : callable(model)
        Trains a few steps. Parameters are replaced when a bond is cut: build the optimiser (and any DDP wrapper)
        inside, as a ``Trainer`` does.
    max_drop : float
        Absolute, in the metric's units, at least 0.
    max_steps : int
        At most so many bonds are lowered.
    step : int
        By how much a bond is lowered each time, at most to one.
    criterion : {"per_parameter", "error"}
        The least relative loss per saved parameter, or the least relative loss as in the paper.
    calibration : Calibration, optional
        Losses of low-rank layers, and their cuts, are then in the calibrated norm.
    on_step : callable(SqueezeLog), optional
        Called after every step, e.g. to save the model and the log.
    log : SqueezeLog, optional
        Of a squeeze that was interrupted, to go on from: ``model`` is then the one that was saved with it. The steps in
        it count, and its baseline is that of the first start. A finished log comes back as it is.

    Returns
    -------
    SqueezeLog

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or the model has no MPO layers.

    Notes
    -----
    Algorithm 2 of Liu et al. (ACL 2021). Losses come from the Schmidt spectra of the current cores, which one sweep
    per matrix finds without forming it. An exception, Ctrl-C too, leaves the model in the last state that was kept.
    """
    check_squeezing(max_drop, max_steps, step, criterion)
    layers = {name: (layer, tied) for name, layer, tied in require_mpo_layers(model, "squeeze")}
    metrics = {name: calibration.weight(name) if calibration is not None else None for name in layers}
    if calibration is not None and not any(metrics.values()):
        raise ValueError(
            f"calibration: it knows none of the compressed modules ({next(iter(layers))}, ...); "
            "calibrate the very model that is squeezed"
        )
    if log is None:
        log = SqueezeLog(baseline=float(evaluate(model)), parameters=_parameters_at_rest(layers))
    elif log.stopped != "running":
        return log
    while len(log.steps) < max_steps:
        candidates = [
            candidate
            for name, (layer, _) in layers.items()
            for candidate in _candidates(name, layer, metrics[name], step)
        ]
        if not candidates:
            log.stopped = "rank one"
            break
        best = min(
            candidates, key=lambda candidate: candidate.price if criterion == "per_parameter" else candidate.loss
        )
        last = _State(model, layers)
        kept = False
        try:
            cut = truncate_layer(*layers[best.module], best.ranks, metrics[best.module])
            finetune(model)
            score = float(evaluate(model))
            kept = log.baseline - score <= max_drop
            log.steps.append(
                SqueezeStep(
                    number=len(log.steps) + 1,
                    module=best.module,
                    bond=best.bond,
                    rank=best.rank,
                    new_rank=best.ranks[best.bond],
                    loss=cut.relative_error**2,
                    parameters=_parameters_at_rest(layers),
                    score=score,
                    kept=kept,
                )
            )
        finally:
            if not kept:
                last.restore()
        if not kept:
            log.stopped = "max_drop"
        if on_step is not None:
            on_step(log)
        if not kept:
            break
    else:
        log.stopped = "max_steps"
    return log


@dataclass(frozen=True)
class _Candidate:
    module: str
    bond: int
    rank: int
    ranks: tuple[int, ...]
    loss: float
    price: float


def _candidates(name: str, layer: MPOLayer, metric: tnmpo.Weight | None, step: int) -> Iterator[_Candidate]:
    """Every bond of a layer that can be lowered, neighbours following where they must."""
    shape = layer.shape_at_rest
    spectra = layer.bond_spectra(metric if layer.is_low_rank else None)
    ranks = (1, *(len(spectrum) for spectrum in spectra), 1)
    norm2 = float(np.sum(np.square(spectra[0]))) if spectra else 0.0
    for bond in range(1, len(ranks) - 1):
        if ranks[bond] == 1:
            continue
        lowered = shape.clip_ranks([*ranks[:bond], max(1, ranks[bond] - step), *ranks[bond + 1 :]])
        # Of this bond alone: with it, its neighbours have lost the directions that they cannot keep.
        weight = float(np.sum(np.square(spectra[bond - 1][lowered[bond] :])))
        loss = weight / norm2 if norm2 else 0.0
        saved = shape.n_parameters(ranks) - shape.n_parameters(lowered)
        yield _Candidate(name, bond, ranks[bond], lowered, loss, loss / saved)


class _State:
    """All parameters and buffers of a model, and its mode, to go back to."""

    def __init__(self, model: nn.Module, layers: dict[str, tuple[MPOLayer, list[MPOLayer]]]) -> None:
        self.model = model
        self.layers = layers
        self.training = model.training
        # for their shapes: the values come from the copies below
        self.cores = {name: [core.detach() for core in layer.cores] for name, (layer, _) in layers.items()}
        self.flags = {name: [core.requires_grad for core in layer.cores] for name, (layer, _) in layers.items()}
        self.values: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}

    def restore(self) -> None:
        for name, (layer, tied) in self.layers.items():
            layer.set_cores_(self.cores[name], self.flags[name])
            share_cores(layer, tied)
        self.model.load_state_dict(self.values)
        self.model.train(self.training)


def _parameters_at_rest(layers: dict[str, tuple[MPOLayer, list[MPOLayer]]]) -> int:
    return sum(layer.shape_at_rest.n_parameters(layer.ranks_at_rest) for layer, _ in layers.values())


def check_squeezing(max_drop: Any, max_steps: Any, step: Any, criterion: Any) -> None:
    """Refuse settings of ``squeeze`` that are out of range."""
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float):
        raise TypeError(f"max_drop: got {max_drop!r}, expected a number >= 0 in the metric's units")
    if not 0 <= max_drop < math.inf:
        raise ValueError(f"max_drop: got {max_drop}, expected a number >= 0 in the metric's units")
    for name, value in (("max_steps", max_steps), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r}, expected a positive integer")
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected a positive integer")
    if criterion not in _CRITERIA:
        raise ValueError(f"criterion: got {criterion!r}, expected one of {', '.join(map(repr, _CRITERIA))}")
