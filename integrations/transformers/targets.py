"""Which modules of a model a configuration speaks of, and how they hang in it."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..torch import MPOLayer
from .config import MPOConfig
from .presets import TARGETS_OF_ARCHITECTURE

logger = logging.getLogger(__name__)

Patterns = str | Sequence[str]


@dataclass(frozen=True)
class Target:
    """One weight matrix and every module that holds it.

    ``names`` are those of the modules that share the weight (tied embeddings and decoders), the
    first one is the matrix's name in reports.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def weight(self) -> Tensor:
        module = self.modules[0]
        assert isinstance(module, nn.Linear | nn.Embedding)
        return module.weight

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.modules[0], nn.Embedding)

    @property
    def is_multiplied(self) -> bool:
        """Whether a linear layer holds the weight, alone or tied to an embedding."""
        return any(isinstance(module, nn.Linear) for module in self.modules)


def find_targets(model: nn.Module, config: MPOConfig) -> list[Target]:
    """The weight matrices that the configuration targets, each once.

    Raises
    ------
    ValueError
        If the architecture has no preset and none is given, or a pattern matches nothing.
    """
    candidates = _dense_weights(model)
    wanted = config.target_modules
    if wanted is None:
        architecture = getattr(getattr(model, "config", None), "model_type", None)
        if architecture not in TARGETS_OF_ARCHITECTURE:
            raise ValueError(
                f"target_modules: got None for a model of type {architecture!r}, which has no preset "
                f"({', '.join(TARGETS_OF_ARCHITECTURE)}); pass a list of name suffixes such as ['q_proj', 'v_proj']"
            )
        wanted = TARGETS_OF_ARCHITECTURE[architecture]
    names = [name for target in candidates for name in target.names]
    _check_each_matches(wanted, names, "target_modules")
    found = [target for target in candidates if any(_is_match(wanted, name) for name in target.names)]
    if config.exclude_modules is None:
        return found
    excluded = config.exclude_modules
    kept = [target for target in found if not any(_is_match(excluded, name) for name in target.names)]
    if len(kept) == len(found):
        logger.warning("exclude_modules=%r removes none of the targeted modules", excluded)
    if not kept:
        raise ValueError(f"exclude_modules: got {excluded!r}, which removes every targeted module; exclude fewer")
    return kept


def matches_name(pattern: str, name: str) -> bool:
    """Whether a pattern of a rank dictionary, a suffix or a regular expression, means this module."""
    return name == pattern or name.endswith("." + pattern) or re.fullmatch(pattern, name) is not None


def mpo_layers(model: nn.Module) -> Iterator[tuple[str, MPOLayer, list[MPOLayer]]]:
    """Every MPO weight once: its name, its layer, and the layers tied to it (which share its cores)."""
    groups: dict[int, tuple[str, list[MPOLayer]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, MPOLayer):
            groups.setdefault(id(module.cores[0]), (name, []))[1].append(module)
    for name, (layer, *tied) in groups.values():
        yield name, layer, tied


def require_mpo_layers(model: nn.Module, verb: str) -> list[tuple[str, MPOLayer, list[MPOLayer]]]:
    """The same as a list, or an error where there is none."""
    layers = list(mpo_layers(model))
    if not layers:
        raise ValueError(
            f"{verb}: got a {type(model).__name__} without MPO layers, expected a compressed model; call compress first"
        )
    return layers


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered."""
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, attribute, new)


def _dense_weights(model: nn.Module) -> list[Target]:
    groups: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        # Exactly these classes: a subclass may use its weight in a way of its own. The model itself, whose name is
        # empty, has no parent to hang another module in.
        if type(module) in (nn.Linear, nn.Embedding) and name:
            groups.setdefault(id(module.weight), []).append((name, module))
    # An embedding comes first, so that a tied decoder takes the embedding's shape and statistics.
    ordered = [sorted(group, key=lambda entry: isinstance(entry[1], nn.Linear)) for group in groups.values()]
    return [Target(*zip(*group, strict=True)) for group in ordered]


def _is_match(patterns: Patterns, name: str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == suffix or name.endswith("." + suffix) for suffix in patterns)


def _check_each_matches(patterns: Patterns, names: Sequence[str], argument: str) -> None:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        wanted: Patterns = pattern if isinstance(patterns, str) else [pattern]
        if not any(_is_match(wanted, name) for name in names):
            suffixes = sorted({name.rpartition(".")[2] for name in names} | set(names))
            near = difflib.get_close_matches(pattern, suffixes, n=5, cutoff=0.4)
            raise ValueError(
                f"{argument}: {pattern!r} matches none of the {len(names)} linear and embedding modules; "
                + (f"near misses: {', '.join(near)}" if near else f"their names: {', '.join(suffixes[:8]) or 'none'}")
            )
