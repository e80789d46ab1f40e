"""The adapter between transformers' loading and saving and a compressed model: ``quant_method = "mpo"``."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from .config import MPOConfig
from .manifest import describe, install, retie, set_trainable, unfilled_cores
from .report import CompressionReport

register_quantization_config("mpo")(MPOConfig)

_ALIGNMENT = 64  # bytes, of torch's allocations on CPUs


@register_quantizer("mpo")
class MPOQuantizer(HfQuantizer):
    """Compresses on load, rebuilds a saved model's layers, and keeps the manifest true when it is saved.

    Attributes
    ----------
    quantization_config : MPOConfig
    report : CompressionReport or None
        What ``compress`` did; None on a model that was loaded compressed.
    """

    quantization_config: MPOConfig
    report: CompressionReport | None = None

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            if not self.quantization_config.layers:
                raise ValueError(
                    "quantization_config: config.json says that the model is compressed, but describes no layers; "
                    "save it again with save_pretrained"
                )
            install(model, self.quantization_config.layers)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if any(parameter.is_meta for parameter in model.parameters()):
            places = sorted(set(map(str, getattr(model, "hf_device_map", {}).values())))
            raise ValueError(
                f"device_map: got one that offloads weights ({', '.join(places)}), from where nothing brings the cores "
                "of MPO layers back; place the whole model on devices"
                + ("" if self.pre_quantized else ", or compress the checkpoint with compress_checkpoint, then load it")
            )
        if self.pre_quantized:
            layers = self.quantization_config.layers or {}
            if unfilled := unfilled_cores(model, layers):
                raise ValueError(
                    f"the checkpoint lacks {len(unfilled)} cores of its layers, or has them in another shape: "
                    f"{', '.join(unfilled[:3])}{', ...' if len(unfilled) > 3 else ''}; save the model anew"
                )
            _align(model)
            set_trainable(model, layers)
            attach(model, self.quantization_config)
        else:
            from .surgery import compress  # which attaches this class

            compress(model, self.quantization_config)
            _align(model)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Called when the model is saved, before its configuration is written."""
        retie(model)
        self.quantization_config.layers = describe(model)
        model.config.quantization_config = self.quantization_config
        return None, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        from .surgery import merge

        return merge(model).to(dtype) if dtype is not None else merge(model)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def check_is_free(model: nn.Module) -> None:
    """Refuse a model that another quantizer of transformers holds.

    Raises
    ------
    ValueError
        If there is one.
    """
    for module in _transformers_models(model):
        other = getattr(module, "hf_quantizer", None)
        if other is not None and not isinstance(other, MPOQuantizer):
            method = other.quantization_config.quant_method
            raise ValueError(
                f"model: got a {type(model).__name__} quantized with {getattr(method, 'value', method)!r}; "
                "compress the dense model, or dequantize() this one first"
            )


def attach(model: nn.Module, config: MPOConfig, report: CompressionReport | None = None) -> None:
    """Let stock ``save_pretrained`` write a compressed model, or the base model inside it, so that it can be loaded."""
    quantizer = MPOQuantizer(config, pre_quantized=True)
    quantizer.report = report
    for module in _transformers_models(model):
        module.hf_quantizer = quantizer
        module.config.quantization_config = config
        module.quantization_method = "mpo"
        module.is_quantized = False  # else .half() and .float() would be refused
    retie(model)


def detach(model: nn.Module) -> None:
    """Make a merged model one of transformers' own again."""
    for module in _transformers_models(model):
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            module.__dict__.pop(name, None)
        module.config.__dict__.pop("quantization_config", None)
        module.config.__dict__.pop("_is_quantized", None)
    retie(model)


def _transformers_models(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]


@torch.no_grad()
def _align(model: nn.Module) -> None:
    """Lay parameters out in memory as torch does, not as they lie in a file behind tensors of odd sizes.

    The order of a BLAS's sums depends on it, so that else a reloaded model would differ in the last bits.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()
