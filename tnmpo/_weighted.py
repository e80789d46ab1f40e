"""Low-rank decompositions in a weighted norm, exact.

With ``A`` and ``B`` the square roots of the metrics of rows and columns,

    ||W - W'||_w = ||A (W - W') B||_F,

so the best W' of rank r comes from the SVD ``A W B = u s v^H``. No root needs to be inverted:
``W' = u_r u_r^H W`` where only columns are weighted (A = 1), the transpose of that for rows. With both,
``W' = (W B v_r / s_r) (u_r^H A W)``, since ``A W B v / s = u``; rows of no weight are regressed on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._backend import Array, adjoint, backend_of, cast, conj, double, dtype_name, like, resolution, transposed
from ._factor import thin_qr, thin_svd
from ._shapes import MPOShape
from ._weights import Weight, times


@dataclass(frozen=True)
class Factors:
    """``W = left @ right`` in the weighted Schmidt basis: the first r directions are the best of rank r.

    ``left`` is (I, k), ``right`` (k, J), ``spectrum`` (k,) the weighted Schmidt values; double precision.
    """

    left: Array
    right: Array
    spectrum: Array


def check(weight: Weight, shape: MPOShape) -> None:
    """Refuse a weight where the weighted optimum is not a plain SVD."""
    if not isinstance(weight, Weight):
        raise TypeError(f"weight: got {type(weight).__name__}, expected tnmpo.Weight(rows=..., cols=...)")
    if not shape.is_low_rank:
        raise ValueError(
            f"weight: got one with rows {shape.rows} and cols {shape.cols}, expected a low-rank shape; "
            "pass shape=tnmpo.MPOShape.low_rank(W.shape) or leave the weight out"
        )


def of_matrix(matrix: Array, weight: Weight) -> Factors:
    """The weighted factors of a dense (I, J) matrix."""
    rows, cols = weight.roots(matrix.shape, matrix)
    matrix = double(matrix)
    if rows is not None and cols is not None:
        return _both_sides(matrix, rows, cols)
    if rows is not None:
        turned = _columns(*_isometry(transposed(matrix)), conj(rows))
        return _transposed(turned)
    return _columns(*_isometry(matrix), cols)


def of_train(cores: Sequence[Array], weight: Weight) -> Factors:
    """The weighted factors of a low-rank train; the matrix is formed only where both sides are weighted."""
    cores = [double(core) for core in cores]
    left = cores[0].reshape(-1, cores[0].shape[2])  # (I, k)
    for core in cores[1:-1]:
        left = left @ core.reshape(core.shape[0], core.shape[2])
    right = cores[-1].reshape(cores[-1].shape[0], -1)  # (k, J)
    rows, cols = weight.roots((left.shape[0], right.shape[1]), left)
    if rows is not None and cols is not None:
        return _both_sides(left @ right, rows, cols)
    if rows is not None:
        q, r = thin_qr(transposed(right))  # (J, k), (k, k)
        turned = _columns(q, r @ transposed(left), conj(rows))
        return _transposed(turned)
    q, r = thin_qr(left)  # (I, k), (k, k)
    return _columns(q, r @ right, cols)


def train(factors: Factors, rank: int, order: int) -> list[Array]:
    """The three-way cores of the best matrix of that rank: left, identities, right."""
    left, right = factors.left[:, :rank], factors.right[:rank]
    identity = cast(like(np.eye(rank), left), dtype_name(left))
    middle = [identity[:, None, :]] * (order - 2)
    return [left[None, :, :], *middle, right[:, :, None]]


def _isometry(matrix: Array) -> tuple[Array | None, Array]:
    """``matrix = isometry @ core`` with a core that is not taller than wide; None is the identity."""
    if matrix.shape[0] > matrix.shape[1]:
        return thin_qr(matrix)
    return None, matrix


def _columns(isometry: Array | None, core: Array, root: Array | None) -> Factors:
    """The factors of ``isometry @ core`` where only columns are weighted: ``u u^H core``.

    The core is not taller than wide, so ``u`` is square and keeping every direction is exact,
    however singular the metric.
    """
    basis, spectrum, _ = thin_svd(times(None, core, root))
    left = basis if isometry is None else isometry @ basis
    return Factors(left, adjoint(basis) @ core, spectrum)


def _transposed(factors: Factors) -> Factors:
    return Factors(transposed(factors.right), transposed(factors.left), factors.spectrum)


def _both_sides(matrix: Array, rows: Array, cols: Array) -> Factors:
    weighted_rows, weighted_cols = times(rows, matrix, None), times(None, matrix, cols)
    basis, spectrum, rest = thin_svd(times(None, weighted_rows, cols))  # rest = s v^H
    # A value that is all rounding has no direction: left out, it changes nothing in this norm.
    kept = spectrum > max(matrix.shape) * resolution(spectrum) * spectrum[0]
    backend = backend_of(spectrum, "spectrum")
    inverse = backend.where(kept, 1 / backend.where(kept, spectrum, spectrum * 0 + 1), spectrum * 0)
    return Factors(
        weighted_cols @ (adjoint(rest) * inverse) * inverse,  # over s twice, one of them that of rest
        adjoint(basis) @ weighted_rows,
        spectrum,
    )
