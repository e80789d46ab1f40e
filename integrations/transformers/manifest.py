"""What the layers of a compressed model look like, as plain values, and the empty layers made from them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn

import tnmpo

from ..torch import MPOEmbedding, MPOLayer, MPOLinear
from .conv1d import MPOConv1D
from .targets import mpo_layers, replace_module

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


def describe(model: nn.Module) -> dict[str, Entry]:
    """The manifest of a model: every MPO layer by its name, those tied to another one after it."""
    names = {id(module): name for name, module in model.named_modules()}
    layers = {}
    for name, layer, tied in mpo_layers(model):
        layers[name] = _describe_layer(layer, None)
        layers.update({names[id(twin)]: _describe_layer(twin, name) for twin in tied})
    return layers


def install(model: transformers.PreTrainedModel, layers: Mapping[str, Entry]) -> None:
    """Put empty layers where the manifest has them, for a loader to fill, and tie what was tied.

    Names are those of the model that was saved; this one may have the base model's prefix where that had none, or the
    other way around. Layers of another head are left out, as their weights are.

    Raises
    ------
    ValueError
        If the model has none of the layers.
    """
    modules = dict(model.named_modules())
    names = {name: _resolve(name, model.base_model_prefix, modules) for name in layers}
    absent = [name for name, found in names.items() if found is None]
    if len(absent) == len(layers):
        raise ValueError(
            f"quantization_config: it describes the layers {', '.join(absent[:3])}, ..., none of which a "
            f"{type(model).__name__} has; load the class that was saved"
        )
    if absent:
        logger.warning("a %s has no modules %s, their weights are left out", type(model).__name__, ", ".join(absent))
    tied = list(_tied_modules(model))
    built: dict[str, MPOLayer] = {}
    for name, entry in layers.items():
        found = names[name]
        if found is not None:
            source = names.get(entry["tied_to"])
            built[found] = _put(model, modules[found], entry, built.get(source) if source else None)
    for target, source in tied:
        if source in built and target not in built:
            # the saved model had no decoder: this one is to share the embedding's cores
            entry = {**_describe_layer(built[source], source), "kind": "linear", "padding_idx": None}
            entry |= {"execution": "auto", "bias": getattr(modules[target], "bias", None) is not None}
            built[target] = _put(model, modules[target], entry, built[source])
    retie(model)


def unfilled_cores(model: transformers.PreTrainedModel, layers: Mapping[str, Entry]) -> list[str]:
    """The cores that a loader left empty, or filled with tensors of another shape than the manifest's."""
    modules = dict(model.named_modules())
    found = []
    for name, entry in layers.items():
        place = _resolve(name, model.base_model_prefix, modules)
        if place is None:
            continue
        wanted = zip(entry["ranks"], entry["rows"], entry["cols"], entry["ranks"][1:], strict=False)
        for site, (shape, core) in enumerate(zip(wanted, modules[place].cores, strict=True)):
            is_filled = getattr(core, "_is_hf_initialized", False) and not core.is_meta
            if not is_filled or tuple(core.shape) != shape:
                found.append(f"{place}.cores.{site}")
    return found


def set_trainable(model: transformers.PreTrainedModel, layers: Mapping[str, Entry]) -> None:
    """Freeze the cores that were frozen when the model was saved."""
    modules = dict(model.named_modules())
    for name, entry in layers.items():
        layer = modules.get(_resolve(name, model.base_model_prefix, modules) or "")
        if isinstance(layer, MPOLayer):
            for core, flag in zip(layer.cores, entry["trainable"], strict=True):
                core.requires_grad_(flag)


def retie(model: nn.Module) -> None:
    """Tell transformers what is tied: cores where modules have them, weights elsewhere."""
    inner = [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
    for module in inner:
        keys = module._tied_weights_keys
        if not keys:
            continue
        modules = dict(module.named_modules())
        renamed = {_renamed(target, modules): _renamed(source, modules) for target, source in keys.items()}
        if renamed != keys:
            module._tied_weights_keys = renamed
    for module in inner:
        module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)


def build_layer(entry: Entry) -> MPOLayer:
    """The layer of a manifest's entry, its cores still empty.

    Raises
    ------
    ValueError
        If the entry is not one that ``describe`` wrote.
    """
    try:
        ranks = entry["ranks"]
        shapes = zip(ranks, entry["rows"], entry["cols"], ranks[1:], strict=False)
        mpo = tnmpo.MPO([torch.zeros(shape) for shape in shapes])
        rows, cols = entry["weight_shape"]
        kind, cache = entry["kind"], entry["cache"]
        if kind == "embedding":
            return MPOEmbedding(
                mpo, num_embeddings=rows, embedding_dim=cols, padding_idx=entry["padding_idx"], cache=cache
            )
        bias = torch.zeros(rows) if entry["bias"] else None
        return _LINEAR[kind](mpo, bias, in_features=cols, out_features=rows, execution=entry["execution"], cache=cache)
    except KeyError as error:
        raise ValueError(
            f"quantization_config: a layer is described by {sorted(entry)}, without {error}; save the model anew"
        ) from error


_LINEAR: dict[str, type[MPOLinear]] = {"linear": MPOLinear, "conv1d": MPOConv1D}


def _describe_layer(layer: MPOLayer, tied_to: str | None) -> Entry:
    return {
        "kind": next((kind for kind, cls in _LINEAR.items() if type(layer) is cls), "embedding"),
        "weight_shape": list(layer.weight_shape),
        "rows": list(layer.shape.rows),
        "cols": list(layer.shape.cols),
        "ranks": list(layer.ranks),
        "bias": getattr(layer, "bias", None) is not None,
        "padding_idx": getattr(layer, "padding_idx", None),
        "trainable": [core.requires_grad for core in layer.cores],
        "execution": getattr(layer, "execution", None),
        "cache": layer.cache,
        "tied_to": tied_to,
    }


def _put(model: nn.Module, old: nn.Module, entry: Entry, first: MPOLayer | None) -> MPOLayer:
    layer = build_layer(entry)
    if isinstance(layer, MPOLinear) and layer.bias is not None:
        layer.bias = old.bias  # type: ignore[assignment]  # the parameter itself: heads share theirs with the model
    if first is not None:
        layer.cores = first.cores
    replace_module(model, old, layer.train(old.training))
    return layer


def _resolve(name: str, prefix: str, modules: Mapping[str, nn.Module]) -> str | None:
    candidates = (name, name.removeprefix(prefix + "."), f"{prefix}.{name}")
    return next((candidate for candidate in candidates if candidate in modules), None)


def _tied_modules(model: transformers.PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Names of modules whose weights transformers ties: (target, source)."""
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if target.endswith(".weight") and source.endswith(".weight"):
            yield target.removesuffix(".weight"), source.removesuffix(".weight")


def _renamed(key: str, modules: Mapping[str, nn.Module]) -> str:
    """The key of a tied parameter; the cores are named by their list, however many there are."""
    name, _, attribute = key.rpartition(".")
    if attribute not in ("weight", "cores") or name not in modules:
        return key
    return f"{name}.cores" if isinstance(modules[name], MPOLayer) else f"{name}.weight"
