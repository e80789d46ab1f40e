"""Calibration: what flows through a model, as the metrics its weights should be cut in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch import MPOEmbedding, MPOLayer, MPOLinear
from .targets import DENSE_CLASSES, evaluation_mode

Batch = dict[str, Tensor]


class Calibration:
    """Input covariances of linear layers and token counts of embeddings.

    Made by ``calibrate``. Names are those of ``model.named_modules()``.

    Attributes
    ----------
    covariances : dict of (in_features, in_features) float64 tensors
        ``E[x x^T]`` over all positions that are not padding.
    token_counts : dict of (num_embeddings,) float64 tensors
    batches : list of dict of tensors
        The tokenised batches, on the CPU.
    input_embedding : str
        The name of the model's input embedding, which ``count_tokens`` adds to; empty where it has none.
    """

    def __init__(self, batches: list[Batch], input_embedding: str = "") -> None:
        self.batches = batches
        self.input_embedding = input_embedding
        self.covariances: dict[str, Tensor] = {}
        self.token_counts: dict[str, Tensor] = {}
        self._weights: dict[str, tnmpo.Weight] = {}

    def count_tokens(self, batches: Iterable[Mapping[str, Tensor]]) -> Calibration:
        """Add the tokens of more text to the counts of the input embedding; the model does not run.

        Counts need no forward pass, so all the text at hand should be counted.

        Parameters
        ----------
        batches : iterable of dict with ``input_ids`` and, where there is padding, ``attention_mask``

        Returns
        -------
        Calibration
            Itself.

        Raises
        ------
        ValueError
            If the model has no input embedding that was calibrated, or a batch has no ``input_ids``.
        """
        counts = self.token_counts.get(self.input_embedding)
        if counts is None:
            raise ValueError("count_tokens: this calibration saw no input embedding, so there are no counts to add to")
        for batch in batches:
            if "input_ids" not in batch:
                raise ValueError(f"count_tokens: got a batch with {sorted(batch)}, expected 'input_ids' among its keys")
            counts += _count(batch["input_ids"], batch.get("attention_mask"), len(counts)).to(counts.device)
        self._weights.pop(self.input_embedding, None)
        return self

    def weight(self, name: str) -> tnmpo.Weight | None:
        """The norm to cut the weight of module ``name`` in; None where nothing flowed through it.

        A linear layer's is its input covariance on the columns, an embedding's its token counts
        plus 1/2 (so that a token never seen still counts) on the rows.
        """
        if name not in self._weights:
            if name in self.covariances:
                covariance = self.covariances[name]
                # Query, key and value share their input: one object, whose square root is taken once.
                for known in self._weights.values():
                    if _are_equal(known.cols, covariance):
                        self._weights[name] = known
                        return known
                self._weights[name] = tnmpo.Weight(cols=covariance)
            elif name in self.token_counts:
                self._weights[name] = tnmpo.Weight(rows=self.token_counts[name] + 0.5)
        return self._weights.get(name)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Calibration:
    """Run texts through a model and collect what flows into its linear layers and embeddings.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(**batch)`` in evaluation mode on its own device; compressed layers are calibrated too.
    batches : iterable of dict of tensors
        Tokenised, e.g. ``input_ids`` and ``attention_mask``; labels are left out. Consumed once and
        kept in ``calibration.batches``. Positions whose mask is 0 are not counted.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError, TypeError
        If there is no batch, or a batch is no mapping with tensors.

    Notes
    -----
    Memory: one ``in_features^2`` matrix in double precision per linear layer. Products are taken in double precision,
    as exact as the numbers that flow.
    """
    kept = [_as_batch(batch) for batch in batches]
    if not kept:
        raise ValueError("batches: got none, expected at least one tokenised batch")
    calibration = Calibration(kept, _input_embedding(model))
    device = next(model.parameters()).device
    collector = _Collector(calibration)
    hooks = [
        module.register_forward_pre_hook(collector.hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if type(module) in DENSE_CLASSES or isinstance(module, MPOLayer)
    ]
    try:
        with evaluation_mode(model):
            for batch in transformers_logging.tqdm(kept, desc="calibrate", leave=False):
                on_device = {key: value.to(device) for key, value in batch.items()}
                collector.mask = on_device.get("attention_mask")
                model(**on_device)
                collector.products.clear()
    finally:
        for hook in hooks:
            hook.remove()
    collector.finish()
    return calibration


def _are_equal(known: Any, covariance: Tensor) -> bool:
    return isinstance(known, Tensor) and known.device == covariance.device and torch.equal(known, covariance)


class _Collector:
    """Sums over batches while the hooks are in place."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.positions: dict[str, int] = {}
        self.mask: Tensor | None = None
        self.products: dict[int, tuple[Tensor, Tensor, int]] = {}  # of the running batch, by input

    def hook(self, name: str) -> Any:
        def collect(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            (x,) = (*arguments, *named.values())
            if isinstance(module, nn.Linear | Conv1D | MPOLinear):
                self._add_input(name, x)
            elif isinstance(module, nn.Embedding | MPOEmbedding):
                self._add_ids(name, x, module.num_embeddings)

        return collect

    def _add_input(self, name: str, x: Tensor) -> None:
        # Kept with the input itself, so that its id cannot be reused within the batch.
        if id(x) not in self.products:
            rows = x[self._mask_of(x)] if self._mask_of(x) is not None else x.reshape(-1, x.shape[-1])
            # Summed in single precision, few texts would have negative variances, and an error none should have.
            rows = rows.double()
            self.products[id(x)] = (x, rows.T @ rows, rows.shape[0])
        _, product, positions = self.products[id(x)]
        covariances = self.calibration.covariances
        covariances[name] = covariances[name].add_(product) if name in covariances else product.clone()
        self.positions[name] = self.positions.get(name, 0) + positions

    def _add_ids(self, name: str, ids: Tensor, size: int) -> None:
        mask = self.mask if self.mask is not None and self.mask.shape == ids.shape else None
        counts = self.calibration.token_counts
        found = _count(ids, mask, size)
        counts[name] = counts[name] + found if name in counts else found

    def _mask_of(self, x: Tensor) -> Tensor | None:
        """The positions of ``x`` that are not padding, where it still has the batch's positions."""
        if self.mask is not None and x.ndim == 3 and x.shape[:2] == self.mask.shape:
            return self.mask.to(x.device).bool()  # of a model on several devices
        return None

    def finish(self) -> None:
        covariances = self.calibration.covariances
        for name, total in covariances.items():
            covariances[name] = total / max(1, self.positions[name])


def _count(ids: Tensor, mask: Tensor | None, size: int) -> Tensor:
    ids = ids[mask.bool()] if mask is not None else ids.reshape(-1)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ValueError(f"batches: got an id outside 0 .. {size - 1}, the vocabulary; check the tokenizer")
    return torch.bincount(ids, minlength=size).double()


def _as_batch(batch: Any) -> Batch:
    if not hasattr(batch, "items"):
        raise TypeError(
            f"batches: got a {type(batch).__name__}, expected dicts of tensors as a tokenizer with "
            "return_tensors='pt' makes them"
        )
    tensors = {key: value.detach().cpu() for key, value in batch.items() if isinstance(value, Tensor)}
    tensors.pop("labels", None)
    if not tensors:
        raise ValueError(f"batches: got a batch with {sorted(batch)} and no tensors; tokenise with return_tensors='pt'")
    return tensors


def _input_embedding(model: nn.Module) -> str:
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    return next((name for name, module in model.named_modules() if module is embedding), "")
