"""Which MPO weights of a model an adapter targets, and whether it fits them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from ..torch import MPOLayer
from .targets import require_mpo_layers

if TYPE_CHECKING:
    from .adapters import MPOPeftConfig

_ANY = ".*"


@torch.no_grad()
def auxiliary_tensors(layer: MPOLayer) -> dict[int, Tensor]:
    """What an adapter copies, by site: of a low-rank layer the bond core, the identity where it shows none."""
    cores = [core.detach() for core in layer.cores]
    if layer.is_low_rank and len(cores) == 2:
        rank = cores[0].shape[3]
        return {1: torch.eye(rank, dtype=cores[0].dtype, device=cores[0].device)[:, None, None, :]}
    return {site: cores[site] for site in layer.auxiliary}


def shapes_of_auxiliary(layer: MPOLayer) -> list[str]:
    """Their shapes, as configurations and messages have them: ``"1x4x4x16"``."""
    return ["x".join(map(str, core.shape)) for core in auxiliary_tensors(layer).values()]


def adaptable_weights(model: nn.Module) -> list[tuple[list[str], list[MPOLayer]]]:
    """Every MPO weight with auxiliary tensors once: the names and the layers of the modules that hold it."""
    names = {id(module): name.removesuffix(".base_layer") for name, module in model.named_modules()}
    groups = [[layer, *tied] for _, layer, tied in require_mpo_layers(model, "get_peft_model")]
    return [([names[id(layer)] for layer in group], group) for group in groups if auxiliary_tensors(group[0])]


def matched_weights(
    weights: list[tuple[list[str], list[MPOLayer]]], config: MPOPeftConfig
) -> list[tuple[list[str], list[MPOLayer]]]:
    """Those that a configuration targets under one of their names, and excludes under none."""
    everything = dataclasses.replace(config, target_modules=_ANY) if config.target_modules is None else config
    return [
        (names, layers)
        for names, layers in weights
        if any(check_target_module_exists(everything, name) for name in names) and not is_excluded(config, names)
    ]


def is_excluded(config: MPOPeftConfig, names: Sequence[str]) -> bool:
    """Whether ``exclude_modules`` or ``modules_to_save`` takes a weight of these names."""
    everything = dataclasses.replace(config, target_modules=_ANY)
    return not all(check_target_module_exists(everything, name) for name in names)


def check_patterns(config: MPOPeftConfig, names: list[str]) -> None:
    """Raise ValueError where a pattern of ``target_modules`` matches none of the names."""
    wanted = config.target_modules
    if wanted is None:
        return
    for pattern in [wanted] if isinstance(wanted, str) else sorted(wanted):
        of_one = pattern if isinstance(wanted, str) else [pattern]
        alone = dataclasses.replace(config, target_modules=of_one, exclude_modules=None, modules_to_save=None)
        if not any(check_target_module_exists(alone, name) for name in names):
            suffixes = sorted({name.rpartition(".")[2] for name in names})
            near = difflib.get_close_matches(pattern, suffixes, n=5, cutoff=0.4) or suffixes[:8]
            raise ValueError(
                f"target_modules: {pattern!r} matches none of the model's {len(names)} MPO layers, whose names end in "
                f"{', '.join(near)}; leave target_modules out for all of them"
            )


def check_shapes(saved: dict[str, list[str]], here: dict[str, list[str]]) -> None:
    """Raise ValueError where the auxiliary tensors of a saved adapter and of a base differ, by layer."""
    for name in sorted(saved.keys() | here.keys()):
        if saved.get(name) != here.get(name):
            raise ValueError(
                f"adapter: for {name} it has auxiliary tensors of shapes {_listed(saved.get(name))}, the base "
                f"{_listed(here.get(name))}; load it onto the base it was trained on"
            )


def _listed(shapes: list[str] | None) -> str:
    return ", ".join(shapes or ["none"])
