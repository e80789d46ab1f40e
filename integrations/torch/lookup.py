"""Rows of the matrix of a train, looked up from its cores.

The train is cut in two. The sites left of the cut become a table with a (columns, bond) block for every prefix of the
row digits, the sites right of it a table with one for every suffix; a row is the product of two blocks. Tables of half
the digits grow with the square root of the vocabulary. Where even that is long for the ids at hand, some sites between
two cuts are in neither table, and every id meets its own slice of their cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import CoreState, Written
from .lookup_plan import Cuts

LIMIT = 64 * 2**20  # bytes that one layer keeps besides its cores, and that it gathers at once, at most
_BLOCK = 2 * 2**20  # bytes gathered at once on the CPU: its cache holds them, and no fresh pages are asked for

Tables = tuple[Tensor, Tensor]


class KeptTables:
    """The tables of one layer, for as long as its cores keep their values. Copies begin empty."""

    def __init__(self) -> None:
        self._kept: tuple[CoreState, Written, Tables] | None = None

    def __reduce__(self) -> tuple[type[KeptTables], tuple[()]]:
        return KeptTables, ()

    def of(self, cores: Sequence[Tensor], cuts: Cuts) -> Tables:
        """The tables without gradients, contracted if a core has changed."""
        kept = self._kept
        if kept is None or not kept[0].is_that_of(cores):
            # not inference tensors, which no later backward could use
            with torch.inference_mode(False), torch.no_grad():
                left, right = contract_tables(cores, cuts)
                right = right.contiguous() if right.shape[0] > 1 else right
            kept = CoreState(cores), Written(left), (left, right)
            self._kept = kept  # at once: another thread may look
        _, written, tables = kept
        written.read(*tables)
        return tables

    @property
    def nbytes(self) -> int:
        """The memory that is held besides that of the cores."""
        if self._kept is None:
            return 0
        state, _, tables = self._kept
        of_cores = {core.untyped_storage().data_ptr() for core in state.cores}
        storages = [table.untyped_storage() for table in tables]
        return sum(storage.nbytes() for storage in storages if storage.data_ptr() not in of_cores)


def contract_tables(cores: Sequence[Tensor], cuts: Cuts) -> Tables:
    """The blocks of all prefixes (P, columns, bond) and of all suffixes (S, columns, bond)."""
    left = cores[0].squeeze(0)
    for core in cores[1 : cuts.left]:
        (rows, cols, bond), (_, site_rows, site_cols, next_bond) = left.shape, core.shape
        product = left.reshape(rows * cols, bond) @ core.reshape(bond, -1)
        apart = product.reshape(rows, cols, site_rows, site_cols, next_bond)
        left = apart.transpose(1, 2).reshape(rows * site_rows, cols * site_cols, next_bond)
    if cuts.right == len(cores):  # one site: the rows are the blocks of the left table
        return left, left.new_ones(1, 1, 1)
    right = cores[-1].squeeze(3).permute(1, 2, 0)
    for core in reversed(cores[cuts.right : -1]):
        (rows, cols, bond), (next_bond, site_rows, site_cols, _) = right.shape, core.shape
        product = right.reshape(rows * cols, bond) @ core.reshape(-1, bond).T
        apart = product.reshape(rows, cols, next_bond, site_rows, site_cols)
        right = apart.permute(3, 0, 4, 1, 2).reshape(site_rows * rows, site_cols * cols, next_bond)
    return left, right


def look_up(tables: Tables, between: Sequence[Tensor], ids: Tensor) -> Tensor:
    """The rows (n, columns) of ids (n,); ``between`` are the cores in neither table."""
    left, right = tables
    suffixes, digits = right.shape[0], [core.shape[1] for core in between]
    below = suffixes * math.prod(digits)
    prefixes = ids // below if below > 1 else ids  # on an accelerator a division takes as long as a product
    if suffixes > 1 and not between:
        return _Meeting.apply(left, right, prefixes, ids % suffixes)
    vectors = _gather(left, prefixes)
    for k, core in enumerate(between):
        vectors = _extend(vectors, ids // (suffixes * math.prod(digits[k + 1 :])) % digits[k], core)
    return _Meeting.apply(vectors, right, None, ids % suffixes) if suffixes > 1 else _times(vectors, right)


def look_up_at_once(tables: Tables, ids: Tensor) -> Tensor:
    """The same for compilers: nothing depends on the values or on the number of the ids."""
    left, right = tables
    suffixes = right.shape[0]
    vectors = _gather(left, ids // suffixes)
    if suffixes == 1:
        return _times(vectors, right)
    return _products(vectors, _gather(right, ids % suffixes)).flatten(1)


def _gather(table: Tensor, places: Tensor) -> Tensor:
    return F.embedding(places, table.flatten(1)).reshape(-1, *table.shape[1:])


def _times(vectors: Tensor, right: Tensor) -> Tensor:
    """With one block on the right, as in a low-rank layer, nothing is gathered there: one product for all."""
    return F.linear(vectors, right.squeeze(0)).flatten(1)


def _extend(vectors: Tensor, digits: Tensor, core: Tensor) -> Tensor:
    """Contract each (columns, bond) block with the slice of the core that its digit names.

    Those with the same digit meet it in one product, so no slice is copied.
    """
    count, cols, bond = vectors.shape
    _, rows, site_cols, next_bond = core.shape
    digits, order = torch.sort(digits)
    sizes = torch.bincount(digits, minlength=rows).tolist()
    groups = zip(vectors.index_select(0, order).split(sizes), core.unbind(1), strict=True)
    blocks = [group.reshape(-1, bond) @ matrix.reshape(bond, -1) for group, matrix in groups if len(group)]
    product = torch.cat(blocks).reshape(count, cols * site_cols, next_bond)
    return product.index_select(0, torch.argsort(order))


class _Meeting(torch.autograd.Function):
    """Each id's block on the left times its block on the right: (P, c, r), (S, d, r) -> (n, c d).

    Blocks are gathered a few at a time, and again in the backward, so that those of all ids never lie in memory; the
    gradient of a table is written once, not once for every few. Without places each id has a block of its own.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, prefixes: Tensor | None, suffixes: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, prefixes, suffixes)
        rows = left.new_empty(len(suffixes), left.shape[1], right.shape[1])
        for part in _parts(left, right, len(suffixes)):
            rows[part] = _products(_blocks(left, prefixes, part), _blocks(right, suffixes, part))
        return rows.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        left, right, prefixes, suffixes = ctx.saved_tensors
        gradient = gradient.reshape(-1, left.shape[1], right.shape[1])
        of_left, of_right = (
            torch.zeros_like(table) if is_wanted else None
            for table, is_wanted in zip((left, right), ctx.needs_input_grad, strict=False)
        )
        for part in _parts(left, right, len(suffixes)):
            if of_left is not None:
                _add(of_left, prefixes, part, torch.bmm(gradient[part], _blocks(right, suffixes, part)))
            if of_right is not None:
                turned = gradient[part].transpose(1, 2)
                _add(of_right, suffixes, part, torch.bmm(turned, _blocks(left, prefixes, part)))
        return of_left, of_right, None, None


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(n, c, r), (n, d, r) -> (n, c, d). A batch of products with few columns takes twice as long as its transpose."""
    if left.shape[1] > right.shape[1]:
        return torch.bmm(right, left.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(left, right.transpose(1, 2))


def _parts(left: Tensor, right: Tensor, count: int) -> Iterator[slice]:
    bytes_of_one = (left.shape[1] + right.shape[1]) * left.shape[2] * left.element_size()
    size = max(1, (_BLOCK if left.device.type == "cpu" else LIMIT) // bytes_of_one)
    return (slice(start, start + size) for start in range(0, count, size))


def _blocks(table: Tensor, places: Tensor | None, part: slice) -> Tensor:
    return table[part] if places is None else table.index_select(0, places[part])


def _add(sums: Tensor, places: Tensor | None, part: slice, blocks: Tensor) -> None:
    if places is None:
        sums[part] = blocks
    else:
        sums.index_add_(0, places[part], blocks)
