"""A model of transformers without its weights, and where they are stored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from .checkpoint import class_named
from .shards import Checkpoint, StoredTensor, open_checkpoint
from .targets import Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModel:
    """A model on the meta device, and where its tensors are stored.

    ``stored`` has them by their names in the model, those that are tied once; ``strangers`` are tensors that it does
    not know by name, which transformers converts or leaves out when it loads.
    """

    model: transformers.PreTrainedModel
    checkpoint: Checkpoint
    stored: dict[str, StoredTensor]
    strangers: dict[str, StoredTensor]

    def weight_of(self, target: Target) -> StoredTensor | None:
        """None where no module that holds the weight has it under its own name."""
        names = (f"{name}.weight" for name in target.names)
        return next((self.stored[name] for name in names if name in self.stored), None)


def open_model(source: Path) -> StoredModel:
    """Build the architecture of ``config.json`` without memory, and find its tensors in the files.

    Raises
    ------
    ValueError
        If the checkpoint is incomplete, damaged, quantized or of another model.
    """
    checkpoint = open_checkpoint(source.absolute())
    config = transformers.AutoConfig.from_pretrained(source)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        raise ValueError(f"source: {source} is quantized already ({quantization}); pass the dense checkpoint")
    with torch.device("meta"):
        model = class_named((config.architectures or ["none"])[0])(config)
    wanted = model.state_dict()
    prefix = model.base_model_prefix
    stored: dict[str, StoredTensor] = {}
    strangers: dict[str, StoredTensor] = {}
    for key, tensor in checkpoint.tensors.items():
        candidates = (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}")
        name = next((candidate for candidate in candidates if candidate in wanted), None)
        if name is None:
            strangers[key] = tensor
        elif tensor.like.shape != wanted[name].shape:
            raise ValueError(
                f"source: {key} in {tensor.file.name} has shape {tuple(tensor.like.shape)}, config.json says "
                f"{tuple(wanted[name].shape)}; they are of different models"
            )
        else:
            stored[name] = tensor
    _untie(model, stored)
    for name in model._keys_to_ignore_on_save or ():
        stored.pop(name, None)
    kinds = [tensor.like.dtype for tensor in stored.values() if tensor.like.is_floating_point()]
    if kinds:
        model.to(max(set(kinds), key=kinds.count))
    return StoredModel(model, checkpoint, stored, strangers)


def _untie(model: transformers.PreTrainedModel, stored: dict[str, StoredTensor]) -> None:
    """Keep one of the tensors that are tied, under the name that is saved."""
    for target, kept in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        twin = stored.pop(target, None)
        if twin is None:
            continue
        if kept in stored and not torch.equal(stored[kept].read(), twin.read()):
            raise ValueError(
                f"source: {target} and {kept} are tied by config.json, but stored with different values; set "
                "tie_word_embeddings to false there"
            )
        stored.setdefault(kept, twin)


def stored_targets(dense: StoredModel, targets: Sequence[Target]) -> list[Target]:
    """Those whose weight is stored as it is; the others stay dense, with a warning.

    Raises
    ------
    ValueError
        If a weight is missing and no tensor could be converted to it, or none is left.
    """
    absent = [target.name for target in targets if dense.weight_of(target) is None]
    if absent and not dense.strangers:
        raise ValueError(f"source: {dense.checkpoint.folder} lacks the weight of {', '.join(absent[:5])}; get it anew")
    if absent:
        logger.warning(
            "left dense, because %s has no weight of that name and transformers may convert others to it: %s",
            dense.checkpoint.folder,
            ", ".join(absent),
        )
    found = [target for target in targets if target.name not in set(absent)]
    if not found:
        raise ValueError(f"source: {dense.checkpoint.folder} has the weight of no targeted module by its own name")
    return found
