"""The commands that train and score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings import EvaluateSettings, FinetuneSettings, SqueezeSettings, TaskSettings
from .options import BatchSize, Compressed, DataDir, Json, MaxLength, Model, Output, Seed, TaskName, parse_seeds
from .session import session
from .stages import evaluate_stage, finetune_stage, perplexity_stage, squeeze_stage


def finetune(
    model: Model,
    output: Output,
    task: TaskName,
    data_dir: DataDir = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    learning_rate: Annotated[float | None, typer.Option(help="The peak; by default 5e-5, and 2e-4 with --lfa.")] = None,
    batch_size: BatchSize = 32,
    lfa: Annotated[bool, typer.Option("--lfa/--all", help="Train only auxiliary tensors and what is no MPO.")] = False,
    core_learning_rate: Annotated[
        float | None, typer.Option(help="The peak for the cores of MPO layers, where it is to differ.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model, mostly the dense one, whose answers are learned beside the labels.")
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option(help="Stop after so many evaluations without a better one, on a part of train; keep the best."),
    ] = None,
    save_steps: Annotated[
        int, typer.Option(help="Steps between two checkpoints, and with --early-stop between two evaluations.")
    ] = 500,
    hold_out: Annotated[
        int,
        typer.Option(help="Training examples left out: those that squeeze --hold-out decides on, with the first seed."),
    ] = 0,
    max_length: MaxLength = 128,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Of everything that is drawn, 0 by default; repeatable."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds with commas, e.g. 0,1,2.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a task and score it on dev, once, at the end.

    Several seeds are one run each: the scores are reported with mean and standard deviation, and the
    model of the first seed is kept. A run that was interrupted goes on from its last checkpoint when
    the same command is started again. Under torchrun, several processes train together.

    Example: tnmpo finetune small small-sst2 --task sst2 --lfa --seeds 0,1,2
    """
    with session(as_json, resumes=True, distributed=True) as here:
        tuning = FinetuneSettings(
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            lfa=lfa,
            seeds=_seeds(seed, seeds),
            core_learning_rate=core_learning_rate,
            teacher=teacher,
            early_stop=early_stop,
            save_steps=save_steps,
            hold_out=hold_out,
        )
        target = TaskSettings(task=task, data_dir=data_dir, max_length=max_length)
        here.answer = finetune_stage(here, model, output, target, tuning)


def squeeze(
    model: Compressed,
    output: Output,
    task: TaskName,
    data_dir: DataDir = None,
    max_drop: Annotated[
        float, typer.Option(help="How far the metric may fall, absolute: 0.01 is one point of accuracy.")
    ] = 0.01,
    max_steps: Annotated[int, typer.Option(help="How many bonds are lowered at most.")] = 20,
    step: Annotated[int, typer.Option(help="By how much a bond is lowered.")] = 1,
    criterion: Annotated[
        str,
        typer.Option(help="Least loss per_parameter saved comes first, or least error as in the paper."),
    ] = "per_parameter",
    finetune_steps: Annotated[int, typer.Option(help="Optimiser steps after each cut.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="The peak of each light fine-tuning.")] = 5e-4,
    batch_size: BatchSize = 32,
    hold_out: Annotated[int, typer.Option(help="Training examples set aside to decide on.")] = 1000,
    examples: Annotated[int, typer.Option(help="Training examples to calibrate losses on; 0 for none.")] = 512,
    max_length: MaxLength = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Lower the bonds of a compressed model step by step, fine-tuning lightly in between.

    A part of train decides; dev is scored once, at the end. After every step the model and the
    log are saved, in a hidden folder beside OUTPUT: a run that was interrupted or killed goes on
    from there when the same command is started again.

    Example: tnmpo squeeze small-sst2 smaller-sst2 --task sst2 --max-drop 0.01 --step 8
    """
    with session(as_json, resumes=True) as here:
        squeezing = SqueezeSettings(
            max_drop=max_drop,
            max_steps=max_steps,
            step=step,
            criterion=criterion,
            finetune_steps=finetune_steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            hold_out=hold_out,
            examples=examples,
            seed=seed,
        )
        target = TaskSettings(task=task, data_dir=data_dir, max_length=max_length)
        here.answer = squeeze_stage(here, model, output, target, squeezing)


def evaluate(
    model: Model,
    task: Annotated[str | None, typer.Option("--task", help="A task by GLUE's name: sst2, stsb, ...")] = None,
    data_dir: DataDir = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A text file: score the perplexity of a causal model on it."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="With --text: tokens that windows advance; half a window by default.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts or windows at once; by default 64, and 8 with --text.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens; by default 128, and with --text the model's positions, at most 1024.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model: on a task's dev split, or by its perplexity on a text.

    A model without a head answers stsb with the cosine similarity of its mean token vectors.

    Example: tnmpo evaluate small-sst2 --task sst2 --data-dir glue
    """
    with session(as_json) as here:
        if (task is None) == (text is None):
            got = "neither --task nor --text" if task is None else "--task and --text"
            raise ValueError(f"evaluate: got {got}, expected one of the two")
        evaluation = EvaluateSettings(batch_size=batch_size if batch_size is not None else 64)
        if task is not None:
            if stride is not None:
                raise ValueError(f"stride: got {stride} without --text; leave it out")
            length = max_length if max_length is not None else 128
            target = TaskSettings(task=task, data_dir=data_dir, max_length=length)
            here.answer = evaluate_stage(here, model, target, evaluation)
        elif text is not None:
            if not text.is_file():
                raise ValueError(f"text: {text} is no file; pass a text file in UTF-8")
            here.answer = perplexity_stage(here, model, text, max_length, stride, batch_size or 8)


def _seeds(repeated: list[int] | None, listed: str | None) -> tuple[int, ...]:
    if listed is None:
        return tuple(repeated or (0,))
    if repeated:
        raise ValueError(f"seeds: got --seeds {listed} and --seed {repeated[0]}, expected one of the two")
    return parse_seeds(listed)
