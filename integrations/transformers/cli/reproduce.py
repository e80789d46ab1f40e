"""The paper's experiment for one task, all of its models in one go."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from ..acceptability import acceptability_task, word_tokenizer
from ..checkpoint import save, write_text
from ..config import MPOConfig
from ..settings import CalibrationSettings, FinetuneSettings, SqueezeSettings, TaskSettings, plain
from .records import check_output, finished, to_json, versions
from .session import Session
from .stages import COMPRESSED, FINETUNED, SQUEEZED, compress_stage, finetune_stage, squeeze_stage

# Of Liu et al. (ACL 2021), for ALBERT-base-v2, without a classifier.
PUBLISHED_DENSE = 11_683_584
PUBLISHED_AUXILIARY = 1_010_164
PUBLISHED_SQUEEZED = 10_590_217


@dataclass(frozen=True)
class Row:
    """One model of the table, over all seeds.

    Attributes
    ----------
    model : str
    scores : dict of int to float
        On dev, by seed.
    trained, auxiliary, parameters : int
        Means over the seeds: what was trained, the auxiliary tensors of it, and all of the model at rest.
    published : str
        What the paper reports for it.
    """

    model: str
    scores: dict[int, float]
    trained: int
    auxiliary: int
    parameters: int
    published: str

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None of a single seed."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


def reproduce_task(
    here: Session, model: str, output: Path, task: TaskSettings, tuning: FinetuneSettings, squeezing: SqueezeSettings
) -> list[Row]:
    """Fine-tune a model dense, as MPOs, lightly, squeezed, and in our low-rank shape at the squeezed size.

    Parameters
    ----------
    here : Session
    model : str
        Pre-trained, without a head: a folder or a name on the hub.
    output : Path
        Gets a folder for every model and seed; what is finished there is not run again.
    task : TaskSettings
    tuning : FinetuneSettings
        Its seeds are those of the table; ``lfa`` and ``learning_rate`` are set row by row.
    squeezing : SqueezeSettings
        Its seed is set row by row.

    Returns
    -------
    list of Row
    """
    check_output(output)
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    experiment = _Experiment(here, output, task)
    full_rank = output / "full-rank"
    experiment.stage(
        full_rank,
        COMPRESSED,
        {"model": model},
        lambda known: compress_stage(here, model, full_rank, MPOConfig(), settings=known),
    )
    for seed in tuning.seeds:
        of_all = replace(tuning, seeds=(seed,))
        lightly = replace(tuning, seeds=(seed,), lfa=True)
        runs.setdefault("dense", {})[seed] = experiment.finetune("dense", model, of_all)
        runs.setdefault("MPO, full rank", {})[seed] = experiment.finetune("mpo", full_rank, of_all)
        runs.setdefault("MPO, full rank + LFA", {})[seed] = experiment.finetune("lfa", full_rank, lightly)
        squeezed = experiment.squeeze("squeezed", output / f"lfa-{seed}", replace(squeezing, seed=seed))
        runs.setdefault("MPO + LFA, squeezed", {})[seed] = squeezed
        small = experiment.low_rank(model, seed, squeezed["kept_parameters"], full_rank)
        # as many steps as the squeezed model had altogether
        steps = tuning.steps + len(squeezed["steps"]) * squeezing.finetune_steps
        runs.setdefault("low rank, calibrated + LFA", {})[seed] = experiment.finetune(
            "low-rank", small, replace(lightly, steps=steps)
        )
    return [_row(name, by_seed) for name, by_seed in runs.items()]


class _Experiment:
    """Runs a stage into its folder, unless it is finished there."""

    def __init__(self, here: Session, output: Path, task: TaskSettings) -> None:
        self.here, self.output, self.task = here, output, task

    def stage(
        self, folder: Path, record: str, settings: dict[str, Any], run: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        settings = json.loads(to_json(settings))  # as they are read back
        done = finished(folder / record, settings)
        self.here.say(f"{folder.name}: {'starts' if done is None else 'finished before'}")
        return done or run(settings)

    def finetune(self, name: str, model: str | Path, tuning: FinetuneSettings) -> dict[str, Any]:
        folder = self.output / f"{name}-{tuning.seeds[0]}"
        settings = {"model": str(model), **plain(self.task), **plain(tuning)}
        return self.stage(
            folder,
            FINETUNED,
            settings,
            lambda known: finetune_stage(self.here, model, folder, self.task, tuning, known),
        )

    def squeeze(self, name: str, model: Path, squeezing: SqueezeSettings) -> dict[str, Any]:
        folder = self.output / f"{name}-{squeezing.seed}"
        settings = {"model": str(model), **plain(self.task), **plain(squeezing)}
        return self.stage(
            folder,
            SQUEEZED,
            settings,
            lambda known: squeeze_stage(self.here, model, folder, self.task, squeezing, known),
        )

    def low_rank(self, model: str, seed: int, parameters: int, full_rank: Path) -> Path:
        """The pre-trained model in our shape, with as many parameters in its matrices as the squeezed one has."""
        dense = json.loads((full_rank / COMPRESSED).read_text(encoding="utf-8"))["dense_parameters"]
        folder = self.output / f"low-rank-start-{seed}"
        ratio = min(1.0, parameters / dense)
        config = MPOConfig(ratio=ratio, shape="low_rank")
        self.stage(
            folder,
            COMPRESSED,
            {"model": model, **plain(self.task), "ratio": ratio},
            lambda known: compress_stage(self.here, model, folder, config, self.task, CalibrationSettings(), known),
        )
        return folder


def reproduction_table(rows: list[Row], task: str, metric: str) -> str:
    """The rows as a table; ``fewer`` compares what is trained with the parameters of the dense model."""
    dense = rows[0].parameters
    lines = [
        f"{task}: {metric} on dev, mean and standard deviation over the seeds {', '.join(map(str, rows[0].scores))}",
        f"{'model':28}{'score':>18}{'trained':>13}{'fewer':>8}{'parameters':>13}{'of dense':>10}  published",
    ]
    for row in rows:
        score = f"{row.mean:.4f}" + ("" if row.deviation is None else f" +- {row.deviation:.4f}")
        lines.append(
            f"{row.model:28}{score:>18}{row.trained:13,}{1 - row.trained / dense:8.1%}{row.parameters:13,}"
            f"{row.parameters / dense:10.3f}  {row.published}".rstrip()
        )
    light = next(row for row in rows if row.published)
    lines += [
        f"Auxiliary tensors alone, as the paper counts: {light.auxiliary:,}, {1 - light.auxiliary / dense:.1%} fewer.",
        f"Published: Liu et al. (ACL 2021), ALBERT-base-v2, {PUBLISHED_DENSE:,} parameters without its classifier.",
        "Trained parameters here include biases, layer norms and the head.",
    ]
    return "\n".join(lines)


def write_result(output: Path, rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """The table as ``reproduce.json``."""
    answer = {
        "rows": [{**asdict(row), "mean": row.mean, "deviation": row.deviation} for row in rows],
        "settings": settings,
        "versions": versions(),
    }
    write_text(output / "reproduce.json", to_json(answer))
    return answer


def quick_inputs(output: Path) -> tuple[str, TaskSettings]:
    """A tiny ALBERT with random weights and a small generated task in CoLA's layout: the machinery, not the claims."""
    model, data = output / "model", output / "data"
    tokenizer = word_tokenizer()
    if not model.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.AlbertConfig(
                vocab_size=len(tokenizer),
                embedding_size=16,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                pad_token_id=0,
                initializer_range=0.1,
            )
            save(transformers.AlbertModel(config), model, tokenizer)
    splits = acceptability_task(n_train=512, n_validation=128, n_test=2)
    (data / "CoLA").mkdir(parents=True, exist_ok=True)
    for name, split in (("train", splits.train), ("dev", splits.validation)):
        rows = zip(split.texts, split.labels.tolist(), strict=True)
        write_text(data / "CoLA" / f"{name}.tsv", "".join(f"made\t{label}\t\t{text}\n" for (text,), label in rows))
    return str(model), TaskSettings(task="cola", data_dir=data, max_length=32)


def _row(name: str, by_seed: dict[int, dict[str, Any]]) -> Row:
    def mean(read: Callable[[dict[str, Any]], int]) -> int:
        return round(statistics.mean(map(read, by_seed.values())))

    fewer = 1 - PUBLISHED_AUXILIARY / PUBLISHED_DENSE
    published = {
        "MPO, full rank + LFA": f"{fewer:.0%} fewer trained (auxiliary tensors alone)",
        "MPO + LFA, squeezed": f"{PUBLISHED_SQUEEZED / PUBLISHED_DENSE:.3f} of dense",
    }
    return Row(
        model=name,
        scores={seed: record["score"] for seed, record in by_seed.items()},
        trained=mean(lambda record: record["trained_parameters"]),
        auxiliary=mean(lambda record: record.get("auxiliary_parameters", record["trained_parameters"])),
        parameters=mean(lambda record: record.get("model_parameters", record["parameters"])),
        published=published.get(name, ""),
    )
