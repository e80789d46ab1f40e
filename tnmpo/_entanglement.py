"""Schmidt spectra and entropies of the bonds of a train."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from . import _chain
from ._backend import Array, Backend, as_numpy, backend_of, cast, check_values, double, dtype_name, peak, working
from ._train import Train, chain_of, check_train


def bond_spectra(train: Train) -> list[Array]:
    """The Schmidt values of every inner bond, descending, never weighted.

    Parameters
    ----------
    train : MPO or TT

    Returns
    -------
    list of n - 1 arrays, the k-th of shape (r_k,)
        On the cores' backend and device; empty for order 1. The squares of each sum to the squared Frobenius norm.

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
    return _chain.schmidt(chain_of(check_train(train)), 0)[1]


def entanglement_entropy(train_or_spectrum: Train | Array, alpha: float = 1) -> Any:
    """The entanglement entropy of every bond, or of one spectrum, in nats.

    With ``p = s^2 / sum s^2`` the von Neumann entropy ``-sum p ln p`` for alpha = 1, else the Renyi entropy
    ``ln(sum p^alpha) / (1 - alpha)``: ``ln`` of the number of nonzero values for alpha = 0, ``-ln max p`` for infinity.

    Parameters
    ----------
    train_or_spectrum : MPO, TT or (r,) array
        The Schmidt values themselves, not their squares.
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

    Examples
    --------
    >>> import numpy as np
    >>> bool(np.isclose(entanglement_entropy(np.ones(8)), np.log(8)))
    True
    >>> round(float(entanglement_entropy(np.array([1.0, 0.1]), alpha=2)), 4)
    0.0198
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or math.isnan(alpha):
        raise TypeError(f"alpha: got {alpha!r}, expected a number >= 0")
    if alpha < 0:
        raise ValueError(f"alpha: got {alpha}, expected a number >= 0")
    if isinstance(train_or_spectrum, Train):
        backend = backend_of(train_or_spectrum.cores[0], "train")
        return [_entropy(backend, spectrum, float(alpha)) for spectrum in bond_spectra(train_or_spectrum)]
    backend = backend_of(train_or_spectrum, "spectrum")
    check_values(train_or_spectrum, "spectrum")
    if train_or_spectrum.ndim != 1:
        raise ValueError(f"spectrum: got {train_or_spectrum.ndim} axes, expected one; for a matrix decompose it first")
    if "complex" in dtype_name(train_or_spectrum):
        raise TypeError("spectrum: got complex numbers, expected Schmidt values >= 0; they are the absolute values")
    if as_numpy(train_or_spectrum).min() < 0:
        raise ValueError("spectrum: got a negative entry, expected Schmidt values >= 0")
    return _entropy(backend, working(train_or_spectrum), float(alpha))


def _entropy(backend: Backend, spectrum: Array, alpha: float) -> Array:
    dtype, spectrum = dtype_name(spectrum), double(spectrum)
    largest = backend.max(spectrum)
    if peak(largest) == 0:
        return cast(0 * largest, dtype)
    weights = (spectrum / largest) ** 2  # squared: the entropy is of the Schmidt weights
    weights = weights[: int((as_numpy(weights) > 0).sum())]  # 0 ln 0 = 0, and a zero is no direction
    total = backend.sum(weights)
    if abs(alpha - 1) < 1e-8:  # closer, the difference of logarithms below is all rounding
        entropy = backend.log(total) - backend.sum(weights * backend.log(weights)) / total
    elif alpha == math.inf:
        entropy = backend.log(total)
    else:
        # ln(sum p^alpha) with p = weights / total: the largest weight is 1, so that no sum of powers vanishes
        entropy = (backend.log(backend.sum(weights**alpha)) - alpha * backend.log(total)) / (1 - alpha)
    return cast(backend.clip(entropy, 0.0), dtype)  # a product state's may come out as -0.0
