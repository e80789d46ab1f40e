"""output_error, spectral_norm_bounds: how far an MPO is from a matrix, in norms that are not the cut's own.

The residual ``E = W - W'`` is never formed: it is a train where both are, and is applied to vectors elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.special

from . import _chain
from ._backend import (
    Array,
    adjoint,
    backend_of,
    cast,
    check_values,
    detach,
    device_of,
    double,
    dtype_name,
    like,
    to_numpy,
    transposed,
)
from ._bounds import l2_norm
from ._mpo import MPO, factored
from ._shapes import shown
from ._train import chain_of, check_train
from ._weighted import absorb
from ._weights import Weight, multiplied, site_roots

_BLOCK = 256  # columns that the residual is applied to at once

Matrix = MPO | Array


def output_error(W: Matrix, mpo: MPO, covariance: Any, *, relative: bool = False) -> float:
    """The root mean square of the change of a layer's output, ``sqrt(E ||(W - W') x||^2)``.

    Parameters
    ----------
    W : (I, J) array or MPO
    mpo : MPO
        ``W'``, of a matrix of the same shape, on the backend and device of ``W``.
    covariance : (J,) or (J, J) array, or tuple of n arrays
        ``C = E[x x^H]``, as the ``cols`` of a ``tnmpo.Weight``: a vector is its diagonal, a tuple one factor a site.
    relative : bool
        Over ``sqrt(E ||W x||^2)``; 0 where both are 0.

    Returns
    -------
    float
        ``sqrt(tr(E C E^H))`` with ``E = W - W'``, exact up to the rounding of double precision relative to ``W``.

    Raises
    ------
    ValueError, TypeError
        If the arguments do not fit, hold NaN, or ``covariance`` is none.

    Notes
    -----
    Two MPOs of the same sites and a tuple: the roots of the site covariances go into the cores of the difference, and a
    QR sweep gives the norm, O(sum_k d_k (r + s)^3); no array of the size of a side is formed. Else the root of ``C``
    goes through the residual, 256 columns at a time: the memory is that of ``C`` and 256 (I + J) numbers,
    the cost J applications.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> W = np.diag([3.0, 2.0, 1.0, 0.5])
    >>> mpo = tnmpo.mpo_decompose(W, tnmpo.MPOShape.low_rank((4, 4)), rank=2)  # drops 1 and 0.5
    >>> round(output_error(W, mpo, np.array([1.0, 1.0, 9.0, 16.0])), 12)  # sqrt(9 * 1^2 + 16 * 0.5^2)
    3.605551275464
    """
    residual = _Residual(W, mpo)
    with _naming_covariance():
        metric = Weight(cols=covariance)
        error = residual.norm(metric)
    if not relative or error == 0:
        return error
    size = _Residual(W, None).norm(metric)
    return error / size if size > 0 else math.inf


@contextmanager
def _naming_covariance() -> Iterator[None]:
    """What a weight says of its columns is here said of the argument that they came in as."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(re.sub("^Weight: cols:|^weight: cols", "covariance:", str(error))) from None


@dataclass(frozen=True)
class SpectralBounds:
    """Bounds of a spectral norm ``||E||_2``, the largest singular value.

    Attributes
    ----------
    lower : float
        ``||E v|| / ||v||`` of a vector that was found: always a lower bound.
    upper : float
        An upper bound, but for a probability of at most ``failure``.
    failure : float
        That probability, over the random vector the search began with. 0: ``upper`` is deterministic.
    frobenius : float
        ``||E||_F``, an upper bound without any chance in it. ``upper`` is never above it.
    products : int
        How many times ``E`` or its adjoint was applied to a vector to find ``lower`` and ``upper``.

    Notes
    -----
    All bounds are up to rounding, relative to the norms of the two matrices whose difference ``E`` is.
    """

    lower: float
    upper: float
    failure: float
    frobenius: float
    products: int


def spectral_norm_bounds(
    W: Matrix, mpo: MPO | None = None, *, gap: float = 0.05, failure: float = 1e-9, seed: int = 0
) -> SpectralBounds:
    """Bound the spectral norm of ``W - W'``, or of ``W``, from both sides without forming it.

    It is the worst case of the change of a layer's output: ``||(W - W') x|| <= ||W - W'||_2 ||x||``.

    Parameters
    ----------
    W : (I, J) array or MPO
    mpo : MPO, optional
        ``W'``, of a matrix of the same shape, on the backend and device of ``W``. None: the norm of ``W`` itself.
    gap : float
        ``upper / lower`` is at most ``1 + gap``.
    failure : float
        The probability, over the random start, that ``upper`` may be too low.
    seed : int
        Of the random start.

    Returns
    -------
    SpectralBounds

    Raises
    ------
    ValueError, TypeError
        If the matrices do not fit or hold NaN, or an option is out of its range.

    Notes
    -----
    k steps of Golub-Kahan-Lanczos from a vector v drawn uniformly from the sphere find the largest ``theta = ||E u||``
    of all unit vectors u of the Krylov space. With c the cosine between v and the first right singular vector,

        ||E||_2 <= theta cosh(arccosh(1 / c) / (2k - 1)),

    whatever the other singular values are: any polynomial of degree k - 1 gives a vector of the space, and a Chebyshev
    polynomial the worst case (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, section 4, who
    go on to an estimate of the probability; here it is exact). ``c^2`` follows a beta distribution that depends on the
    dimension n alone, so the c that is undercut with probability ``failure`` is known, and the number of steps for
    ``gap`` with it: 40 for n = 768 and the defaults. In a matrix of no more rows or columns than that the norm is
    computed, and ``failure`` is 0. The vectors are kept orthogonal. Cost: 2k applications, and one Frobenius norm (for
    an array, J applications).

    Examples
    --------
    >>> import numpy as np, tnmpo, tnmpo.random
    >>> A = tnmpo.random.mpo(((4, 8, 8), (8, 8, 4)), rank=6, seed=0)
    >>> bounds = spectral_norm_bounds(A)
    >>> exact = np.linalg.norm(A.to_matrix(), 2)
    >>> bool(bounds.lower <= exact * (1 + 1e-12)), bool(exact <= bounds.upper), bounds.failure  # rounding
    (True, True, 1e-09)
    """
    residual = _Residual(W, mpo)
    gap, failure = _check_open(gap, "gap", math.inf), _check_open(failure, "failure", 1.0)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed: got {shown(seed)}, expected an integer >= 0")
    frobenius = residual.norm(Weight())
    small = min(residual.shape)
    reach = math.acosh(1 / _smallest_cosine(small, residual.is_complex, failure))
    steps = math.ceil((reach / math.acosh(1 + gap) + 1) / 2)
    if steps >= small:
        exact = residual.largest()
        return SpectralBounds(exact, exact, 0.0, frobenius, small)
    lower = residual.krylov(steps, np.random.default_rng(int(seed)))
    upper = lower * math.cosh(reach / (2 * steps - 1))
    if frobenius <= upper:
        return SpectralBounds(min(lower, frobenius), frobenius, 0.0, frobenius, 2 * steps)
    return SpectralBounds(lower, upper, failure, frobenius, 2 * steps)


def _smallest_cosine(size: int, is_complex: bool, failure: float) -> float:
    """What the modulus of one coordinate of a random unit vector undercuts with that probability."""
    if size == 1:
        return 1.0
    # |v_1|^2 has the beta distribution of 1 of n coordinates, each of one or of two real Gaussians
    half = 1.0 if is_complex else 0.5
    return math.sqrt(float(scipy.special.betaincinv(half, half * (size - 1), failure)))


class _Residual:
    """``W - W'`` as what it does to vectors, in double precision."""

    def __init__(self, W: Any, mpo: Any) -> None:
        terms = [_check_matrix(W)] if mpo is None else [_check_matrix(W), check_train(mpo, "mpo", MPO)]
        if mpo is not None:
            _check_fit(*terms)
        self.shape = _shape(terms[0])
        self.kind = str(np.result_type(*(dtype_name(double(_first(term))) for term in terms)))
        self.is_complex = self.kind.startswith("complex")
        self.terms = [_wide(term, self.kind) for term in terms]
        self.where = _first(self.terms[0])

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """``E @ vectors``, of (J, k) columns."""
        return self._difference(self.terms, vectors)

    def adjoint(self, vectors: np.ndarray) -> np.ndarray:
        """``E^H @ vectors``, of (I, k) columns."""
        return self._difference([term.H if isinstance(term, MPO) else adjoint(term) for term in self.terms], vectors)

    def _difference(self, terms: list[Matrix], vectors: np.ndarray) -> np.ndarray:
        columns = cast(like(vectors, self.where), self.kind)
        image, *others = [to_numpy(_product(term, columns)) for term in terms]
        return image - others[0] if others else image

    def norm(self, weight: Weight) -> float:
        """``||E||_w``, of a weight on the columns."""
        if len(self.terms) == 1 and not isinstance(self.terms[0], MPO):
            return weight.norm(self.terms[0])
        trains = [term for term in self.terms if isinstance(term, MPO)]
        if len(trains) == len(self.terms) and trains[0].shape == trains[-1].shape:
            sites = trains[0].frame.site_shapes
            roots, is_product = site_roots(weight, trains[0].shape, self.where)
            if is_product:
                chains = [absorb(chain_of(train), sites, roots) for train in trains]
                return _chain.distance(*chains) if len(chains) == 2 else _chain.norm(chains[0])
        root = multiplied(weight.roots(self.shape, self.where)[1])
        blocks = _columns(None if root is None else to_numpy(root), self.shape[1])
        return l2_norm(np.array([l2_norm(self(block)) for block in blocks]))

    def largest(self) -> float:
        """The spectral norm, by forming the matrix: for one with a short side."""
        rows, cols = self.shape
        return _largest(self(np.eye(cols)) if cols <= rows else self.adjoint(np.eye(rows)))

    def krylov(self, steps: int, rng: np.random.Generator) -> float:
        """The largest ``||E u||`` of the unit vectors u in a Krylov space of E^H E (or E E^H) of that dimension."""
        forward, backward = (self, self.adjoint) if self.shape[1] <= self.shape[0] else (self.adjoint, self)
        size = min(self.shape)
        start = rng.normal(size=(size, 1)) + (1j * rng.normal(size=(size, 1)) if self.is_complex else 0)
        images: list[np.ndarray] = []
        basis = np.zeros((size, 0))
        vector = _outside(start, basis)
        while len(images) < steps and vector is not None:
            basis = np.hstack([basis, vector])
            images.append(forward(vector))
            # E^H E v but for its length, which may be beyond the range of squares
            length = l2_norm(images[-1])
            vector = _outside(backward(images[-1] / length), basis) if length > 0 else None
        image = np.hstack(images)
        largest = float(np.max(np.abs(image)))
        if largest == 0:
            return 0.0
        best = np.linalg.svd(image / largest, full_matrices=False)[2][:1].conj().T
        return l2_norm(image @ best) / l2_norm(basis @ best)  # the quotient of one vector, whatever rounding did before


def _outside(vector: np.ndarray, basis: np.ndarray) -> np.ndarray | None:
    """The unit vector of the part of ``vector`` that is orthogonal to the basis; None where there is none.

    Each pass of Gram-Schmidt is exact relative to the vector it began with, so one that took off little was the last.
    """
    for _ in range(5):
        length = l2_norm(vector)
        if length == 0:
            return None
        unit = vector / length
        vector = unit - basis @ (basis.conj().T @ unit)
        if l2_norm(vector) > 0.7:
            return vector / l2_norm(vector)
    return None


def _largest(matrix: np.ndarray) -> float:
    """The largest singular value, at any scale."""
    peak = float(np.max(np.abs(matrix)))
    return peak * float(np.linalg.norm(matrix / peak, 2)) if peak > 0 else 0.0


def _columns(root: np.ndarray | None, size: int) -> Iterator[np.ndarray]:
    """The columns of a root, a vector being a diagonal and None the identity, some at a time."""
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        if root is not None and root.ndim == 2:
            yield root[:, start:stop]
            continue
        block = np.zeros((size, stop - start))
        block[np.arange(start, stop), np.arange(stop - start)] = 1.0 if root is None else root[start:stop]
        yield block


def _product(term: Matrix, columns: Array) -> Array:
    if isinstance(term, MPO):
        return transposed(factored(term, transposed(columns)))
    return term @ columns


def _wide(term: Matrix, kind: str) -> Matrix:
    """In double precision; a train with its scale spread over the cores, so that no product on the way overflows."""
    if not isinstance(term, MPO):
        return cast(term, kind)
    cores, exponent = _chain.all_around_one([cast(core, kind) for core in term.cores])
    return MPO(_chain.spread(cores, exponent))


def _first(term: Matrix) -> Array:
    return term.cores[0] if isinstance(term, MPO) else term


def _shape(term: Matrix) -> tuple[int, int]:
    rows, cols = term.matrix_shape if isinstance(term, MPO) else term.shape
    return int(rows), int(cols)


def _check_matrix(W: Any) -> Matrix:
    if isinstance(W, MPO):
        return check_train(W, "W")
    backend_of(W, "W")
    if len(W.shape) != 2:
        raise ValueError(f"W: got {len(W.shape)} axes, expected a matrix or a tnmpo.MPO; reshape it to two")
    check_values(W, "W")
    return detach(W)


def _check_fit(W: Matrix, mpo: MPO) -> None:
    """Refuse two matrices of different shapes, backends or devices; the precisions may differ."""
    if _shape(W) != _shape(mpo):
        raise ValueError(f"mpo: got a {_shape(mpo)} matrix, expected {_shape(W)} as of W; pass an MPO of W")
    got, expected = (
        f"{backend_of(array, 'W').backend_name} on {device_of(array)}" for array in (mpo.cores[0], _first(W))
    )
    if got != expected:
        raise TypeError(f"mpo: got {got}, expected {expected} as W; convert them to one backend and device")


def _check_open(value: Any, argument: str, end: float) -> float:
    """A real number strictly between 0 and ``end``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < end:
        raise ValueError(f"{argument}: got {shown(value)}, expected a number above 0 and below {end:g}")
    return float(value)
