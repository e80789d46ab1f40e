"""Layers whose weight is an MPO, as plain ``torch.nn.Module``s. Knows nothing of transformers."""

from .embedding import MPOEmbedding
from .layer import MPOLayer
from .linear import MPOLinear

__all__ = ["MPOEmbedding", "MPOLayer", "MPOLinear"]
