"""The commands that do several things in one go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..checkpoint import write_text
from ..demo import DemoResult, run_demo
from ..runfile import TEMPLATE, Run, read_run
from ..settings import FinetuneSettings, SqueezeSettings, TaskSettings, plain
from ..tasks import get_task
from .options import BatchSize, DataDir, Json, Seed, parse_seeds
from .records import check_output, finished, read_record, to_json, versions
from .reproduce import quick_inputs, reproduce_task, reproduction_table, write_result
from .session import Session, session
from .stages import (
    COMPRESSED,
    FINETUNED,
    SQUEEZED,
    compress_stage,
    evaluate_stage,
    finetune_stage,
    squeeze_stage,
)


def demo(
    output: Annotated[Path, typer.Option(help="The folder for picture and model.")] = Path("runs/demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Pre-train, fine-tune, compress and squeeze a small ALBERT, offline, in a few minutes.

    Example: tnmpo demo --output runs/demo
    """
    started = time.perf_counter()
    with session(as_json) as here:
        check_output(output)
        result = run_demo(output, seed=seed)
        here.say(demo_table(result))
        here.say(
            f"score: accuracy on generated test sentences no choice was made on (seed {seed}); "
            f"squeezing stopped: {result.squeezing.stopped}"
        )
        here.say(f"{time.perf_counter() - started:.0f} s; spectra and entropies per bond, before and after squeezing:")
        here.say(str(result.picture.resolve()))
        here.answer = {
            "rows": [vars(row) for row in result.rows],
            "squeezing": result.squeezing.to_dict(),
            "picture": str(result.picture.resolve()),
            "seed": seed,
        }


def run(
    file: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="The run file.")] = None,
    template: Annotated[bool, typer.Option("--template", help="Print a commented example of a run file.")] = False,
    as_json: Json = False,
) -> None:
    """Carry out a whole run that a YAML file describes: compress, finetune, squeeze, evaluate.

    Every stage has a folder in the run's output, with its record. A stage that is finished is not
    run again, one that was interrupted goes on. Settings, versions, seeds and scores are written to
    run.json beside the results.

    Example: tnmpo run --template > run.yaml; tnmpo run run.yaml
    """
    if template:
        print(TEMPLATE, end="")
        return
    with session(as_json, resumes=True) as here:
        if file is None:
            raise ValueError("run: got no file; pass RUN.yaml, or --template for an example")
        here.answer = carry_out(here, read_run(file))


def reproduce(
    model: Annotated[
        str, typer.Option(help="The pre-trained model, without a head: a folder, or a name on the Hugging Face hub.")
    ] = "albert/albert-base-v2",
    output: Annotated[Path, typer.Option(help="Gets a folder for every model and seed.")] = Path("runs/reproduce"),
    task: Annotated[str, typer.Option(help="A task by GLUE's name: sst2, stsb, ...")] = "sst2",
    data_dir: DataDir = None,
    seeds: Annotated[str, typer.Option(help="With commas; one run of every model each.")] = "0,1,2",
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps of each fine-tuning; 2000, and 60 with --quick.")
    ] = None,
    batch_size: BatchSize = 32,
    max_drop: Annotated[float, typer.Option(help="How far the metric may fall in the squeezing, absolute.")] = 0.01,
    squeeze_steps: Annotated[int | None, typer.Option(help="Bonds lowered at most; 20, and 3 with --quick.")] = None,
    step: Annotated[int, typer.Option(help="By how much a bond is lowered.")] = 8,
    hold_out: Annotated[
        int | None, typer.Option(help="Training examples that decide in the squeezing; 1000, and 128 with --quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny random ALBERT on generated sentences, offline: shows that it runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Repeat the paper's experiment on one task, next to its published ratios.

    Five models: dense; MPOs at full rank; the same fine-tuned lightly (LFA); that one squeezed; and a
    low-rank, calibrated one of the squeezed size with LFA. What is finished in OUTPUT is not run
    again, so an interrupted run goes on. With --quick the scores mean nothing.

    Example: tnmpo reproduce --task sst2 --data-dir glue --seeds 0,1,2
    """
    with session(as_json, resumes=True) as here:
        tuning = FinetuneSettings(
            steps=steps if steps is not None else (60 if quick else 2000),
            batch_size=batch_size,
            seeds=parse_seeds(seeds),
        )
        squeezing = SqueezeSettings(
            max_drop=max_drop,
            max_steps=squeeze_steps if squeeze_steps is not None else (3 if quick else 20),
            step=step,
            finetune_steps=10 if quick else 50,
            batch_size=batch_size,
            hold_out=hold_out if hold_out is not None else (128 if quick else 1000),
        )
        target = TaskSettings(task=task, data_dir=data_dir)
        check_output(output)
        if quick:
            model, target = quick_inputs(output)
        rows = reproduce_task(here, model, output, target, tuning, squeezing)
        settings = {"model": model, **plain(target), "finetune": plain(tuning), "squeeze": plain(squeezing)}
        here.answer = write_result(output, rows, settings)
        here.say(reproduction_table(rows, target.task, get_task(target.task).metric))


def carry_out(here: Session, plan: Run) -> dict[str, Any]:
    """Every stage of a run in order, those that are finished left out.

    Returns
    -------
    dict
        What ``run.json`` holds.

    Raises
    ------
    ValueError
        If a folder holds a result of other settings.
    """
    check_output(plan.output)
    resolved = plan.to_dict()
    on_task: dict[str, Any] = {key: resolved[key] for key in ("task", "data_dir", "max_length") if key in resolved}
    settings: dict[str, Any] = {"model": plan.model}
    stages: dict[str, Any] = {}
    model: str | Path = plan.model
    fresh = False  # whether any stage had to be run

    def advance(name: str, folder: str, record: str, stage: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
        """The stage's folder, and its record where it is finished."""
        nonlocal fresh
        settings[name] = stage  # beside those of the stages before, whose results it starts from
        earlier = finished(plan.output / folder / record, settings)
        fresh = fresh or earlier is None
        here.say(f"{name}: {'starts' if earlier is None else 'finished before'}, {plan.output / folder}")
        return plan.output / folder, earlier

    if plan.compress is not None:
        stage = dict(resolved["compress"])
        if plan.calibration is not None:
            stage.update(on_task, calibration=resolved["calibration"])
        output, done = advance("compress", "compressed", COMPRESSED, stage)
        done = done or compress_stage(here, model, output, plan.compress, plan.task, plan.calibration, dict(settings))
        stages["compress"] = {key: done[key] for key in ("ratio", "parameters", "dense_parameters", "model_parameters")}
        model = output
    if plan.finetune is not None and plan.task is not None:
        output, done = advance("finetune", "finetuned", FINETUNED, {**on_task, **resolved["finetune"]})
        done = done or finetune_stage(here, model, output, plan.task, plan.finetune, dict(settings))
        stages["finetune"] = {key: value for key, value in done.items() if key not in ("settings", "versions")}
        model = output
    if plan.squeeze is not None and plan.task is not None:
        output, done = advance("squeeze", "squeezed", SQUEEZED, {**on_task, **resolved["squeeze"]})
        done = done or squeeze_stage(here, model, output, plan.task, plan.squeeze, dict(settings))
        stages["squeeze"] = {
            key: done[key]
            for key in ("baseline", "stopped", "metric", "split", "score", "kept_parameters", "model_parameters")
        }
        model = output
    if plan.evaluate is not None and plan.task is not None:
        earlier = read_record(plan.output / "run.json")
        if not fresh and earlier.get("settings") == resolved:
            stages["evaluate"] = earlier["stages"]["evaluate"]
            here.say("evaluate: finished before")
        else:
            here.say("evaluate: starts")
            stages["evaluate"] = {"model": str(model), **evaluate_stage(here, model, plan.task, plan.evaluate)}
    answer = {"settings": resolved, "stages": stages, "model": str(model), "versions": versions()}
    plan.output.mkdir(parents=True, exist_ok=True)
    write_text(plan.output / "run.json", to_json(answer))
    here.say(f"the run is recorded in {plan.output / 'run.json'}")
    return answer


def demo_table(result: DemoResult) -> Table:
    """The demo's rows as a table; ``trained`` and ``total`` count parameters."""
    table = Table(title="a small ALBERT on generated acceptability judgements")
    table.add_column("model", no_wrap=True)
    for name in ("score", "trained", "total", "size", "s / step"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(
            row.model,
            f"{row.score:.4f}",
            f"{row.trained:,}",
            f"{row.parameters:,}",
            f"{row.size / 1e6:.2f} MB",
            f"{row.seconds_per_step:.3f}",
        )
    return table
