"""Rank policies: the spectra of one train in, its ranks out, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from ._allot import RankChoice, Spectra, allot_ranks, largest_value, lift_ranks
from ._bounds import l2_norm
from ._shapes import clip_ranks, positive_int, shown

_EXPECTED = "an int, a tuple, a float or a policy such as tnmpo.Tolerance(1e-2)"


class RankPolicy(Protocol):
    """A rule that turns the Schmidt spectra of a train into bond dimensions.

    Anything with this method is one, and can be passed as ``rank``.

    Notes
    -----
    **Both of two.** ``first & second`` takes the smaller of the two ranks at every bond. One of the two may be an int,
    a tuple, a float or a policy of one's own, with the meaning it has as ``rank``. Of their promises

    - upper limits hold: no bond above ``MaxRank``, no more parameters than ``ParameterBudget`` (part of which may be
      left unused; a bond that the other policy cuts deeper need not be a multiple of ``multiple_of``);
    - lower ones hold only where the other policy cuts no deeper: a cap wins over a tolerance, and so does a budget.
      ``truncation.relative_error`` is the exact error either way.

    Examples
    --------
    >>> Tolerance(1e-3) & 64
    Tolerance(relative=0.001) & MaxRank(rank=64, multiple_of=1)
    >>> (Tolerance(0.1) & 3).choose([np.ones(4), np.array([1.9, 0.6, 0.1])], (4, 4, 4))
    (1, 3, 2, 1)
    """

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        """Ranks with the boundary ones, from the spectra of the inner bonds and the sizes of the sites."""
        ...


class Combinable(RankPolicy):
    """What makes ``&`` of a policy with another one, or with what stands for one."""

    def __and__(self, other: Any) -> BothPolicies:
        return BothPolicies(self, as_policy(other))

    def __rand__(self, other: Any) -> BothPolicies:
        return BothPolicies(as_policy(other), self)


@dataclass(frozen=True, repr=False)
class BothPolicies(Combinable):
    """The smaller of two ranks at every bond."""

    first: RankPolicy
    second: RankPolicy

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        # From a_k <= d_k a_{k-1} and b_k <= d_k b_{k-1} follows the same of the minima: a train can have them.
        pair = (choose_ranks(policy, spectra, sizes) for policy in (self.first, self.second))
        return tuple(map(min, *pair))

    def __repr__(self) -> str:
        return f"{self.first!r} & {self.second!r}"


@dataclass(frozen=True)
class MaxRank(Combinable):
    """A cap on every bond: ``min(rank, full bond)``.

    Parameters
    ----------
    rank : int
        The cap. Above the full bond it has no effect.
    multiple_of : int
        A bond that the cap cuts is rounded down to a multiple of this (hardware likes 8), a full bond stays full.

    Examples
    --------
    >>> MaxRank(60, multiple_of=8).choose([np.ones(12), np.ones(192)], (12, 16, 32))
    (1, 12, 56, 1)
    """

    rank: int
    multiple_of: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", positive_int(self.rank, "rank"))
        object.__setattr__(self, "multiple_of", positive_int(self.multiple_of, "multiple_of"))
        if self.multiple_of > self.rank:
            raise ValueError(
                f"multiple_of: got {self.multiple_of} above the rank {self.rank}; raise the rank or lower it"
            )

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        cap = self.rank - self.rank % self.multiple_of
        return (1, *(len(spectrum) if len(spectrum) <= self.rank else cap for spectrum in spectra), 1)


@dataclass(frozen=True)
class Tolerance(Combinable):
    """Few parameters with a relative error of the whole MPO of at most ``relative``.

    The guarantee is global: directions are dropped, those that save most parameters per lost
    weight first, while the upper bound ``sqrt(sum eps_k^2)`` stays within ``relative * ||W||``.
    Greedy, so fewer parameters may be possible. In a metric that is no product over the sites the
    tolerance is kept by measuring. For 16-bit dtypes the rounding of the cores comes on top.

    Parameters
    ----------
    relative : float
        At least 0; in the norm that is cut in.

    Examples
    --------
    >>> Tolerance(0.1).choose([np.array([1.0, 0.05, 0.02])], (3, 3))
    (1, 1, 1)
    """

    relative: float

    def __post_init__(self) -> None:
        if isinstance(self.relative, bool) or not isinstance(self.relative, Real):
            raise TypeError(f"Tolerance: got {self.relative!r}, expected a number >= 0")
        if not 0 <= self.relative < math.inf:
            raise ValueError(f"Tolerance: got {self.relative}, expected a finite number >= 0")

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        choice = RankChoice(spectra, sizes, largest_value([spectra]))
        relative = min(float(self.relative), len(sizes))  # above sqrt(n - 1) nothing is too much
        # The last digits are left to the rounding of the sums, so that the promise holds as computed.
        limit = relative**2 * choice.norm2 * (1 - 1e-12)
        lost = 0.0
        while True:
            fitting = [drop for drop in choice.drops(choice.weight_between) if lost + drop.loss <= limit]
            if not fitting:
                return choice.ranks
            cheapest = min(fitting)
            lost += cheapest.loss
            choice.ranks = cheapest.ranks


@dataclass(frozen=True)
class ParameterBudget(Combinable):
    """A small error within ``n_parameters`` entries of all cores; no single bond could be raised.

    Parameters
    ----------
    n_parameters : int

    Notes
    -----
    Greedy, by the squared error that ``tnmpo.allot_ranks`` estimates. How far the result is from the best ranks of all
    is measured in ``docs/ranks.md``.

    Raises
    ------
    ValueError
        On use, if the budget is below the size of the rank-one MPO.

    Examples
    --------
    >>> ParameterBudget(25).choose([np.array([3.0, 2.0, 1.0])], (5, 5))
    (1, 2, 1)
    """

    n_parameters: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_parameters", positive_int(self.n_parameters, "ParameterBudget"))

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        return allot_ranks([spectra], [sizes], self.n_parameters)[0]


@dataclass(frozen=True)
class EntropyFraction(Combinable):
    """The smallest rank of every bond that keeps the fraction of its entanglement entropy.

    The smallest r with ``-sum_{k<=r} p_k ln p_k >= fraction * S``, where ``p`` are the squared,
    normalised Schmidt values of the whole bond (not renormalised after the cut) and ``S`` is the
    von Neumann entropy. A product state, S = 0, keeps 1. Where a bond cannot be that large beside
    so small a neighbour, the neighbour is raised.

    Parameters
    ----------
    fraction : float
        In (0, 1].

    Examples
    --------
    >>> EntropyFraction(0.5).choose([np.ones(8)], (8, 8))
    (1, 4, 1)
    """

    fraction: float

    def __post_init__(self) -> None:
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, Real):
            raise TypeError(f"EntropyFraction: got {self.fraction!r}, expected a number in (0, 1]")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"EntropyFraction: got {self.fraction}, expected a number in (0, 1]")

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        return lift_ranks(sizes, [1, *(self._rank(spectrum) for spectrum in spectra), 1])

    def _rank(self, spectrum: np.ndarray) -> int:
        norm = l2_norm(spectrum)
        if norm == 0:
            return 1
        weights = np.square(spectrum / norm)
        kept = np.cumsum(-weights * np.log(np.where(weights > 0, weights, 1.0)))
        # relative slack: the last partial sum is the entropy itself and must reach itself
        return int(np.searchsorted(kept, self.fraction * kept[-1] * (1 - 1e-12))) + 1 if kept[-1] > 0 else 1


def choose_ranks(rank: Any, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
    """The bond dimensions that ``rank`` asks for, with the boundary ones.

    ``rank`` is an int (cap), a tuple (exact ranks), a float (fraction of the dense parameters),
    ``'same'`` (1.0), or a policy.
    """
    return _possible(as_policy(rank).choose(spectra, sizes), spectra, sizes)


def as_policy(rank: Any) -> RankPolicy:
    """The policy that ``rank`` stands for."""
    if isinstance(rank, str):
        if rank != "same":
            raise ValueError(f"rank: got {shown(rank)}, expected 'same' or {_EXPECTED}")
        return _Fraction(1.0)
    if isinstance(rank, bool) or rank is None:
        raise TypeError(f"rank: got {shown(rank)}, expected {_EXPECTED}")
    if isinstance(rank, Integral):
        return MaxRank(positive_int(rank, "rank"))
    if isinstance(rank, Real):
        if not 0 < float(rank) < math.inf:
            raise ValueError(f"rank: got the fraction {rank}, expected one above 0, of the dense parameters")
        return _Fraction(float(rank))
    if isinstance(rank, Sequence):
        return _Exact(tuple(positive_int(entry, "rank") for entry in rank))
    if callable(getattr(rank, "choose", None)) and not isinstance(rank, type | np.ndarray | np.generic):
        policy: RankPolicy = rank
        return policy
    raise TypeError(f"rank: got {shown(rank)}, expected {_EXPECTED}")


@dataclass(frozen=True)
class _Fraction(Combinable):
    """What a float means: the budget of so large a share of the dense parameters."""

    share: float

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        dense, least = math.prod(sizes), sum(sizes)
        budget = _floor(self.share * dense)
        if budget < least:
            raise ValueError(
                f"rank: got the fraction {self.share} of {dense} parameters, the rank-one size is {least}; "
                f"allow at least {least / dense:.3g}; for a relative error use tnmpo.Tolerance({self.share:g})"
            )
        return ParameterBudget(budget).choose(spectra, sizes)


@dataclass(frozen=True)
class _Exact(Combinable):
    """What a tuple means: these ranks, with or without the boundary ones."""

    ranks: tuple[int, ...]

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        return self.ranks


def _floor(value: float) -> int:
    """The integer part, at least 1; 0.29 * 100 counts as 29 although it is a hair less in binary."""
    nearest = round(value)
    return max(1, nearest if math.isclose(value, nearest, rel_tol=1e-12) else math.floor(value))


def _possible(rank: Sequence[Any], spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
    """``rank`` with the boundary ones, if a train of these sizes and full bonds can have it."""
    ranks = [positive_int(entry, "rank") for entry in rank]
    inner = len(spectra)
    if len(ranks) == inner + 2 and ranks[0] == ranks[-1] == 1:
        ranks = ranks[1:-1]
    if len(ranks) != inner:
        raise ValueError(
            f"rank: got {tuple(rank)} for {inner} inner bonds, expected {inner} entries, "
            f"or {inner + 2} with ones at both ends"
        )
    for bond, (entry, spectrum) in enumerate(zip(ranks, spectra, strict=True), start=1):
        if entry > len(spectrum):
            raise ValueError(f"rank: got {entry} for bond {bond}, whose full bond is {len(spectrum)}; lower that entry")
    ranks = [1, *ranks, 1]
    clipped = clip_ranks(sizes, ranks)
    for bond, (entry, largest) in enumerate(zip(ranks, clipped, strict=True)):
        if entry > largest:
            raise ValueError(
                f"rank: got {entry} for bond {bond}, which the neighbouring ranks {tuple(ranks)} limit to {largest}; "
                "lower that entry or raise its neighbours"
            )
    return clipped
