"""The two factorisations everything rests on: they do not fail, and they can be differentiated.

Both split a matrix at a bond, ``matrix = basis @ rest`` with orthonormal columns in ``basis``. What is built from them
does not change when the bond is turned, ``basis Q`` and ``Q^H rest``. Their derivative may therefore choose how the
bond turns as the matrix changes, and chooses not at all, ``basis^H d basis = 0``. Then no gap between two *kept*
values is divided by, nor one between two *dropped* values: results that do not depend on the gauge have finite, right
derivatives with degenerate and zero values anywhere but across the cut, where the result itself has none.

With ``matrix = u s v^H``, K the kept and D the dropped directions, and f = s v^H,

    d basis = u_D x + (1 - u u^H) dA v_K / s_K,    x_ji = (u_j^H dA f_i^H + f_j dA^H u_i) / (s_i^2 - s_j^2)
    d rest  = u_K^H dA + x^H f_D
    d s_i   = Re(u_i^H dA v_i)

whose adjoint is ``_svd_adjoint``. The factorisation itself runs outside the backend's differentiation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg

from ._backend import (
    Array,
    Backend,
    adjoint,
    all_finite,
    as_numpy,
    backend_of,
    cast,
    double,
    dtype_name,
    is_jax,
    is_jax_tracer,
    like,
    peak,
    real_dtype,
    resolution,
)

_ONLY_FIRST = "gradient: got a second derivative of a decomposition, expected a first one; no others exist"

Split = tuple[Array, Array, Array]  # basis, spectrum, rest
_STEEPEST = 1e-4  # of the largest value: below, a Gram matrix in double precision is not enough for a tall matrix

Rank = int | Callable[[Array], int] | None  # a number, or what chooses it from the spectrum; None is all


def thin_svd(matrix: Array, rank: Rank = None) -> Split:
    """Split ``matrix = basis @ rest`` with ``basis`` the left singular vectors.

    Parameters
    ----------
    matrix : (m, n) array
    rank : int or function of the spectrum, optional
        Keep so many directions; by default all ``k = min(m, n)``. Whoever keeps fewer says so here: the derivative of
        all directions is not that of some of them.

    Returns
    -------
    basis : (m, rank) array with orthonormal columns
    spectrum : (k,) real array, descending: all of the singular values
    rest : (rank, n) array, ``basis^H matrix``, i.e. the singular values times the right vectors

    Raises
    ------
    numpy.linalg.LinAlgError
        If no driver converges.

    Notes
    -----
    A wide matrix needs no SVD of its long side. In single precision the basis comes from the Gram
    matrix in double precision, whose relative floor of 1e-8 is below what single precision can
    tell; in double precision from the R factor of a QR. Either way ``rest`` is one product. A tall matrix likewise,
    where its values span less than four decades. Cost: O(m n min(m, n)).
    """
    if is_jax_tracer(matrix):
        return _jax_functions()[0](matrix, rank)
    if getattr(matrix, "requires_grad", False):
        return _torch_functions()[0].apply(matrix, rank)
    return _kept(_split(matrix), rank)


def thin_qr(matrix: Array) -> tuple[Array, Array]:
    """``matrix = q @ r`` with orthonormal columns in ``q``, at any scale of the entries.

    ``r`` is triangular where a QR made it; of a tall matrix in single precision see ``thin_svd``.
    """
    if is_jax_tracer(matrix):
        return _jax_functions()[1](matrix)
    if getattr(matrix, "requires_grad", False):
        return _torch_functions()[1].apply(matrix)
    return _qr(matrix)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put ``what`` before the message of a factorisation that fails: only the caller knows whose matrix it is."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        error.args = (f"{what}: {error}",)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The factorisations
# ---------------------------------------------------------------------------------------------------------------------


def _split(given: Array) -> Split:
    matrix, scale = _factorable(given)
    backend = backend_of(matrix, "matrix")
    rows, columns = matrix.shape
    if columns >= 2 * rows:
        basis, spectrum = _left_vectors(backend, matrix)
        rest = adjoint(basis) @ matrix
    elif rows >= 2 * columns:
        basis, spectrum, rest = _right_vectors(backend, matrix) or _by_qr(backend, matrix)
    else:
        basis, spectrum, vh = svd(backend, matrix)
        rest = spectrum[:, None] * vh
    name = dtype_name(given)
    spectrum = cast(spectrum * scale, real_dtype(name))
    return like(cast(basis, name), given), like(spectrum, given), like(cast(rest * scale, name), given)


def _by_qr(backend: Backend, matrix: Array) -> Split:
    """The parts of a tall matrix by way of its R factor."""
    q, r = qr(backend, matrix)  # (m, n), (n, n)
    u, spectrum, vh = svd(backend, r)
    return q @ u, spectrum, spectrum[:, None] * vh


def _kept(parts: Split, rank: Rank) -> Split:
    basis, spectrum, rest = parts
    rank = rank(spectrum) if callable(rank) else rank
    return basis[:, :rank], spectrum, rest[:rank]


def _qr(given: Array) -> tuple[Array, Array]:
    name = dtype_name(given)
    matrix, scale = _factorable(given)
    backend = backend_of(matrix, "matrix")
    parts = _right_vectors(backend, matrix) if matrix.shape[0] >= 2 * matrix.shape[1] else None
    q, r = (parts[0], parts[2]) if parts is not None else qr(backend, matrix)
    return like(cast(q, name), given), like(cast(r * scale, name), given)


def _factorable(matrix: Array) -> tuple[Array, float]:
    """``matrix / scale`` as LAPACK can take it, and the scale.

    Entries are brought around 1, by a power of two so that nothing is rounded: factorisations sum squares. Single
    precision complex becomes double: there torch's QR (MKL) returns NaN for some matrices of dependent columns. And
    jax on the CPU hands over to numpy: LAPACK is the same, but jax would compile for every new shape.
    """
    if is_jax(matrix) and all(device.platform == "cpu" for device in matrix.devices()):
        matrix = as_numpy(matrix)
    if dtype_name(matrix) == "complex64":
        matrix = double(matrix)
    largest = peak(matrix)
    if largest == 0 or 1e-6 < largest < 1e6 or not math.isfinite(largest):
        return matrix, 1.0
    scale = max(math.ldexp(1.0, math.frexp(largest)[1] - 1), float(np.finfo(dtype_name(matrix)).tiny))
    return matrix / scale, scale


def _left_vectors(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """All left singular vectors (m, m) and values (m,) of a wide matrix."""
    name = dtype_name(matrix)
    wide = double(matrix)
    if dtype_name(wide) != name:
        gram = _attempt(lambda: backend.eigh(wide @ adjoint(wide)))  # ascending
        if gram is not None:
            values, vectors = gram
            spectrum = backend.sqrt(backend.clip(backend.flip(values), 0.0))
            return cast(backend.flip(vectors, axis=1), name), cast(spectrum, real_dtype(name))
    _, r = qr(backend, adjoint(matrix))  # (m, m): matrix = r^H q^H
    u, spectrum, _ = svd(backend, adjoint(r))
    return u, spectrum


def _right_vectors(backend: Backend, matrix: Array) -> Split | None:
    """The parts of a tall single precision matrix through its Gram matrix; None where that would cost orthogonality.

    In double precision the columns of ``M v / s`` are orthonormal to ``eps (s_1 / s_n)^2``.
    """
    name, wide = dtype_name(matrix), double(matrix)
    if dtype_name(wide) == name:
        return None
    gram = _attempt(lambda: backend.eigh(adjoint(wide) @ wide))  # ascending
    if gram is None:
        return None
    values, vectors = backend.flip(gram[0]), backend.flip(gram[1], axis=1)
    extremes = float(as_numpy(values[:1])[0]), float(as_numpy(values[-1:])[0])
    if not extremes[1] > _STEEPEST**2 * extremes[0] > 0:
        return None
    spectrum = backend.sqrt(values)
    basis, rest = wide @ (vectors / spectrum[None, :]), spectrum[:, None] * adjoint(vectors)
    return cast(basis, name), cast(spectrum, real_dtype(name)), cast(rest, name)


def svd(backend: Backend, matrix: Array) -> tuple[Array, Array, Array]:
    """The thin SVD ``u, s, v^H``, by the first of several drivers that converges.

    The backend's own; LAPACK's slower, safer driver; that after a QR; that in double precision. The last three run on
    the CPU.

    Raises
    ------
    numpy.linalg.LinAlgError
        If none does. The caller knows whose matrix it is and says so.
    """

    def drivers() -> Iterator[Callable[[], tuple[Array, ...]]]:
        yield lambda: backend.svd(matrix, full_matrices=False)
        host = as_numpy(matrix)
        yield lambda: _gesvd(host)
        yield lambda: _gesvd_of_triangle(host)
        yield lambda: _gesvd_of_triangle(double(host))

    u, s, vh = _first_of(
        drivers(), matrix, "svd", "the backend's own, gesvd, gesvd after QR, gesvd in double precision"
    )
    name = dtype_name(matrix)
    return cast(u, name), cast(s, real_dtype(name)), cast(vh, name)


def qr(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """The thin QR ``q, r``, by the backend, else by LAPACK on the CPU, at last in double precision.

    A QR always ends, but torch's (MKL) has returned NaN for finite matrices of dependent columns.
    """

    def drivers() -> Iterator[Callable[[], tuple[Array, ...]]]:
        yield lambda: backend.qr(matrix)
        host = as_numpy(matrix)
        yield lambda: scipy.linalg.qr(host, mode="economic")
        yield lambda: scipy.linalg.qr(double(host), mode="economic")

    q, r = _first_of(drivers(), matrix, "qr", "the backend's own, geqrf, geqrf in double precision")
    return cast(q, dtype_name(matrix)), cast(r, dtype_name(matrix))


def eigh(backend: Backend, matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a Hermitian matrix, by the backend, else by LAPACK's QR iteration."""

    def drivers() -> Iterator[Callable[[], tuple[Array, ...]]]:
        yield lambda: backend.eigh(matrix)
        host = as_numpy(matrix)
        yield lambda: scipy.linalg.eigh(host, driver="ev")

    values, vectors = _first_of(drivers(), matrix, "eigh", "the backend's own, syev on the CPU")
    return values, vectors


def _first_of(
    drivers: Iterator[Callable[[], tuple[Array, ...]]], matrix: Array, name: str, tried: str
) -> Iterator[Array]:
    """What the first driver that does not fail returns, on the backend and device of ``matrix``."""
    for driver in drivers:
        parts = _attempt(driver)
        if parts is not None:
            return (like(part, matrix) for part in parts)
    rows, columns = matrix.shape
    raise np.linalg.LinAlgError(
        f"{name}: a {rows} x {columns} {dtype_name(matrix)} matrix with entries up to {peak(matrix):.3g} did not "
        f"converge with any driver ({tried}); add a little noise to it"
    )


def _gesvd(host: np.ndarray) -> tuple[Array, ...]:
    return scipy.linalg.svd(host, full_matrices=False, lapack_driver="gesvd")


def _gesvd_of_triangle(host: np.ndarray) -> tuple[Array, ...]:
    q, r = scipy.linalg.qr(host, mode="economic")
    u, s, vh = _gesvd(r)
    return q @ u, s, vh


def _attempt(driver: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...] | None:
    """What a driver returns, or None where it fails, by an error or by NaN."""
    try:
        parts = driver()
    except Exception as error:
        if "LinAlgError" not in type(error).__name__:  # numpy's, scipy's and torch's share no class
            raise
        return None
    return parts if all(all_finite(part) for part in parts) else None


# ---------------------------------------------------------------------------------------------------------------------
# Their adjoints
# ---------------------------------------------------------------------------------------------------------------------


def _svd_adjoint(parts: Sequence[Array], from_basis: Array, from_spectrum: Array, from_rest: Array) -> Array:
    """The gradient for the matrix, from those for the kept basis, the whole spectrum and the kept rest.

    Every gradient g is the one for which ``d loss = Re <g, d value>``.
    """
    u, s, f = parts  # all of them, (m, k), (k,), (k, n)
    rank = from_basis.shape[1]
    backend = backend_of(u, "matrix")
    unit = s[0] if peak(s[:1]) > 0 else s[0] + 1
    s, f = s / unit, f / unit  # squares are taken: at any scale they stay in range
    floor = _floor(s)
    per_value = from_spectrum * inverse(backend, s, floor)
    gradient = u[:, :rank] @ from_rest + u @ (per_value[:, None] * f)
    if rank < len(s):
        differences, sums = s[None, :rank] - s[rank:, None], s[None, :rank] + s[rank:, None]
        y = adjoint(u[:, rank:]) @ from_basis / unit + f[rank:] @ adjoint(from_rest)
        y = y * inverse(backend, differences, floor) * inverse(backend, sums, floor)
        gradient = gradient + u[:, rank:] @ (y @ f[:rank]) + u[:, :rank] @ (adjoint(y) @ f[rank:])
    if u.shape[0] > len(s):
        outside = from_basis - u @ (adjoint(u) @ from_basis)
        kept = inverse(backend, s[:rank], floor)
        gradient = gradient + outside @ ((kept**2 / unit)[:, None] * f[:rank])
        used = int((as_numpy(s[:rank]) > floor).sum())
        _warn_of_loss(from_rest[used:], f[:used] / s[:used, None], peak(from_rest))
    return gradient


def _qr_adjoint(q: Array, r: Array, from_q: Array, from_r: Array) -> Array:
    """The same for ``matrix = q r``: ``d q = (1 - q q^H) dA r^-1`` and ``d r = q^H dA``."""
    gradient = q @ from_r
    if q.shape[0] > q.shape[1]:
        triangle, scale = _factorable(r)
        u, s, vh = svd(backend_of(triangle, "matrix"), triangle)
        floor = _floor(cast(s, real_dtype(dtype_name(r)))) * peak(s[:1])
        over = inverse(backend_of(s, "matrix"), s, floor)
        pseudo = like(cast((u * over[None, :]) @ vh, dtype_name(r)), r) / scale  # r^-H
        outside = from_q - q @ (adjoint(q) @ from_q)
        gradient = gradient + outside @ pseudo
        used = int((as_numpy(s) > floor).sum())
        u, vh = like(cast(u, dtype_name(r)), r), like(cast(vh, dtype_name(r)), r)
        _warn_of_loss(adjoint(u[:, used:]) @ from_r, vh[:used], peak(from_r))
    return gradient


def _warn_of_loss(from_rest: Array, right: Array, scale: float) -> None:
    """Say so where a derivative is incomplete.

    ``from_rest`` is the gradient for the rows of ``rest`` that are zero, ``right`` the orthonormal rows of the others.
    Opposite a zero row the direction of ``basis`` is any one, but a definite one as soon as something enters the row.
    No derivative of ``basis`` leads there; a result that sees what enters the row sees this too.
    """
    if 0 in from_rest.shape:
        return
    beyond = from_rest - (from_rest @ adjoint(right)) @ right
    if peak(beyond) > 1e4 * resolution(beyond) * scale:
        used, bond = right.shape[0], right.shape[0] + from_rest.shape[0]
        warnings.warn(
            f"gradient: got a bond of dimension {bond} with {used} nonzero Schmidt values, expected no superfluous "
            "direction; the derivative towards new directions is incomplete: cut the bond first, move the center, or "
            "add noise of 1e-8 of the norm",
            RuntimeWarning,
            stacklevel=2,
        )


def _floor(spectrum: Array) -> float:
    """What is within rounding of zero, or of each other, relative to the largest value, after a handful of sweeps."""
    return (16 + len(spectrum)) * resolution(spectrum)


def inverse(backend: Backend, values: Array, floor: float) -> Array:
    """``1 / values`` of values >= 0, and 0 for what is within the rounding of 0."""
    resolved = values > floor
    return backend.where(resolved, 1 / backend.where(resolved, values, values * 0 + 1), values * 0)


@cache
def _torch_functions() -> tuple[Any, Any]:
    """The factorisations as ``torch.autograd.Function``s, defined once torch is there."""
    import torch  # a tensor of it has come in: it is imported already

    class Once(torch.autograd.Function):
        """The gradient, as a function of what it was computed from, so that its own derivative is refused."""

        @staticmethod
        def forward(ctx: Any, gradient: Array, *_: Array) -> Array:
            return gradient.clone()  # what is given back as it came would not be tracked

        @staticmethod
        def backward(ctx: Any, *_: Array) -> Array:
            raise NotImplementedError(_ONLY_FIRST)

    class ThinSVD(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, matrix: Array, rank: Rank) -> tuple[Array, ...]:
            parts = _split(matrix)
            ctx.save_for_backward(matrix, *parts)
            # copies: an output must not be what is saved, or a view of it
            return tuple(part.clone() for part in _kept(parts, rank))

        @staticmethod
        def backward(ctx: Any, *gradients: Array) -> tuple[Array | None, ...]:
            matrix, *parts = ctx.saved_tensors
            with torch.no_grad():
                gradient = _svd_adjoint(parts, *gradients)
            return Once.apply(gradient, matrix, *gradients), None

    class ThinQR(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, matrix: Array) -> tuple[Array, Array]:
            q, r = _qr(matrix)
            ctx.save_for_backward(matrix, q, r)
            return q.clone(), r.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Array) -> Array:
            matrix, q, r = ctx.saved_tensors
            with torch.no_grad():
                gradient = _qr_adjoint(q, r, *gradients)
            return Once.apply(gradient, matrix, *gradients)

    return ThinSVD, ThinQR


@cache
def _jax_functions() -> tuple[Any, Any]:
    """The factorisations with their adjoints for ``jax.grad``, defined once jax is there.

    jax's gradients are the complex conjugates of those here.
    """
    import jax  # an array of it has come in: it is imported already

    def concrete(matrix: Array) -> Array:
        if is_jax_tracer(matrix):
            raise NotImplementedError(_ONLY_FIRST)
        return matrix

    def conjugated(gradient: Array) -> Array:
        return gradient.conj() if "complex" in dtype_name(gradient) else gradient

    def thin_svd(matrix: Array, rank: Rank) -> Split:
        return forward_svd(matrix, rank)[0]

    def forward_svd(matrix: Array, rank: Rank) -> tuple[Split, Split]:
        parts = _split(concrete(matrix))
        return _kept(parts, rank), parts

    def backward_svd(_: Rank, parts: Split, gradients: Split) -> tuple[Array]:
        return (conjugated(_svd_adjoint(parts, *map(conjugated, gradients))),)

    def thin_qr(matrix: Array) -> tuple[Array, Array]:
        return forward_qr(matrix)[0]

    def forward_qr(matrix: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        q, r = _qr(concrete(matrix))
        return (q, r), (q, r)

    def backward_qr(parts: tuple[Array, Array], gradients: tuple[Array, Array]) -> tuple[Array]:
        q, r = parts
        from_q, from_r = gradients
        return (conjugated(_qr_adjoint(q, r, conjugated(from_q), conjugated(from_r))),)

    split = jax.custom_vjp(thin_svd, nondiff_argnums=(1,))
    split.defvjp(forward_svd, backward_svd)
    orthogonal = jax.custom_vjp(thin_qr)
    orthogonal.defvjp(forward_qr, backward_qr)
    return split, orthogonal
