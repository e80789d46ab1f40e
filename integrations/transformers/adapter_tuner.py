"""What PEFT puts around MPO layers: the adapters of one weight, and their injection into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _ExcludedModule,
    check_adapters_to_merge,
)
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

import tnmpo

from ..torch import MPOEmbedding, MPOLayer, MPOLinear
from .adapter_targets import (
    adaptable_weights,
    auxiliary_tensors,
    check_patterns,
    check_shapes,
    is_excluded,
    matched_weights,
    shapes_of_auxiliary,
)
from .targets import replace_module

if TYPE_CHECKING:
    from .adapters import MPOPeftConfig

_ALL_LINEAR = "all-linear"


class MPOTunerLayer(nn.Module, BaseTunerLayer):
    """An MPO layer with adapters: each has its own auxiliary tensors, the central ones are the base's.

    Parameters
    ----------
    base_layer : MPOLinear or MPOEmbedding
        Never written to, except by ``merge``.
    owner : MPOTunerLayer, optional
        Of a layer whose cores this one shares (a tied decoder): its adapters serve both.
    """

    adapter_layer_names = ("mpo_auxiliary", "mpo_bias")

    def __init__(self, base_layer: MPOLayer, owner: MPOTunerLayer | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.mpo_auxiliary = nn.ModuleDict()  # adapter -> core_k -> tensor
        self.mpo_bias = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        # in tuples, so that they are no submodules: the owner is one elsewhere, the other repeats what is here
        self._owner = () if owner is None else (owner,)
        self._adapted: tuple[MPOLayer, ...] = ()
        self._before_merge: list[tuple[list[Tensor], Tensor | None]] = []

    @property
    def owner(self) -> MPOTunerLayer:
        """The layer that holds the auxiliary tensors, this one or the one it is tied to."""
        return self._owner[0] if self._owner else self

    def update_layer(self, adapter_name: str, config: MPOPeftConfig) -> None:
        """Add an adapter that starts at the base's weight."""
        bias = getattr(self.base_layer, "bias", None)
        if self.owner is self:
            self.mpo_auxiliary[adapter_name] = nn.ParameterDict(
                {
                    _name_of(site): nn.Parameter(core.clone())
                    for site, core in auxiliary_tensors(self.base_layer).items()
                }
            )
        if config.train_bias and bias is not None:
            self.mpo_bias[adapter_name] = nn.Parameter(bias.detach().clone())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make an adapter the active one, trainable unless in inference mode.

        Raises
        ------
        ValueError
            If the layer has more than one of them: an adapter replaces tensors, it adds nothing.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        here = [name for name in names if name in self.owner.mpo_auxiliary]
        if len(here) > 1:
            raise ValueError(
                f"set_adapter: got {here}, expected one: MPO adapters replace the auxiliary tensors of a layer and do "
                "not add up; set one, or merge one into the base first"
            )
        self._adapted = ()
        super().set_adapter(names, inference_mode=inference_mode)

    def cores_of(self, adapter_name: str) -> list[nn.Parameter]:
        """The cores of an adapter: its own auxiliary parameters, and the base's central ones."""
        cores = self.base_layer.cores
        auxiliary = self.owner.mpo_auxiliary[adapter_name]
        assert isinstance(auxiliary, nn.ParameterDict)
        if len(cores) == 2 and _name_of(0) not in auxiliary:  # a low-rank layer at rest
            return [cores[0], auxiliary[_name_of(1)], cores[1]]
        return [auxiliary.get(_name_of(k), core) for k, core in enumerate(cores)]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        owner = self.owner
        if owner.disable_adapters and self.merged:
            self.unmerge()
        name = self._active_name()
        layer = self.base_layer if name is None else self._layer_of(name)
        return layer(x, *args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        name = self._active_name()
        if name is not None:
            self._layer_of(name)  # built before a compiler can come upon it
        return self

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the tensors of an adapter into the base layer; a low-rank layer comes to rest, with two cores.

        Raises
        ------
        ValueError
            If ``safe_merge`` finds a NaN or an infinity, if several adapters are to be merged.
        """
        wanted = adapter_names if adapter_names is not None else self.owner.active_adapters
        names = [name for name in check_adapters_to_merge(self, wanted) if name in self.owner.mpo_auxiliary]
        if not names:
            return
        if len(names) > 1 or self.merged:
            raise ValueError(
                f"merge: got {[*self.merged_adapters, *names]}, expected one adapter: MPO adapters replace the "
                "auxiliary tensors of a layer; merge one of them"
            )
        (name,) = names
        base = self.base_layer
        bias = self.mpo_bias.get(name)
        if safe_merge and not all(torch.isfinite(core).all() for core in [*self.cores_of(name), *_present(bias)]):
            raise ValueError(f"merge: the adapter {name!r} holds a NaN or an infinity; train it anew")
        own_bias = getattr(base, "bias", None)
        kept = None if own_bias is None else own_bias.detach().clone()
        self._before_merge.append(([core.detach() for core in base.cores], kept))
        if self.owner is self:
            base.set_cores_(self.cores_of(name), trainable=[False] * len(self.cores_of(name)))
            base.absorb_bond_core_()
        else:
            base.cores = self.owner.base_layer.cores
        if bias is not None:
            _write(own_bias, bias)
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the base layer its own tensors back."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            cores, bias = self._before_merge.pop()
            base = self.base_layer
            if self.owner is self:
                like = base.cores[0]
                base.set_cores_([core.to(like.device, like.dtype) for core in cores], [False] * len(cores))
            else:
                self.owner.unmerge()
                base.cores = self.owner.base_layer.cores
            if bias is not None:
                _write(base.bias, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._adapted = ()
        return super()._apply(fn, recurse)

    def _active_name(self) -> str | None:
        """The adapter that a call goes through, or None where it goes through the base."""
        owner = self.owner
        if owner.disable_adapters or self.merged:
            return None
        return next((name for name in owner.active_adapters if name in owner.mpo_auxiliary), None)

    def _layer_of(self, adapter_name: str) -> MPOLayer:
        """A layer on the parameters of an adapter, with a cache of its own, so that switching leaves nothing stale."""
        cores = self.cores_of(adapter_name)
        bias = self.mpo_bias.get(adapter_name, getattr(self.base_layer, "bias", None))
        known = self._adapted[0] if self._adapted else None
        if known is None or not _is_on(known, cores, bias):
            known = self._build(cores, bias)
            self._adapted = (known,)
        if known.training != self.training:
            known.training = self.training  # changes of the mode that must clear its cache reach it through the base
        return known

    @torch.compiler.disable
    def _build(self, cores: list[nn.Parameter], bias: nn.Parameter | None) -> MPOLayer:
        base = self.base_layer
        mpo = tnmpo.MPO([core.detach() for core in cores])
        layer: MPOLayer
        if isinstance(base, MPOLinear):
            sizes = {"in_features": base.in_features, "out_features": base.out_features}
            layer = type(base)(mpo, bias, **sizes, execution=base.execution, cache=base.cache)
            layer.bias = bias
        else:
            assert isinstance(base, MPOEmbedding)
            layer = MPOEmbedding(
                mpo,
                num_embeddings=base.num_embeddings,
                embedding_dim=base.embedding_dim,
                padding_idx=base.padding_idx,
                cache=base.cache,
            )
        layer.cores = nn.ParameterList(cores)  # the parameters themselves
        return layer.eval()


class MPOTuner(BaseTuner):
    """Injects ``MPOTunerLayer`` into a compressed model; what ``get_peft_model`` makes of an ``MPOPeftConfig``."""

    prefix = "mpo_"
    tuner_layer_cls = MPOTunerLayer

    def _prepare_adapter_config(self, peft_config: MPOPeftConfig, model_config: dict) -> MPOPeftConfig:  # type: ignore[override]
        """Find the targets, and check them against those of a saved adapter, before anything is changed."""
        weights = adaptable_weights(self.model)
        if peft_config.target_modules == _ALL_LINEAR:
            # PEFT would look for dense linear layers; weights that an embedding shares are no linear layers to it
            peft_config.target_modules = sorted(
                names[0] for names, layers in weights if all(isinstance(layer, MPOLinear) for layer in layers)
            )
        wanted = matched_weights(weights, peft_config)
        shapes = {names[0]: shapes_of_auxiliary(layers[0]) for names, layers in wanted}
        if peft_config.saved_shapes is not None:
            check_shapes(peft_config.saved_shapes, shapes)
        else:
            check_patterns(peft_config, [name for names, _ in weights for name in names])
        if not wanted:
            raise ValueError(
                "get_peft_model: target_modules, exclude_modules and modules_to_save leave none of the model's "
                f"{len(weights)} MPO weights; exclude fewer"
            )
        peft_config.shapes = shapes
        self._owners = {name: names[0] for names, _ in wanted for name in names}
        self._excluded = {
            name
            for names, _ in weights
            for name in names
            if name not in self._owners and is_excluded(peft_config, names)
        }
        return peft_config

    def _check_target_module_exists(self, peft_config: MPOPeftConfig, key: str) -> Any:  # type: ignore[override]
        return _ExcludedModule() if key in self._excluded else key in self._owners

    def _check_tied_modules(self, model: nn.Module, peft_config: MPOPeftConfig) -> None:
        """Nothing to warn of: one adapter serves all layers that share a weight."""

    def _check_merge_allowed(self) -> None:
        """Always: tied layers stay tied."""

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Not at all: the cores of one weight have one dtype."""

    def _create_and_replace(
        self,
        peft_config: MPOPeftConfig,  # type: ignore[override]
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not isinstance(target, MPOTunerLayer):
            assert isinstance(target, MPOLayer)
            owner_name = self._owners[current_key]
            owner = None if owner_name == current_key else self.model.get_submodule(owner_name)
            assert owner is None or isinstance(owner, MPOTunerLayer)
            base, target = target, MPOTunerLayer(target, owner)
            target.train(base.training)
            target._active_adapter = self.active_adapters
            replace_module(self.model, base, target)
        target.update_layer(adapter_name, peft_config)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        names = list(adapter_names if adapter_names is not None else self.active_adapters) if merge else []
        if len(names) > 1:
            raise ValueError(f"merge_and_unload: got the adapters {names}, expected one; MPO adapters do not add up")
        for module in list(self.model.modules()):
            if isinstance(module, MPOTunerLayer) and names:
                module.merge(safe_merge=safe_merge, adapter_names=names)
        for module in list(self.model.modules()):
            if isinstance(module, MPOTunerLayer):
                replace_module(self.model, module, module.base_layer)
            elif isinstance(module, ModulesToSaveWrapper):
                # PEFT would leave the trained head even where nothing is merged
                saved = [module.modules_to_save[name] for name in names if name in module.modules_to_save]
                replace_module(self.model, module, *(saved or [module.original_module]))
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model


def _is_on(layer: MPOLayer, cores: list[nn.Parameter], bias: nn.Parameter | None) -> bool:
    """Whether a layer has exactly these parameters."""
    held = layer.cores
    if len(held) != len(cores) or getattr(layer, "bias", None) is not bias:
        return False
    return all(held[site] is core for site, core in enumerate(cores))


def _name_of(site: int) -> str:
    return f"core_{site}"


def _present(bias: Tensor | None) -> list[Tensor]:
    return [] if bias is None else [bias]


@torch.no_grad()
def _write(bias: Any, values: Tensor) -> None:
    """Into the parameter itself: a head may share it with the model."""
    bias.copy_(values)
