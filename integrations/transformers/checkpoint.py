"""Save a compressed model and load it again.

A folder holds ``config.json`` and ``model.safetensors``; what the layers look like travels in the
safetensors file's own metadata, so weights and description cannot come apart. Files are written beside and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

import tnmpo

from ..torch import MPOEmbedding, MPOLayer, MPOLinear
from .targets import mpo_layers, replace_module

_WEIGHTS = "model.safetensors"
_KEY = "tnmpo"


def save(model: nn.Module, folder: str | Path, tokenizer: Any = None) -> None:
    """Write a model of transformers, compressed or dense, into a folder.

    Parameters
    ----------
    model : PreTrainedModel
    folder : str or Path
        Made where it is missing; files of an earlier save are replaced, the weights last.
    tokenizer : transformers tokenizer, optional
        Saved beside.

    Raises
    ------
    TypeError
        If the model has no configuration of transformers.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a model of transformers; "
            "save others with safetensors.torch.save_model"
        )
    model.config.architectures = [type(model).__name__]
    with _written_beside(Path(folder)) as part:
        model.config.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        save_model(model, str(part / _WEIGHTS), metadata={"format": "pt", _KEY: json.dumps(_describe(model))})
        shutil.copymode(part / "config.json", part / _WEIGHTS)  # safetensors lets only the owner read its files


def load(folder: str | Path, **config_overrides: Any) -> Any:
    """Read back what ``save`` wrote, bit for bit, in evaluation mode.

    Parameters
    ----------
    folder : str or Path
    **config_overrides
        Attributes of the configuration, e.g. ``attn_implementation``.

    Returns
    -------
    PreTrainedModel
        Of the class that was saved.

    Raises
    ------
    ValueError
        If the folder holds no such checkpoint, or its weights do not fit its description.
    """
    folder = Path(folder)
    description = _read_description(folder)
    if description is None:
        raise ValueError(
            f"folder: {folder} holds no model that tnmpo saved; for others use transformers' from_pretrained"
        )
    config = transformers.AutoConfig.from_pretrained(folder, **config_overrides)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
        model = _class_named(config.architectures[0])(config)
    modules = dict(model.named_modules())
    for name, entry in description["layers"].items():
        if name not in modules:
            raise ValueError(
                f"folder: {folder} describes the layer {name}, which a {type(model).__name__} does not have"
            )
        layer = _build(entry)
        if isinstance(layer, MPOLinear) and layer.bias is not None:
            layer.bias = modules[name].bias  # the parameter itself: heads share theirs with the model
        if entry["tied_to"]:
            layer.cores = modules[entry["tied_to"]].cores
        replace_module(model, modules[name], layer)
        modules[name] = layer
    model.to(getattr(torch, description["dtype"]))
    try:
        load_model(model, str(folder / _WEIGHTS), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"folder: the weights in {folder} do not fit their description: {reason}") from error
    for name, entry in description["layers"].items():
        for core, trainable in zip(modules[name].cores, entry["trainable"], strict=True):
            core.requires_grad_(trainable)
    return model.eval()


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a model that ``save`` wrote."""
    return _read_description(Path(folder)) is not None


def write_text(path: str | Path, text: str) -> None:
    """Write a small file beside and rename it, so that it is never half there."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextmanager
def _written_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move to ``folder`` when all are complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    part = outer / "part"  # with the usual permissions: the outer one is its owner's alone
    try:
        part.mkdir()
        yield part
        if folder.exists():
            for file in sorted(part.iterdir(), key=lambda file: file.name == _WEIGHTS):
                os.replace(file, folder / file.name)
        else:
            os.replace(part, folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _class_named(name: str) -> type[transformers.PreTrainedModel]:
    """The model class of transformers with that name; a file cannot name anything else."""
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"folder: its config.json names the class {name!r}, which transformers does not have")
    return found


def _read_description(folder: Path) -> dict[str, Any] | None:
    if not (folder / _WEIGHTS).is_file() or not (folder / "config.json").is_file():
        return None
    try:
        with safe_open(str(folder / _WEIGHTS), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise ValueError(f"folder: {folder / _WEIGHTS} is damaged ({error}); save the model anew") from error
    return None if text is None else json.loads(text)


def _describe(model: nn.Module) -> dict[str, Any]:
    names = {id(module): name for name, module in model.named_modules()}
    layers = {}
    for name, layer, tied in mpo_layers(model):
        layers[name] = _describe_layer(layer, None)
        layers.update({names[id(twin)]: _describe_layer(twin, name) for twin in tied})
    return {"version": 1, "dtype": str(next(model.parameters()).dtype).rpartition(".")[2], "layers": layers}


def _describe_layer(layer: MPOLayer, tied_to: str | None) -> dict[str, Any]:
    return {
        "kind": "linear" if isinstance(layer, MPOLinear) else "embedding",
        "weight_shape": layer.weight_shape,
        "rows": layer.shape.rows,
        "cols": layer.shape.cols,
        "ranks": layer.ranks,
        "bias": getattr(layer, "bias", None) is not None,
        "padding_idx": getattr(layer, "padding_idx", None),
        "trainable": [core.requires_grad for core in layer.cores],
        "execution": getattr(layer, "execution", None),
        "cache": layer.cache,
        "tied_to": tied_to,
    }


def _build(entry: dict[str, Any]) -> MPOLayer:
    """The layer of a description, its cores still empty."""
    ranks = entry["ranks"]
    shapes = zip(ranks, entry["rows"], entry["cols"], ranks[1:], strict=False)
    mpo = tnmpo.MPO([torch.zeros(shape) for shape in shapes])
    rows, cols = entry["weight_shape"]
    cache = entry.get("cache", True)  # files of before have no such entries
    if entry["kind"] == "linear":
        bias = torch.zeros(rows) if entry["bias"] else None
        execution = entry.get("execution", "auto")
        return MPOLinear(mpo, bias, in_features=cols, out_features=rows, execution=execution, cache=cache)
    return MPOEmbedding(mpo, num_embeddings=rows, embedding_dim=cols, padding_idx=entry["padding_idx"], cache=cache)
