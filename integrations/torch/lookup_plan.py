"""Where to cut a train to look rows up, and what each way costs. Counts only: no tensors here.

Time is measured in multiplications of a large product. One core of a server does some 25 G of them in a second, copies
some 3 G numbers, and takes 20 microseconds to sort out a group of ids; a thin product is slower than a large one,
for every way alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import tnmpo

from .contraction import Shapes, constant, mpo_shape

_MOVE = 8  # multiplications in the time that one number is copied
_CALL = 2**19  # and in that of one group


class Cuts(NamedTuple):
    """The sites before ``left`` make one table, those from ``right`` on the other."""

    left: int
    right: int


class Cost(NamedTuple):
    """What a lookup does, in numbers."""

    products: int  # multiplications
    moves: int  # numbers written: tables, gathered blocks, the vectors between two products
    calls: int = 0  # products of one group of ids with one slice of a core

    @property
    def total(self) -> int:
        """In multiplications that take as long."""
        return self.products + _MOVE * self.moves + _CALL * self.calls


def tables_cost(shapes: Shapes, cuts: Cuts) -> Cost:
    """What contracting both tables costs; each product is written, and once more with its axes in order."""
    products = moves = 0
    mirrored = [(last, rows, cols, first) for first, rows, cols, last in reversed(shapes[cuts.right :])]
    for side in (shapes[: cuts.left], mirrored):
        entries = math.prod(_dimensions(side[:1]))
        for bond, rows, cols, next_bond in side[1:]:
            entries *= rows * cols
            products += entries * bond * next_bond
            moves += 2 * entries * next_bond
    return Cost(products, moves)


def rows_cost(shapes: Shapes, cuts: Cuts, n_ids: int) -> Cost:
    """What ``n_ids`` rows cost once the tables are there, every id taken as distinct."""
    products = calls = 0
    cols = _dimensions(shapes[: cuts.left])[1]
    moves = n_ids * cols * shapes[cuts.left - 1][3]
    for bond, rows, site_cols, next_bond in shapes[cuts.left : cuts.right]:
        cols *= site_cols
        products += n_ids * cols * bond * next_bond
        moves += 2 * n_ids * cols * next_bond
        calls += min(n_ids, rows)
    bond, (suffixes, width) = shapes[cuts.right - 1][3], _dimensions(shapes[cuts.right :])
    products += n_ids * cols * bond * width
    moves += n_ids * bond * width if suffixes > 1 else 0
    return Cost(products, moves, calls)


def lookup_cost(shapes: Shapes, cuts: Cuts, n_ids: int) -> Cost:
    """Of the tables and ``n_ids`` rows."""
    return Cost(*map(sum, zip(tables_cost(shapes, cuts), rows_cost(shapes, cuts, n_ids), strict=True)))


def dense_cost(shapes: Shapes, n_ids: int) -> Cost:
    """Of the whole matrix and ``n_ids`` of its rows."""
    ranks = (1, *(shape[3] for shape in shapes))
    products = tnmpo.contraction_plan(mpo_shape(shapes), ranks).rebuild_flops // 2
    rows, cols = _dimensions(shapes)
    return Cost(products, ((2 * rows if len(shapes) > 1 else 0) + n_ids) * cols)


@constant
def cheapest_cuts(shapes: Shapes, n_ids: int, apart: bool) -> Cuts:
    """The cuts at which ``n_ids`` rows, the tables included, cost least; two different ones only if ``apart``."""
    last = max(1, len(shapes) - 1)
    ways = [Cuts(left, right) for left in range(1, last + 1) for right in range(left, last + 1 if apart else left + 1)]
    return min(ways, key=lambda cuts: lookup_cost(shapes, cuts, n_ids).total)


@constant
def table_is_cheaper(shapes: Shapes, n_ids: int, apart: bool) -> bool:
    """Whether the dense table costs less than the cheapest cuts."""
    return dense_cost(shapes, n_ids).total <= lookup_cost(shapes, cheapest_cuts(shapes, n_ids, apart), n_ids).total


@constant
def kept_cuts(shapes: Shapes, most: int) -> Cuts | None:
    """The cut of which the tables are the smallest to keep; None if they have more than ``most`` entries."""
    ways = [Cuts(cut, cut) for cut in range(1, max(2, len(shapes)))]
    cuts = min(ways, key=lambda cuts: (table_entries(shapes, cuts), tables_cost(shapes, cuts).total))
    return cuts if table_entries(shapes, cuts) <= most else None


def table_entries(shapes: Shapes, cuts: Cuts) -> int:
    """The numbers in both tables, without a table that is one core as it lies in memory."""
    (rows, cols), (suffixes, width) = _dimensions(shapes[: cuts.left]), _dimensions(shapes[cuts.right :])
    left = rows * cols * shapes[cuts.left - 1][3] if cuts.left > 1 else 0
    is_core = len(shapes) - cuts.right <= 1 and suffixes == 1
    return left + (0 if is_core else suffixes * width * shapes[cuts.right - 1][3])


def _dimensions(shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    return math.prod(shape[1] for shape in shapes), math.prod(shape[2] for shape in shapes)
