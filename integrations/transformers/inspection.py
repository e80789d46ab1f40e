"""Look at a model before it is compressed: spectra, entropies, and what each budget would cost. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

import tnmpo

from ..torch import MPOEmbedding
from .calibration import Calibration
from .config import MPOConfig
from .cuts import RATIOS, TOLERANCES, Cut, interleaved_cuts, low_rank_cuts, parameters_needed
from .lowrank import low_rank_basis
from .targets import find_targets, mpo_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class LayerInspection:
    """One weight matrix; ``print`` shows its bonds and cuts.

    Attributes
    ----------
    name : str
    weight_shape : (I, J)
    kind : {"dense", "low-rank", "interleaved", "whole"}
        What it is now; a whole matrix is an MPO of order 1.
    parameters : int
        That it has now.
    weighted : bool
        Whether spectrum and errors of the low-rank bond, and errors of interleaved cuts, are in the calibrated norm.
        Interleaved spectra never are.
    spectrum : (min(I, J),) array
        The Schmidt values of the low-rank bond over their norm, descending.
    interleaved_shape : tnmpo.MPOShape or None
    interleaved_spectra : tuple of (d_k,) arrays
        Of every bond of the interleaved MPO, over their norm.
    cuts : tuple of Cut
    needed : dict of float to int
        The parameters that the low-rank cut needs to keep a relative error; those of the whole matrix where its
        factors would be larger.
    """

    name: str
    weight_shape: tuple[int, int]
    kind: str
    parameters: int
    weighted: bool
    spectrum: np.ndarray
    interleaved_shape: tnmpo.MPOShape | None
    interleaved_spectra: tuple[np.ndarray, ...]
    cuts: tuple[Cut, ...]
    needed: dict[float, int]

    @property
    def dense_parameters(self) -> int:
        return math.prod(self.weight_shape)

    @cached_property
    def profile(self) -> tnmpo.EntanglementProfile:
        """Entropy, effective rank and deficit of the low-rank bond."""
        return tnmpo.entanglement_profile([self.spectrum])

    @cached_property
    def interleaved_profile(self) -> tnmpo.EntanglementProfile:
        """The same of every interleaved bond."""
        return tnmpo.entanglement_profile(list(self.interleaved_spectra))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file; Schmidt values with six digits."""
        shape = self.interleaved_shape
        return {
            "name": self.name,
            "weight_shape": list(self.weight_shape),
            "kind": self.kind,
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "weighted": self.weighted,
            "low_rank": _bonds(self.profile, [self.spectrum])[0],
            "interleaved": None
            if shape is None
            else {
                "rows": list(shape.rows),
                "cols": list(shape.cols),
                "bonds": _bonds(self.interleaved_profile, self.interleaved_spectra),
            },
            "cuts": [
                {**asdict(cut), "interleaved_ranks": cut.interleaved_ranks and list(cut.interleaved_ranks)}
                for cut in self.cuts
            ],
            "needed": [{"tolerance": tol, "parameters": count} for tol, count in self.needed.items()],
        }

    def __str__(self) -> str:
        from .inspection_view import layer_table

        return layer_table(self)


@dataclass(frozen=True)
class Budget:
    """All matrices under one budget, low-rank, as ``compress`` allots it.

    Attributes
    ----------
    ratio : float
        Asked, of the dense parameters.
    parameters : int
        Used; 0 where the budget is below the rank-one size of all matrices.
    ranks : dict of str to int
        By the name of the matrix.
    error : float
        The root of the mean squared relative error of the matrices.
    largest_error : float
    worst : str
        The matrix that has it.
    """

    ratio: float
    parameters: int
    ranks: dict[str, int]
    error: float
    largest_error: float
    worst: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """What ``inspect_model`` found; ``print`` shows it as a table, ``plot`` as a figure.

    Attributes
    ----------
    layers : tuple of LayerInspection
    budgets : tuple of Budget
        One for every ratio that all matrices together can be cut to.
    model_parameters : int
        Of the whole model now, shared ones counted once.
    """

    layers: tuple[LayerInspection, ...]
    budgets: tuple[Budget, ...]
    model_parameters: int

    def __getitem__(self, name: str) -> LayerInspection:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"{name!r} is no inspected matrix; the first are {', '.join(x.name for x in self.layers[:5])}")

    @property
    def dense_parameters(self) -> int:
        """Of the inspected matrices, were they dense."""
        return sum(layer.dense_parameters for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Of the inspected matrices, as they are."""
        return sum(layer.parameters for layer in self.layers)

    def needed(self, tolerance: float) -> int:
        """The parameters that all matrices need when each is cut to the tolerance by itself.

        Raises
        ------
        KeyError
            If the tolerance is none of those that were inspected.
        """
        return sum(layer.needed[tolerance] for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return {
            "model_parameters": self.model_parameters,
            "dense_parameters": self.dense_parameters,
            "parameters": self.parameters,
            "layers": [layer.to_dict() for layer in self.layers],
            "budgets": [asdict(budget) for budget in self.budgets],
            "needed": [{"tolerance": tol, "parameters": self.needed(tol)} for tol in TOLERANCES],
        }

    def __str__(self) -> str:
        from .inspection_view import table

        return table(self)

    def plot(self) -> Figure:
        """Draw the spectra of every kind of layer, the error of every cut, and how full the bonds are.

        Returns
        -------
        matplotlib.figure.Figure
            Not shown and not registered with pyplot; ``figure.savefig(path)`` writes it.
        """
        from .inspection_view import figure

        return figure(self)


@torch.no_grad()
def inspect_model(
    model: nn.Module,
    config: MPOConfig | None = None,
    calibration: Calibration | None = None,
    *,
    interleaved: bool = True,
) -> Inspection:
    """Spectra and entropies of a model's weight matrices, and what each budget would cost. Changes nothing.

    Parameters
    ----------
    model : nn.Module
        Dense: the matrices that the configuration targets. Compressed: its MPO layers, as the matrices that they are
        now.
    config : MPOConfig, optional
        Says which modules, and the interleaved shapes; its budget is not used. By default the preset of the
        architecture.
    calibration : Calibration, optional
        Errors, and low-rank spectra, are then in its norms.
    interleaved : bool
        Whether to decompose every matrix into an interleaved MPO besides, which takes most of the time.

    Returns
    -------
    Inspection

    Raises
    ------
    ValueError
        If a pattern matches nothing, the architecture has no preset and none is given, or a weight is not finite.

    Notes
    -----
    A low-rank cut of every rank comes from one eigendecomposition. An interleaved MPO is decomposed once and cut to
    smaller and smaller ratios, each from the one before; its errors are those of the cuts that were made, measured
    on the dense matrix. One matrix is looked at at a time.

    Examples
    --------
    >>> import transformers
    >>> settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **settings))
    >>> inspection = inspect_model(model)
    >>> len(inspection.layers), inspection["encoder.layer.0.output.dense"].weight_shape
    (8, (16, 32))
    """
    config = config if config is not None else MPOConfig()
    matrices = list(_compressed(model)) or list(_dense(model, config))
    layers = tuple(
        _inspect(matrix, config, calibration, interleaved=interleaved)
        for matrix in transformers_logging.tqdm(matrices, desc="inspect", leave=False)
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    return Inspection(layers, tuple(_share(layers, ratio) for ratio in RATIOS if _least(layers) <= ratio), total)


@dataclass(frozen=True, eq=False)
class _Matrix:
    name: str
    weight: Any  # makes the (I, J) tensor, so that of a compressed model one is in memory at a time
    kind: str
    parameters: int
    is_embedding: bool
    shape: tnmpo.MPOShape | None = None


def _dense(model: nn.Module, config: MPOConfig) -> Iterator[_Matrix]:
    for target in find_targets(model, config):
        weight = target.weight.detach()
        yield _Matrix(target.name, lambda w=weight: w, "dense", weight.numel(), target.is_embedding)


def _compressed(model: nn.Module) -> Iterator[_Matrix]:
    for name, layer, _ in mpo_layers(model):
        shape = layer.shape
        kind = "whole" if shape.order == 1 else "low-rank" if shape.is_low_rank else "interleaved"
        parameters = layer.shape_at_rest.n_parameters(layer.ranks_at_rest)
        is_embedding = isinstance(layer, MPOEmbedding)
        own = shape if kind == "interleaved" else None
        yield _Matrix(name, lambda one=layer: _rebuilt(one), kind, parameters, is_embedding, own)


def _rebuilt(layer: Any) -> Tensor:
    """The matrix of a layer's cores; unlike ``layer.weight`` it leaves nothing in the layer's cache."""
    rows, cols = layer.weight_shape
    cores = [core.detach().to(torch.promote_types(core.dtype, torch.float32)) for core in layer.cores]
    return tnmpo.MPO(cores).to_matrix()[:rows, :cols]


def _inspect(
    matrix: _Matrix, config: MPOConfig, calibration: Calibration | None, *, interleaved: bool
) -> LayerInspection:
    weight: Tensor = matrix.weight()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"model: the weight of {matrix.name} holds NaN or Inf; load a sound checkpoint")
    rows, cols = weight.shape
    metric = calibration.weight(matrix.name) if calibration is not None else None
    basis = low_rank_basis(weight, metric)
    shape: tnmpo.MPOShape | None = None
    spectra: tuple[np.ndarray, ...] = ()
    cuts = low_rank_cuts(basis)
    if interleaved:
        shape = matrix.shape or config.interleaved_shape((rows, cols), is_embedding=matrix.is_embedding)
        spectra, cuts = interleaved_cuts(weight, shape, metric, cuts)
    return LayerInspection(
        name=matrix.name,
        weight_shape=(rows, cols),
        kind=matrix.kind,
        parameters=matrix.parameters,
        weighted=metric is not None,
        spectrum=basis.spectrum / (basis.norm or 1.0),
        interleaved_shape=shape,
        interleaved_spectra=spectra,
        cuts=cuts,
        needed={tol: parameters_needed(basis, tol) for tol in TOLERANCES},
    )


def _share(layers: Sequence[LayerInspection], ratio: float) -> Budget:
    sizes = [layer.weight_shape for layer in layers]
    # beyond the break-even a low-rank layer would be larger than a dense one
    kept = [
        layer.spectrum[: max(1, (rows * cols - 1) // (rows + cols))]
        for layer, (rows, cols) in zip(layers, sizes, strict=True)
    ]
    budget = math.floor(ratio * sum(map(math.prod, sizes)) + 1e-9)
    ranks = [rank for _, rank, _ in tnmpo.allot_ranks([[spectrum] for spectrum in kept], sizes, budget)]
    errors = [math.hypot(*layer.spectrum[rank:]) for layer, rank in zip(layers, ranks, strict=True)]
    worst = int(np.argmax(errors))
    return Budget(
        ratio=ratio,
        parameters=sum(rank * sum(size) for rank, size in zip(ranks, sizes, strict=True)),
        ranks={layer.name: rank for layer, rank in zip(layers, ranks, strict=True)},
        error=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        largest_error=errors[worst],
        worst=layers[worst].name,
    )


def _least(layers: Sequence[LayerInspection]) -> float:
    """The ratio at which every matrix has rank one."""
    return sum(sum(layer.weight_shape) for layer in layers) / sum(layer.dense_parameters for layer in layers)


def _bonds(profile: tnmpo.EntanglementProfile, spectra: Sequence[np.ndarray]) -> list[Mapping[str, Any]]:
    columns = (profile.ranks, profile.entropies, profile.effective_ranks, profile.deficits, spectra)
    return [
        {
            "rank": rank,
            "entropy": entropy,
            "effective_rank": effective,
            "deficit": deficit,
            "spectrum": [float(f"{value:.6g}") for value in spectrum],
        }
        for rank, entropy, effective, deficit, spectrum in zip(*columns, strict=True)
    ]
