"""MPOLinear: a linear layer on the cores of an MPO."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tnmpo

from .cache import is_traced
from .contraction import apply_cores, contract, faster_execution, is_low_rank, shapes_of
from .layer import MPOLayer, decompose_weight

_EXECUTIONS = ("auto", "dense", "factored")
_TRACED_BATCH = 512  # a compiled or exported layer serves batches of any size: it is planned for this one


class MPOLinear(MPOLayer):
    """``y = W x + b`` with ``W`` as an MPO: rows are outputs, columns inputs.

    Parameters
    ----------
    mpo : tnmpo.MPO
        Of torch tensors; its matrix may be larger than the weight, the rest is padding.
    bias : (out_features,) Tensor, optional
    in_features, out_features : int, optional
        By default the dimensions of the MPO's matrix.
    execution : {"auto", "dense", "factored"}
        ``dense`` contracts the cores and multiplies once, ``factored`` applies core after core;
        ``auto`` takes the faster one for the batch at hand, by counts (``tnmpo.contraction_plan``).
    cache : bool
        Keep the contracted weight until a core changes. False saves its memory, and contracts on every dense call.

    Notes
    -----
    In training mode ``auto`` counts the contraction in full, in evaluation with a cache not at all. Compiled and
    exported layers keep no weight, and are planned for 512 vectors, so that one graph serves every batch.

    Examples
    --------
    >>> import torch
    >>> linear = torch.nn.Linear(12, 8)
    >>> layer = MPOLinear.from_linear(linear, shape=((2, 4), (3, 4)))
    >>> torch.allclose(layer(torch.ones(5, 12)), linear(torch.ones(5, 12)), atol=1e-5)
    True
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        mpo: tnmpo.MPO,
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        execution: str = "auto",
        cache: bool = True,
    ) -> None:
        super().__init__(mpo, (out_features, in_features))
        if execution not in _EXECUTIONS:
            raise ValueError(f"execution: got {execution!r}, expected one of {', '.join(_EXECUTIONS)}")
        if bias is not None and bias.shape != self.weight_shape[:1]:
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({self.weight_shape[0]},)")
        self.execution = execution
        self.cache = cache
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        shape: Any = None,
        rank: Any = None,
        *,
        weight: tnmpo.Weight | None = None,
        execution: str = "auto",
        cache: bool = True,
    ) -> MPOLinear:
        """Decompose the weight of a linear layer.

        Parameters
        ----------
        linear : nn.Linear
        shape : (rows, cols) or MPOShape, optional
            Rows multiply to at least ``out_features``, columns to at least ``in_features``.
        rank : optional
            As for ``tnmpo.mpo_decompose``; None cuts nothing.
        weight : tnmpo.Weight, optional
            The norm to cut in (``cols=`` the input covariance), of any shape.
        execution, cache : optional
            As for the class.

        Raises
        ------
        TypeError, ValueError
            If ``linear`` is no ``nn.Linear``, or shape or rank do not fit it.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear: got {type(linear).__name__}, expected a torch.nn.Linear")
        return cls(
            decompose_weight(linear.weight, shape, rank, weight),
            linear.bias,
            in_features=linear.in_features,
            out_features=linear.out_features,
            execution=execution,
            cache=cache,
        )

    @property
    def in_features(self) -> int:
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        return self.weight_shape[0]

    @out_features.setter
    def out_features(self, value: int) -> None:
        # transformers sets a decoder's size anew when its vocabulary is resized to what it is
        if value != self.weight_shape[0]:
            raise ValueError(
                f"out_features: got {value}, but the cores have {self.weight_shape[0]} rows; "
                "merge to a dense layer, resize that, and decompose it again"
            )

    def forward(self, x: Tensor) -> Tensor:
        traced = is_traced(x)
        cores = list(self.cores) if traced else self._core_list()
        tokens = _TRACED_BATCH if traced else x.numel() // max(1, x.shape[-1])
        batch = _rounded(tokens)
        if self._execution_for(cores, batch, cached=self.cache and not traced) == "factored":
            return self._factored(x, cores, batch)
        if traced:
            weight = contract(cores, self.weight_shape)
        else:
            weight = self._weight_cache.weight(cores, self.weight_shape, keep=self.cache)
        return F.linear(x, weight, self.bias)

    def _execution_for(self, cores: list[Tensor], batch: int, *, cached: bool) -> str:
        """The execution of one call; in training it must not depend on what is in the cache.

        A checkpoint that is run again would else meet another execution than at first.
        """
        if self.execution != "auto":
            return self.execution
        return faster_execution(cores, batch, amortised=cached and not self.training, training=self.training)

    def _factored(self, x: Tensor, cores: list[Tensor], batch: int) -> Tensor:
        if is_low_rank(shapes_of(cores)):
            return self._low_rank(x, cores)
        tokens = x.reshape(-1, self.in_features)
        padding = math.prod([core.shape[2] for core in cores]) - self.in_features
        y = apply_cores(F.pad(tokens, (0, padding)), cores, batch)[:, : self.out_features]
        y = y if self.bias is None else y + self.bias.to(y.dtype)  # autocast rounds a bias too
        return y.reshape(*x.shape[:-1], self.out_features)

    def _low_rank(self, x: Tensor, cores: list[Tensor]) -> Tensor:
        left, right = cores[0].reshape(-1, cores[0].shape[3]), cores[-1].reshape(cores[-1].shape[0], -1)
        if (left.shape[0], right.shape[1]) != self.weight_shape:
            left, right = left[: self.out_features], right[:, : self.in_features]
        x = F.linear(x, right)
        for core in reversed(cores[1:-1]):
            x = F.linear(x, core[:, 0, 0])
        return F.linear(x, left, self.bias)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The dense layer with the same weight and bias."""
        weight = self.weight
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        linear.weight.copy_(weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear


def _rounded(tokens: int) -> int:
    """The next power of two: plans are remembered, a few serve every batch."""
    return 1 << max(0, tokens - 1).bit_length()
