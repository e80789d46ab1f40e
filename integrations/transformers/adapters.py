"""PEFT adapters of a compressed model: the auxiliary tensors of its MPO layers, trained beside a base left as it is.

Importing this module makes the method known to PEFT, which must be installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from ..torch import MPOLayer, MPOLinear
from .adapter_targets import auxiliary_tensors, shapes_of_auxiliary
from .adapter_tuner import MPOTuner, MPOTunerLayer
from .targets import require_mpo_layers

if not hasattr(MPOTuner, "_get_adapter_state_dict"):  # before 0.21 PEFT saves the methods of its own list alone
    raise ImportError(f"tnmpo.integrations.transformers.adapters: got peft {peft.__version__}, expected 0.21 or later")


class _Method(str):
    """A name that PEFT's closed enumeration of methods does not have."""

    @property
    def value(self) -> str:
        return str(self)


_MPO = _Method("MPO")
_RESIDUAL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}  # of the rounding
_CENTRAL_CHANGED = (
    "finetuned: the central tensors of {name} are not those of the base, and an adapter holds none; "
    "call freeze_central before training"
)


@dataclass
class MPOPeftConfig(PeftConfig):
    """An adapter for ``peft.get_peft_model``: copies of the auxiliary tensors of a compressed model's MPO layers.

    They start at the base's weight, the bond core of a low-rank layer as the identity, and are trained while the
    base, its central tensors included, stays frozen. Layers that share a weight share its adapter.

    Parameters
    ----------
    target_modules : str or list of str, optional
        As in PEFT: a list of suffixes, one regular expression, or ``"all-linear"``. By default every MPO layer.
    exclude_modules : str or list of str, optional
        Likewise; wins.
    modules_to_save : list of str, optional
        Dense modules that the adapter trains and saves in full. With ``task_type="SEQ_CLS"`` or ``"TOKEN_CLS"`` PEFT
        adds the classification head.
    train_bias : bool
        Whether the biases of the adapted linear layers are part of the adapter.
    shapes : dict, optional
        Of the auxiliary tensors, by layer; written by PEFT's ``save_pretrained``, not by hand. An adapter is refused
        on a base where they differ.

    Raises
    ------
    ValueError
        By ``get_peft_model`` and ``PeftModel.from_pretrained``, if the model has no MPO layers, a pattern matches none
        of them, or an adapter does not fit the base; the model is then unchanged.

    Notes
    -----
    The cores of one weight have one dtype: the adapter keeps that of the base. To train on a base in half precision,
    load it in float32 first.

    Examples
    --------
    >>> import torch, transformers
    >>> from peft import get_peft_model
    >>> from tnmpo.integrations.transformers import MPOConfig, compress
    >>> sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = transformers.BertModel(transformers.BertConfig(vocab_size=60, **sizes))
    >>> report = compress(model, MPOConfig(ratio=0.5))
    >>> adapted = get_peft_model(model, MPOPeftConfig(target_modules=["query", "value"]))
    >>> sorted(name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad)
    ['mpo_auxiliary', 'mpo_auxiliary']
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of MPO layers; all of them."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of MPO layers to leave."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Dense modules to train and save."})
    train_bias: bool = field(default=False, metadata={"help": "Whether biases of the adapted layers train."})
    shapes: dict[str, list[str]] | None = field(default=None, metadata={"help": "Written when saved."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _MPO
        self.saved_shapes = self.shapes  # a saved adapter has them from the start, a new one gets them from its base


def adapter_from_finetuned(base: nn.Module, finetuned: nn.Module) -> PeftModel:
    """The adapter that turns a compressed model into its fine-tuned copy.

    Parameters
    ----------
    base : nn.Module
        The compressed model that fine-tuning began with; it is wrapped in place.
    finetuned : nn.Module
        The same after ``freeze_central`` and training, at rest or not; it is left as it is. Where biases of MPO layers
        or whole other modules (the head, layer norms) were trained too, they go into the adapter.

    Returns
    -------
    PeftModel
        With the adapter ``"default"``; its outputs are those of ``finetuned``. For ``finetuned`` at rest that holds to
        rounding: bond cores are solved for.

    Raises
    ------
    ValueError
        If the models differ in more than values, or in their central tensors.
    """
    pairs = _paired_layers(base, finetuned)
    tensors = {name: _trained_tensors(name, ours, theirs) for name, ours, theirs in pairs}
    biases = {id(layer.bias) for layer in base.modules() if isinstance(layer, MPOLinear) and layer.bias is not None}
    modules, has_trained_bias = _other_changes(base, finetuned, biases)
    config = MPOPeftConfig(modules_to_save=modules or None, train_bias=has_trained_bias)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, by_site in tensors.items():
            adapted = base.get_submodule(name)
            assert isinstance(adapted, MPOTunerLayer)
            for site, core in by_site.items():
                adapted.mpo_auxiliary["default"].get_parameter(f"core_{site}").copy_(core)
        for name, module in base.named_modules():
            if isinstance(module, MPOTunerLayer) and "default" in module.mpo_bias:
                module.mpo_bias["default"].copy_(finetuned.get_submodule(name).get_parameter("bias"))
        for name in modules:
            copy: Any = base.get_submodule(f"{name}.modules_to_save.default")
            copy.load_state_dict(finetuned.get_submodule(name).state_dict())
    return model


def export_adapter(base: nn.Module, finetuned: nn.Module, folder: str | Path) -> None:
    """Write the adapter folder that turns a compressed model into its fine-tuned copy; both are left as they are.

    Parameters
    ----------
    base, finetuned : nn.Module
        As for ``adapter_from_finetuned``.
    folder : str or Path
        For ``PeftModel.from_pretrained`` or ``apply_adapter``.

    Raises
    ------
    ValueError
        As ``adapter_from_finetuned`` does.
    """
    flags = {parameter: parameter.requires_grad for parameter in base.parameters()}
    model = adapter_from_finetuned(base, finetuned)
    model.save_pretrained(str(folder))
    model.unload()
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)


def apply_adapter(base: nn.Module, folder: str | Path) -> nn.Module:
    """Merge a saved adapter into its base, in place; returns the model, compressed and at rest.

    Parameters
    ----------
    base : nn.Module
        The compressed model the adapter was trained on.
    folder : str or Path
        From ``export_adapter`` or PEFT's ``save_pretrained``.

    Raises
    ------
    ValueError
        If the folder holds no MPO adapter, or one of another base.
    """
    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type != _MPO:
        raise ValueError(
            f"folder: {folder} holds an adapter of the method {config.peft_type.value}, expected {_MPO}; "
            "load it with peft.PeftModel.from_pretrained"
        )
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def register_lora(config: LoraConfig) -> LoraConfig:
    """Let a LoRA's ``target_modules`` name MPO linear layers; returns the same configuration.

    PEFT does not save this with an adapter: to reload one, pass
    ``config=register_lora(LoraConfig.from_pretrained(folder))`` to ``PeftModel.from_pretrained``.

    Notes
    -----
    Such an adapter stays beside the cores: it can be disabled and deleted, not merged or unloaded.
    """
    config._register_custom_module({MPOLinear: _LoraOnMPO})
    return config


class _LoraOnMPO(LoraLinear):
    """LoRA beside the cores of an MPO linear layer."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, MPOLinear)
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(
            "merge: a LoRA cannot be folded into the cores of an MPO layer; keep it beside them, or load it onto the "
            "dense model that tnmpo.integrations.transformers.merge(base) gives, and merge it there"
        )

    def unload_and_optionally_merge_module(self, merge: bool, safe_merge: bool, adapter_names: list[str] | None) -> Any:
        if merge:
            self.merge(safe_merge, adapter_names)
        raise ValueError("unload: PEFT cannot take a LoRA off an MPO layer; use disable_adapter, or load the base anew")


def _paired_layers(base: nn.Module, finetuned: nn.Module) -> list[tuple[str, MPOLayer, MPOLayer]]:
    ours = {name: layer for name, layer, _ in require_mpo_layers(base, "base")}
    theirs = {name: layer for name, layer, _ in require_mpo_layers(finetuned, "finetuned")}
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"finetuned: its MPO layers are not those of the base ({', '.join(sorted(ours.keys() ^ theirs.keys()))} in "
            "one of them only); pass the compressed model that fine-tuning began with"
        )
    return [(name, layer, theirs[name]) for name, layer in ours.items()]


def _trained_tensors(name: str, base: MPOLayer, finetuned: MPOLayer) -> dict[int, Tensor]:
    """The auxiliary tensors of a fine-tuned layer, after a check that its central ones are the base's."""
    shapes = [shapes_of_auxiliary(layer) for layer in (base, finetuned)]
    if shapes[0] != shapes[1] or base.weight_shape != finetuned.weight_shape:
        raise ValueError(
            f"finetuned: {name} has auxiliary tensors of shapes {', '.join(shapes[1])}, in the base "
            f"{', '.join(shapes[0])}; pass the compressed model that fine-tuning began with"
        )
    ours, theirs = ([core.detach() for core in layer.cores] for layer in (base, finetuned))
    found = auxiliary_tensors(finetuned)
    if not base.is_low_rank:
        pairs = [(ours[k], theirs[k]) for k in base.central]
    elif len(theirs) == 3 or torch.equal(ours[-1], theirs[-1]):
        pairs = [(ours[0], theirs[0]), (ours[-1], theirs[-1])]
    else:
        pairs, found = [(ours[0], theirs[0])], {1: _solve_bond_core(name, ours[-1], theirs[-1])}
    if not all(torch.equal(mine, other) for mine, other in pairs):
        raise ValueError(_CENTRAL_CHANGED.format(name=name))
    return found


def _solve_bond_core(name: str, right: Tensor, absorbed: Tensor) -> Tensor:
    """``M`` of ``M V``, all in the layout of cores."""
    v, mv = right[:, 0, :, 0].double(), absorbed[:, 0, :, 0].double()
    bond = torch.linalg.lstsq(v.T, mv.T).solution.T
    if torch.dist(bond @ v, mv) > _RESIDUAL[right.dtype] * mv.norm():
        raise ValueError(_CENTRAL_CHANGED.format(name=name))
    return bond[:, None, None, :].to(right.dtype)


def _other_changes(base: nn.Module, finetuned: nn.Module, biases: set[int]) -> tuple[list[str], bool]:
    """The names of the dense modules whose parameters differ, and whether a bias of an MPO layer does."""
    cores = {id(core) for layer in base.modules() if isinstance(layer, MPOLayer) for core in layer.cores}
    theirs = dict(finetuned.named_parameters(remove_duplicate=False))
    modules: list[str] = []
    has_trained_bias = False
    for name, parameter in base.named_parameters():
        if id(parameter) in cores:
            continue
        if name not in theirs or theirs[name].shape != parameter.shape:
            shape = tuple(theirs[name].shape) if name in theirs else "none"
            raise ValueError(
                f"finetuned: its {name} has the shape {shape}, that of the base {tuple(parameter.shape)}; "
                "pass the compressed model that fine-tuning began with"
            )
        if not torch.equal(parameter, theirs[name]):
            if id(parameter) in biases:
                has_trained_bias = True
            elif (owner := name.rpartition(".")[0]) not in modules:
                modules.append(owner)
    return modules, has_trained_bias


PEFT_TYPE_TO_CONFIG_MAPPING[_MPO] = MPOPeftConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[_MPO] = MPOTuner  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[_MPO] = MPOTuner.prefix  # type: ignore[index]
