"""truncate: cut the bonds of a train and record how far the result is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from . import _chain, _weighted
from ._backend import Array, cast, double, dtype_name, is_half, resolution, to_numpy, working
from ._bounds import Truncation, certify, l2_norm
from ._factor import Rank, naming
from ._fit import refine
from ._joint import BlockCut, WeightedProblem
from ._mpo import MPO
from ._ranks import BothPolicies, Tolerance, choose_ranks
from ._shapes import MPOShape
from ._train import AnyTrain, Frame, Train, chain_of, check_center, check_train
from ._weights import SiteRoots, Weight, check_weight, site_roots

_ALS_SWEEPS, _ALS_TOLERANCE = 4, 1e-3  # of a weighted cut; tnmpo.als_fit goes further
_TRIALS = 5  # cuts to find the ranks of a tolerance


def truncate(train: AnyTrain, rank: Any, *, weight: Weight | None = None) -> AnyTrain:
    """Cut the bonds of an MPO or a TT.

    Parameters
    ----------
    train : MPO or TT
    rank : int, tuple, float or policy
        As for ``tnmpo.mpo_decompose``; a full bond here is one of ``train``.
    weight : Weight, optional
        The norm to cut in, for MPOs; see ``tnmpo.mpo_decompose``.

    Returns
    -------
    MPO or TT, as it came
        With the center of ``train`` (``order // 2`` where it has none), in the Schmidt basis of
        every bond. ``truncation`` records the distance to ``train``.

    Raises
    ------
    ValueError, TypeError
        If ``rank`` cannot be met, ``train`` is none, or the weight does not fit.

    Notes
    -----
    One sweep of SVDs over orthogonal residuals: the error is exact, and at most ``sqrt(n - 1)`` times that of the best
    train of these ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, corollary 2.4). Cost: O(sum_k d_k r^3).

    Examples
    --------
    >>> import numpy as np
    >>> mpo = MPO([np.eye(4).reshape(1, 4, 1, 4), np.diag([3.0, 2, 1, 0]).reshape(4, 1, 4, 1)])
    >>> cut = truncate(mpo, rank=2)
    >>> cut.ranks, round(cut.truncation.error, 12)
    ((1, 2, 1), 1.0)
    """
    train = check_train(train)
    center = check_center(train.center, train.order)
    cores = chain_of(train)
    with naming("train"):
        if weight is not None:
            check_weight(weight)
            if check_train(train, kind=MPO).shape.is_low_rank:
                factors = partial(_weighted.of_train, cores)
                return cut_low_rank(factors, train.frame, rank, center, train, weight)
            exact, _ = _chain.schmidt([double(core) for core in cores], center)
            return cut_weighted(exact, train.frame, rank, center, train, weight)
        cores, spectra = _chain.schmidt(cores, center)
        return cut_canonical(cores, spectra, train.frame, rank, center, train)


def cut_canonical(
    cores: Sequence[Array],
    spectra: Sequence[Array],
    frame: Frame[AnyTrain],
    rank: Any,
    center: int,
    source: Array | Train,
) -> AnyTrain:
    """Cut a chain that is canonical around ``center`` and certify the result against ``source``."""
    spectra = [to_numpy(spectrum) for spectrum in spectra]
    ranks = choose_ranks(rank, spectra, frame.site_sizes)
    norm = l2_norm(spectra[0]) if spectra else l2_norm(to_numpy(cores[0]))
    if ranks[1:-1] != tuple(map(len, spectra)):
        cores, error = _chain.cut(cores, center, ranks)
    else:
        error = 0.0
    return _finish(cores, frame, center, source, None, certify(ranks, spectra, error, norm), norm)


def cut_low_rank(
    factors: Callable[[Weight, Rank], _weighted.Factors],
    frame: Frame[AnyTrain],
    rank: Any,
    center: int,
    source: Array | Train,
    weight: Weight,
) -> AnyTrain:
    """The same for a low-rank shape in a weighted norm, where the optimum is one SVD."""
    order = len(frame.site_shapes)

    def chosen(spectrum: Array) -> tuple[int, ...]:
        return choose_ranks(rank, [to_numpy(spectrum)] * (order - 1), frame.site_sizes)

    best = factors(weight, lambda spectrum: min(chosen(spectrum)[1:-1]))
    spectrum = to_numpy(best.spectrum)
    kept = best.left.shape[1]
    norm = l2_norm(spectrum)
    record = certify(chosen(spectrum), [spectrum] * (order - 1), l2_norm(spectrum[kept:]), norm)
    return _finish(_weighted.train(best, order), frame, center, source, weight, record, norm)


def cut_weighted(
    cores: Sequence[Array],
    frame: Frame[AnyTrain],
    rank: Any,
    center: int,
    source: Array | Train,
    weight: Weight,
) -> AnyTrain:
    """The same for any shape: a sweep in a metric that is a product over the sites, else refined from there by ALS.

    Parameters
    ----------
    cores : double precision, canonical around ``center``, without a cut
    """
    rows, cols = zip(*frame.site_shapes, strict=True)
    roots, is_product = site_roots(weight, MPOShape(rows, cols), cores[0])
    if is_product:
        spectra = _weighted.bond_spectra(cores, frame.site_shapes, roots)
        ranks = choose_ranks(rank, spectra, frame.site_sizes)
        kept, error = _cut_in_product(cores, frame, center, roots, ranks)
        norm = _chain.norm(_weighted.absorb(cores, frame.site_shapes, roots))
        return _finish(kept, frame, center, source, weight, certify(ranks, spectra, error, norm), norm)
    trials = _Trials(cores, frame, weight, center)
    ranks = trials.ranks(rank)
    kept, error, plain_error = trials.cut(ranks)
    # no spectrum bounds an error in this norm from below; from above, the plain cut does
    relative = error / trials.norm if trials.norm > 0 else 0.0
    record = Truncation(ranks, error, relative, 0.0, plain_error, tuple(trials.spectra))
    return _finish(kept, frame, center, source, weight, record, trials.norm)


def _cut_in_product(
    cores: Sequence[Array], frame: Frame[Any], center: int, roots: SiteRoots, ranks: Sequence[int]
) -> tuple[Sequence[Array], float]:
    """The weighted sweep, or the plain one where that happens to be better: both are only nearly optimal."""
    if _keeps_all(cores, ranks):
        return cores, 0.0
    kept, error = _weighted.cut(cores, frame.site_shapes, roots, ranks)
    plain, _ = _chain.cut(cores, center, ranks)
    plain_error = _chain.distance(*(_weighted.absorb(chain, frame.site_shapes, roots) for chain in (cores, plain)))
    return (plain, plain_error) if plain_error < error else (kept, error)


class _Trials:
    """Cuts of one train in a metric that is no product over the sites, each measured, none made twice."""

    def __init__(self, cores: Sequence[Array], frame: Frame[Any], weight: Weight, center: int) -> None:
        self.problem = WeightedProblem(frame.build(cores, dtype_name(cores[0]))._dense(), frame, weight)
        self.blocks = BlockCut(cores, frame, weight)
        self.spectra = self.blocks.spectra()
        self.norm = self.problem.norm
        self.sizes, self.center = frame.site_sizes, center
        self.made: dict[tuple[int, ...], tuple[Sequence[Array], float, float]] = {}

    def cut(self, ranks: tuple[int, ...]) -> tuple[Sequence[Array], float, float]:
        """The cores, their error and that of the plain cut, by ALS from the better of two starts."""
        if ranks not in self.made:
            self.made[ranks] = self._cut(ranks)
        return self.made[ranks]

    def _cut(self, ranks: tuple[int, ...]) -> tuple[Sequence[Array], float, float]:
        if _keeps_all(self.blocks.cores, ranks):
            return self.blocks.cores, 0.0, 0.0
        kept = self.blocks.cut(ranks)
        plain, _ = _chain.cut(self.blocks.cores, self.center, ranks)
        plain_error = self.problem.error(plain)
        start = plain if plain_error <= self.problem.error(kept) else kept
        kept, errors, _ = refine(self.problem, start, _ALS_SWEEPS, _ALS_TOLERANCE)
        return kept, errors[-1], plain_error

    def ranks(self, policy: Any) -> tuple[int, ...]:
        """What the policy chooses; a tolerance by measuring, for the spectra are those of other metrics."""
        if isinstance(policy, BothPolicies):
            first, second = self.ranks(policy.first), self.ranks(policy.second)
            return tuple(map(min, first, second))
        if not isinstance(policy, Tolerance):
            return choose_ranks(policy, self.spectra, self.sizes)
        return self._within(float(policy.relative))

    def _within(self, limit: float) -> tuple[int, ...]:
        """The ranks of the fewest parameters that were found to have a relative error of at most ``limit``."""
        slack = 64 * resolution(self.blocks.cores[0])
        asked, kept, lost, trial = limit, None, math.inf, 0
        while True:
            trial += 1
            ranks = Tolerance(asked).choose(self.spectra, self.sizes)
            relative = self.cut(ranks)[1] / self.norm if self.norm > 0 else 0.0
            if relative <= limit + slack:
                kept = (asked, ranks)
            else:
                lost = asked
            if kept is not None and (trial >= _TRIALS or 0.9 * limit <= relative <= limit or max(kept[1]) == 1):
                return kept[1]
            if kept is None:
                asked *= min(0.9, limit / relative)
            elif lost == math.inf:
                asked *= min(4.0, limit / relative) if relative > 0 else 4.0
            else:
                asked = math.sqrt(kept[0] * lost)


def _keeps_all(cores: Sequence[Array], ranks: Sequence[int]) -> bool:
    return all(core.shape[2] == rank for core, rank in zip(cores, ranks[1:], strict=True))


def _finish(
    cores: Sequence[Array],
    frame: Frame[AnyTrain],
    center: int,
    source: Array | Train,
    weight: Weight | None,
    record: Truncation,
    norm: float,
) -> AnyTrain:
    """Cast back to the dtype of ``source``, in the plain Schmidt basis, and attach the record."""
    given = source.cores[0] if isinstance(source, Train) else source
    if weight is not None:  # what was cut in another norm is in no gauge of this one
        kind = dtype_name(working(given))
        cores, _ = _chain.schmidt([cast(core, kind) for core in cores], center)
    train = frame.build(cores, dtype_name(given), center=center)
    if is_half(given):
        # What the sweep discarded is not all: the cores were rounded to 16 bits afterwards.
        before = rebuilt(source) if isinstance(source, Train) else working(source)
        residual = before - rebuilt(train)
        error = l2_norm(to_numpy(residual)) if weight is None else weight.norm(residual)
        record = replace(record, error=error, relative_error=error / norm if norm > 0 else 0.0)
    train.truncation = record
    return train


def rebuilt(train: Train) -> Array:
    """The dense array of the cores as they are, without the rounding that contracting them in 16 bits would add."""
    return type(train)([working(core) for core in train.cores])._dense()
