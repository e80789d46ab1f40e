"""Schmidt spectra of the bonds of a train, and what is read from them: entropies, effective ranks, gaps.

Of an MPO these are the operator entanglements: with the Frobenius inner product a matrix is a state of ``n`` sites of
dimension ``i_k j_k`` each (Zanardi, PRA 63, 040304(R), 2001; Prosen and Pizorn, PRA 76, 032316, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from . import _chain
from ._backend import (
    Array,
    Backend,
    as_numpy,
    backend_of,
    cast,
    check_values,
    double,
    dtype_name,
    peak,
    resolution,
    working,
)
from ._factor import naming
from ._train import Train, chain_of, check_train

Measure = Callable[[Backend, Array], Array]  # of a spectrum, computed in double precision


def bond_spectra(train: Train) -> list[Array]:
    """The Schmidt values of every inner bond, descending, never weighted.

    Parameters
    ----------
    train : MPO or TT

    Returns
    -------
    list of n - 1 arrays, the k-th of shape (r_k,)
        On the cores' backend and device; empty for order 1. The squares of each sum to the squared Frobenius norm.

    Raises
    ------
    ValueError, TypeError
        If ``train`` is none or holds NaN, or its norm is beyond the dtype. What is read from spectra is not: entropies
        are of the train as a normalised state.

    Notes
    -----
    One sweep of QR, one of SVDs: O(sum_k d_k r^3); the dense array is never formed.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.MPO([np.eye(4).reshape(1, 4, 1, 4), np.diag([3.0, 2, 1, 0]).reshape(4, 1, 4, 1)])
    >>> [spectrum.round(12).tolist() for spectrum in bond_spectra(mpo)]
    [[3.0, 2.0, 1.0, 0.0]]
    """
    cores = chain_of(check_train(train))
    with naming("train"):
        return _chain.schmidt(cores, 0)[1]


def relative_spectra(train: Train) -> list[Array]:
    """The spectra up to a factor, the same for all: those of a train whose norm no number can hold, too."""
    cores = chain_of(check_train(train))
    with naming("train"):
        return _chain.spectra_around_one(cores)


def entanglement_entropy(train_or_spectrum: Train | Array, alpha: float = 1) -> Any:
    """The entanglement entropy of every bond, or of one spectrum, in nats.

    With ``p = s^2 / sum s^2`` the von Neumann entropy ``-sum p ln p`` for alpha = 1, else the Rényi entropy
    ``ln(sum p^alpha) / (1 - alpha)``: ``ln`` of the number of nonzero values for alpha = 0, ``-ln max p`` for infinity.

    Parameters
    ----------
    train_or_spectrum : MPO, TT or (r,) array
        The Schmidt values themselves, not their squares, in any order. Those in ``mpo.truncation.spectra`` are of the
        norm that was cut in, weighted or not; those of a train are of the unweighted norm.
    alpha : float
        At least 0.

    Returns
    -------
    list of n - 1 scalars for a train, one scalar for a spectrum
        Between 0 and ln r; 0 for an all-zero spectrum.

    Raises
    ------
    ValueError, TypeError
        If the spectrum is not one-dimensional or has a negative entry, or alpha is negative.

    Notes
    -----
    For alpha < 1 values below ``(16 + r) eps s_1`` are taken for zeros, with eps the resolution of the dtype: such
    orders count directions that are hardly there, and would count what rounding leaves of a zero as one.

    Differentiable in the entries of a train, degenerate and zero Schmidt values included, for alpha >= 1; below 1 the
    entropy itself has no derivative where a value is zero, and such values then count as constant.

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.isclose(entanglement_entropy(np.ones(8)), np.log(8)))
    True
    >>> round(float(entanglement_entropy(np.array([1.0, 0.1]), alpha=2)), 4)
    0.0198
    """
    alpha = check_alpha(alpha)
    return _of_each(train_or_spectrum, lambda backend, spectrum: entropy_of(backend, spectrum, alpha))


def effective_rank(train_or_spectrum: Train | Array, alpha: float = 1) -> Any:
    """The number of directions that a bond effectively uses: ``exp`` of its entanglement entropy.

    Parameters
    ----------
    train_or_spectrum, alpha
        As for ``tnmpo.entanglement_entropy``.

    Returns
    -------
    list of n - 1 scalars for a train, one scalar for a spectrum
        Between 1 and r: 1 for a product, r where all r values are equal. 1 for an all-zero spectrum.

    Raises
    ------
    ValueError, TypeError
        As for ``tnmpo.entanglement_entropy``.

    Notes
    -----
    For alpha = 1 of the *squared* values; Roy and Vetterli's effective rank (EUSIPCO 2007) is that of the values. For
    alpha = 2 the inverse participation ratio ``1 / sum p^2``, for infinity the stable rank ``||W||_F^2 / ||W||_2^2``.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(effective_rank(np.ones(8))), 12)
    8.0
    >>> round(float(effective_rank(np.array([2.0, 1.0, 1.0]), alpha=float("inf"))), 12)
    1.5
    """
    alpha = check_alpha(alpha)
    return _of_each(train_or_spectrum, lambda backend, spectrum: backend.exp(entropy_of(backend, spectrum, alpha)))


def entropy_deficit(train_or_spectrum: Train | Array, alpha: float = 1) -> Any:
    """How far the entanglement entropy is below its ceiling, ``ln r - S``, in nats.

    Parameters
    ----------
    train_or_spectrum, alpha
        As for ``tnmpo.entanglement_entropy``; r is the number of values of the spectrum, zeros included.

    Returns
    -------
    list of n - 1 scalars for a train, one scalar for a spectrum
        Between 0, where all values are equal and no cut is cheap, and ln r.

    Raises
    ------
    ValueError, TypeError
        As for ``tnmpo.entanglement_entropy``.

    Notes
    -----
    For alpha = 1 the relative entropy of ``p`` to the uniform distribution on r directions.

    Examples
    --------
    >>> import numpy as np
    >>> float(entropy_deficit(np.ones(8)))
    0.0
    >>> bool(np.isclose(entropy_deficit(np.array([1.0, 0, 0, 0])), np.log(4)))
    True
    """
    alpha = check_alpha(alpha)

    def deficit(backend: Backend, spectrum: Array) -> Array:
        return backend.clip(math.log(len(spectrum)) - entropy_of(backend, spectrum, alpha), 0.0)

    return _of_each(train_or_spectrum, deficit)


def schmidt_gap(train_or_spectrum: Train | Array) -> Any:
    """The difference ``p_1 - p_2`` of the two largest eigenvalues of the reduced density matrix.

    Parameters
    ----------
    train_or_spectrum : MPO, TT or (r,) array
        As for ``tnmpo.entanglement_entropy``; ``p = s^2 / sum s^2``.

    Returns
    -------
    list of n - 1 scalars for a train, one scalar for a spectrum
        Between 0, where the two are degenerate, and 1, for a product. 0 for an all-zero spectrum.

    Raises
    ------
    ValueError, TypeError
        If the spectrum is not one-dimensional or has a negative entry.

    Notes
    -----
    De Chiara, Lepori, Lewenstein and Sanpera, Phys. Rev. Lett. 109, 237208 (2012). It has a kink where the second value
    meets the first or the third; the derivative there is one of those on the two sides, or between them.

    Examples
    --------
    >>> import numpy as np
    >>> round(float(schmidt_gap(np.array([2.0, 1.0, 1.0]))), 12)
    0.5
    """
    return _of_each(train_or_spectrum, _gap)


def check_alpha(alpha: Any) -> float:
    """``alpha`` as the order of an entropy."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or math.isnan(alpha):
        raise TypeError(f"alpha: got {alpha!r}, expected a number >= 0")
    if alpha < 0:
        raise ValueError(f"alpha: got {alpha}, expected a number >= 0")
    return float(alpha)


def entropy_of(backend: Backend, spectrum: Array, alpha: float) -> Array:
    """The entropy of Schmidt values, in double precision."""
    rounding = (16 + len(spectrum)) * resolution(spectrum)  # what some sweeps leave of a zero
    spectrum = double(spectrum)
    largest = backend.max(spectrum)
    if peak(largest) == 0:
        return 0 * largest
    values = spectrum / largest
    # 0 ln 0 = 0, and a zero is no direction
    values = values[np.flatnonzero(as_numpy(values) > (rounding if alpha < 1 else 0))]
    weights = values**2  # squared: the entropy is of the Schmidt weights
    total = backend.sum(weights)
    excess = alpha - 1
    if excess == 0:
        entropy = backend.log(total) - 2 * backend.sum(weights * backend.log(values)) / total
    elif abs(excess) < 1e-3:
        # ln(sum p p^excess) = ln(1 + y), y = sum p (p^excess - 1), without a difference of nearby numbers:
        # e^x - 1 = tanh(x/2) (e^x + 1) and ln(1 + y) = 2 artanh(y / (2 + y))
        x = excess * (2 * backend.log(values) - backend.log(total))
        y = backend.sum(weights * backend.tanh(x / 2) * (backend.exp(x) + 1)) / total
        entropy = -2 * backend.arctanh(y / (2 + y)) / excess
    elif alpha == math.inf:
        entropy = backend.log(total)
    else:
        # ln(sum p^alpha) with p = weights / total: the largest weight is 1, so that no sum of powers vanishes
        powers = values ** (2 * alpha)
        entropy = (backend.log(backend.sum(powers)) - alpha * backend.log(total)) / (1 - alpha)
    return backend.clip(entropy, 0.0)  # a product state's may come out as -0.0


def _gap(backend: Backend, spectrum: Array) -> Array:
    largest = backend.max(spectrum)
    if peak(largest) == 0:
        return 0 * largest
    weights = (double(spectrum) / double(largest)) ** 2
    total = backend.sum(weights)
    first, *others = np.argsort(-as_numpy(weights), kind="stable")[:2].tolist()
    return (weights[first] - sum(weights[second] for second in others)) / total


def _of_each(train_or_spectrum: Train | Array, measure: Measure) -> Any:
    """The measure of every bond of a train, or of the one spectrum, in the dtype of the spectra."""
    if isinstance(train_or_spectrum, Train):
        return [_measured(spectrum, measure) for spectrum in relative_spectra(train_or_spectrum)]
    return _measured(working(check_spectrum(train_or_spectrum)), measure)


def _measured(spectrum: Array, measure: Measure) -> Array:
    return cast(measure(backend_of(spectrum, "spectrum"), spectrum), dtype_name(spectrum))


def check_spectrum(spectrum: Array) -> Array:
    if isinstance(spectrum, list | tuple):
        raise TypeError(
            f"spectrum: got {type(spectrum).__name__}, expected a numpy array, a torch tensor or a jax array, the "
            "values of one bond; tnmpo.entanglement_profile takes the spectra of all"
        )
    backend_of(spectrum, "spectrum")
    check_values(spectrum, "spectrum")
    if spectrum.ndim != 1:
        raise ValueError(f"spectrum: got {spectrum.ndim} axes, expected one; for a matrix decompose it first")
    if "complex" in dtype_name(spectrum):
        raise TypeError("spectrum: got complex numbers, expected Schmidt values >= 0; they are the absolute values")
    if as_numpy(spectrum).min() < 0:
        raise ValueError("spectrum: got a negative entry, expected Schmidt values >= 0")
    return spectrum
