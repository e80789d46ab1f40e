"""Cuts in a weighted norm whose metric is a product over the sites.

With ``A`` and ``B`` the square roots of the metrics of rows and columns, ``||W - W'||_w = ||A (W - W') B||_F``.

Of a low-rank shape the best W' of rank r comes from the SVD ``A W B = u s v^H``. No root needs to be inverted:
``W' = u_r u_r^H W`` where only columns are weighted (A = 1), the transpose of that for rows. With both,
``W' = (W B v_r / s_r) (u_r^H A W)``, since ``A W B v / s = u``; rows of no weight are regressed on the others.

Of a longer train the sweep is the same at every bond. Let ``l`` and ``g`` be the triangular factors of what lies left
(already cut) and right of it in ``A W B``, and ``l g = u s v^H``. The pair

    x = g v_r / s_r,    y = u_r^H l,    y x = 1

projects the bond of W itself: the weighted train sees ``l x y = u_r u_r^H l``, the orthogonal projection that a sweep
of SVDs makes, and again nothing is inverted but kept values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import _chain
from ._backend import (
    Array,
    adjoint,
    backend_of,
    cast,
    conj,
    detach,
    double,
    dtype_name,
    like,
    peak,
    resolution,
    to_numpy,
    transposed,
)
from ._bounds import l2_norm
from ._factor import Rank, inverse, thin_qr, thin_svd
from ._weights import SiteRoots, Weight, from_right, multiplied, on_middle, times

SiteShapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Factors:
    """``W' = left @ right``, the best of its rank r in the weighted norm.

    ``left`` is (I, r), ``right`` (r, J), ``spectrum`` (k,) all weighted Schmidt values; double precision.
    """

    left: Array
    right: Array
    spectrum: Array


def of_matrix(matrix: Array, weight: Weight, rank: Rank) -> Factors:
    """The best factors of a dense (I, J) matrix, of a rank that may depend on the spectrum."""
    rows, cols = map(multiplied, weight.roots(tuple(matrix.shape), matrix))
    matrix = double(matrix)
    if rows is not None and cols is not None:
        return _both_sides(matrix, rows, cols, rank)
    if rows is not None:
        return _transposed(_columns(*_isometry(transposed(matrix)), conj(rows), rank))
    return _columns(*_isometry(matrix), cols, rank)


def of_train(cores: Sequence[Array], weight: Weight, rank: Callable[[Array], int]) -> Factors:
    """The same of a low-rank train; the matrix is formed only where both sides are weighted."""
    cores = [double(core) for core in cores]
    left = cores[0].reshape(-1, cores[0].shape[2])  # (I, k)
    for core in cores[1:-1]:
        left = left @ core.reshape(core.shape[0], core.shape[2])
    right = cores[-1].reshape(cores[-1].shape[0], -1)  # (k, J)
    rows, cols = map(multiplied, weight.roots((left.shape[0], right.shape[1]), left))
    if rows is not None and cols is not None:
        bond = left.shape[1]  # no value beyond it is one of the train's
        best = _both_sides(left @ right, rows, cols, lambda spectrum: rank(spectrum[:bond]))
        return replace(best, spectrum=best.spectrum[:bond])
    if rows is not None:
        q, r = thin_qr(transposed(right))  # (J, k), (k, k)
        return _transposed(_columns(q, r @ transposed(left), conj(rows), rank))
    q, r = thin_qr(left)  # (I, k), (k, k)
    return _columns(q, r @ right, cols, rank)


def train(factors: Factors, order: int) -> list[Array]:
    """Their three-way cores: left, identities, right."""
    left, right = factors.left, factors.right
    identity = cast(like(np.eye(left.shape[1]), left), dtype_name(left))
    middle = [identity[:, None, :]] * (order - 2)
    return [left[None, :, :], *middle, right[:, :, None]]


# ---------------------------------------------------------------------------------------------------------------------
# Trains of any shape
# ---------------------------------------------------------------------------------------------------------------------


def absorb(cores: Sequence[Array], sites: SiteShapes, roots: SiteRoots) -> list[Array]:
    """The cores of ``A W B``: every site index multiplied by the roots of its metrics."""
    return [on_site(core, site, pair) for core, site, pair in zip(cores, sites, roots, strict=True)]


def bond_spectra(cores: Sequence[Array], sites: SiteShapes, roots: SiteRoots) -> list[np.ndarray]:
    """The Schmidt values of every bond of ``A W B``."""
    return [to_numpy(spectrum) for spectrum in _chain.schmidt(absorb(cores, sites, roots), 0)[1]]


def cut(cores: Sequence[Array], sites: SiteShapes, roots: SiteRoots, ranks: Sequence[int]) -> tuple[list[Array], float]:
    """Cut a train to ``ranks`` (with the boundary ones) in the weighted norm.

    Returns
    -------
    cores : in no gauge
    error : float
        ``||W - W'||_w``, exact: the discarded parts of the successive weighted residuals are orthogonal.
    """
    cores = list(cores)
    rights = _right_factors(absorb(cores, sites, roots))
    left_factor, discarded = rights[0] * 0 + 1, []  # (1, 1)
    for k in range(len(cores) - 1):
        #  ◌━◌━●━●━●      before bond k: the sites left of it are cut, ◌
        #  ◌━◌━◌━●━●      after: x went into site k, y into site k + 1
        left_factor = _extended(left_factor, on_site(cores[k], sites[k], roots[k]))  # (q, right)
        rank = ranks[k + 1]
        if rank == cores[k].shape[2]:
            continue
        x, y, spectrum = projector(left_factor, rights[k + 1], rank)
        discarded.append(l2_norm(to_numpy(spectrum[rank:])))
        cores[k : k + 2] = through(cores[k], x, y, cores[k + 1])
        left_factor = left_factor @ x
    return cores, l2_norm(np.array(discarded))


def projector(left_factor: Array, right_factor: Array, rank: int) -> tuple[Array, Array, Array]:
    """``x`` (old bond, rank) and ``y`` (rank, old bond) of a bond, and the spectrum that it has."""
    u, spectrum, rest = thin_svd(left_factor @ right_factor, rank)
    return _over(right_factor, rest, spectrum), adjoint(u) @ left_factor, spectrum


def through(core: Array, x: Array, y: Array, following: Array) -> list[Array]:
    """A core and the one right of it, ``x`` and ``y`` multiplied into the bond between them."""
    left, size, right = core.shape
    return [
        (core.reshape(left * size, right) @ x).reshape(left, size, -1),
        (y @ following.reshape(right, -1)).reshape(-1, following.shape[1], following.shape[2]),
    ]


def _extended(factor: Array, weighted: Array) -> Array:
    """The triangular factor of a part of a train and one core more."""
    unfolded = (factor @ weighted.reshape(weighted.shape[0], -1)).reshape(-1, weighted.shape[2])
    return thin_qr(unfolded)[1]


def _right_factors(weighted: Sequence[Array]) -> list[Array]:
    """``g`` of everything from site k on, (r_k, .), for k = 0 .. n."""
    factors = [weighted[0][:, :1, 0] * 0 + 1]  # (1, 1)
    for core in _chain.mirror(weighted):
        factors.append(_extended(factors[-1], core))
    return [transposed(factor) for factor in factors[::-1]]


def on_site(core: Array, site: tuple[int, ...], factors: tuple[Array | None, Array | None]) -> Array:
    """A three-way core with a factor applied to the row and the column index of its site."""
    left, _, right = core.shape
    rows, cols = site
    row_root, col_root = factors
    turned = core.reshape(left, rows, cols * right)
    if row_root is not None:
        turned = on_middle(row_root, turned)
    turned = turned.reshape(left * rows, cols, right)
    if col_root is not None:
        turned = on_middle(from_right(col_root), turned)
    return turned.reshape(left, rows * cols, right)


def _over(matrix: Array, rest: Array, spectrum: Array) -> Array:
    """``matrix rest^+``, with ``rest = s v^H`` of a cut bond; a value that is all rounding weighs nothing.

    In the derivative bonds turn (see ``_factor``), so that s alone would be wrong. The inverse is written as
    ``r^H (r r^H)^-1 / s`` with ``r = rest / s`` and s a constant: ``r r^H`` is 1, and its inverse moves as minus it.
    """
    kept = detach(spectrum[: rest.shape[0]])
    over = inverse(backend_of(kept, "spectrum"), kept, len(spectrum) * resolution(spectrum) * peak(kept))
    unit = over[:, None] * rest  # (r, n)
    product, gram = matrix @ adjoint(unit), unit @ adjoint(unit)
    return (product - product @ (gram - detach(gram))) * over[None, :]


# ---------------------------------------------------------------------------------------------------------------------
# Low-rank shapes
# ---------------------------------------------------------------------------------------------------------------------


def _isometry(matrix: Array) -> tuple[Array | None, Array]:
    """``matrix = isometry @ core`` with a core that is not taller than wide; None is the identity."""
    if matrix.shape[0] > matrix.shape[1]:
        return thin_qr(matrix)
    return None, matrix


def _columns(isometry: Array | None, core: Array, root: Array | None, rank: Rank) -> Factors:
    """The factors of ``isometry @ core`` where only columns are weighted: ``u u^H core``.

    The core is not taller than wide, so ``u`` is square and keeping every direction is exact,
    however singular the metric.
    """
    basis, spectrum, _ = thin_svd(times(None, core, root), rank)
    left = basis if isometry is None else isometry @ basis
    return Factors(left, adjoint(basis) @ core, spectrum)


def _transposed(factors: Factors) -> Factors:
    return Factors(transposed(factors.right), transposed(factors.left), factors.spectrum)


def _both_sides(matrix: Array, rows: Array, cols: Array, rank: Rank) -> Factors:
    weighted_rows, weighted_cols = times(rows, matrix, None), times(None, matrix, cols)
    basis, spectrum, rest = thin_svd(times(None, weighted_rows, cols), rank)  # rest = s v^H
    return Factors(_over(weighted_cols, rest, spectrum), adjoint(basis) @ weighted_rows, spectrum)
