"""search_shape: try the shapes that a matrix can have and rank them by what they lose or what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ._backend import Array, backend_of, cast, check_matrix, dtype_name, frobenius_norm, like, working
from ._contract import contraction_plan
from ._decompose import mpo_decompose
from ._ranks import ParameterBudget, RankPolicy, Tolerance
from ._shapes import MPOShape, padded_size, plan_shape, shown
from ._truncate import rebuilt
from ._weights import Weight, check_weight, multiplied

_ORDERS = range(2, 7)
_BATCH = 512  # of the cost that is shown


@dataclass(frozen=True)
class ShapeCandidate:
    """One shape and what it came to.

    Attributes
    ----------
    kind : {"low-rank", "interleaved", "row-then-column"}
    shape : MPOShape
        Larger than the matrix where it is padded with zeros.
    ranks : tuple of int
        The bond dimensions, with the boundary ones: ``mpo_decompose(W, shape, ranks)`` makes this MPO.
    n_parameters : int
        The entries of all cores.
    error : float
        ``||W - W'||`` of the matrix itself (without padding), exact, in the norm of the search.
    relative_error : float
        ``error / ||W||`` in that norm.
    padded : bool
        Whether ``shape`` is larger than the matrix.
    """

    kind: str
    shape: MPOShape
    ranks: tuple[int, ...]
    n_parameters: int
    error: float
    relative_error: float
    padded: bool

    @property
    def relative_cost(self) -> float:
        """FLOPs of applying it to 512 vectors over those of the dense matrix; above 1 is slower."""
        return contraction_plan(self.shape, self.ranks, _BATCH).relative_cost


@dataclass(frozen=True)
class ShapeRanking(Sequence[ShapeCandidate]):
    """All candidates, the best first; printed, a table.

    Attributes
    ----------
    candidates : tuple of ShapeCandidate
    matrix_shape : (I, J)
    left_out : tuple of MPOShape
        Shapes whose rank-one MPO is larger than the budget.
    """

    candidates: tuple[ShapeCandidate, ...]
    matrix_shape: tuple[int, int]
    left_out: tuple[MPOShape, ...] = ()

    @property
    def best(self) -> ShapeCandidate:
        """The first of them."""
        return self.candidates[0]

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: Any) -> Any:
        return self.candidates[index]

    def __str__(self) -> str:
        dense = math.prod(self.matrix_shape)
        table = [("error", "ratio", "FLOPs", "kind", "rows / columns", "bonds")]
        for one in self.candidates:
            table.append(
                (
                    f"{one.relative_error:.4f}",
                    f"{one.n_parameters / dense:.4f}",
                    f"{one.relative_cost:.2f}",
                    one.kind + (", padded" if one.padded else ""),
                    _sites(one.shape),
                    "-".join(map(str, one.ranks)),
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        numbers = 3  # columns that are flush right
        lines = [
            "  ".join(
                cell.rjust(width) if k < numbers else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        rows, cols = self.matrix_shape
        head = f"{rows} x {cols} matrix; relative error, parameters and FLOPs ({_BATCH} vectors) over dense"
        tail = [f"rank one is above the budget: {_sites(shape)}" for shape in self.left_out]
        return "\n".join([head, *lines, *tail])


def search_shape(
    W: Array, *, ratio: float | None = None, tol: float | None = None, weight: Weight | None = None
) -> ShapeRanking:
    """Rank the shapes that a matrix can be decomposed in, by measured error or by size.

    The candidates are the low-rank factorisation; interleaved MPOs with 2 to 6 sites of balanced factors, and the same
    of a matrix padded with zeros where its own dimensions have too few factors; and low-rank factorisations whose
    two factors are trains themselves, rows on the first sites and columns on the others, with 3 to 6 sites.
    The result is never worse than a truncated SVD, which is one of them.

    Parameters
    ----------
    W : (I, J) array
        As for ``tnmpo.mpo_decompose``.
    ratio : float, optional
        Every candidate gets at most ``ratio * I * J`` parameters; the least error comes first.
    tol : float, optional
        Every candidate has a relative error of at most ``tol``; the fewest parameters come first.
    weight : Weight, optional
        The norm to cut and to measure in.

    Returns
    -------
    ShapeRanking
        Its ``best`` is a candidate with ``shape`` and ``ranks``; printed, it is a table.

    Raises
    ------
    ValueError, TypeError
        If not exactly one of ``ratio`` and ``tol`` is given, no candidate is small enough, or ``W`` is not fit for
        ``tnmpo.mpo_decompose``.

    Notes
    -----
    Ranks are chosen by ``ParameterBudget`` or ``Tolerance`` for each. The errors are the exact ones of the cuts'
    records; where the matrix was padded they are measured on it. Cost: about fifteen decompositions. With a weight that
    is no product over the sites each longer train is refined by ALS, which takes some hundred products of ``W`` with
    the metrics: minutes a candidate at 768 x 3072, and with ``tol`` several times that.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> rng = np.random.default_rng(0)
    >>> W = np.kron(rng.normal(size=(5, 5)), rng.normal(size=(5, 5)))  # a product of two small matrices
    >>> ranking = search_shape(W, tol=1e-6)
    >>> ranking.best.kind, ranking.best.shape.order, ranking.best.ranks, ranking.best.n_parameters
    ('interleaved', 2, (1, 1, 1), 50)
    """
    check_matrix(W)
    rows, cols = int(W.shape[0]), int(W.shape[1])
    policy, limit = _policy(ratio, tol, rows * cols)
    if weight is not None:
        check_weight(weight)
        weight.roots((rows, cols), W)  # one that does not fit is refused here, before any padding
        weight = Weight(*(multiplied(metric) for metric in (weight.rows, weight.cols)))  # of no particular sites
    found, left_out = [], []
    for kind, shape in _shapes(rows, cols):
        if sum(shape.site_sizes) > limit:
            left_out.append(shape)
        else:
            found.append(_tried(kind, shape, W, policy, weight))
    if not found:
        least = min(sum(shape.site_sizes) for shape in left_out)
        raise ValueError(
            f"ratio: got {ratio}, {int(limit)} parameters; the smallest rank-one MPO of a {rows} x {cols} matrix has "
            f"{least}; allow at least {least / (rows * cols):.3g}"
        )
    best_first = sorted(found, key=_by_size if ratio is None else _by_error)
    return ShapeRanking(tuple(best_first), (rows, cols), tuple(left_out))


def _sites(shape: MPOShape) -> str:
    return f"{','.join(map(str, shape.rows))} / {','.join(map(str, shape.cols))}"


def _tried(kind: str, shape: MPOShape, W: Array, policy: RankPolicy, weight: Weight | None) -> ShapeCandidate:
    """Decompose ``W`` in that shape, padded where it is larger, and measure."""
    rows, cols = W.shape
    padded = shape.matrix_shape != (rows, cols)
    heavy = weight.padded((rows, cols), shape.matrix_shape) if weight is not None else None
    mpo = mpo_decompose(_padded(W, shape), shape, policy, weight=heavy)
    record = mpo.truncation
    assert record is not None  # ranks were asked for
    error, relative_error = record.error, record.relative_error
    if padded and weight is None:  # the record counts what is cropped; a padded weight does not
        norm = frobenius_norm(W)
        error = frobenius_norm(working(W) - rebuilt(mpo)[:rows, :cols])
        relative_error = error / norm if norm > 0 else 0.0
    return ShapeCandidate(kind, shape, mpo.ranks, mpo.n_parameters, error, relative_error, padded)


def _by_error(one: ShapeCandidate) -> tuple[float, int]:
    return float(f"{one.error:.6g}"), one.n_parameters  # differences below are rounding


def _by_size(one: ShapeCandidate) -> tuple[int, float]:
    return one.n_parameters, one.error


def _policy(ratio: Any, tol: Any, dense: int) -> tuple[RankPolicy, float]:
    """The rule that every candidate's ranks are chosen by, and the most parameters that one may have."""
    if (ratio is None) == (tol is None):
        came = "neither" if ratio is None else "both"
        raise ValueError(f"search_shape: got {came} of ratio and tol, expected one: ratio=0.5, or tol=0.1")
    if tol is not None:
        return Tolerance(tol), math.inf
    if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < float(ratio) < math.inf:
        raise ValueError(f"ratio: got {shown(ratio)}, expected a number above 0, of the dense parameters")
    budget = max(1, math.floor(float(ratio) * dense * (1 + 1e-12)))
    return ParameterBudget(budget), budget


def _shapes(rows: int, cols: int) -> Iterator[tuple[str, MPOShape]]:
    """The candidates, each shape once."""
    candidates = [("low-rank", MPOShape.low_rank((rows, cols)))]
    for order in _ORDERS:
        candidates.append(("interleaved", plan_shape((rows, cols), order)))
        candidates.append(("interleaved", plan_shape((padded_size(rows, order), padded_size(cols, order)), order)))
        for first in sorted({order // 2, (order + 1) // 2}):
            candidates.append(("row-then-column", _row_then_column(rows, cols, first, order - first)))
    seen = set()
    for kind, shape in candidates:
        if shape not in seen and (kind == "low-rank" or _has_content(shape)):
            seen.add(shape)
            yield kind, shape


def _row_then_column(rows: int, cols: int, first: int, second: int) -> MPOShape:
    """All factors of the rows, then all factors of the columns: ``U V`` with both factors cut further."""
    tall, wide = plan_shape((rows, 1), first).rows, plan_shape((1, cols), second).cols
    return MPOShape((*tall, *(1,) * second), (*(1,) * first, *wide))


def _has_content(shape: MPOShape) -> bool:
    """Whether every site carries an index: else the shape is one of lower order."""
    return all(size > 1 for size in shape.site_sizes)


def _padded(W: Array, shape: MPOShape) -> Array:
    for axis, size in enumerate(shape.matrix_shape):
        missing = size - W.shape[axis]
        if missing:
            block = (missing, W.shape[1]) if axis == 0 else (W.shape[0], missing)
            zeros = cast(like(np.zeros(block), W), dtype_name(W))
            W = backend_of(W, "W").concatenate([W, zeros], axis=axis)
    return W
