"""MPOLayer: what a linear layer and an embedding share, a weight matrix kept as cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

import tnmpo

from .cache import WeightCache, count_unseen_change
from .contraction import contract, mpo_shape, shapes_of


class MPOLayer(nn.Module):
    """A module whose (I, J) weight is the product of the cores of an MPO.

    The matrix of the cores may be larger than the weight: rows and columns beyond I and J are
    padding, which exists only inside.

    Parameters
    ----------
    mpo : tnmpo.MPO
        On torch tensors, with the orthogonality center at the central tensor.
    weight_shape : (I, J)
        At most ``mpo.matrix_shape``, which None stands for.

    Raises
    ------
    TypeError, ValueError
        If ``mpo`` is not one of torch tensors, or is smaller than the weight.
    """

    cores: nn.ParameterList

    def __init__(self, mpo: tnmpo.MPO, weight_shape: tuple[int | None, int | None]) -> None:
        super().__init__()
        if not isinstance(mpo, tnmpo.MPO) or not isinstance(mpo.cores[0], Tensor):
            raise TypeError(f"{type(self).__name__}: got {type(mpo).__name__}, expected a tnmpo.MPO of torch tensors")
        rows, cols = (wanted or size for wanted, size in zip(weight_shape, mpo.matrix_shape, strict=True))
        if rows > mpo.matrix_shape[0] or cols > mpo.matrix_shape[1]:
            raise ValueError(
                f"{type(self).__name__}: the cores make a {mpo.matrix_shape} matrix, the weight is {(rows, cols)}; "
                "choose a shape whose products are at least as large"
            )
        self.weight_shape = (rows, cols)
        self._weight_cache = WeightCache()
        self.set_cores_(mpo.cores)

    def set_cores_(self, cores: Sequence[Tensor], trainable: Sequence[bool] | None = None) -> None:
        """Replace the cores; an optimiser that held the old parameters must be built anew.

        Parameters
        ----------
        cores : sequence of (r_{k-1}, i_k, j_k, r_k) tensors
        trainable : sequence of bool, optional
            ``requires_grad`` of each; by default all are.
        """
        trainable = trainable if trainable is not None else [True] * len(cores)
        self._weight_cache.clear()
        self.cores = nn.ParameterList(
            nn.Parameter(core.detach().clone(memory_format=torch.contiguous_format), requires_grad=flag)
            for core, flag in zip(cores, trainable, strict=True)
        )

    @property
    def mpo(self) -> tnmpo.MPO:
        """The cores as a value; they are the parameters themselves, so gradients flow."""
        return tnmpo.MPO(list(self.cores))

    @property
    def shape(self) -> tnmpo.MPOShape:
        """The row and column dimension of every site, padding included."""
        return mpo_shape(shapes_of(list(self.cores)))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The bond dimensions with the boundary ones."""
        return (1, *(core.shape[3] for core in self.cores))

    @property
    def is_low_rank(self) -> bool:
        """Whether the cores are ``U V`` or ``U M V``."""
        return self.shape.is_low_rank

    @property
    def shape_at_rest(self) -> tnmpo.MPOShape:
        """``shape`` without the bond core of a low-rank layer."""
        return tnmpo.MPOShape.low_rank(self.shape.matrix_shape) if self._shows_bond_core else self.shape

    @property
    def ranks_at_rest(self) -> tuple[int, ...]:
        """``ranks`` without the bond core of a low-rank layer."""
        return self._bare_mpo().ranks

    @property
    def central(self) -> tuple[int, ...]:
        """The cores that fine-tuning freezes, the middle one or ``U`` and ``V`` of a low-rank layer.

        Not to be confused with the orthogonality center, which is a gauge.
        """
        order = len(self.cores)
        return (0, order - 1) if self.is_low_rank else (order // 2,)

    @property
    def auxiliary(self) -> tuple[int, ...]:
        """The other cores, which fine-tuning trains."""
        return tuple(k for k in range(len(self.cores)) if k not in self.central)

    @property
    def weight(self) -> Tensor:
        """The dense (I, J) weight, contracted from the cores on each access; gradients flow to them.

        Writing into it changes nothing: set the cores with ``set_cores_``.
        """
        weight = contract(list(self.cores), self.weight_shape)
        return weight.clone() if len(self.cores) == 1 else weight  # not a view of the only core

    @property
    def reconstructions(self) -> int:
        """How often calls of the layer have contracted its cores to the dense weight, those of compiled code apart."""
        return self._weight_cache.reconstructions

    @property
    def resident_bytes(self) -> dict[str, int]:
        """The bytes now held: ``cores``, and ``cache``, the dense weight with its casts for autocast."""
        return {"cores": sum(core.nbytes for core in self.cores), "cache": self._weight_cache.nbytes}

    def refresh(self) -> None:
        """Forget the dense weight: to be called after writing through ``core.data``, which leaves no trace.

        Layers that share the cores forget theirs too. Any other change is seen: steps of optimisers, in-place
        operations, ``load_state_dict``, ``to``.
        """
        self._weight_cache.clear()
        count_unseen_change()

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:  # where averaged weights are written in and out, mostly through ``.data``
            self.refresh()
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._weight_cache.clear()  # first: parameters that a graph holds cannot be swapped
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()  # loaders of sharded models write where no version counts
        super()._load_from_state_dict(*args, **kwargs)

    def _core_list(self) -> list[Tensor]:
        """The cores; a ParameterList takes ten times as long to list itself."""
        cores: Any = self._modules["cores"]
        parameters, count = cores._parameters, len(cores)
        if len(parameters) != count:  # some are parametrised, or replaced by plain tensors
            return list(cores)
        return [parameters[key] for key in _keys(count)]

    def insert_bond_core_(self) -> None:
        """Put the identity ``M`` between ``U`` and ``V`` of a low-rank layer, for fine-tuning to train."""
        if not self.is_low_rank:
            raise ValueError(f"insert_bond_core_: got a layer of {self.shape}, expected a low-rank one")
        if len(self.cores) == 2:
            left, right = self.cores
            identity = torch.eye(left.shape[3], dtype=left.dtype, device=left.device)
            flags = (left.requires_grad, True, right.requires_grad)
            self.set_cores_([left, identity[:, None, None, :], right], flags)

    def absorb_bond_core_(self) -> None:
        """Fold ``M`` into ``V``, so that a low-rank layer has two cores again."""
        if self._shows_bond_core:
            flags = (self.cores[0].requires_grad, self.cores[-1].requires_grad)
            self.set_cores_(self._bare_mpo().cores, flags)

    @torch.no_grad()
    def truncate_(self, rank: Any, weight: tnmpo.Weight | None = None) -> tnmpo.Truncation:
        """Cut the bonds in place, re-gauging first; the bond core of a low-rank layer restarts as the identity.

        Parameters
        ----------
        rank : int, tuple, float or policy
            As for ``tnmpo.truncate``. A low-rank layer has one bond, whether it shows ``M`` or not.
        weight : tnmpo.Weight, optional
            The norm to cut in, of the size of the cores' matrix, padding included.

        Returns
        -------
        tnmpo.Truncation
            How far the new matrix is from the old one, padding included.
        """
        trainable = [core.requires_grad for core in self.cores]
        cut = tnmpo.truncate(self._bare_mpo(), rank, weight=weight)
        if self._shows_bond_core:
            self.set_cores_(cut.cores)
            self.insert_bond_core_()
            for core, flag in zip(self.cores, trainable, strict=True):
                core.requires_grad_(flag)
        else:
            self.set_cores_(cut.cores, trainable)
        assert cut.truncation is not None  # a rank was asked for
        return cut.truncation

    @torch.no_grad()
    def bond_spectra(self, weight: tnmpo.Weight | None = None) -> list[Any]:
        """The Schmidt values of every bond as float64 numpy arrays, descending.

        A low-rank layer has one bond, whether it shows ``M`` or not; ``weight`` gives its weighted values.
        """
        uncut = max(self.ranks)
        truncation = tnmpo.truncate(self._bare_mpo(), uncut, weight=weight).truncation
        assert truncation is not None  # a rank was asked for
        return list(truncation.spectra)

    @property
    def _shows_bond_core(self) -> bool:
        return self.is_low_rank and len(self.cores) == 3

    def _bare_mpo(self) -> tnmpo.MPO:
        """The cores detached, a bond core folded into its neighbour."""
        cores = [core.detach() for core in self.cores]
        if self._shows_bond_core:
            left, bond, right = cores
            cores = [left, torch.tensordot(bond[:, 0, 0, :], right, dims=1)]
        return tnmpo.MPO(cores)

    def extra_repr(self) -> str:
        rows, cols = self.weight_shape
        return f"{rows} x {cols}, bonds {'-'.join(map(str, self.ranks))}, central {self.central}"


@cache
def _keys(count: int) -> tuple[str, ...]:
    """The names of the parameters of a list; their order in it is that of their registration."""
    return tuple(map(str, range(count)))


def decompose_weight(weight: Tensor, shape: Any, rank: Any, metric: tnmpo.Weight | None) -> tnmpo.MPO:
    """The MPO of a dense weight, padded with zeros where ``shape`` is larger."""
    weight = weight.detach()
    if not isinstance(shape, tnmpo.MPOShape):
        shape = tnmpo.MPOShape(*shape) if isinstance(shape, Sequence) and len(shape) == 2 else shape
    if isinstance(shape, tnmpo.MPOShape):
        missing = [wanted - size for wanted, size in zip(shape.matrix_shape, weight.shape, strict=True)]
        if min(missing) >= 0:
            if metric is not None:
                metric = metric.padded((weight.shape[0], weight.shape[1]), shape.matrix_shape)
            weight = nn.functional.pad(weight, (0, missing[1], 0, missing[0]))
    return tnmpo.mpo_decompose(weight, shape, rank, weight=metric)
