"""The command line ``tnmpo``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import nn

from .calibration import Calibration, calibrate
from .checkpoint import save, write_text
from .config import MPOConfig
from .demo import DemoResult, run_demo
from .evaluation import evaluate as evaluate_model
from .evaluation import token_batches
from .models import open_model, open_tokenizer, with_head
from .report import parameter_report
from .squeezing import SqueezeLog
from .squeezing import squeeze as squeeze_model
from .surgery import absorb, freeze_central
from .surgery import compress as compress_model
from .targets import mpo_layers
from .tasks import TaskData, load_task
from .training import finetune as finetune_model

app = typer.Typer(
    help="Write a model's weights as matrix product operators: compress, fine-tune lightly, squeeze.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()

Model = Annotated[str, typer.Argument(help="A model folder, or a name on the Hugging Face hub.")]
Output = Annotated[Path, typer.Argument(help="The folder for the result.")]
TaskName = Annotated[str, typer.Option("--task", help="A task by GLUE's name: sst2, stsb, ...")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="A local folder with the task's files; the hub where it is left out.")
]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option(help="Texts per step.")]
MaxLength = Annotated[int, typer.Option(help="Tokens; longer texts are cut.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder for picture and model.")] = Path("runs/demo"),
    seed: Seed = 0,
) -> None:
    """Pre-train, fine-tune, compress and squeeze a small ALBERT, offline, in a few minutes.

    Example: tnmpo demo --output runs/demo
    """
    _start()
    started = time.perf_counter()
    with _errors():
        result = run_demo(output, seed=seed)
    console.print(demo_table(result))
    _say(
        f"score: accuracy on generated test sentences no choice was made on (seed {seed}); "
        f"squeezing stopped: {result.squeezing.stopped}"
    )
    _say(f"{time.perf_counter() - started:.0f} s; spectra and entropies per bond, before and after squeezing:")
    _say(str(result.picture.resolve()))


@app.command()
def compress(
    model: Model,
    output: Output,
    ratio: Annotated[float | None, typer.Option(help="Parameters kept over dense ones.")] = None,
    rank: Annotated[int | None, typer.Option(help="A cap on every bond.")] = None,
    tol: Annotated[float | None, typer.Option(help="Relative (weighted) error that every matrix may have.")] = None,
    shape: Annotated[str, typer.Option(help="auto, low_rank or interleaved.")] = "auto",
    order: Annotated[int, typer.Option(help="Sites of an interleaved MPO.")] = 5,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A suffix of module names to compress, repeatable; or one regular expression."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Likewise, of modules to leave alone.")] = None,
    allot: Annotated[str, typer.Option(help="model: one budget for all; module: each keeps the ratio.")] = "model",
    task: Annotated[str | None, typer.Option(help="A task whose training texts calibrate; needs no labels.")] = None,
    data_dir: DataDir = None,
    examples: Annotated[int, typer.Option(help="Training examples to calibrate on, spread over the file.")] = 512,
    count_all: Annotated[bool, typer.Option(help="Count the tokens of all training texts for the embedding.")] = True,
) -> None:
    """Compress a model; with --task, in the norm of what flows through it.

    Example: tnmpo compress bert-base-uncased small --ratio 0.5 --task sst2
    """
    device = _start()
    with _errors():
        config = MPOConfig(
            ratio=ratio,
            rank=rank,
            tol=tol,
            shape=shape,
            order=order,
            target_modules=_patterns(target),
            exclude_modules=_patterns(exclude),
            allot=allot,
        )
        tokenizer = open_tokenizer(model)
        network = open_model(model).to(device)
        calibration = None
        if task is not None:
            calibration = _calibrate(network, tokenizer, load_task(task, data_dir), examples, count_all)
        report = compress_model(network, config, calibration)
        save(network, output, tokenizer)
        write_text(output / "compression.json", json.dumps(report.to_dict(), indent=1))
    _say(str(report))
    _say(f"saved in {output}")


@app.command()
def finetune(
    model: Model,
    output: Output,
    task: TaskName,
    data_dir: DataDir = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    learning_rate: Annotated[float | None, typer.Option(help="The peak; by default 5e-5, and 2e-4 with --lfa.")] = None,
    batch_size: BatchSize = 32,
    lfa: Annotated[bool, typer.Option("--lfa/--all", help="Train only auxiliary tensors and what is no MPO.")] = False,
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Fine-tune a model on a task and score it on dev, once, at the end.

    A run that was interrupted goes on from its last checkpoint when it is started again.

    Example: tnmpo finetune small small-sst2 --task sst2 --lfa
    """
    device = _start()
    with _errors():
        data = load_task(task, data_dir)
        tokenizer = open_tokenizer(model)
        network = with_head(open_model(model), data.task, seed=seed).to(device)
        if lfa:
            freeze_central(network)
        _say(str(parameter_report(network)))
        work = output.with_name(f".{output.name}.training")
        rate = learning_rate if learning_rate is not None else (2e-4 if lfa else 5e-5)
        log = finetune_model(
            network,
            tokenizer,
            data.task,
            data.train,
            steps=steps,
            learning_rate=rate,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            folder=work,
        )
        score = evaluate_model(network, tokenizer, data.task, data.dev, max_length=max_length)
        trained = parameter_report(network).trainable
        if lfa:
            absorb(network)
        save(network, output, tokenizer)
        shutil.rmtree(work, ignore_errors=True)
        record = {
            "task": data.task.name,
            "metric": data.task.metric,
            "split": "dev",
            "score": score,
            "seed": seed,
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": rate,
            "trained_parameters": trained,
            "parameters": parameter_report(network).total,
            "seconds_per_step": log.seconds_per_step,
        }
        write_text(output / "finetune.json", json.dumps(record, indent=1))
    _say(
        f"{data.task.name} dev ({len(data.dev)} examples), {data.task.metric} {score:.4f}; "
        f"seed {seed}, {steps} steps of {batch_size}, {log.seconds_per_step:.3f} s a step; saved in {output}"
    )


@app.command()
def squeeze(
    model: Model,
    output: Output,
    task: TaskName,
    data_dir: DataDir = None,
    max_drop: Annotated[float, typer.Option(help="How far the metric may fall, absolute.")] = 0.01,
    max_steps: Annotated[int, typer.Option(help="How many bonds are lowered at most.")] = 20,
    step: Annotated[int, typer.Option(help="By how much a bond is lowered.")] = 1,
    criterion: Annotated[str, typer.Option(help="per_parameter, or error as in the paper.")] = "per_parameter",
    finetune_steps: Annotated[int, typer.Option(help="Optimiser steps after each cut.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="The peak of each light fine-tuning.")] = 5e-4,
    batch_size: BatchSize = 32,
    hold_out: Annotated[int, typer.Option(help="Training examples set aside to decide on.")] = 1000,
    examples: Annotated[int, typer.Option(help="Training examples to calibrate losses on; 0 for none.")] = 512,
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Lower the bonds of a compressed model step by step, fine-tuning lightly in between.

    A part of train decides; dev is scored once, at the end. After every step the model and the
    log are saved.

    Example: tnmpo squeeze small-sst2 smaller-sst2 --task sst2 --max-drop 0.01 --step 8
    """
    device = _start()
    with _errors():
        data = load_task(task, data_dir)
        tokenizer = open_tokenizer(model)
        network = with_head(open_model(model), data.task, seed=seed).to(device)
        rest, chooser = data.train.hold_out(hold_out, seed)
        freeze_central(network)
        calibration = None
        if examples:
            calibration = _calibrate(network, tokenizer, TaskData(data.task, rest, data.dev), examples, True)

        def tune(current: nn.Module) -> None:
            finetune_model(
                current,
                tokenizer,
                data.task,
                rest,
                steps=finetune_steps,
                learning_rate=learning_rate,
                batch_size=batch_size,
                max_length=max_length,
                seed=seed,
                progress=False,
            )

        def record(log: SqueezeLog) -> None:
            save(network, output, tokenizer)
            write_text(output / "squeeze.json", json.dumps(log.to_dict(), indent=1))
            last = log.steps[-1]
            _say(
                f"step {last.number} of at most {max_steps}: {last.module} bond {last.bond}, {last.rank} -> "
                f"{last.new_rank}, {last.parameters:,} parameters, {data.task.metric} {last.score:.4f}"
                + ("" if last.kept else ", put back")
            )

        log = squeeze_model(
            network,
            lambda current: evaluate_model(current, tokenizer, data.task, chooser, max_length=max_length),
            tune,
            max_drop=max_drop,
            max_steps=max_steps,
            step=step,
            criterion=criterion,
            calibration=calibration,
            on_step=record,
        )
        absorb(network)
        save(network, output, tokenizer)
        write_text(output / "squeeze.json", json.dumps(log.to_dict(), indent=1))
        score = evaluate_model(network, tokenizer, data.task, data.dev, max_length=max_length)
    _say(str(log))
    _say(
        f"{data.task.name} dev ({len(data.dev)} examples), {data.task.metric} {score:.4f}; seed {seed}, "
        f"decided on {len(chooser)} held-out training examples; saved in {output}"
    )


@app.command()
def evaluate(
    model: Model,
    task: TaskName,
    data_dir: DataDir = None,
    batch_size: BatchSize = 64,
    max_length: MaxLength = 128,
) -> None:
    """Score a model on a task's dev split.

    A model without a head answers stsb with the cosine similarity of its mean token vectors.

    Example: tnmpo evaluate small-sst2 --task sst2 --data-dir glue
    """
    device = _start()
    with _errors():
        data = load_task(task, data_dir)
        network = open_model(model).to(device)
        score = evaluate_model(
            network, open_tokenizer(model), data.task, data.dev, batch_size=batch_size, max_length=max_length
        )
    how = "head" if hasattr(network, "classifier") else "cosine of mean token vectors"
    _say(
        f"{data.task.name} dev ({len(data.dev)} examples), {data.task.metric} {score:.4f} ({how}); "
        f"{parameter_report(network).total:,} parameters, {sum(1 for _ in mpo_layers(network))} MPO weights"
    )


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


def main() -> None:
    """Entry point of the ``tnmpo`` command."""
    app()


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _start() -> torch.device:
    """Say where the work runs: that is the first line of every command's output."""
    accelerator = Accelerator()
    device = accelerator.device
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {threads}"
    precision = "bfloat16" if device.type == "cuda" else "float32"
    _say(f"tnmpo on {device.type} ({name}), {precision}")
    transformers.logging.set_verbosity_error()
    return device


@contextmanager
def _errors() -> Iterator[None]:
    """A wrong argument ends in one sentence, not in a traceback."""
    try:
        yield
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        print("interrupted; what was saved before is whole", file=sys.stderr)
        raise typer.Exit(130) from None


def _calibrate(network: nn.Module, tokenizer: Any, data: TaskData, examples: int, count_all: bool) -> Calibration:
    """Covariances from examples spread over the training file, token counts from all of it."""
    chosen = [(text,) for texts in data.train.spread(min(examples, len(data.train))).texts for text in texts]
    calibration = calibrate(network, token_batches(network, tokenizer, chosen))
    if count_all:
        everything = [(text,) for texts in data.train.texts for text in texts]
        others = list((Counter(everything) - Counter(chosen)).elements())  # the chosen ones are counted already
        calibration.count_tokens(token_batches(network, tokenizer, others, batch_size=512))
    return calibration


def _patterns(values: list[str] | None) -> str | list[str] | None:
    """One value that is no plain name is a regular expression, several are suffixes."""
    if not values:
        return None
    if len(values) == 1 and not values[0].replace(".", "").replace("_", "").isalnum():
        return values[0]
    return values
