"""Cuts in a metric that is no product over the sites, and the ranks of a tolerance, found by measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _chain
from ._backend import Array, dtype_name, resolution
from ._fit import refine
from ._joint import BlockCut, WeightedProblem
from ._ranks import BothPolicies, Tolerance, choose_ranks
from ._shapes import clip_ranks, n_parameters
from ._train import Frame
from ._weights import Weight

_ALS_SWEEPS, _ALS_TOLERANCE = 4, 1e-3  # of a cut; tnmpo.als_fit goes further
_TRIALS = 5  # cuts to find where the spectra choose ranks of the tolerance
_LOWERINGS = 6  # cuts a bond, to lower one bond at a time from there

Ranks = tuple[int, ...]


class Trials:
    """Cuts of one train, each measured, none made twice."""

    def __init__(self, cores: Sequence[Array], frame: Frame[Any], weight: Weight, center: int) -> None:
        self.problem = WeightedProblem(frame.build(cores, dtype_name(cores[0]))._dense(), frame, weight)
        self.blocks = BlockCut(cores, frame, weight)
        self.spectra = self.blocks.spectra()
        self.norm = self.problem.norm
        self.sizes, self.center = frame.site_sizes, center
        self.starts: dict[Ranks, tuple[Sequence[Array], float, float]] = {}
        self.made: dict[Ranks, tuple[Sequence[Array], float, float]] = {}

    def cut(self, ranks: Ranks) -> tuple[Sequence[Array], float, float]:
        """The cores, their error and that of the plain cut, by ALS from the better of two starts."""
        if ranks not in self.made:
            start, _, plain_error = self._start(ranks)
            kept, errors, _ = refine(self.problem, start, _ALS_SWEEPS, _ALS_TOLERANCE)
            self.made[ranks] = kept, errors[-1], plain_error
        return self.made[ranks]

    def _start(self, ranks: Ranks) -> tuple[Sequence[Array], float, float]:
        """The cut in the marginals or the plain one, its error, and that of the plain one."""
        if ranks not in self.starts:
            self.starts[ranks] = self._better_start(ranks)
        return self.starts[ranks]

    def _better_start(self, ranks: Ranks) -> tuple[Sequence[Array], float, float]:
        if keeps_all(self.blocks.cores, ranks):
            return self.blocks.cores, 0.0, 0.0
        kept = self.blocks.cut(ranks)
        plain, _ = _chain.cut(self.blocks.cores, self.center, ranks)
        error, plain_error = self.problem.error(kept), self.problem.error(plain)
        return (kept, error, plain_error) if error < plain_error else (plain, plain_error, plain_error)

    def ranks(self, policy: Any) -> Ranks:
        """What the policy chooses; a tolerance by measuring, for the spectra are those of other metrics."""
        if isinstance(policy, BothPolicies):
            first, second = self.ranks(policy.first), self.ranks(policy.second)
            return tuple(map(min, first, second))
        if not isinstance(policy, Tolerance):
            return choose_ranks(policy, self.spectra, self.sizes)
        limit = float(policy.relative) * self.norm + 64 * resolution(self.blocks.cores[0]) * self.norm
        return self._lowered(self._chosen(float(policy.relative), limit), limit)

    def _chosen(self, relative: float, limit: float) -> Ranks:
        """The fewest that the spectra were found to choose with an error within the limit, by bisection."""
        asked, kept, lost, trial = relative, None, math.inf, 0
        while True:
            trial += 1
            ranks = Tolerance(asked).choose(self.spectra, self.sizes)
            error = self.cut(ranks)[1]
            if error <= limit:
                kept = (asked, ranks)
            else:
                lost = asked
            if kept is not None and (trial >= _TRIALS or 0.9 * limit <= error <= limit or max(kept[1]) == 1):
                return kept[1]
            if kept is None and trial >= 4 * _TRIALS:  # below what rounding leaves of a cut: nothing is cut
                return (1, *(core.shape[2] for core in self.blocks.cores))
            if kept is None:
                asked *= min(0.9, limit / error)
            elif lost == math.inf:
                asked *= min(4.0, limit / error) if error > 0 else 4.0
            else:
                asked = math.sqrt(kept[0] * lost)

    def _lowered(self, ranks: Ranks, limit: float) -> Ranks:
        """One bond after the other lowered while the error stays within the limit, until no bond can be by one.

        Should so many cuts not do, what was reached is returned: it is within the limit all the way.

        The spectra of the marginals say which bond is likely to save most for its loss, and how far it may go; what
        proves too far is halved.
        """
        bonds = range(1, len(ranks) - 1)
        steps = {bond: ranks[bond] for bond in bonds}
        refused: set[Ranks] = set()
        for _ in range(_LOWERINGS * len(bonds) if self.norm > 0 else 0):
            moves = [self._move(ranks, bond, steps[bond], limit) for bond in bonds if ranks[bond] > 1]
            moves = [move for move in moves if move[-1] not in refused]
            if not moves:
                break
            *_, bond, lower = max(moves)
            if self._error(lower, limit) <= limit:
                ranks = lower
            else:
                refused.add(lower)
                steps[bond] = (ranks[bond] - lower[bond]) // 2
        return ranks

    def _move(self, ranks: Ranks, bond: int, most: int, limit: float) -> tuple[bool, float, int, Ranks]:
        """What lowering a bond is likely to save per loss, the bond, and the ranks then.

        First, whether to ask it early: one that could not go down by one before another went can hardly now.
        """
        tail = np.cumsum(np.square(self.spectra[bond - 1][: ranks[bond]][:0:-1] / self.norm))
        room = (limit / self.norm) ** 2 - (self._error(ranks, limit) / self.norm) ** 2
        step = max(1, min(most, int(np.searchsorted(tail, room, side="right"))))
        lower = clip_ranks(self.sizes, (*ranks[:bond], ranks[bond] - step, *ranks[bond + 1 :]))
        saved = n_parameters(self.sizes, ranks) - n_parameters(self.sizes, lower)
        return most > 0, saved / max(float(tail[step - 1]), 1e-300), bond, lower

    def _error(self, ranks: Ranks, limit: float) -> float:
        """That of the start where it is within the limit already, which refining it only lowers; else of the cut."""
        error = self._start(ranks)[1]
        return error if error <= limit and ranks not in self.made else self.cut(ranks)[1]


def keeps_all(cores: Sequence[Array], ranks: Sequence[int]) -> bool:
    """Whether cutting to these ranks would cut nothing."""
    return all(core.shape[2] == rank for core, rank in zip(cores, ranks[1:], strict=True))
