"""Rank policies and the model-wide allotment: spectra in, integers out, no tensors."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from ._backend import to_numpy
from ._bounds import l2_norm
from ._shapes import clip_ranks, dimensions, n_parameters, positive_int, shown

Spectra = Sequence[np.ndarray]

_EXPECTED = "an int, a tuple, a float or a policy such as tnmpo.Tolerance(1e-2)"


class RankPolicy(Protocol):
    """A rule that turns the Schmidt spectra of a train into bond dimensions."""

    def choose(self, spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
        """Ranks with the boundary ones, from the spectra of the inner bonds and the sizes of the sites."""
        ...


@dataclass(frozen=True)
class MaxRank:
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
class Tolerance:
    """The fewest parameters with a relative error of the whole MPO of at most ``relative``.

    The guarantee is global: directions are dropped, those that save most parameters per lost
    weight first, while the upper bound ``sqrt(sum eps_k^2)`` stays within ``relative * ||W||``.

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
        train = _Train(spectra, sizes, _largest([spectra]))
        relative = min(float(self.relative), len(sizes))  # above sqrt(n - 1) nothing is too much
        # The last digits are left to the rounding of the sums, so that the promise holds as computed.
        limit = relative**2 * train.norm2 * (1 - 1e-12)
        lost = 0.0
        while True:
            fitting = [drop for drop in train.drops() if lost + drop.loss <= limit]
            if not fitting:
                return train.as_tuple()
            cheapest = min(fitting)
            lost += cheapest.loss
            train.ranks = list(cheapest.ranks)


@dataclass(frozen=True)
class ParameterBudget:
    """The least error within ``n_parameters`` entries of all cores; no single bond could be raised.

    Parameters
    ----------
    n_parameters : int

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
class EntropyFraction:
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
        return _lift(sizes, [1, *(self._rank(spectrum) for spectrum in spectra), 1])

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
    if isinstance(rank, str):
        if rank != "same":
            raise ValueError(f"rank: got {shown(rank)}, expected 'same' or {_EXPECTED}")
        rank = 1.0
    if isinstance(rank, bool) or rank is None:
        raise TypeError(f"rank: got {shown(rank)}, expected {_EXPECTED}")
    if isinstance(rank, Integral):
        return MaxRank(positive_int(rank, "rank")).choose(spectra, sizes)
    if isinstance(rank, Real):
        if not 0 < float(rank) < math.inf:
            raise ValueError(f"rank: got the fraction {rank}, expected one above 0, of the dense parameters")
        dense, least = math.prod(sizes), sum(sizes)
        if _floor(float(rank) * dense) < least:
            raise ValueError(
                f"rank: got the fraction {rank} of {dense} parameters, the rank-one size is {least}; "
                f"allow at least {least / dense:.3g}"
            )
        return ParameterBudget(_floor(float(rank) * dense)).choose(spectra, sizes)
    if isinstance(rank, Sequence):
        return _exact(rank, spectra, sizes)
    if callable(getattr(rank, "choose", None)) and not isinstance(rank, type | np.ndarray | np.generic):
        return _exact(rank.choose(spectra, sizes), spectra, sizes)
    raise TypeError(f"rank: got {shown(rank)}, expected {_EXPECTED}")


def _floor(value: float) -> int:
    """The integer part, at least 1; 0.29 * 100 counts as 29 although it is a hair less in binary."""
    nearest = round(value)
    return max(1, nearest if math.isclose(value, nearest, rel_tol=1e-12) else math.floor(value))


def _exact(rank: Sequence[Any], spectra: Spectra, sizes: Sequence[int]) -> tuple[int, ...]:
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


def _lift(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The smallest ranks, none below ``ranks``, that a train can have: neighbours of a large bond are raised."""
    ranks = list(ranks)
    for k in range(len(sizes) - 1, 0, -1):
        ranks[k] = max(ranks[k], -(-ranks[k + 1] // sizes[k]))
    for k in range(1, len(sizes)):
        ranks[k] = max(ranks[k], -(-ranks[k - 1] // sizes[k - 1]))
    return tuple(ranks)


# ---------------------------------------------------------------------------------------------------------------------
# One budget over many trains
# ---------------------------------------------------------------------------------------------------------------------


def allot_ranks(spectra: Sequence[Spectra], sizes: Sequence[Sequence[int]], budget: int) -> list[tuple[int, ...]]:
    """Share one parameter budget among the bonds of many trains.

    Starting from full ranks, the Schmidt direction whose discarded weight per saved parameter is
    least is dropped, wherever in the model it is, until the budget is met; what is left over
    then raises bonds until none fits any more.

    Parameters
    ----------
    spectra : sequence of trains, each a sequence of (d_k,) arrays
        The Schmidt values of every inner bond of every train, descending. They are compared as
        they are: divide each train's by its norm to weigh relative errors.
    sizes : sequence of trains, each a sequence of int
        The site sizes ``i_k j_k``. A low-rank factorisation of an I x J matrix is the train ``(I, J)``.
    budget : int
        The number of parameters that all trains together may have.

    Returns
    -------
    list of tuple of int
        The ranks of each train, with the boundary ones.

    Raises
    ------
    ValueError, TypeError
        If the budget is below the rank-one size of all trains together, the lengths disagree, or
        a spectrum is not one-dimensional, finite, nonnegative and descending.

    Notes
    -----
    For two-site trains the greedy choice is optimal up to the size of one direction; for longer ones, whose bonds
    share cores, it is a heuristic. Cost: O(D log D) for D dropped directions.

    Examples
    --------
    >>> flat, steep = np.ones(4) / 2, np.array([1.0, 0.1, 0.01, 0.001])
    >>> allot_ranks([[flat], [steep]], [(4, 4), (4, 4)], budget=40)
    [(1, 4, 1), (1, 1, 1)]
    """
    budget = positive_int(budget, "budget")
    if len(spectra) != len(sizes):
        raise ValueError(
            f"allot_ranks: got {len(spectra)} trains of spectra and {len(sizes)} of sizes, expected as many"
        )
    checked = [[_check_spectrum(spectrum) for spectrum in train] for train in spectra]
    scale = _largest(checked)
    trains = [
        _Train(train, dimensions(train_sizes, "sizes"), scale)
        for train, train_sizes in zip(checked, sizes, strict=True)
    ]
    minimum = sum(sum(train.sizes) for train in trains)
    if budget < minimum:
        raise ValueError(f"budget: got {budget} parameters, the rank-one size is {minimum}; allow at least that many")
    used = _drop_to(trains, budget)
    _raise_within(trains, budget - used)
    return [train.as_tuple() for train in trains]


def _drop_to(trains: list[_Train], budget: int) -> int:
    """Drop the cheapest directions until the budget holds; return the parameters in use."""
    used = sum(train.n_parameters for train in trains)
    # Only the changed train's cheapest drop changes, hence one entry per train.
    heap = [(drop, k) for k, train in enumerate(trains) if (drop := min(train.drops(), default=None)) is not None]
    heapq.heapify(heap)
    while used > budget:
        drop, k = heap[0]
        trains[k].ranks = list(drop.ranks)
        used -= drop.saving
        following = min(trains[k].drops(), default=None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, k))
    return used


def _raise_within(trains: list[_Train], spare: int) -> None:
    """Raise the most valuable bond that fits, until none does."""
    raises = [[rise for rise in train.raises() if rise.cost <= spare] for train in trains]
    while any(raises):
        best, k = max((max(train), k) for k, train in enumerate(raises) if train)
        trains[k].ranks = list(best.ranks)
        spare -= best.cost
        raises[k] = list(trains[k].raises())
        raises = [[rise for rise in train if rise.cost <= spare] for train in raises]


def _check_spectrum(spectrum: Any) -> np.ndarray:
    values = to_numpy(spectrum if hasattr(spectrum, "dtype") else np.asarray(spectrum, dtype=float))
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"spectra: got one of shape {values.shape}, expected vectors with at least one entry")
    # up to rounding: two degenerate values may come in either order
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and np.all(np.diff(values) <= 1e-6 * values[0])):
        raise ValueError("spectra: got one that is not finite, nonnegative and descending; pass Schmidt values, sorted")
    return values


def _largest(trains: Sequence[Spectra]) -> float:
    largest = max((float(np.max(spectrum)) for train in trains for spectrum in train), default=0.0)
    return largest if largest > 0 else 1.0


@dataclass(frozen=True, order=True)
class _Drop:
    """Lowering one bond by one, and what must follow: ordered by price, the dearer the later."""

    price: float
    loss: float
    saving: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, order=True)
class _Raise:
    """Raising one bond by one, and what must follow: ordered by worth, the better the later."""

    worth: float
    cost: int
    ranks: tuple[int, ...]


class _Train:
    """The ranks of one train while they are being chosen."""

    def __init__(self, spectra: Spectra, sizes: Sequence[int], scale: float) -> None:
        if len(spectra) != len(sizes) - 1:
            raise ValueError(f"spectra: got {len(spectra)} for {len(sizes)} sites, expected one per inner bond")
        self.sizes = tuple(sizes)
        # Schmidt weights, in units in which their sums neither overflow nor vanish
        self.weights = [np.square(np.asarray(spectrum, dtype=float) / scale) for spectrum in spectra]
        self.norm2 = max((float(np.sum(weights)) for weights in self.weights), default=0.0)
        self.full = clip_ranks(sizes, [1, *(len(spectrum) for spectrum in spectra), 1])
        self.ranks = list(self.full)

    @property
    def n_parameters(self) -> int:
        return n_parameters(self.sizes, self.ranks)

    def as_tuple(self) -> tuple[int, ...]:
        return tuple(self.ranks)

    def drops(self) -> Iterator[_Drop]:
        """Every way to lower one bond by one, neighbours following where they must."""
        before = self.n_parameters
        for bond in range(1, len(self.sizes)):
            if self.ranks[bond] == 1:
                continue
            lowered = self.ranks.copy()
            lowered[bond] -= 1
            ranks = clip_ranks(self.sizes, lowered)
            loss = self._between(ranks, self.ranks)
            saving = before - n_parameters(self.sizes, ranks)
            yield _Drop(loss / saving, loss, saving, ranks)

    def raises(self) -> Iterator[_Raise]:
        """Every way to raise one bond by one, neighbours following where they must."""
        before = self.n_parameters
        for bond in range(1, len(self.sizes)):
            if self.ranks[bond] == self.full[bond]:
                continue
            raised = self.ranks.copy()
            raised[bond] += 1
            ranks = _lift(self.sizes, raised)  # within the full ranks, which a train can have
            cost = n_parameters(self.sizes, ranks) - before
            yield _Raise(self._between(self.ranks, ranks) / cost, cost, ranks)

    def _between(self, lower: Sequence[int], upper: Sequence[int]) -> float:
        """The Schmidt weight of the directions that only the upper ranks keep."""
        return sum(
            float(np.sum(weights[less:more]))
            for weights, less, more in zip(self.weights, lower[1:-1], upper[1:-1], strict=True)
            if less < more
        )
