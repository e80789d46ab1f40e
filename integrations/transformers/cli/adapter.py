"""The commands for PEFT adapters of compressed models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint import save, write_text, written_beside
from ..models import open_model, open_tokenizer, with_head
from ..report import parameter_report
from ..tasks import Task
from .options import Json, Output
from .records import check_output
from .session import session

app = typer.Typer(help="Keep what fine-tuning changed as a PEFT adapter: extract it, apply it.", no_args_is_help=True)

_HEAD = "tnmpo_head.json"  # of which size the head is that the adapter holds

Base = Annotated[str, typer.Argument(help="The folder of the compressed model that fine-tuning began with.")]


@app.command()
def extract(
    base: Base,
    finetuned: Annotated[str, typer.Argument(help="The folder that `tnmpo finetune --lfa` made from it.")],
    output: Output,
    as_json: Json = False,
) -> None:
    """Write what light fine-tuning changed as an adapter folder: auxiliary tensors and head, nothing else.

    The folder is PEFT's: PeftModel.from_pretrained loads it, and several adapters share one base.

    Example: tnmpo adapter extract small small-sst2 adapter-sst2
    """
    with session(as_json) as here:
        check_output(output)
        theirs = open_model(finetuned)
        ours = _with_head_of(open_model(base), _head_of(theirs))
        with written_beside(output) as part:
            _adapters().export_adapter(ours, theirs, part)
            if (head := _head_of(theirs)) is not None:
                write_text(part / _HEAD, json.dumps(head))
            size = sum(file.stat().st_size for file in part.glob("*.safetensors"))
        whole = sum(parameter.numel() * parameter.element_size() for parameter in theirs.parameters())
        here.answer = {"output": str(output), "bytes": size, "model_bytes": whole}
        here.say(f"an adapter of {size / 1e6:.2f} MB for a model of {whole / 1e6:.2f} MB; saved in {output}")


@app.command()
def apply(
    base: Base,
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder, from `tnmpo adapter extract` or PEFT.")],
    output: Output,
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base: the fine-tuned compressed model in a folder of its own.

    Example: tnmpo adapter apply small adapter-sst2 small-sst2
    """
    with session(as_json) as here:
        check_output(output)
        if not (adapter / "adapter_config.json").is_file():
            raise ValueError(f"adapter: {adapter} holds no adapter_config.json; pass the folder of a PEFT adapter")
        record = adapter / _HEAD
        head = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        tokenizer = open_tokenizer(base)
        network = _adapters().apply_adapter(_with_head_of(open_model(base), head), adapter)
        save(network, output, tokenizer)
        parameters = parameter_report(network).total
        here.answer = {"output": str(output), "model": type(network).__name__, "parameters": parameters}
        here.say(f"{type(network).__name__}, {parameters:,} parameters; saved in {output}")


def _head_of(model: Any) -> dict[str, Any] | None:
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    return {"num_labels": model.config.num_labels}


def _with_head_of(base: Any, head: dict[str, Any] | None) -> Any:
    """The base under a head of that size, where it has none: the adapter brings the head's weights."""
    if head is None:
        return base
    return with_head(base, Task("of the adapter", (), head["num_labels"], "accuracy"))


def _adapters() -> Any:
    """The module that needs PEFT, which is not part of the extra `transformers`."""
    try:
        from .. import adapters
    except ImportError as error:
        raise ImportError(f"adapters need the package peft ({error}); pip install 'tnmpo[adapters]'") from error
    return adapters
