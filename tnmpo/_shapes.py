"""Integers only: how a matrix is cut into sites, how large a bond can be, what a train costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any


@dataclass(frozen=True)
class MPOShape:
    """The row and column dimension of every site of an MPO.

    Parameters
    ----------
    rows, cols : tuple of int
        ``i_1 .. i_n`` and ``j_1 .. j_n``, all positive, of equal length n (the order). Units are
        allowed: a site may carry a row index only, a column index only, or none.

    Raises
    ------
    ValueError, TypeError
        If the two differ in length, or an entry is not a positive integer.

    Examples
    --------
    >>> shape = MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4))
    >>> shape.matrix_shape, shape.full_ranks
    ((3072, 768), (1, 12, 192, 384, 16, 1))
    >>> MPOShape.low_rank((3072, 768)).n_parameters((1, 100, 1))
    384000
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", dimensions(self.rows, "shape: rows"))
        object.__setattr__(self, "cols", dimensions(self.cols, "shape: cols"))
        if len(self.rows) != len(self.cols):
            raise ValueError(
                f"shape: got {len(self.rows)} row and {len(self.cols)} column dimensions, expected as many of each; "
                "fill up with ones"
            )

    @classmethod
    def low_rank(cls, matrix_shape: tuple[int, int], *, bond_core: bool = False) -> MPOShape:
        """The shape of the low-rank factorisation ``U V``; with ``bond_core`` that of ``U M V``.

        ``U`` carries the row index, ``V`` the column index, the bond core ``M`` (r x r) none.

        Examples
        --------
        >>> MPOShape.low_rank((30, 20), bond_core=True)
        MPOShape(rows=(30, 1, 1), cols=(1, 1, 20))
        """
        rows, cols = _matrix_shape(matrix_shape)
        middle = (1,) * bond_core
        return cls((rows, *middle, 1), (1, *middle, cols))

    @property
    def order(self) -> int:
        """The number of sites."""
        return len(self.rows)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(I, J)``, the products of the rows and of the columns."""
        return math.prod(self.rows), math.prod(self.cols)

    @property
    def site_sizes(self) -> tuple[int, ...]:
        """``i_k j_k`` of every site."""
        return tuple(i * j for i, j in zip(self.rows, self.cols, strict=True))

    @property
    def full_ranks(self) -> tuple[int, ...]:
        """The largest bond dimensions that can be needed, ``(1, d_1, .., d_{n-1}, 1)``."""
        return full_ranks(self.site_sizes)

    @property
    def is_low_rank(self) -> bool:
        """Whether this is ``U V`` or ``U M V``, with all rows on the first site and all columns on the last."""
        return self.order >= 2 and all(i == 1 for i in self.rows[1:]) and all(j == 1 for j in self.cols[:-1])

    def n_parameters(self, ranks: Sequence[int]) -> int:
        """The number of entries of all cores, ``sum_k r_{k-1} i_k j_k r_k``.

        Parameters
        ----------
        ranks : sequence of n + 1 int
            With the boundary ones.

        Raises
        ------
        ValueError, TypeError
            If they are not that many positive integers, with ones at both ends.
        """
        return n_parameters(self.site_sizes, check_ranks(ranks, self.order))

    def clip_ranks(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """The largest ranks, none above ``ranks``, that a train of this shape can need.

        Lowering one bond can make its neighbours larger than it lets them be.

        Parameters
        ----------
        ranks : sequence of n + 1 int
            With the boundary ones.

        Examples
        --------
        >>> MPOShape((4, 4, 4), (4, 4, 4)).clip_ranks((1, 2, 16, 1))
        (1, 2, 16, 1)
        >>> MPOShape((2, 2, 8), (2, 2, 8)).clip_ranks((1, 3, 16, 1))
        (1, 3, 12, 1)
        """
        return clip_ranks(self.site_sizes, check_ranks(ranks, self.order))


def clip_ranks(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The largest ranks below ``ranks`` with ``r_k <= r_{k-1} d_k`` and ``r_{k-1} <= d_k r_k``."""
    ranks = list(ranks)
    for k, size in enumerate(sizes):
        ranks[k + 1] = min(ranks[k + 1], ranks[k] * size)
    for k in range(len(sizes) - 1, -1, -1):
        ranks[k] = min(ranks[k], sizes[k] * ranks[k + 1])
    return tuple(ranks)


def n_parameters(sizes: Sequence[int], ranks: Sequence[int]) -> int:
    """``sum_k r_{k-1} d_k r_k`` of a train with site sizes ``d_k`` and boundary ones in ``ranks``."""
    return sum(left * size * right for left, size, right in zip(ranks, sizes, ranks[1:], strict=False))


def check_ranks(ranks: Any, order: int) -> tuple[int, ...]:
    """``ranks`` as the n + 1 bond dimensions of a train, the boundary ones included."""
    if isinstance(ranks, str) or not isinstance(ranks, Sequence):
        raise TypeError(f"ranks: got {shown(ranks)}, expected a tuple of {order + 1} positive integers")
    ranks = tuple(positive_int(rank, "ranks") for rank in ranks)
    if len(ranks) != order + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"ranks: got {ranks} for order {order}, expected {order + 1} entries with ones at both ends")
    return ranks


def full_ranks(sizes: Sequence[int]) -> tuple[int, ...]:
    """``min(prod_{m<=k} d_m, prod_{m>k} d_m)`` for k = 0 .. n."""
    total = math.prod(sizes)
    ranks, left = [1], 1
    for size in sizes:
        left *= size
        ranks.append(min(left, total // left))
    return tuple(ranks)


def as_shape(shape: Any, matrix_shape: tuple[int, int] | None = None) -> MPOShape:
    """``shape`` as an ``MPOShape``; ``None`` is the planned one; the products must fit the matrix.

    Raises
    ------
    ValueError, TypeError
        If it is not a pair (rows, columns), or its products are not ``matrix_shape``.
    """
    if shape is None:
        if matrix_shape is None:
            raise TypeError("shape: got None, expected (rows, columns)")
        return plan_shape(matrix_shape)
    if not isinstance(shape, MPOShape):
        if isinstance(shape, str) or not isinstance(shape, Sequence):
            raise TypeError(
                f"shape: got {shown(shape)}, expected (rows, columns) such as ((4, 4), (2, 8)), or an MPOShape"
            )
        if len(shape) != 2:
            raise ValueError(f"shape: got {len(shape)} parts, expected two: (rows, columns)")
        shape = MPOShape(*shape)
    if matrix_shape is not None and shape.matrix_shape != tuple(matrix_shape):
        raise ValueError(
            f"shape: rows {shape.rows} and cols {shape.cols} make a {shape.matrix_shape} matrix, the matrix is "
            f"{tuple(matrix_shape)}; choose factors of its dimensions (tnmpo.plan_shape finds some)"
        )
    return shape


def plan_shape(matrix_shape: tuple[int, int], order: int = 5) -> MPOShape:
    """Cut both dimensions of a matrix into ``order`` balanced factors.

    Each dimension is written as the product of ``order`` factors with the least sum; units stand
    in where it has too few prime factors. The largest factors go to the middle, which becomes the
    central site.

    Parameters
    ----------
    matrix_shape : (I, J)
    order : int
        The number of sites, at least 1.

    Raises
    ------
    ValueError, TypeError
        If a dimension or the order is not a positive integer.

    Examples
    --------
    >>> plan_shape((768, 3072)).full_ranks
    (1, 16, 256, 288, 12, 1)
    >>> plan_shape((7, 6), order=3)
    MPOShape(rows=(1, 7, 1), cols=(1, 3, 2))
    """
    rows, cols = _matrix_shape(matrix_shape)
    order = positive_int(order, "order")
    return MPOShape(_around_middle(_balanced(rows, order), flip=True), _around_middle(_balanced(cols, order)))


def padded_size(size: int, order: int = 5) -> int:
    """The least number >= ``size`` that can be cut into ``order`` balanced factors.

    Balanced means that no factor exceeds twice the ``order``-th root. A vocabulary is rarely a product of small
    primes: 30522 = 2 * 3 * 5087.

    Raises
    ------
    ValueError, TypeError
        If ``size`` or ``order`` is not a positive integer.

    Examples
    --------
    >>> padded_size(30522), padded_size(768)
    (30576, 768)
    """
    size, order = positive_int(size, "size"), positive_int(order, "order")
    while _balanced(size, order)[0] > 2 * size ** (1 / order):
        size += 1
    return size


def shown(value: Any) -> str:
    """What came, in the one line that an error has: arrays print several."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else f"{line[:80]}..."


def positive_int(value: Any, argument: str) -> int:
    """``value`` as an int, or an error that names ``argument``; booleans are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}: got {shown(value)}, expected a positive integer")
    if value < 1:
        raise ValueError(f"{argument}: got {value}, expected a positive integer")
    return int(value)


def dimensions(values: Any, argument: str) -> tuple[int, ...]:
    """``values`` as a tuple of positive integers, or an error that names ``argument``."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument}: got {shown(values)}, expected a tuple of positive integers")
    if not values:
        raise ValueError(f"{argument}: got an empty tuple, expected at least one dimension")
    return tuple(positive_int(value, argument) for value in values)


def _matrix_shape(matrix_shape: Any) -> tuple[int, int]:
    if not isinstance(matrix_shape, Sequence) or len(matrix_shape) != 2:
        raise ValueError(f"matrix_shape: got {shown(matrix_shape)}, expected a pair (I, J)")
    return positive_int(matrix_shape[0], "matrix_shape"), positive_int(matrix_shape[1], "matrix_shape")


@lru_cache(maxsize=4096)
def _balanced(size: int, order: int) -> tuple[int, ...]:
    """The ``order`` factors of ``size`` with the least sum, descending."""
    if order == 1:
        return (size,)
    best: tuple[int, ...] = (size, *(1,) * (order - 1))
    for largest in _divisors(size):
        if largest >= sum(best):
            break
        if largest**order >= size:
            rest = _balanced(size // largest, order - 1)
            if rest[0] <= largest and largest + sum(rest) < sum(best):
                best = (largest, *rest)
    return best


@lru_cache(maxsize=4096)
def _divisors(size: int) -> tuple[int, ...]:
    """All of them, ascending."""
    small = [number for number in range(1, math.isqrt(size) + 1) if size % number == 0]
    large = [size // number for number in reversed(small) if number * number != size]
    return (*small, *large)


def _around_middle(factors: Sequence[int], *, flip: bool = False) -> tuple[int, ...]:
    """Descending factors with the largest at ``order // 2`` and the rest to both sides in turn."""
    order = len(factors)
    places = sorted(range(order), key=lambda place: (abs(place - order // 2), place if flip else -place))
    placed = dict(zip(places, factors, strict=True))
    return tuple(placed[place] for place in range(order))
