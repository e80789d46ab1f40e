"""MPOLinear: a linear layer on the cores of an MPO."""

from __future__ import annotations

from typing import Any

import opt_einsum
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tnmpo

from .layer import MPOLayer, decompose_weight

_EXECUTIONS = ("auto", "dense", "factored")


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
        ``auto`` takes the one with fewer FLOPs for the batch at hand (``tnmpo.contraction_plan``).

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
    ) -> None:
        super().__init__(mpo, (out_features, in_features))
        if execution not in _EXECUTIONS:
            raise ValueError(f"execution: got {execution!r}, expected one of {', '.join(_EXECUTIONS)}")
        if bias is not None and bias.shape != self.weight_shape[:1]:
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({self.weight_shape[0]},)")
        self.execution = execution
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
        )

    @property
    def in_features(self) -> int:
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        return self.weight_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self._execution_for(x) == "dense":
            return F.linear(x, self.weight, self.bias)
        if self.is_low_rank:
            return self._low_rank(x)
        return self._factored(x)

    def _execution_for(self, x: Tensor) -> str:
        if self.execution != "auto":
            return self.execution
        tokens = max(1, x.numel() // max(1, x.shape[-1]))
        rounded = 1 << (tokens - 1).bit_length()  # plans are remembered: a few sizes serve every batch
        return tnmpo.contraction_plan(self.shape, self.ranks, rounded).execution

    def _low_rank(self, x: Tensor) -> Tensor:
        left, *middle, right = self.cores
        x = F.linear(x, right[:, 0, : self.in_features, 0])
        for core in reversed(middle):
            x = F.linear(x, core[:, 0, 0, :])
        return F.linear(x, left[0, : self.out_features, 0, :], self.bias)

    def _factored(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, self.in_features)
        shape = self.shape
        tokens = F.pad(tokens, (0, shape.matrix_shape[1] - self.in_features))
        plan = tnmpo.contraction_plan(shape, self.ranks, max(1, tokens.shape[0]))
        y = opt_einsum.contract(plan.equation, tokens.reshape(-1, *shape.cols), *self.cores, optimize=plan.path)
        y = y.reshape(-1, shape.matrix_shape[0])[:, : self.out_features]
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

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
