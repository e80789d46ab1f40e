"""One parameter budget over the bonds of many trains: spectra in, integers out."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._backend import to_numpy
from ._shapes import clip_ranks, dimensions, n_parameters, positive_int

Spectra = Sequence[np.ndarray]
Ranks = tuple[int, ...]


def allot_ranks(spectra: Sequence[Spectra], sizes: Sequence[Sequence[int]], budget: int) -> list[tuple[int, ...]]:
    """Share one parameter budget among the bonds of many trains.

    Starting from full ranks, the Schmidt direction that adds least to the sum of the squared errors per saved parameter
    is dropped, wherever in the model it is, until the budget is met; what is left over then raises bonds until
    none fits any more.

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
    The squared error of a train is estimated as ``||W||^2 (1 - prod_k w_k)``, where ``w_k`` is the share of the squared
    norm that bond k keeps: each cut acts on what the others left. With one bond that is the error itself; with more it
    follows the error also where the cut is so deep that the sum of the discarded weights, an upper bound, passes 1
    (measured in ``docs/ranks.md``). For two-site trains the greedy choice is optimal up to the size of one
    direction; for longer ones, whose bonds share cores, it is a heuristic. Cost: O(D log T) for D dropped directions of
    T trains.

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
    scale = largest_value(checked)
    choices = [
        RankChoice(train, dimensions(train_sizes, "sizes"), scale)
        for train, train_sizes in zip(checked, sizes, strict=True)
    ]
    minimum = sum(sum(choice.sizes) for choice in choices)
    if budget < minimum:
        raise ValueError(f"budget: got {budget} parameters, the rank-one size is {minimum}; allow at least that many")
    used = _drop_to(choices, budget)
    _raise_within(choices, budget - used)
    return [choice.ranks for choice in choices]


def _drop_to(choices: list[RankChoice], budget: int) -> int:
    """Drop the cheapest directions until the budget holds; return the parameters in use."""
    used = sum(choice.n_parameters for choice in choices)
    # Only the changed train's cheapest drop changes, hence one entry per train.
    cheapest = [min(choice.drops(choice.error2_between), default=None) for choice in choices]
    heap = [(drop, k) for k, drop in enumerate(cheapest) if drop is not None]
    heapq.heapify(heap)
    while used > budget:
        drop, k = heap[0]
        choices[k].ranks = drop.ranks
        used -= drop.saving
        following = min(choices[k].drops(choices[k].error2_between), default=None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following, k))
    return used


def _raise_within(choices: list[RankChoice], spare: int) -> None:
    """Raise the most valuable bond that fits, until none does."""
    raises = [[rise for rise in choice.raises() if rise.cost <= spare] for choice in choices]
    while any(raises):
        best, k = max((max(train), k) for k, train in enumerate(raises) if train)
        choices[k].ranks = best.ranks
        spare -= best.cost
        raises[k] = list(choices[k].raises())
        raises = [[rise for rise in train if rise.cost <= spare] for train in raises]


def _check_spectrum(spectrum: Any) -> np.ndarray:
    values = to_numpy(spectrum if hasattr(spectrum, "dtype") else np.asarray(spectrum, dtype=float))
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"spectra: got one of shape {values.shape}, expected vectors with at least one entry")
    # up to rounding: two degenerate values may come in either order
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and np.all(np.diff(values) <= 1e-6 * values[0])):
        raise ValueError("spectra: got one that is not finite, nonnegative and descending; pass Schmidt values, sorted")
    return values


def largest_value(trains: Sequence[Spectra]) -> float:
    """The largest Schmidt value of all, a unit in which squares neither overflow nor vanish; 1 if all are 0."""
    value = max((float(np.max(spectrum)) for train in trains for spectrum in train), default=0.0)
    return value if value > 0 else 1.0


def lift_ranks(sizes: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The smallest ranks, none below ``ranks``, that a train can have: neighbours of a large bond are raised."""
    ranks = list(ranks)
    for k in range(len(sizes) - 1, 0, -1):
        ranks[k] = max(ranks[k], -(-ranks[k + 1] // sizes[k]))
    for k in range(1, len(sizes)):
        ranks[k] = max(ranks[k], -(-ranks[k - 1] // sizes[k - 1]))
    return tuple(ranks)


@dataclass(frozen=True, order=True)
class Drop:
    """Lowering one bond by one, and what must follow: ordered by price, the dearer the later."""

    price: float
    loss: float
    saving: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, order=True)
class Raise:
    """Raising one bond by one, and what must follow: ordered by worth, the better the later."""

    worth: float
    cost: int
    ranks: tuple[int, ...]


class RankChoice:
    """The ranks of one train while they are being chosen, at first the full ones.

    ``scale`` is the unit of the spectra, which trains that are compared have in common.
    """

    def __init__(self, spectra: Spectra, sizes: Sequence[int], scale: float) -> None:
        if len(spectra) != len(sizes) - 1:
            raise ValueError(f"spectra: got {len(spectra)} for {len(sizes)} sites, expected one per inner bond")
        self.sizes = tuple(sizes)
        squares = [np.square(np.asarray(spectrum, dtype=float) / scale) for spectrum in spectra]
        totals = [float(np.sum(weights)) for weights in squares]
        self.norm2 = max(totals, default=0.0)
        # Schmidt weights of bond k, and the share of the squared norm that its rank r keeps: lists, which are read one
        # entry at a time. The boundaries have neither.
        self.weights = [[], *(weights.tolist() for weights in squares)]
        self.shares = [[], *([0.0, *np.cumsum(w / (t or 1.0)).tolist()] for w, t in zip(squares, totals, strict=True))]
        # Around a unit site two bonds are one cut: it counts once.
        self.cuts = [k for k in range(1, len(sizes)) if k == 1 or sizes[k - 1] > 1]
        self.full = clip_ranks(sizes, [1, *(len(spectrum) for spectrum in spectra), 1])
        self.ranks = self.full

    @property
    def n_parameters(self) -> int:
        return n_parameters(self.sizes, self.ranks)

    def drops(self, loss_between: Callable[[Ranks, Ranks], float]) -> Iterator[Drop]:
        """Every way to lower one bond by one, neighbours following where they must, with its loss and price."""
        before = self.n_parameters
        for bond in range(1, len(self.sizes)):
            if self.ranks[bond] == 1:
                continue
            lowered = list(self.ranks)
            lowered[bond] -= 1
            ranks = clip_ranks(self.sizes, lowered)
            loss = loss_between(ranks, self.ranks)
            saving = before - n_parameters(self.sizes, ranks)
            yield Drop(loss / saving, loss, saving, ranks)

    def raises(self) -> Iterator[Raise]:
        """Every way to raise one bond by one, neighbours following where they must."""
        before = self.n_parameters
        for bond in range(1, len(self.sizes)):
            if self.ranks[bond] == self.full[bond]:
                continue
            raised = list(self.ranks)
            raised[bond] += 1
            ranks = lift_ranks(self.sizes, raised)  # within the full ranks, which a train can have
            cost = n_parameters(self.sizes, ranks) - before
            yield Raise(self.error2_between(self.ranks, ranks) / cost, cost, ranks)

    def error2_between(self, lower: Ranks, upper: Ranks) -> float:
        """By how much the squared error, estimated as ``||W||^2 (1 - prod_k w_k)``, grows from upper to lower ranks."""
        # With w' the shares that the lower ranks keep, and no difference of two nearly equal products:
        #   prod w - prod w' = sum_k  w'_1 .. w'_{k-1} (w_k - w'_k) w_{k+1} .. w_m
        growth, kept = 0.0, 1.0
        for k in self.cuts:
            less, more = lower[k], upper[k]
            growth = growth * self.shares[k][more] + kept * sum(self.weights[k][less:more])
            kept *= self.shares[k][less]
        return growth

    def weight_between(self, lower: Ranks, upper: Ranks) -> float:
        """The Schmidt weight of the directions that only the upper ranks keep: the growth of the bound's square."""
        return sum(sum(weights[a:b]) for weights, a, b in zip(self.weights, lower, upper, strict=False))
