"""MPOConv1D: what a ``Conv1D`` of transformers (GPT-2) becomes."""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D

from ..torch import MPOLinear


class MPOConv1D(MPOLinear):
    """``y = x W + b`` of a ``Conv1D``, computed as an ``MPOLinear`` of the transposed weight.

    A ``Conv1D`` keeps its weight as (inputs, outputs). Here, as in every MPO layer, rows are outputs, columns inputs;
    ``to_conv1d`` transposes back, so that merged models have the weights of stock checkpoints.

    Examples
    --------
    >>> import tnmpo
    >>> conv = Conv1D(nf=8, nx=12)
    >>> layer = MPOConv1D(tnmpo.mpo_decompose(conv.weight.detach().T, ((2, 4), (3, 4))), conv.bias)
    >>> layer.weight_shape, tuple(layer.to_conv1d().weight.shape)
    ((8, 12), (12, 8))
    >>> torch.allclose(layer(torch.ones(5, 12)), conv(torch.ones(5, 12)), atol=1e-5)
    True
    """

    @property
    def nf(self) -> int:
        """Outputs, by the name that a ``Conv1D`` has for them."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Inputs, likewise."""
        return self.in_features

    @torch.no_grad()
    def to_conv1d(self) -> Conv1D:
        """The dense layer with the same weight, as (inputs, outputs), and bias; a missing bias becomes zeros."""
        weight = self.weight
        conv = Conv1D(self.nf, self.nx).to(weight.device, weight.dtype)
        conv.weight.copy_(weight.T)
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv
