"""The commands that change or show a model's weights, without training."""

from __future__ import annotations

import difflib
import io
from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import save, written_beside
from ..config import MPOConfig
from ..inspection import Inspection, LayerInspection, inspect_model
from ..models import open_model, open_tokenizer
from ..settings import CalibrationSettings, TaskSettings
from ..surgery import merge as merge_model
from .options import Compressed, DataDir, Json, Model, Output
from .records import check_output
from .session import session
from .stages import calibrate_on, compress_stage, read_task

Ratio = Annotated[float | None, typer.Option(help="Parameters kept over dense ones, e.g. 0.5.")]
Rank = Annotated[int | None, typer.Option(help="A cap on every bond dimension.")]
Tol = Annotated[float | None, typer.Option(help="Relative (weighted) error that every matrix may have.")]
Shape = Annotated[
    str, typer.Option(help="low_rank (U V), interleaved (the paper's), or auto: per matrix the one with less error.")
]
Order = Annotated[int, typer.Option(help="Sites of an interleaved MPO.")]
Target = Annotated[
    list[str] | None,
    typer.Option(help="A suffix of module names to compress, repeatable; or one regular expression."),
]
Exclude = Annotated[list[str] | None, typer.Option(help="Likewise, of modules to leave alone.")]
CalibrationTask = Annotated[
    str | None, typer.Option("--task", help="A GLUE task whose training texts calibrate; needs no labels.")
]
Examples = Annotated[int, typer.Option(help="Training examples to calibrate on, spread over the file.")]
CountAll = Annotated[bool, typer.Option(help="Count the tokens of all training texts for the embedding.")]


def compress(
    model: Model,
    output: Output,
    ratio: Ratio = None,
    rank: Rank = None,
    tol: Tol = None,
    shape: Shape = "auto",
    rank_multiple: Annotated[
        int, typer.Option(help="Low-rank bonds that a ratio or tol chooses are multiples of it; 8 for 16 bits on GPUs.")
    ] = 1,
    order: Order = 5,
    target: Target = None,
    exclude: Exclude = None,
    allot: Annotated[str, typer.Option(help="model: one budget for all; module: each keeps the ratio.")] = "model",
    cache: Annotated[
        bool, typer.Option(help="Let layers keep the dense weight in evaluation: faster, for more memory.")
    ] = True,
    execution: Annotated[
        str, typer.Option(help="How linear layers multiply: auto (what costs less), dense or factored.")
    ] = "auto",
    task: CalibrationTask = None,
    data_dir: DataDir = None,
    examples: Examples = 512,
    count_all: CountAll = True,
    cluster: Annotated[
        str | None,
        typer.Option(help="For checkpoints larger than memory: local, or the address of a dask scheduler."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of --cluster local; one for each core.")] = None,
    as_json: Json = False,
) -> None:
    """Compress a model; with --task, in the norm of what flows through it.

    Of --ratio, --rank and --tol at most one sets the budget; without any, the result is lossless and a
    little larger, for lightweight fine-tuning.

    With --cluster, a folder is compressed matrix by matrix, by dask workers, and never loaded as a whole
    (except to calibrate it). After a kill, the same command goes on where it stopped.

    Example: tnmpo compress bert-base-uncased small --ratio 0.5 --task sst2
    """
    with session(as_json, resumes=cluster is not None) as here:
        if workers is not None and (cluster != "local" or workers < 1):
            raise ValueError(f"workers: got {workers}, expected a positive number with --cluster local")
        config = MPOConfig(
            ratio=ratio,
            rank=rank,
            tol=tol,
            shape=shape,
            rank_multiple=rank_multiple,
            order=order,
            target_modules=patterns(target),
            exclude_modules=patterns(exclude),
            allot=allot,
            cache=cache,
            execution=execution,
        )
        texts = TaskSettings(task=task, data_dir=data_dir) if task is not None else None
        calibration = CalibrationSettings(examples=examples, count_all=count_all) if task is not None else None
        here.answer = compress_stage(here, model, output, config, texts, calibration, cluster=cluster, workers=workers)


def inspect(
    model: Model,
    order: Order = 5,
    target: Target = None,
    exclude: Exclude = None,
    interleaved: Annotated[
        bool, typer.Option(help="Look at interleaved MPOs too, which takes most of the time.")
    ] = True,
    layer: Annotated[
        list[str] | None, typer.Option(help="A matrix by its full name, to show bond by bond; repeatable.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A PNG file: spectra, errors of cuts, how full the bonds are.")
    ] = None,
    task: CalibrationTask = None,
    data_dir: DataDir = None,
    examples: Examples = 512,
    count_all: CountAll = True,
    as_json: Json = False,
) -> None:
    """Show spectra, entropies and what each budget would cost, layer by layer; nothing is changed.

    With --task, in the norm of what flows through the model. A dense model is looked at as it would be
    compressed, a compressed one as it is.

    Example: tnmpo inspect bert-base-uncased --task sst2 --plot spectra.png
    """
    with session(as_json) as here:
        if plot is not None and plot.suffix.lower() != ".png":
            raise ValueError(f"plot: got {plot}, expected a file that ends in .png")
        config = MPOConfig(order=order, target_modules=patterns(target), exclude_modules=patterns(exclude))
        texts = TaskSettings(task=task, data_dir=data_dir) if task is not None else None
        data = read_task(texts) if texts is not None else None
        how = CalibrationSettings(examples=examples, count_all=count_all)
        network = open_model(model).to(here.device)
        calibration = None
        if data is not None and texts is not None:
            tokenizer = open_tokenizer(model)
            calibration = calibrate_on(network, tokenizer, data.train, how.examples, how.count_all, texts.max_length)
        found = inspect_model(network, config, calibration, interleaved=interleaved)
        chosen = [_layer(found, name) for name in layer or ()]
        here.answer = found.to_dict()
        here.say("\n\n".join(map(str, chosen)) if chosen else str(found))
        if plot is not None:
            picture = io.BytesIO()
            found.plot().savefig(picture, format="png", dpi=110)
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot.write_bytes(picture.getvalue())
            here.say(f"saved {plot}")


def merge(model: Compressed, output: Output, as_json: Json = False) -> None:
    """Write a compressed model as a dense one, which needs nothing of tnmpo to load.

    The weights are the products of the cores: what the compression lost stays lost.

    Example: tnmpo merge small-sst2 dense-sst2
    """
    with session(as_json) as here:
        check_output(output)
        tokenizer = open_tokenizer(model)
        network = merge_model(open_model(model))
        with written_beside(output) as part:
            save(network, part, tokenizer)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        here.answer = {"output": str(output), "model": type(network).__name__, "parameters": parameters}
        here.say(f"{type(network).__name__}, dense, {parameters:,} parameters; saved in {output}")


def _layer(found: Inspection, name: str) -> LayerInspection:
    names = [entry.name for entry in found.layers]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
        raise ValueError(f"layer: {name!r} is none of the {len(names)} matrices; near: {', '.join(near or names[:5])}")
    return found[name]


def patterns(values: list[str] | None) -> str | list[str] | None:
    """One value that is no plain name is a regular expression, several are suffixes."""
    if not values:
        return None
    if len(values) == 1 and not values[0].replace(".", "").replace("_", "").isalnum():
        return values[0]
    return values
