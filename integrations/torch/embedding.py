"""MPOEmbedding: rows of a table looked up from the cores of an MPO."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tnmpo

from .cache import is_traced
from .contraction import contract, is_autocast_on, shapes_of
from .layer import MPOLayer, decompose_weight
from .lookup import LIMIT, KeptTables, contract_tables, look_up, look_up_at_once
from .lookup_plan import cheapest_cuts, kept_cuts, table_is_cheaper

_TRACED_IDS = 1024  # a compiled or exported layer serves batches of any size: it is planned for this one


class MPOEmbedding(MPOLayer):
    """A lookup table as an MPO: rows are the vocabulary, columns the embedding dimension.

    A row is the product of two blocks, from tables of the left and of the right digits of the ids; where these would
    cost more than the dense table, by counted multiplications and memory traffic, that one is built.

    Parameters
    ----------
    mpo : tnmpo.MPO
        Of torch tensors; its rows may exceed the vocabulary, the rest is padding.
    num_embeddings, embedding_dim : int, optional
        By default the dimensions of the MPO's matrix.
    padding_idx : int, optional
        Kept for ``to_embedding``. The row shares its cores with others, so its gradient is not stopped.
    cache : bool
        In evaluation keep the tables until a core changes, or the dense table where they would take more than half of
        it; never more than 64 MB. False saves that memory, and contracts at every call.

    Notes
    -----
    Tables of half the digits grow with the square root of the vocabulary, if no site has much more than its share of
    the rows. Where they are kept, a row costs one product of two blocks, (bond dimension) x (embedding dimension)
    multiplications, whatever the vocabulary. Where not, as in training, they are contracted at every call; on the CPU
    some sites stay out of them where the ids are few for so many slices, and ids with the same digit meet its slice in
    one product, so that the multiplications for a batch stop growing with the vocabulary too. Ids that come at least
    twice on average are looked up once. The blocks of two tables are gathered 2 MB at a time (64 MB on an accelerator),
    and again in the backward: those of all ids never lie in memory.

    Compiled and exported layers keep no tables and contract them at every call (an ONNX runtime folds them once);
    they gather for all ids at once, and are planned for 1,024 ids, so that one graph serves every batch.

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
        cache: bool = True,
    ) -> None:
        super().__init__(mpo, (num_embeddings, embedding_dim))
        self._kept = KeptTables()
        self.padding_idx = padding_idx
        self.cache = cache

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        shape: Any = None,
        rank: Any = None,
        *,
        weight: tnmpo.Weight | None = None,
        cache: bool = True,
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
        cache : bool
            As for the class.

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
            cache=cache,
        )

    @property
    def num_embeddings(self) -> int:
        return self.weight_shape[0]

    @num_embeddings.setter
    def num_embeddings(self, value: int) -> None:
        # transformers sets the size anew when a vocabulary is resized to what it is
        if value != self.weight_shape[0]:
            raise ValueError(
                f"num_embeddings: got {value}, but the cores have {self.weight_shape[0]} rows; "
                "merge to a dense table, resize that, and decompose it again"
            )

    @property
    def embedding_dim(self) -> int:
        return self.weight_shape[1]

    @property
    def resident_bytes(self) -> dict[str, int]:
        """The bytes now held: ``cores``, and ``cache``, the tables or the dense weight."""
        held = super().resident_bytes
        return {**held, "cache": held["cache"] + self._kept.nbytes}

    def refresh(self) -> None:
        super().refresh()
        self._kept = KeptTables()

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of int32 or int64 ids of any shape, in the dtype of the cores.

        Raises
        ------
        TypeError
            If the ids have another dtype.
        IndexError
            If an id is outside the vocabulary. On an accelerator, and in compiled and exported layers, no value is
            looked at: there the gathering refuses ids outside the cores, and rows of the padding are rows.
        """
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"ids: got {ids.dtype}, expected torch.int32 or torch.int64; convert them first")
        if is_autocast_on(ids.device.type):  # nn.Embedding keeps the dtype of its weight too
            with torch.autocast(ids.device.type, enabled=False):
                return self._rows(ids)
        return self._rows(ids)

    def _rows(self, ids: Tensor) -> Tensor:
        if is_traced(ids) or type(ids) is not Tensor:
            return self._traced_rows(ids)
        if ids.device.type == "cpu" and ids.numel():  # elsewhere, to look at a value is to wait for the device
            distinct, places = torch.unique(ids, return_inverse=True)
            self._check_range(distinct)
            if len(distinct) <= ids.numel() // 2:
                return F.embedding(places, self._rows_of(distinct))
        return self._rows_of(ids)

    def _rows_of(self, ids: Tensor) -> Tensor:
        cores = self._core_list()
        shapes, entries, limit = shapes_of(cores), math.prod(self.weight_shape), LIMIT // cores[0].element_size()
        builds_table = False
        if self.cache and not self.training:
            cuts = kept_cuts(shapes, min(entries // 2, limit))
            if cuts is not None and _are_constant(cores):
                return self._shaped(look_up(self._kept.of(cores, cuts), [], ids.reshape(-1)), ids)
            builds_table = cuts is None and entries <= limit
        if builds_table or self._table_is_cheaper(ids.numel()):
            keep = self.cache and entries <= limit
            return F.embedding(ids, self._weight_cache.weight(cores, self.weight_shape, keep=keep))
        cuts = cheapest_cuts(shapes, _rounded(ids.numel()), ids.device.type == "cpu" and ids.numel() > 0)
        between = cores[cuts.left : cuts.right]
        return self._shaped(look_up(contract_tables(cores, cuts), between, ids.reshape(-1)), ids)

    def _traced_rows(self, ids: Tensor) -> Tensor:
        cores = list(self.cores)
        if self._table_is_cheaper(_TRACED_IDS, apart=False):
            return F.embedding(ids, contract(cores, self.weight_shape))
        tables = contract_tables(cores, cheapest_cuts(shapes_of(cores), _TRACED_IDS, False))
        return self._shaped(look_up_at_once(tables, ids.reshape(-1)), ids)

    def _shaped(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Without padding, which is not cut off where there is none: the gradient of a slice is a copy."""
        rows = rows if rows.shape[1] == self.embedding_dim else rows[:, : self.embedding_dim]
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _table_is_cheaper(self, n_ids: int, *, apart: bool = True) -> bool:
        """Whether the dense table costs less than looking up, every id taken as distinct, nothing kept."""
        return table_is_cheaper(shapes_of(list(self.cores)), _rounded(n_ids), apart)

    def _check_range(self, distinct: Tensor) -> None:
        if distinct[0] < 0 or distinct[-1] >= self.num_embeddings:  # they are sorted
            raise IndexError(
                f"ids: got one outside 0 .. {self.num_embeddings - 1}, the vocabulary; check the tokenizer"
            )

    @torch.no_grad()
    def to_embedding(self) -> nn.Embedding:
        """The dense table with the same rows."""
        weight = self.weight
        embedding = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, device=weight.device, dtype=weight.dtype
        )
        embedding.weight.copy_(weight)
        return embedding


def _are_constant(cores: list[Tensor]) -> bool:
    """Whether tables of them may be kept: no gradient is wanted, and changes of the values can be seen."""
    wants_gradient = torch.is_grad_enabled() and any(core.requires_grad for core in cores)
    return not wants_gradient and all(type(core) is nn.Parameter and not core.is_inference() for core in cores)


def _rounded(n_ids: int) -> int:
    """Up to the next number of four binary digits: ways are remembered, and a few serve every batch."""
    step = 1 << max(0, n_ids.bit_length() - 4)
    return -(-n_ids // step) * step
