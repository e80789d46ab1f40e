"""MPOEmbedding: rows of a table looked up from the cores of an MPO."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tnmpo

from .layer import MPOLayer, decompose_weight


class MPOEmbedding(MPOLayer):
    """A lookup table as an MPO: rows are the vocabulary, columns the embedding dimension.

    Each distinct id is looked up once, and each distinct prefix of its row digits is contracted
    once; where that would cost more than building the table, the table is built.

    Parameters
    ----------
    mpo : tnmpo.MPO
        Of torch tensors; its rows may exceed the vocabulary, the rest is padding.
    num_embeddings, embedding_dim : int, optional
        By default the dimensions of the MPO's matrix.
    padding_idx : int, optional
        Kept for ``to_embedding``. The row shares its cores with others, so its gradient is not stopped.

    Examples
    --------
    >>> import torch
    >>> table = torch.nn.Embedding(10, 6)
    >>> layer = MPOEmbedding.from_embedding(table, shape=((3, 4), (2, 3)))
    >>> ids = torch.tensor([[1, 9], [9, 0]])
    >>> torch.allclose(layer(ids), table(ids), atol=1e-5)
    True
    """

    def __init__(
        self,
        mpo: tnmpo.MPO,
        *,
        num_embeddings: int | None = None,
        embedding_dim: int | None = None,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(mpo, (num_embeddings, embedding_dim))
        self.padding_idx = padding_idx

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, shape: Any = None, rank: Any = None, *, weight: tnmpo.Weight | None = None
    ) -> MPOEmbedding:
        """Decompose an embedding table.

        Parameters
        ----------
        embedding : nn.Embedding
        shape : (rows, cols) or MPOShape, optional
            Rows multiply to at least the vocabulary. By default five balanced sites, the vocabulary padded to
            ``tnmpo.padded_size``.
        rank : optional
            As for ``tnmpo.mpo_decompose``; None cuts nothing.
        weight : tnmpo.Weight, optional
            The norm to cut in (``rows=`` the token counts), of any shape.

        Raises
        ------
        TypeError, ValueError
            If ``embedding`` is no ``nn.Embedding``, uses ``max_norm``, ``sparse`` or
            ``scale_grad_by_freq``, or shape or rank do not fit it.
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"from_embedding: got {type(embedding).__name__}, expected a torch.nn.Embedding")
        if embedding.max_norm is not None or embedding.sparse or embedding.scale_grad_by_freq:
            raise ValueError(
                "from_embedding: got max_norm, sparse or scale_grad_by_freq, which act on single rows of a table; "
                "expected an embedding without them"
            )
        if shape is None:
            shape = tnmpo.plan_shape((tnmpo.padded_size(embedding.num_embeddings), embedding.embedding_dim))
        return cls(
            decompose_weight(embedding.weight, shape, rank, weight),
            num_embeddings=embedding.num_embeddings,
            embedding_dim=embedding.embedding_dim,
            padding_idx=embedding.padding_idx,
        )

    @property
    def num_embeddings(self) -> int:
        return self.weight_shape[0]

    @property
    def embedding_dim(self) -> int:
        return self.weight_shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        if self._table_is_cheaper(ids.numel()):
            return F.embedding(ids, self.weight)
        distinct, place = torch.unique(ids, return_inverse=True)
        if distinct.numel() and not 0 <= int(distinct[0]) <= int(distinct[-1]) < self.num_embeddings:
            raise IndexError(
                f"ids: got one outside 0 .. {self.num_embeddings - 1}, the vocabulary; check the tokenizer"
            )
        return F.embedding(place, self._lookup(distinct))

    def _table_is_cheaper(self, n_ids: int) -> bool:
        """Compare the multiplications of both ways, every id taken as distinct."""
        rows, cols, ranks = self.shape.rows, self.shape.cols, self.ranks
        lookup, width = 0, cols[0]
        for k in range(1, len(rows)):
            width *= cols[k]
            prefixes = min(math.prod(rows[: k + 1]), n_ids)
            lookup += prefixes * width * ranks[k] * ranks[k + 1]
        return tnmpo.contraction_plan(self.shape, ranks).rebuild_flops <= 2 * lookup

    def _lookup(self, ids: Tensor) -> Tensor:
        """The rows of sorted distinct ids: (u,) -> (u, embedding_dim).

        ``i_1 .. i_n`` are the digits of an id in the mixed radix of the row dimensions. The vectors of
        all distinct prefixes grow site by site; at each site those with the same next digit meet
        its slice of the core in one product, so no slice is copied per token.
        """
        rows = self.shape.rows
        prefixes, vectors = ids.new_zeros(1), None  # distinct prefixes so far, (p, columns, bond)
        for k, core in enumerate(self.cores):
            children = torch.unique_consecutive(ids // math.prod(rows[k + 1 :]))
            digits = children % rows[k]
            if vectors is None:
                vectors = core[0].index_select(0, digits)  # (c, j, r')
            else:
                parents = vectors.index_select(0, torch.searchsorted(prefixes, children // rows[k]))
                vectors = _extend(parents, digits, core)
            prefixes = children
        assert vectors is not None  # there is at least one core
        return vectors[:, : self.embedding_dim, 0]

    @torch.no_grad()
    def to_embedding(self) -> nn.Embedding:
        """The dense table with the same rows."""
        weight = self.weight
        embedding = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, device=weight.device, dtype=weight.dtype
        )
        embedding.weight.copy_(weight)
        return embedding


def _extend(vectors: Tensor, digits: Tensor, core: Tensor) -> Tensor:
    """Contract each (columns, r) block with the slice of the (r, i, j, r') core that its digit names."""
    count, columns, bond = vectors.shape
    _, _, cols, right = core.shape
    order = torch.argsort(digits, stable=True)
    present, sizes = torch.unique_consecutive(digits[order], return_counts=True)
    # without any vector, one empty block: the result has a shape and a gradient all the same
    groups = zip(vectors[order].split(sizes.tolist() or [0]), present.tolist() or [0], strict=True)
    blocks = [block.reshape(-1, bond) @ core[:, digit].reshape(bond, cols * right) for block, digit in groups]
    product = torch.cat(blocks).reshape(count, columns * cols, right)
    return product[torch.argsort(order)]
