"""Which modules of a model a configuration speaks of, and how they hang in it."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..torch import MPOLayer
from .config import MPOConfig
from .presets import TARGETS_OF_ARCHITECTURE

logger = logging.getLogger(__name__)

Patterns = str | Sequence[str]

_ALL_LINEAR = "all-linear"
_HEADS = ("score", "classifier")  # as in PEFT: where models of transformers have a classification head
# Exactly these classes: a subclass may use its weight in a way of its own.
DENSE_CLASSES = (nn.Linear, nn.Embedding, Conv1D)


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
    def parameter(self) -> Tensor:
        """The weight as the modules hold it."""
        module = self.modules[0]
        assert isinstance(module, DENSE_CLASSES)
        return module.weight

    @property
    def weight(self) -> Tensor:
        """The (outputs, inputs) or (vocabulary, dimension) matrix; of a ``Conv1D`` a transposed view."""
        return self.parameter.T if isinstance(self.modules[0], Conv1D) else self.parameter

    @property
    def is_embedding(self) -> bool:
        return isinstance(self.modules[0], nn.Embedding)

    @property
    def is_multiplied(self) -> bool:
        """Whether a linear layer holds the weight, alone or tied to an embedding."""
        return any(not isinstance(module, nn.Embedding) for module in self.modules)


def find_targets(model: nn.Module, config: MPOConfig) -> list[Target]:
    """The weight matrices that the configuration targets, each once.

    Raises
    ------
    ValueError
        If the architecture has no preset and none is given, or a pattern matches nothing.
    """
    candidates = dense_weights(model)
    wanted = config.target_modules
    if isinstance(wanted, str) and wanted.lower() == _ALL_LINEAR:
        found = _all_linear(model, candidates)
    else:
        found = _matched(model, candidates, wanted)
    return _without_excluded(found, config.exclude_modules)


def _all_linear(model: nn.Module, candidates: Sequence[Target]) -> list[Target]:
    """As in PEFT: every linear layer but the output embedding, or else a classification head; no embedding."""
    heads: list[Any] = []
    if isinstance(model, PreTrainedModel):
        output = model.get_output_embeddings()
        heads = [output] if output is not None else [getattr(model, name, None) for name in _HEADS]
    spared = {id(module) for head in heads if isinstance(head, nn.Module) for module in head.modules()}
    found = [
        target
        for target in candidates
        if not target.is_embedding and not any(id(module) in spared for module in target.modules)
    ]
    if not found:
        raise ValueError(
            f"target_modules: 'all-linear' finds no linear layer in a {type(model).__name__} besides its head; "
            "name the modules to compress"
        )
    return found


def _matched(model: nn.Module, candidates: Sequence[Target], wanted: Patterns | None) -> list[Target]:
    if wanted is None:
        architecture = getattr(getattr(model, "config", None), "model_type", None)
        if architecture not in TARGETS_OF_ARCHITECTURE:
            raise ValueError(
                f"target_modules: got None for a model of type {architecture!r}, which has no preset "
                f"({', '.join(TARGETS_OF_ARCHITECTURE)}); pass a list of name suffixes such as ['q_proj', 'v_proj'], "
                "or 'all-linear'"
            )
        wanted = TARGETS_OF_ARCHITECTURE[architecture]
    _check_each_matches(wanted, model, [name for target in candidates for name in target.names])
    return [target for target in candidates if any(_is_match(wanted, name) for name in target.names)]


def _without_excluded(found: list[Target], excluded: Patterns | None) -> list[Target]:
    if excluded is None:
        return found
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


def dense_weights(model: nn.Module) -> list[Target]:
    """Every weight matrix that could be an MPO, once."""
    groups: dict[int, list[tuple[str, nn.Module]]] = {}
    held_elsewhere: set[int] = set()
    for name, module in model.named_modules():
        # The model itself, whose name is empty, has no parent to hang another module in.
        if type(module) in DENSE_CLASSES and name and not acts_on_rows(module):
            groups.setdefault(id(module.weight), []).append((name, module))
        else:
            held_elsewhere.update(map(id, module.parameters(recurse=False)))
    # An embedding comes first, so that a tied decoder takes the embedding's shape and statistics.
    ordered = [
        sorted(group, key=lambda entry: not isinstance(entry[1], nn.Embedding))
        for weight, group in groups.items()
        if weight not in held_elsewhere  # a module that needs it dense would no longer be tied
    ]
    return [Target(*zip(*group, strict=True)) for group in ordered]


def acts_on_rows(module: nn.Module) -> bool:
    """Whether an embedding has an option that treats single rows of the table, which cores have not."""
    return isinstance(module, nn.Embedding) and bool(
        module.max_norm is not None or module.sparse or module.scale_grad_by_freq
    )


def obstacle(module: nn.Module, parameter: Tensor) -> str:
    """In words, why the weight of a module cannot become an MPO: the module's class, the number of axes."""
    kind = type(module).__name__
    if parameter.ndim != 2:
        return f"{kind}, {parameter.ndim} {'axis' if parameter.ndim == 1 else 'axes'}: not a matrix"
    if acts_on_rows(module):
        return f"{kind} with max_norm, sparse or scale_grad_by_freq, which act on single rows"
    if type(module) in DENSE_CLASSES:
        return f"{kind}, its weight is shared with a module of another class"
    for known in DENSE_CLASSES:
        if isinstance(module, known):
            article = "an" if known is nn.Embedding else "a"
            return f"{kind}, {article} {known.__name__} with a forward of its own"
    return f"{kind}, 2 axes: not the weight of a Linear, Embedding or Conv1D"


def _is_match(patterns: Patterns, name: str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == suffix or name.endswith("." + suffix) for suffix in patterns)


def _check_each_matches(patterns: Patterns, model: nn.Module, names: Sequence[str]) -> None:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        wanted: Patterns = pattern if isinstance(patterns, str) else [pattern]
        if not any(_is_match(wanted, name) for name in names):
            raise ValueError(
                f"target_modules: {pattern!r} matches none of the {len(names)} linear and embedding modules; "
                + (_matched_otherwise(wanted, model, names) or _near_misses(pattern, names))
            )


def _near_misses(pattern: str, names: Sequence[str]) -> str:
    suffixes = sorted({name.rpartition(".")[2] for name in names} | set(names))
    near = difflib.get_close_matches(pattern, suffixes, n=5, cutoff=0.4)
    return f"near misses: {', '.join(near)}" if near else f"their names: {', '.join(suffixes[:8]) or 'none'}"


def _matched_otherwise(patterns: Patterns, model: nn.Module, names: Sequence[str]) -> str:
    """What else of the model a pattern means, one example of each class, and what could be named instead."""
    found: dict[str, str] = {}
    inside: set[str] = set()
    for name, module in model.named_modules():
        if name and _is_match(patterns, name):
            found.setdefault(_described(module), name)
            inside.update(other[len(name) + 1 :] for other in names if other.startswith(f"{name}."))
        for attribute, parameter in module.named_parameters(prefix=name, recurse=False):
            if type(module) not in DENSE_CLASSES and _is_match(patterns, attribute):
                found.setdefault(f"a parameter of {obstacle(module, parameter)}", attribute)
    if not found:
        return ""
    text = "it matches " + ", ".join(f"{name} ({what})" for what, name in list(found.items())[:3])
    return f"{text}; name what is inside: {', '.join(sorted(inside)[:8])}" if inside else text


def _described(module: nn.Module) -> str:
    if isinstance(module, MPOLayer):
        return f"{type(module).__name__}, compressed already"
    weight = module._parameters.get("weight")
    return type(module).__name__ if weight is None else obstacle(module, weight)
