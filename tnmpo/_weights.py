"""Weight: what a weighted norm is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ._backend import (
    Array,
    adjoint,
    as_numpy,
    backend_of,
    cast,
    check_values,
    detach,
    double,
    dtype_name,
    frobenius_norm,
    is_jax,
    like,
    peak,
    to_numpy,
    transposed,
)
from ._shapes import MPOShape

Metric = Array | tuple[Array, ...] | None
Roots = tuple[Array | None, Array | None]  # of the metric of the rows and that of the columns
SiteRoots = list[Roots]  # of every site


@dataclass(frozen=True, eq=False)
class Weight:
    """The metric of the squared error, ``||E||_w^2 = tr(R E C E^H)``.

    With the input covariance ``C = E[x x^H]`` on the columns, ``||W - W'||_w`` is the expected
    error of the output ``W x``. For an embedding, the token counts on the rows weigh every
    token's vector by how often it is looked up.

    Parameters
    ----------
    rows : (I,) or (I, I) array, or tuple of n arrays, optional
        ``R``: a vector is its diagonal (counts, not their square roots), a matrix is symmetric or
        Hermitian and positive semidefinite. Singular ones are fine. None is the identity. A tuple is the Kronecker
        product of one such metric a site, ``(i_k,)`` or ``(i_k, i_k)``. Integers become float64.
    cols : (J,) or (J, J) array, or tuple of n arrays, optional
        ``C``, likewise.

    Raises
    ------
    ValueError, TypeError
        If one is not square, not Hermitian, holds NaN or Inf, or a negative number on a diagonal that is a vector. A
        matrix with a negative eigenvalue is refused where the weight is first used.

    Notes
    -----
    A metric is a constant: no derivative flows into it. Its root (of a matrix, an eigendecomposition, O(J^3)) is taken
    on first use and kept, so that a metric must not be changed in place afterwards; make a new weight.

    The metrics of a tuple belong to the sites, and must be of their sizes, for every shape but a low-rank one:
    there one site has the whole index, the Kronecker product is multiplied out, and any factors of that size will do.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Weight(cols=np.array([4.0, 1.0]))
    >>> weight.norm(np.array([[1.5, 0.0], [0.0, 4.0]]))  # sqrt(4 * 1.5^2 + 1 * 4^2)
    5.0
    >>> Weight(cols=(np.array([4.0, 1.0]), np.array([1.0, 9.0]))).norm(np.array([[0.0, 1.0, 0.0, 0.0]]))  # sqrt(4 * 9)
    6.0
    """

    rows: Metric = None
    cols: Metric = None

    def __post_init__(self) -> None:
        for side in ("rows", "cols"):
            metric = getattr(self, side)
            if isinstance(metric, tuple) and not metric:
                raise ValueError(f"Weight: {side}: got an empty tuple, expected one metric a site")
            parts = tuple(_checked(part, f"Weight: {side}") for part in _parts(metric))
            if parts:
                object.__setattr__(self, side, parts if isinstance(metric, tuple) else parts[0])

    @cached_property
    def _roots(self) -> tuple[Metric, Metric]:
        return _root(self.rows, "Weight: rows"), _root(self.cols, "Weight: cols")

    def roots(self, matrix_shape: tuple[int, int], where: Array) -> tuple[Metric, Metric]:
        """Square roots of both metrics, in double precision, on the backend and device of ``where``.

        A vector's is the vector of its roots, a matrix's is Hermitian, a tuple's the tuple of roots, None stays None.

        Raises
        ------
        ValueError, TypeError
            If a metric's size is not that of ``matrix_shape``, it is not positive semidefinite, or
            it is complex and ``where`` is real.
        """
        for metric, size, side in zip((self.rows, self.cols), matrix_shape, ("rows", "cols"), strict=True):
            parts = _parts(metric)
            if metric is not None and math.prod(int(part.shape[0]) for part in parts) != size:
                sizes = " x ".join(str(part.shape[0]) for part in parts)
                raise ValueError(
                    f"weight: {side} has size {sizes}, the matrix {tuple(matrix_shape)} has {size} {side}; "
                    "pass a metric of that size"
                )
            if any("complex" in dtype_name(part) for part in parts) and "complex" not in dtype_name(where):
                raise TypeError(
                    f"weight: {side} is complex, the matrix {dtype_name(where)}; convert the matrix to a complex dtype"
                )
        rows, cols = (_moved(root, where) for root in self._roots)
        return rows, cols

    def padded(self, matrix_shape: tuple[int, int], to: tuple[int, int]) -> Weight:
        """The weight of a matrix that is padded to a larger shape: what was added weighs nothing.

        Parameters
        ----------
        matrix_shape, to : (I, J)
            Before and after.

        Raises
        ------
        ValueError
            If ``to`` is smaller.

        Examples
        --------
        >>> import numpy as np
        >>> Weight(rows=np.array([4.0, 1.0])).padded((2, 3), (3, 3)).rows
        array([4., 1., 0.])
        """
        sides: list[Metric] = []
        for metric, size, wanted in zip((self.rows, self.cols), matrix_shape, to, strict=True):
            if wanted < size:
                raise ValueError(
                    f"to: got {tuple(to)}, expected at least {tuple(matrix_shape)}, the size of the matrix"
                )
            if wanted > size:
                whole = np.ones(size) if metric is None else as_numpy(multiplied(metric))
                metric = np.pad(whole, [(0, wanted - size)] * whole.ndim)
            sides.append(metric)
        return Weight(*sides)

    def norm(self, matrix: Array) -> float:
        """``||matrix||_w``, in double precision.

        Parameters
        ----------
        matrix : (I, J) array
        """
        backend_of(matrix, "matrix")
        check_values(matrix, "matrix")
        if len(matrix.shape) != 2:
            raise ValueError(f"matrix: got {len(matrix.shape)} axes, expected two (rows, columns)")
        rows, cols = self.roots(tuple(matrix.shape), matrix)
        return frobenius_norm(times(rows, double(matrix), cols))


def site_roots(weight: Weight, shape: MPOShape, where: Array) -> tuple[SiteRoots, bool]:
    """The roots of a metric that is a product over the sites, and whether it is this one.

    A metric is such a product where it is given as one, or where one site carries the whole row (or column) index.
    Else the product of its marginals stands in: the partial traces over all other sites.

    Raises
    ------
    ValueError, TypeError
        As ``roots``, and if a tuple has not one metric a site, of that site's size.
    """
    roots = weight.roots(shape.matrix_shape, where)
    sides, exact = [], True
    for metric, root, sizes, side in zip(
        (weight.rows, weight.cols), roots, (shape.rows, shape.cols), ("rows", "cols"), strict=True
    ):
        if isinstance(metric, tuple):
            if tuple(part.shape[0] for part in metric) != sizes:
                given = tuple(int(part.shape[0]) for part in metric)
                raise ValueError(
                    f"weight: {side} has site metrics of sizes {given}, the sites have {sizes}; pass one of each size"
                )
            assert isinstance(root, tuple)  # as the metric is
            sides.append(list(root))
        elif root is None or max(sizes) == math.prod(sizes):
            carrier = sizes.index(max(sizes))
            sides.append([root if k == carrier else None for k in range(shape.order)])
        else:
            sides.append([like(_root(part, side), where) for part in _marginals(metric, sizes)])
            exact = False
    return list(zip(*sides, strict=True)), exact


def block_roots(weight: Weight, shape: MPOShape, bond: int, where: Array) -> tuple[Roots, Roots]:
    """The roots of the metrics of rows and columns, for the sites left and for those right of a bond.

    Each is that of the marginal, the partial trace over the other block; the whole metric where that has none of
    its indices.
    """
    roots = weight.roots(shape.matrix_shape, where)
    sides = []
    for metric, root, sizes in zip((weight.rows, weight.cols), roots, (shape.rows, shape.cols), strict=True):
        left, right = math.prod(sizes[:bond]), math.prod(sizes[bond:])
        if isinstance(root, tuple):
            sides.append((multiplied(root[:bond]), multiplied(root[bond:])))
        elif root is None or min(left, right) == 1:
            sides.append((root, None) if left > 1 else (None, root))
        else:
            sides.append(tuple(like(_root(part, "weight"), where) for part in _marginals(metric, (left, right))))
    (rows_left, rows_right), (cols_left, cols_right) = sides
    return (rows_left, cols_left), (rows_right, cols_right)


def check_weight(weight: Any) -> None:
    """Refuse what is no ``Weight``."""
    if not isinstance(weight, Weight):
        raise TypeError(f"weight: got {type(weight).__name__}, expected tnmpo.Weight(rows=..., cols=...)")


def times(rows: Metric, matrix: Array, cols: Metric) -> Array:
    """``rows @ matrix @ cols``; a vector stands for its diagonal, a tuple for its Kronecker product, None for 1."""
    shape = tuple(matrix.shape)
    for axis, side in ((0, rows), (1, cols)):
        before = 1 if axis == 0 else shape[0]  # of the entries that vary slower than the factor
        for factor in _parts(side):
            size = factor.shape[0]
            turned = from_right(factor) if axis == 1 else factor
            matrix = on_middle(turned, matrix.reshape((before, size, -1)))
            before *= size
    return matrix.reshape(shape)


def square(root: Metric) -> Metric:
    """The metric that a root is of."""
    if isinstance(root, tuple):
        return tuple(square(part) for part in root)
    if root is None:
        return None
    return root * root if len(root.shape) == 1 else root @ root


def multiplied(root: Metric) -> Array | None:
    """A tuple of roots as one root: a vector, where all of them are vectors."""
    if not isinstance(root, tuple):
        return root
    if any(len(part.shape) == 2 for part in root):
        backend = backend_of(root[0], "root")
        root = tuple(part if len(part.shape) == 2 else backend.diag(part) for part in root)
    product = root[0]
    for part in root[1:]:
        axes = (slice(None), None) * len(part.shape)
        product = product[axes] * part[axes[::-1]]
        size = product.shape[0] * product.shape[1]
        product = product.reshape((size,) * len(part.shape))
    return product


def from_right(factor: Array) -> Array:
    """What acts on a column index as ``factor`` does that multiplies from the right."""
    return transposed(factor) if len(factor.shape) == 2 else factor


def on_middle(factor: Array, blocks: Array) -> Array:
    """``factor``, a matrix or the vector of a diagonal, on the middle index of (b, size, c) ``blocks``."""
    if len(factor.shape) == 1:
        return blocks * factor[None, :, None]
    kind = str(np.promote_types(dtype_name(factor), dtype_name(blocks)))  # torch multiplies equal dtypes only
    factor, blocks = cast(factor, kind), cast(blocks, kind)
    if blocks.shape[2] == 1:  # one product, where a batch of products with vectors would be slow
        return (blocks[:, :, 0] @ transposed(factor))[:, :, None]
    return factor @ blocks


def _moved(root: Metric, where: Array) -> Metric:
    if isinstance(root, tuple):
        return tuple(like(part, where) for part in root)
    return None if root is None else like(root, where)


def _parts(metric: Metric) -> tuple[Array, ...]:
    if metric is None:
        return ()
    return metric if isinstance(metric, tuple) else (metric,)


def _checked(metric: Array, argument: str) -> Array:
    """The metric, if it is one; integers, such as counts, in double precision."""
    backend_of(metric, argument)
    if "int" in dtype_name(metric):
        metric = as_numpy(metric).astype("float64")
    check_values(metric, argument)
    axes = len(metric.shape)
    if axes not in (1, 2) or (axes == 2 and metric.shape[0] != metric.shape[1]):
        raise ValueError(
            f"{argument}: got shape {tuple(metric.shape)}, expected a vector (the diagonal) or a square matrix"
        )
    if axes == 1:
        if "complex" in dtype_name(metric):
            raise TypeError(f"{argument}: got a complex vector, expected real numbers >= 0")
        if as_numpy(metric).min() < 0:
            raise ValueError(f"{argument}: got a negative entry in the diagonal, expected numbers >= 0")
        return metric
    wide = double(metric)
    if peak(wide - adjoint(wide)) > 1e-5 * peak(wide):
        raise ValueError(f"{argument}: got a matrix that is not Hermitian; symmetrise it, e.g. (C + C.T) / 2")
    return metric


def _root(metric: Metric, argument: str) -> Metric:
    if metric is None:
        return None
    if isinstance(metric, tuple):
        return tuple(_root(part, argument) for part in metric)
    # a metric is a constant; jax's doubles may be switched off
    wide = to_numpy(metric) if is_jax(metric) else double(detach(metric))
    backend = backend_of(wide, argument)
    if len(wide.shape) == 1:
        return backend.sqrt(wide)
    values, vectors = backend.eigh((wide + adjoint(wide)) / 2)
    smallest = float(to_numpy(values[0]))
    if smallest < -1e-6 * peak(values):
        raise ValueError(
            f"{argument}: got a matrix with the negative eigenvalue {smallest:.3g}, expected a positive "
            "semidefinite one such as a covariance"
        )
    # Below the resolution an eigenvalue is zero: its root would be seen, 1e-8 of the largest.
    resolved = backend.where(values > len(values) * 2.2e-16 * peak(values), values, values * 0)
    return (vectors * backend.sqrt(resolved)) @ adjoint(vectors)


def _marginals(metric: Array, sizes: Sequence[int]) -> list[np.ndarray]:
    """The partial trace of a metric for each site, scaled so that the traces multiply to that of the metric."""
    host = to_numpy(metric)
    parts = []
    for site, size in enumerate(sizes):
        before, after = math.prod(sizes[:site]), math.prod(sizes[site + 1 :])
        if host.ndim == 1:
            parts.append(host.reshape(before, size, after).sum(axis=(0, 2)))
        else:
            parts.append(np.einsum("aibajb->ij", host.reshape((before, size, after) * 2)))
    total = float(host.sum() if host.ndim == 1 else np.trace(host).real)
    if total == 0:
        return [np.ones(size) for size in sizes]  # nothing counts: any metric will do
    return [part / total ** ((len(sizes) - 1) / len(sizes)) for part in parts]
