"""Compress a model in place, freeze, absorb, merge: the acts on modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch import MPOEmbedding, MPOLayer, MPOLinear
from .calibration import Calibration
from .config import MPOConfig
from .conv1d import MPOConv1D
from .manifest import retie
from .planning import decompose, plan_model
from .quantizer import attach, check_is_free, detach
from .report import CompressionReport, ModuleReport, uncovered_weights
from .targets import Target, find_targets, replace_module, require_mpo_layers

_Item = TypeVar("_Item")


def compress(model: nn.Module, config: MPOConfig, calibration: Calibration | None = None) -> CompressionReport:
    """Replace the targeted weights of a model by MPOs, in place.

    Parameters
    ----------
    model : nn.Module
        Any model; those of transformers with a preset need no ``target_modules``.
    config : MPOConfig
        What, into which shape, to which budget.
    calibration : Calibration, optional
        From ``calibrate``: errors are then those of the layers' outputs on that text.

    Returns
    -------
    CompressionReport
        Per matrix shape, bonds, parameters and error, and what no target covered. Print it.

    Raises
    ------
    ValueError, TypeError
        If a pattern matches nothing, or the budget cannot be met; the model is then unchanged.

    Notes
    -----
    A model of transformers is afterwards written by its own ``save_pretrained``, and read by ``from_pretrained``
    wherever ``tnmpo.integrations.transformers`` is imported; the report stays at ``model.hf_quantizer.report``.

    A weight that several modules share (ALBERT's layers, a tied decoder) is compressed once and stays shared. Frozen
    or trainable: every core is trainable afterwards; ``freeze_central`` prepares fine-tuning.

    Every low-rank cut comes from one eigendecomposition of a small Gram matrix. Memory beside the model: the new cores,
    and the singular vectors of low-rank plans until they are carried out, together about one copy of the targeted
    weights.
    """
    if not isinstance(config, MPOConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected an MPOConfig such as MPOConfig(ratio=0.5)")
    check_is_free(model)
    targets = find_targets(model, config)
    if calibration is not None and not any(calibration.weight(target.name) for target in targets):
        raise ValueError(
            f"calibration: it knows none of the targeted modules ({targets[0].name}, ...); "
            "calibrate the very model that is compressed"
        )
    uncovered = uncovered_weights(model, targets)
    reports, replacements = [], []
    plans = plan_model(targets, config, calibration)
    for plan in transformers_logging.tqdm(_taken(plans), total=len(plans), desc="compress", leave=False):
        mpo, error = decompose(plan)
        replacements.append((plan.target, mpo))
        reports.append(ModuleReport.compressed(plan.target, mpo, error, config, weighted=plan.metric is not None))
    for target, mpo in _taken(replacements):
        put_layers(model, target, mpo, config)
    report = CompressionReport(tuple(reports), uncovered, sum(p.numel() for p in model.parameters()))
    attach(model, copy.deepcopy(config), report)
    return report


def freeze_central(model: nn.Module) -> None:
    """Prepare lightweight fine-tuning: of every train, only the auxiliary tensors stay trainable.

    Low-rank layers get their bond core ``M`` (the identity) inserted, which is then the auxiliary
    tensor, ``U`` and ``V`` the central ones. Everything that is not an MPO is left as it is.

    Raises
    ------
    ValueError
        If the model has no MPO layers.
    """
    for _, layer, tied in require_mpo_layers(model, "freeze_central"):
        if layer.is_low_rank:
            layer.insert_bond_core_()
        for site, core in enumerate(layer.cores):
            core.requires_grad_(site in layer.auxiliary)
        share_cores(layer, tied)
    retie(model)


def absorb(model: nn.Module) -> None:
    """Fold the bond cores of low-rank layers into their neighbours: the model at rest.

    Raises
    ------
    ValueError
        If the model has no MPO layers.
    """
    for _, layer, tied in require_mpo_layers(model, "absorb"):
        layer.absorb_bond_core_()
        share_cores(layer, tied)
    retie(model)


def merge(model: nn.Module) -> nn.Module:
    """Replace every MPO layer by the dense one with the same weight, in place; returns the model.

    Tied weights stay tied. A model of transformers is then saved and loaded as any other.

    Raises
    ------
    ValueError
        If the model has no MPO layers.
    """
    for _, layer, tied in require_mpo_layers(model, "merge"):
        dense = _to_dense(layer)
        replace_module(model, layer, dense)
        for twin in tied:
            other = _to_dense(twin)
            other.weight = dense.weight
            replace_module(model, twin, other)
    detach(model)
    return model


def truncate_layer(
    layer: MPOLayer, tied: list[MPOLayer], rank: object, metric: tnmpo.Weight | None
) -> tnmpo.Truncation:
    """Cut the bonds of a layer; the layers tied to it follow."""
    record = layer.truncate_(rank, weight=metric if layer.is_low_rank else None)
    share_cores(layer, tied)
    return record


def share_cores(layer: MPOLayer, tied: list[MPOLayer]) -> None:
    """Let the layers tied to ``layer`` use its cores, after these were replaced."""
    for twin in tied:
        twin.cores = layer.cores


def _taken(items: list[_Item]) -> Iterator[_Item]:
    """Each once; the list lets go of it, so that what it holds is free after its use."""
    while items:
        yield items.pop(0)


def put_layers(model: nn.Module, target: Target, mpo: tnmpo.MPO, config: MPOConfig) -> None:
    """Put layers with the cores of ``mpo`` where the modules of a target are; those that share it share the cores."""
    first: MPOLayer | None = None
    for module in target.modules:
        layer: MPOLayer
        if isinstance(module, nn.Embedding):
            layer = MPOEmbedding(
                mpo,
                num_embeddings=module.num_embeddings,
                embedding_dim=module.embedding_dim,
                padding_idx=module.padding_idx,
                cache=config.cache,
            )
        else:
            assert isinstance(module, nn.Linear | Conv1D)
            rows, cols = target.weight.shape
            kind = MPOConv1D if isinstance(module, Conv1D) else MPOLinear
            layer = kind(
                mpo,
                module.bias,
                in_features=cols,
                out_features=rows,
                execution=config.execution,
                cache=config.cache,
            )
            if module.bias is not None:
                layer.bias = module.bias  # the parameter itself: heads share theirs with the model
        layer.train(module.training)
        if first is not None:
            layer.cores = first.cores
        first = first or layer
        replace_module(model, module, layer)


def _to_dense(layer: MPOLayer) -> nn.Linear | nn.Embedding | Conv1D:
    assert isinstance(layer, MPOLinear | MPOEmbedding)
    dense: nn.Linear | nn.Embedding | Conv1D
    if isinstance(layer, MPOConv1D):
        dense = layer.to_conv1d()
    else:
        dense = layer.to_linear() if isinstance(layer, MPOLinear) else layer.to_embedding()
    if isinstance(layer, MPOLinear) and layer.bias is not None:
        dense.bias = layer.bias
    return dense.train(layer.training)
