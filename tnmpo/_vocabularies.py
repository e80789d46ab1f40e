"""The truncation words of other libraries as rank policies: one rule for every bond, from its own spectrum."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ._allot import Spectra, lift_ranks
from ._bounds import l2_norm
from ._ranks import Combinable
from ._shapes import positive_int, shown

_MODES = ("rsum2", "sum2", "rsum1", "sum1", "rel", "abs")


class _BondRule(Combinable):
    """A policy that asks each bond alone; beside a rank too small for the one asked, the small one is raised."""

    @abstractmethod
    def _rank(self, spectrum: np.ndarray) -> int:
        """The rank that a bond of this spectrum is to have."""

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        # Raised, not lowered: no promise about what is discarded is broken, and no bond rises above the largest.
        return lift_ranks(sizes, [1, *(self._rank(spectrum) for spectrum in spectra), 1])


@dataclass(frozen=True)
class ITensorCutoff(_BondRule):
    """ITensor's ``cutoff``, ``maxdim`` and ``mindim``, with its defaults: none of them cuts.

    Parameters
    ----------
    cutoff : float, optional
        The largest share of the squared norm that may be discarded at a bond: the fewest values are kept with
        ``sum_discarded s^2 <= cutoff * sum s^2``. It is a *squared* error: ``cutoff=1e-8`` is a relative error of 1e-4
        per bond. 0 drops exact zeros, None drops nothing.
    maxdim : int, optional
        No bond is larger; it wins over the other two.
    mindim : int
        No bond is cut below that, whatever the cutoff says. A bond that is smaller stays whole.

    Raises
    ------
    ValueError, TypeError
        If ``cutoff`` is no finite number of at least 0, or one of the others no positive integer.

    Notes
    -----
    The meaning is that of ``truncate!`` in ITensor's ``NDTensors/src/truncate.jl`` with its default
    ``use_relative_cutoff = true``. ITensor cuts one bond after the other, each from the spectrum of a train whose
    earlier bonds are cut already. Here all bonds are decided from the spectra of the uncut train, whose values are no
    smaller: where the cut is deep, ranks can come out larger than there. Where ``maxdim`` does not bind, the relative
    error of the whole train is at most ``sqrt((n - 1) * cutoff)`` for n sites. For a limit on the whole train use
    ``tnmpo.Tolerance``.

    Examples
    --------
    >>> spectrum = np.array([1.0, 0.1, 0.01, 0.001])
    >>> [ITensorCutoff(cutoff, mindim=2).choose([spectrum], (4, 4))[1] for cutoff in (1e-7, 1e-5, 1e-3, 1e-1)]
    [4, 3, 2, 2]
    """

    cutoff: float | None = None
    maxdim: int | None = None
    mindim: int = 1

    def __post_init__(self) -> None:
        _check_threshold(self, "cutoff")
        _check_count(self, "maxdim")
        object.__setattr__(self, "mindim", positive_int(self.mindim, "mindim"))

    def _rank(self, spectrum: np.ndarray) -> int:
        rank = len(spectrum) if self.cutoff is None else _kept(spectrum, self.cutoff, "rsum2")
        return _capped(max(rank, min(self.mindim, len(spectrum))), self.maxdim)


@dataclass(frozen=True)
class QuimbCutoff(_BondRule):
    """quimb's ``max_bond``, ``cutoff`` and ``cutoff_mode``, with its defaults: a cutoff of 1e-10, mode ``'rsum2'``.

    Parameters
    ----------
    max_bond : int, optional
        No bond is larger. None is no cap.
    cutoff : float, optional
        What may be discarded at a bond, in the sense of the mode. 0, as None, discards nothing, not even zeros.
    cutoff_mode : str
        - ``'rsum2'``: as many of the smallest values as have ``sum s^2 <= cutoff`` times that of all;
        - ``'sum2'``: the same with ``sum s^2 <= cutoff``;
        - ``'rsum1'``, ``'sum1'``: the same two with ``s`` for ``s^2``;
        - ``'rel'``: every value of at most ``cutoff`` times the largest;
        - ``'abs'``: every value of at most ``cutoff``.

    Raises
    ------
    ValueError, TypeError
        If the mode is none of these, ``cutoff`` no finite number of at least 0, or ``max_bond`` no positive integer.

    Notes
    -----
    The meaning is that of ``quimb.tensor.array_split`` with ``method='svd'`` (quimb 1.15), without its ``renorm``.
    quimb cuts one bond after the other, each from the spectrum of a network whose earlier bonds are cut already. Here
    all bonds are decided from the spectra of the uncut train, whose values are no smaller: where the cut is deep,
    ranks can come out larger than there. Where ``max_bond`` does not bind, the mode ``'rsum2'`` keeps the relative
    error of the whole train of n sites within ``sqrt((n - 1) * cutoff)``, ``'sum2'`` the absolute one.

    Examples
    --------
    >>> spectrum = np.array([1.0, 0.1, 0.01, 0.001])
    >>> [QuimbCutoff(cutoff=1e-3, cutoff_mode=mode).choose([spectrum], (4, 4))[1] for mode in ("rsum2", "rsum1", "rel")]
    [2, 3, 3]
    """

    max_bond: int | None = None
    cutoff: float | None = 1e-10
    cutoff_mode: str = "rsum2"

    def __post_init__(self) -> None:
        _check_count(self, "max_bond")
        _check_threshold(self, "cutoff")
        if self.cutoff_mode not in _MODES:
            raise ValueError(f"cutoff_mode: got {shown(self.cutoff_mode)}, expected one of {', '.join(_MODES)}")

    def _rank(self, spectrum: np.ndarray) -> int:
        rank = _kept(spectrum, self.cutoff, self.cutoff_mode) if self.cutoff else len(spectrum)
        return _capped(rank, self.max_bond)


@dataclass(frozen=True)
class TeNPyCutoff(_BondRule):
    """TeNPy's ``chi_max``, ``svd_min`` and ``trunc_cut``, with its defaults: **a cap of 100**, 1e-14 and 1e-14.

    Both thresholds are for the spectrum of a bond divided by its norm. None ignores any of the three.

    Parameters
    ----------
    chi_max : int, optional
        No bond is larger.
    svd_min : float, optional
        Values below it are discarded; where all are, it is ignored, as TeNPy does.
    trunc_cut : float, optional
        The largest relative error of a bond: as many of the smallest values as have ``sum s^2 <= trunc_cut^2``
        are discarded. Not squared, other than the cutoffs of ITensor and quimb. Below 1.

    Raises
    ------
    ValueError, TypeError
        If a threshold is no finite number of at least 0, ``trunc_cut`` not below 1, or ``chi_max`` no positive integer.

    Notes
    -----
    The meaning is that of ``tenpy.linalg.truncation.truncate`` (TeNPy 1.1) without ``chi_min`` and
    ``degeneracy_tol``. TeNPy normalises the state, cuts one bond after the other, and renormalises. Here all bonds are
    decided from the spectra of the uncut train, each divided by its norm, and the cut train is not renormalised. Where
    neither ``chi_max`` nor ``svd_min`` binds, the relative error of the whole train of n sites is at most
    ``sqrt(n - 1) * trunc_cut``.

    Examples
    --------
    >>> spectrum = np.array([1.0, 0.1, 0.01, 0.001])
    >>> TeNPyCutoff(svd_min=5e-3).choose([spectrum], (4, 4)), TeNPyCutoff(trunc_cut=0.02).choose([spectrum], (4, 4))
    ((1, 3, 1), (1, 2, 1))
    """

    chi_max: int | None = 100
    svd_min: float | None = 1e-14
    trunc_cut: float | None = 1e-14

    def __post_init__(self) -> None:
        _check_count(self, "chi_max")
        _check_threshold(self, "svd_min")
        _check_threshold(self, "trunc_cut")
        if self.trunc_cut is not None and self.trunc_cut >= 1:
            raise ValueError(f"trunc_cut: got {self.trunc_cut}, expected a number below 1, a relative error")

    def _rank(self, spectrum: np.ndarray) -> int:
        rank = len(spectrum)
        if self.svd_min is not None:
            large_enough = int(np.count_nonzero(spectrum >= self.svd_min * l2_norm(spectrum)))
            rank = large_enough or rank
        if self.trunc_cut is not None:
            rank = min(rank, _kept(spectrum, self.trunc_cut**2, "rsum2"))
        return _capped(rank, self.chi_max)


def _kept(spectrum: np.ndarray, cutoff: float, mode: str) -> int:
    """How many values stay when the most are discarded that ``cutoff`` allows; one at least."""
    largest = float(spectrum[0])
    if largest == 0:
        return 1
    values = np.asarray(spectrum, dtype=float) / largest  # so that no square overflows or vanishes
    if mode == "rel":
        lost, limit = values, cutoff
    elif mode == "abs":
        lost, limit = values, cutoff / largest
    else:
        power = 2 if mode.endswith("2") else 1
        lost = np.cumsum(values[::-1] ** power)[::-1]  # entry r: by keeping r values
        limit = cutoff * float(lost[0]) if mode.startswith("r") else (cutoff ** (1 / power) / largest) ** power
    return max(1, int(np.count_nonzero(lost > limit)))


def _capped(rank: int, cap: int | None) -> int:
    return rank if cap is None else min(rank, cap)


def _check_count(policy: Any, name: str) -> None:
    value = getattr(policy, name)
    if value is not None:
        object.__setattr__(policy, name, positive_int(value, name))


def _check_threshold(policy: Any, name: str) -> None:
    value = getattr(policy, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {shown(value)}, expected a number >= 0 or None")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name}: got {value}, expected a finite number >= 0")
