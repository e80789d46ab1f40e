"""Fine-tune one recipe under several seeds, and say how much its scores scatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .evaluation import evaluate
from .tasks import TaskData
from .training import FinetuneLog, finetune


@dataclass(frozen=True)
class SeedScores:
    """Scores of one recipe under several seeds; ``print`` shows them as a table.

    Attributes
    ----------
    task, split, metric : str
    examples : int
        Of the split.
    scores : dict of int to float
        By seed.
    settings : dict
        What was handed to ``finetune``.

    Examples
    --------
    >>> print(SeedScores("sst2", "dev", "accuracy", 872, {0: 0.91, 1: 0.93, 2: 0.92}, {"steps": 200}))
    seed  accuracy
       0    0.9100
       1    0.9300
       2    0.9200
    mean    0.9200
    dev.    0.0100
    sst2 dev, 872 examples; steps 200
    """

    task: str
    split: str
    metric: str
    examples: int
    scores: dict[int, float]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.scores.values())))

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (division by n - 1); None of a single seed."""
        return float(np.std(list(self.scores.values()), ddof=1)) if len(self.scores) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "task": self.task,
            "split": self.split,
            "metric": self.metric,
            "examples": self.examples,
            "seeds": list(self.scores),
            "scores": list(self.scores.values()),
            "mean": self.mean,
            "deviation": self.deviation,
            "settings": dict(self.settings),
        }

    def __str__(self) -> str:
        width = max(7, len(self.metric))
        lines = [
            f"seed  {self.metric:>{width}}",
            *(f"{seed:4}  {self.scores[seed]:{width}.4f}" for seed in self.scores),
        ]
        lines.append(f"mean  {self.mean:{width}.4f}")
        if self.deviation is not None:
            lines.append(f"dev.  {self.deviation:{width}.4f}")
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines.append(f"{self.task} {self.split}, {self.examples} examples" + (f"; {settings}" if settings else ""))
        return "\n".join(lines)


def finetune_seeds(
    make_model: Callable[[int], nn.Module],
    tokenizer: Any,
    data: TaskData,
    *,
    seeds: Sequence[int],
    on_model: Callable[[int, nn.Module, FinetuneLog], None] | None = None,
    **settings: Any,
) -> SeedScores:
    """Fine-tune once per seed, and score each model on dev, once, when all choices are made.

    Parameters
    ----------
    make_model : callable(seed) -> nn.Module
        A model ready to train: loaded anew, with a head drawn with that seed, compressed and frozen.
    tokenizer : transformers tokenizer
    data : TaskData
        Trained on ``train``; with ``early_stop``, ``validation`` decides, or a part of ``train`` where there is none.
        ``dev`` only gives the scores.
    seeds : sequence of int
        Also of the order of the sentences, of dropout, and of what is held out.
    on_model : callable(seed, model, log), optional
        Called after each run, e.g. to save the model.
    **settings
        Those of ``finetune`` but ``seed``; checkpoints of a seed go to ``folder / "seed-<seed>"``.

    Returns
    -------
    SeedScores

    Raises
    ------
    ValueError
        If there are no seeds, or one comes twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, expected different integers such as [0, 1, 2]")
    folder, handed = settings.pop("folder", None), dict(settings)
    if settings.get("early_stop") is not None and data.validation is not None:
        handed.setdefault("hold_out", data.validation)
    scores = {}
    for seed in seeds:
        model = make_model(seed)
        place = None if folder is None else Path(folder) / f"seed-{seed}"
        log = finetune(model, tokenizer, data.task, data.train, seed=seed, folder=place, **handed)
        scores[seed] = evaluate(model, tokenizer, data.task, data.dev, max_length=settings.get("max_length", 128))
        if on_model is not None:
            on_model(seed, model, log)
    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    return SeedScores(data.task.name, "dev", data.task.metric, len(data.dev), scores, plain)
