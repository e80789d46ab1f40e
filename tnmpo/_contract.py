"""Which order to contract a train in, and what that costs. Counts only: no tensors here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import opt_einsum

from ._shapes import MPOShape, as_shape, check_ranks, positive_int

# FLOPs in the time that one number is moved between two products: read, put in its place on other axes, written. Fitted
# to the seconds of two of the four sizes in tests/benchmarks/cost_model.py, on two threads of an x86 CPU.
_MOVE = 32
_EXHAUSTIVE = 10  # sites: the search for the best order takes 0.1 s at 12, and minutes at 20


@dataclass(frozen=True)
class ContractionPlan:
    """What applying an MPO to ``batch`` vectors costs, by either execution.

    Attributes
    ----------
    batch : int
        The number of vectors (tokens).
    rebuild_flops : int
        Contracting the cores to the dense matrix, once.
    dense_flops : int
        One dense product with the whole batch, without the rebuild.
    factored_flops : int
        Applying the cores to the batch one after another, never forming the matrix.
    rebuild_moves, factored_moves : int
        Numbers that are read and written between the products, where their axes change places; none in the factored
        execution of a low-rank shape.
    rebuild_products, factored_products : int
        How many products either is, one after another; the whole weight, put together at last, counts as one.
    equation, path : str, tuple
        The einsum of the factored execution (vectors first, then the cores) and its best order.
    execution : {"dense", "factored"}
        The faster one, the rebuild counted in.
    """

    batch: int
    rebuild_flops: int
    dense_flops: int
    factored_flops: int
    rebuild_moves: int
    factored_moves: int
    rebuild_products: int
    factored_products: int
    equation: str
    path: tuple[tuple[int, ...], ...]

    @property
    def execution(self) -> str:
        return self.faster(rebuild=True)

    def faster(self, *, rebuild: bool, move: float = _MOVE, call: float = 0) -> str:
        """``"dense"`` or ``"factored"``, whichever has the lower ``cost``."""
        dense, factored = (self.cost(way, rebuild=rebuild, move=move, call=call) for way in ("dense", "factored"))
        return "factored" if factored < dense else "dense"

    def cost(self, execution: str, *, rebuild: bool, move: float = _MOVE, call: float = 0) -> float:
        """The time of an execution in FLOPs.

        Parameters
        ----------
        execution : {"dense", "factored"}
        rebuild : bool
            False where the matrix is at hand.
        move, call : float
            FLOPs in the time that one number is moved, and that one product is started. The defaults are those of a
            CPU, where a start is nothing; on a GPU it takes as long as gigaFLOPs.
        """
        if execution == "factored":
            return self.factored_flops + move * self.factored_moves + call * self.factored_products
        built = self.rebuild_flops + move * self.rebuild_moves + call * self.rebuild_products if rebuild else 0
        return self.dense_flops + call + built

    @property
    def relative_cost(self) -> float:
        """FLOPs of the faster execution over those of an uncompressed layer; above 1 is slower."""
        flops = {"factored": self.factored_flops, "dense": self.rebuild_flops + self.dense_flops}
        return flops[self.execution] / self.dense_flops


def contraction_plan(shape: Any, ranks: Sequence[int], batch: int = 1) -> ContractionPlan:
    """Count the FLOPs of every way to apply an MPO, and name the fastest.

    Parameters
    ----------
    shape : MPOShape or (rows, cols)
    ranks : sequence of n + 1 int
        Bond dimensions with the boundary ones.
    batch : int
        The number of vectors the MPO is applied to.

    Returns
    -------
    ContractionPlan

    Raises
    ------
    ValueError, TypeError
        If ``shape`` is no shape, ``ranks`` has the wrong length or ends, or ``batch`` is not positive.

    Notes
    -----
    A multiplication with its addition counts as two FLOPs. FLOPs alone flatter trains of many small cores, whose
    products are short and whose axes change places between them; so the choice counts moved numbers too, and, where
    ``faster`` is told what it takes, the start of every product. The orders are opt_einsum's (Smith and Gray, JOSS
    2018), remembered: up to 10 sites the best ones, by dynamic programming, else good ones.

    Examples
    --------
    >>> from tnmpo import MPOShape
    >>> low_rank = contraction_plan(MPOShape.low_rank((768, 768)), (1, 96, 1), batch=512)
    >>> low_rank.execution, low_rank.relative_cost
    ('factored', 0.25)
    >>> contraction_plan(((4, 4, 8, 6, 4), (3, 4, 4, 4, 4)), (1, 12, 64, 64, 16, 1), batch=512).execution
    'dense'
    """
    shape = as_shape(shape)
    return _plan(shape.rows, shape.cols, check_ranks(ranks, shape.order), positive_int(batch, "batch"))


@lru_cache(maxsize=1024)
def _plan(rows: tuple[int, ...], cols: tuple[int, ...], ranks: tuple[int, ...], batch: int) -> ContractionPlan:
    order = len(rows)
    symbols = iter(opt_einsum.get_symbol(k) for k in range(3 * order + 2))
    token = next(symbols)
    row = [next(symbols) for _ in range(order)]
    col = [next(symbols) for _ in range(order)]
    bond = [next(symbols) for _ in range(order + 1)]
    cores = [bond[k] + row[k] + col[k] + bond[k + 1] for k in range(order)]
    ends = bond[0] + bond[-1]  # of dimension 1; kept open, so that no order treats them as a sum
    equation = ",".join([token + "".join(col), *cores]) + f"->{token}{''.join(row)}{ends}"
    core_shapes = [(ranks[k], rows[k], cols[k], ranks[k + 1]) for k in range(order)]
    path, info = opt_einsum.contract_path(
        equation, (batch, *cols), *core_shapes, shapes=True, optimize="dp" if 1 < order <= _EXHAUSTIVE else "auto"
    )
    sizes = tuple(i * j for i, j in zip(rows, cols, strict=True))
    return ContractionPlan(
        batch=batch,
        rebuild_flops=_merge_order(sizes, ranks)[1],
        dense_flops=2 * batch * math.prod(rows) * math.prod(cols),
        factored_flops=int(info.opt_cost),
        rebuild_moves=2 * math.prod(sizes) if order > 1 else 0,
        factored_moves=0
        if MPOShape(rows, cols).is_low_rank
        else _moves(equation, path, [(batch, *cols), *core_shapes]),
        rebuild_products=order if order > 1 else 0,
        factored_products=len(path),
        equation=equation,
        path=tuple(tuple(pair) for pair in path),
    )


def _moves(equation: str, path: Sequence[Sequence[int]], shapes: Sequence[Sequence[int]]) -> int:
    """The numbers that the products of a path read and write."""
    terms = equation.split("->")[0].split(",")
    size = {
        symbol: n for term, shape in zip(terms, shapes, strict=True) for symbol, n in zip(term, shape, strict=False)
    }
    moved = 0
    for pair in path:
        met = [terms[place] for place in pair]
        shared = set(met[0]).intersection(*met[1:]) if len(met) > 1 else set()
        product = "".join(symbol for term in met for symbol in term if symbol not in shared)
        terms = [term for place, term in enumerate(terms) if place not in pair] + [product]
        moved += sum(math.prod(size[symbol] for symbol in term) for term in (*met, product))
    return moved


def merge_order(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The cheapest order in which neighbours of a train are merged into the dense tensor.

    Each pair ``(a, b)`` merges the segment that begins at site ``b`` into the one left of it, which begins at ``a``.
    """
    return _merge_order(tuple(sizes), tuple(ranks))[0]


@lru_cache(maxsize=1024)
def _merge_order(sizes: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[tuple[tuple[int, int], ...], int]:
    if len(sizes) == 1:
        return (), 0
    symbols = iter(opt_einsum.get_symbol(k) for k in range(2 * len(sizes) + 1))
    site = [next(symbols) for _ in sizes]
    bond = [next(symbols) for _ in ranks]
    terms = [bond[k] + site[k] + bond[k + 1] for k in range(len(sizes))]
    shapes = [(ranks[k], sizes[k], ranks[k + 1]) for k in range(len(sizes))]
    equation = ",".join(terms) + "->" + bond[0] + "".join(site) + bond[-1]
    path, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="dp")
    # opt_einsum takes operands out of a list and appends the result; segments are known by their first site.
    segments, merges = list(range(len(sizes))), []
    for pair in path:
        first, second = sorted(segments[k] for k in pair)
        segments = [segment for k, segment in enumerate(segments) if k not in pair] + [first]
        merges.append((first, second))
    return tuple(merges), int(info.opt_cost)
