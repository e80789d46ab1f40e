"""Weight: what a weighted norm is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ._backend import (
    Array,
    adjoint,
    as_numpy,
    backend_of,
    cast,
    check_values,
    double,
    dtype_name,
    is_jax,
    like,
    peak,
    to_numpy,
)
from ._bounds import l2_norm


@dataclass(frozen=True, eq=False)
class Weight:
    """The metric of the squared error, ``||E||_w^2 = tr(R E C E^H)``.

    With the input covariance ``C = E[x x^H]`` on the columns, ``||W - W'||_w`` is the expected
    error of the output ``W x``. For an embedding, the token counts on the rows weigh every
    token's vector by how often it is looked up.

    Parameters
    ----------
    rows : (I,) or (I, I) array, optional
        ``R``: a vector is its diagonal (counts, not their square roots), a matrix is symmetric or
        Hermitian and positive semidefinite. Singular ones are fine. None is the identity.
    cols : (J,) or (J, J) array, optional
        ``C``, likewise.

    Raises
    ------
    ValueError, TypeError
        If one is not square, not Hermitian, not positive semidefinite, or holds NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> weight = Weight(cols=np.array([4.0, 1.0]))
    >>> weight.norm(np.array([[1.5, 0.0], [0.0, 4.0]]))  # sqrt(4 * 1.5^2 + 1 * 4^2)
    5.0
    """

    rows: Array | None = None
    cols: Array | None = None

    def __post_init__(self) -> None:
        for side in ("rows", "cols"):
            _check_metric(getattr(self, side), f"Weight: {side}")

    @cached_property
    def _roots(self) -> tuple[Array | None, Array | None]:
        return _root(self.rows, "Weight: rows"), _root(self.cols, "Weight: cols")

    def roots(self, matrix_shape: tuple[int, int], where: Array) -> tuple[Array | None, Array | None]:
        """Square roots of both metrics, in double precision, on the backend and device of ``where``.

        A vector's is the vector of its roots, a matrix's is Hermitian, None stays None.

        Raises
        ------
        ValueError, TypeError
            If a metric's size is not that of ``matrix_shape``, it is not positive semidefinite, or
            it is complex and ``where`` is real.
        """
        for metric, size, side in zip((self.rows, self.cols), matrix_shape, ("rows", "cols"), strict=True):
            if metric is not None and metric.shape[0] != size:
                raise ValueError(
                    f"weight: {side} has size {metric.shape[0]}, the matrix {tuple(matrix_shape)} has {size} {side}; "
                    "pass a metric of that size"
                )
            if metric is not None and "complex" in dtype_name(metric) and "complex" not in dtype_name(where):
                raise TypeError(
                    f"weight: {side} is complex, the matrix {dtype_name(where)}; convert the matrix to a complex dtype"
                )
        rows, cols = (None if root is None else like(root, where) for root in self._roots)
        return rows, cols

    def norm(self, matrix: Array) -> float:
        """``||matrix||_w``, in double precision.

        Parameters
        ----------
        matrix : (I, J) array
        """
        backend_of(matrix, "matrix")
        check_values(matrix, "matrix")
        if matrix.ndim != 2:
            raise ValueError(f"matrix: got {matrix.ndim} axes, expected two (rows, columns)")
        rows, cols = self.roots(matrix.shape, matrix)
        return l2_norm(to_numpy(times(rows, double(matrix), cols)))


def times(rows: Array | None, matrix: Array, cols: Array | None) -> Array:
    """``rows @ matrix @ cols``, where a vector stands for its diagonal and None for the identity."""
    if rows is not None:
        matrix = rows[:, None] * matrix if rows.ndim == 1 else _matmul(rows, matrix)
    if cols is not None:
        matrix = matrix * cols[None, :] if cols.ndim == 1 else _matmul(matrix, cols)
    return matrix


def _matmul(a: Array, b: Array) -> Array:
    """The product of a real and a complex matrix too, which torch refuses."""
    kind = str(np.promote_types(dtype_name(a), dtype_name(b)))
    return cast(a, kind) @ cast(b, kind)


def _check_metric(metric: Array | None, argument: str) -> None:
    if metric is None:
        return
    backend_of(metric, argument)
    check_values(metric, argument)
    if metric.ndim not in (1, 2) or (metric.ndim == 2 and metric.shape[0] != metric.shape[1]):
        raise ValueError(
            f"{argument}: got shape {tuple(metric.shape)}, expected a vector (the diagonal) or a square matrix"
        )
    if metric.ndim == 1:
        if "complex" in dtype_name(metric):
            raise TypeError(f"{argument}: got a complex vector, expected real numbers >= 0")
        if as_numpy(metric).min() < 0:
            raise ValueError(f"{argument}: got a negative entry in the diagonal, expected numbers >= 0")
        return
    wide = double(metric)
    if peak(wide - adjoint(wide)) > 1e-5 * peak(wide):
        raise ValueError(f"{argument}: got a matrix that is not Hermitian; symmetrise it, e.g. (C + C.T) / 2")


def _root(metric: Array | None, argument: str) -> Array | None:
    if metric is None:
        return None
    wide = to_numpy(metric) if is_jax(metric) else double(metric)  # jax's doubles may be switched off
    backend = backend_of(wide, argument)
    if wide.ndim == 1:
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
