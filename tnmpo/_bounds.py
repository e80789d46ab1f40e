"""What spectra promise about a cut: a lower bound, the exact error, an upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Norm = Literal["plain", "product", "joint"]


@dataclass(frozen=True, eq=False)
class Truncation:
    """The record of one cut: how far the result is from what was cut.

    Attributes
    ----------
    ranks : tuple of int
        The bond dimensions kept, with the boundary ones.
    error : float
        ``||W - W'||``, in the norm that was cut in (weighted if a weight was given), exact up to rounding. ``W`` is
        the input of that call: a second cut counts from the result of the first.
    relative_error : float
        ``error / ||W||`` in the same norm; 0 for a zero matrix.
    lower_bound, upper_bound : float
        ``max_k eps_k <= error <= sqrt(sum_k eps_k^2)``, with ``eps_k`` the l2 norm of the Schmidt
        values beyond the kept rank at bond k. The upper one is the theorem of Liu et al. (ACL 2021) and of Oseledets
        (SIAM J. Sci. Comput. 33, 2011). For 16-bit dtypes ``error`` includes the rounding of the cores, the bounds
        don't.
    spectra : tuple of (d_k,) float64 arrays
        The untruncated Schmidt values of every inner bond in that norm, descending.
    norm : {"plain", "product", "joint"}
        The norm of all these numbers: the Frobenius norm; weighted by a metric that is a product over the sites, or by
        any on a low-rank shape; weighted by any other metric.

    Notes
    -----
    In a ``"joint"`` metric the error cannot be split over the bonds: ``error`` is then
    measured, ``lower_bound`` is 0, ``upper_bound`` is the error of the plain cut to the same ranks in that metric, and
    ``spectra`` are those in the product of the metric's marginals, which chose the ranks and bound nothing.

    Of a randomised or streamed decomposition the spectra are those of a projection: ``lower_bound`` holds, and
    ``upper_bound`` is the measured error.
    """

    ranks: tuple[int, ...]
    error: float
    relative_error: float
    lower_bound: float
    upper_bound: float
    spectra: tuple[np.ndarray, ...] = field(repr=False)
    norm: Norm = "plain"

    @property
    def quasi_optimality(self) -> float:
        """The error is at most so many times that of the best train of these ranks: ``error / lower_bound``.

        1 where nothing was lost. Infinite where the lower bound is 0 and the error is not: then nothing is known. It
        says nothing about errors at the level of rounding.
        """
        if self.error == 0:
            return 1.0
        return self.error / self.lower_bound if self.lower_bound > 0 else math.inf

    @property
    def quasi_optimality_constant(self) -> float:
        """``sqrt(n - 1)``, which ``quasi_optimality`` never exceeds for a sweep over n sites in a product metric.

        Oseledets (SIAM J. Sci. Comput. 33, 2011, corollary 2.4). The error of 16-bit trains includes the rounding of
        the cores, to which this does not apply.
        """
        return math.sqrt(max(len(self.ranks) - 2, 1))


def certify(
    ranks: Sequence[int], spectra: Sequence[np.ndarray], error: float, size: float, norm: Norm = "plain"
) -> Truncation:
    """The record of a cut of ``spectra`` to ``ranks`` whose exact error is known; ``size`` is the norm of the input."""
    local = [l2_norm(spectrum[rank:]) for spectrum, rank in zip(spectra, ranks[1:-1], strict=True)]
    return Truncation(
        ranks=tuple(ranks),
        error=error,
        relative_error=error / size if size > 0 else 0.0,
        lower_bound=max(local, default=0.0),
        upper_bound=l2_norm(np.array(local)),
        spectra=tuple(spectra),
        norm=norm,
    )


def l2_norm(values: np.ndarray) -> float:
    """The Euclidean norm, without overflow or underflow of the squares."""
    magnitudes = np.abs(values)
    largest = float(np.max(magnitudes, initial=0.0))
    if largest == 0.0:
        return 0.0
    return largest * float(np.sqrt(np.sum(np.square(magnitudes / largest))))
