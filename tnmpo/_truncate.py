"""truncate: cut the bonds of a train and record how far the result is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import _chain, _weighted
from ._backend import Array, cast, double, dtype_name, is_half, to_numpy, working
from ._bounds import Truncation, certify, l2_norm
from ._factor import naming
from ._fit import WeightedProblem, refine
from ._mpo import MPO
from ._ranks import Tolerance, choose_ranks
from ._shapes import MPOShape
from ._train import AnyTrain, Frame, Train, chain_of, check_center, check_train
from ._weights import SiteRoots, Weight, check_weight

_ALS_SWEEPS, _ALS_TOLERANCE = 4, 1e-3  # of a weighted cut; tnmpo.als_fit goes further


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
                return cut_low_rank(_weighted.of_train(cores, weight), train.frame, rank, center, train, weight)
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
    factors: _weighted.Factors,
    frame: Frame[AnyTrain],
    rank: Any,
    center: int,
    source: Array | Train,
    weight: Weight,
) -> AnyTrain:
    """The same for a low-rank shape in a weighted norm, where the optimum is one SVD."""
    spectrum = to_numpy(factors.spectrum)
    order = len(frame.site_shapes)
    spectra = [spectrum] * (order - 1)
    ranks = choose_ranks(rank, spectra, frame.site_sizes)
    kept = min(ranks[1:-1])
    norm = l2_norm(spectrum)
    record = certify(ranks, spectra, l2_norm(spectrum[kept:]), norm)
    return _finish(_weighted.train(factors, kept, order), frame, center, source, weight, record, norm)


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
    roots, is_product = weight.site_roots(MPOShape(rows, cols), cores[0])
    spectra = _weighted.bond_spectra(cores, frame.site_shapes, roots)
    if is_product or not spectra:
        ranks = choose_ranks(rank, spectra, frame.site_sizes)
        kept, error = _cut_in_product(cores, frame, center, roots, ranks)
        norm = _chain.norm(_weighted.absorb(cores, frame.site_shapes, roots))
        return _finish(kept, frame, center, source, weight, certify(ranks, spectra, error, norm), norm)
    problem = WeightedProblem(frame.build(cores, dtype_name(cores[0]))._dense(), frame, weight)
    allowed = rank
    while True:
        ranks = choose_ranks(allowed, spectra, frame.site_sizes)
        kept, error, plain_error = _cut_by_als(problem, cores, frame, center, roots, ranks)
        relative = error / problem.norm if problem.norm > 0 else 0.0
        if not isinstance(rank, Tolerance) or relative <= rank.relative:
            break
        # the spectra are those of another metric: what it promises is not what came out, so ask for more
        allowed = Tolerance(allowed.relative * min(0.9, rank.relative / relative))
    # no spectrum bounds an error in this norm from below; from above, the plain cut does
    record = Truncation(tuple(ranks), error, relative, 0.0, plain_error, tuple(spectra))
    return _finish(kept, frame, center, source, weight, record, problem.norm)


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


def _cut_by_als(
    problem: WeightedProblem,
    cores: Sequence[Array],
    frame: Frame[Any],
    center: int,
    roots: SiteRoots,
    ranks: Sequence[int],
) -> tuple[Sequence[Array], float, float]:
    """ALS from the better of the plain cut and the one in the product of the metric's marginals."""
    if _keeps_all(cores, ranks):
        return cores, 0.0, 0.0
    kept, _ = _weighted.cut(cores, frame.site_shapes, roots, ranks)
    plain, _ = _chain.cut(cores, center, ranks)
    plain_error = problem.error(plain)
    start = plain if plain_error <= problem.error(kept) else kept
    kept, errors, _ = refine(problem, start, _ALS_SWEEPS, _ALS_TOLERANCE)
    return kept, errors[-1], plain_error


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
        before = _dense(source) if isinstance(source, Train) else working(source)
        residual = before - _dense(train)
        error = l2_norm(to_numpy(residual)) if weight is None else weight.norm(residual)
        record = replace(record, error=error, relative_error=error / norm if norm > 0 else 0.0)
    train.truncation = record
    return train


def _dense(train: Train) -> Array:
    """The dense array of the cores as they are, without the rounding that contracting them in 16 bits would add."""
    return type(train)([working(core) for core in train.cores])._dense()
