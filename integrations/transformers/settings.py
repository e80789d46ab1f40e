"""The settings of the stages of a run, checked when they are made, before any model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .config import MPOConfig
from .squeezing import check_squeezing
from .tasks import get_task

# What a config keeps of a compressed checkpoint is no setting of a run.
_NOT_SETTINGS = ("layers", "quant_method", "modules_to_not_convert")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which task, and how its texts are read.

    Parameters
    ----------
    task : str
        GLUE's name.
    data_dir : Path, optional
        The folder with its files; the hub where it is None.
    max_length : int
        Tokens; longer texts are cut.
    """

    task: str
    data_dir: Path | None = None
    max_length: int = 128

    def __post_init__(self) -> None:
        get_task(self.task)
        _positive(self, "max_length")


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """On which of the task's training texts a compression is calibrated; labels are not used.

    Parameters
    ----------
    examples : int
        Examples that run through the model, spread over the file.
    count_all : bool
        Whether the tokens of all training texts are counted for the embedding.
    """

    examples: int = 512
    count_all: bool = True

    def __post_init__(self) -> None:
        _positive(self, "examples")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a model is fine-tuned on the task.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    learning_rate : float, optional
        The peak; None is 5e-5, and 2e-4 with ``lfa``.
    batch_size : int
        Texts per step and device.
    lfa : bool
        Train only the auxiliary tensors and what is no MPO.
    seeds : tuple of int
        One run each. The model of the first is kept, the scores of all are reported.
    core_learning_rate : float, optional
        The peak for the cores of MPO layers, where it is to differ.
    teacher : str, optional
        A model, mostly the dense one, whose answers are learned beside the labels.
    early_stop : int, optional
        Patience: a part of train decides after so many evaluations without a better one.
    save_steps : int
        Steps between two checkpoints, and with ``early_stop`` between two evaluations.
    hold_out : int
        Training examples that are not trained on: those that squeezing decides on with the same number and seed.
    """

    steps: int = 2000
    learning_rate: float | None = None
    batch_size: int = 32
    lfa: bool = False
    seeds: tuple[int, ...] = (0,)
    core_learning_rate: float | None = None
    teacher: str | None = None
    early_stop: int | None = None
    save_steps: int = 500
    hold_out: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.hold_out, bool) or not isinstance(self.hold_out, int) or self.hold_out < 0:
            raise ValueError(f"hold_out: got {self.hold_out!r}, expected a number of examples, 0 or more")
        _positive(self, "steps", "batch_size", "learning_rate", "core_learning_rate", "early_stop", "save_steps")
        if self.early_stop is not None and self.save_steps >= self.steps:
            raise ValueError(
                f"early_stop: with save_steps {self.save_steps} of {self.steps} steps only the last is evaluated; "
                "lower save_steps"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, expected at least one, none of them twice")

    @property
    def rate(self) -> float:
        """The learning rate, the default filled in."""
        return self.learning_rate if self.learning_rate is not None else (2e-4 if self.lfa else 5e-5)


@dataclass(frozen=True, kw_only=True)
class SqueezeSettings:
    """How bonds are lowered; see ``squeeze``.

    Parameters
    ----------
    max_drop : float
        How far the metric may fall, absolute.
    max_steps : int
        How many bonds are lowered at most.
    step : int
        By how much a bond is lowered.
    criterion : {"per_parameter", "error"}
    finetune_steps, learning_rate, batch_size
        Of the light fine-tuning after each cut.
    hold_out : int
        Training examples set aside to decide on.
    examples : int
        Training examples to calibrate the losses on; 0 for none.
    seed : int
    """

    max_drop: float = 0.01
    max_steps: int = 20
    step: int = 1
    criterion: str = "per_parameter"
    finetune_steps: int = 50
    learning_rate: float = 5e-4
    batch_size: int = 32
    hold_out: int = 1000
    examples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_squeezing(self.max_drop, self.max_steps, self.step, self.criterion)
        _positive(self, "finetune_steps", "learning_rate", "batch_size", "hold_out")
        if self.examples < 0:
            raise ValueError(f"examples: got {self.examples}, expected 0 (no calibration) or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How the result is scored on dev.

    Parameters
    ----------
    batch_size : int
    """

    batch_size: int = 64

    def __post_init__(self) -> None:
        _positive(self, "batch_size")


def setting_names(kind: type) -> list[str]:
    """The names that a section may have."""
    return [field.name for field in fields(kind) if field.init and field.name not in _NOT_SETTINGS]


def plain(settings: Any) -> dict[str, Any]:
    """A section as plain values, for a JSON file."""
    if isinstance(settings, MPOConfig):
        return {name: _plain(getattr(settings, name)) for name in setting_names(MPOConfig)}
    return {name: _plain(value) for name, value in asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            kind = "integer" if isinstance(value, int) else "number"
            raise ValueError(f"{name}: got {value}, expected a positive {kind}")
