"""truncate: cut the bonds of a train and record how far the result is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from . import _chain, _gram, _weighted
from ._backend import Array, cast, double, dtype_name, frobenius_norm, is_half, to_numpy, working
from ._bounds import Truncation, certify, l2_norm
from ._factor import Rank, naming
from ._mpo import MPO, shape_of
from ._ranks import choose_ranks
from ._train import AnyTrain, Frame, Train, chain_of, check_center, check_train, interleaved
from ._trials import Trials, keeps_all
from ._weights import SiteRoots, Weight, check_weight, site_roots


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
    train of these ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, corollary 2.4). Cost: O(sum_k d_k r^3). In a
    weighted norm that is no product over the sites the dense matrix is formed.

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
    norm = l2_norm(spectra[0]) if spectra else frobenius_norm(cores[0])
    if ranks[1:-1] != tuple(map(len, spectra)):
        cores, error = _chain.cut(cores, center, ranks)
    else:
        error = 0.0
    return _finish(cores, frame, center, source, None, certify(ranks, spectra, error, norm), norm)


def cut_dense(tensor: Array, frame: Frame[AnyTrain], rank: Any, center: int, source: Array) -> AnyTrain:
    """Cut a dense array in single precision, ``source`` or its copy in it, where it need not be differentiated."""

    def chosen(spectra: list[np.ndarray]) -> tuple[int, ...]:
        return choose_ranks(rank if rank is not None else max(map(len, spectra)), spectra, frame.site_sizes)

    halved = _gram.decompose(tensor, frame.site_shapes, chosen)
    cores = _chain.move_center(halved.cores, halved.middle, center)
    if rank is None:
        return frame.build(cores, dtype_name(source), center=center)
    norm = l2_norm(halved.spectra[0])
    record = certify(halved.ranks, halved.spectra, halved.error, norm)
    return _finish(cores, frame, center, source, None, record, norm)


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
    record = certify(chosen(spectrum), [spectrum] * (order - 1), l2_norm(spectrum[kept:]), norm, "product")
    # what two singular metrics don't see would be lost, though nothing is cut
    cores = _uncut(source, frame, center) if kept == len(spectrum) else _weighted.train(best, order)
    return _finish(cores, frame, center, source, weight, record, norm)


def _uncut(source: Array | Train, frame: Frame[Any], center: int) -> list[Array]:
    """The exact cores of what is to be cut, in double precision."""
    if isinstance(source, Train):
        return [double(core) for core in chain_of(source)]
    return _chain.decompose(interleaved(double(source), frame), frame.site_sizes, center)[0]


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
    roots, is_product = site_roots(weight, shape_of(frame), cores[0])
    if is_product:
        spectra = _weighted.bond_spectra(cores, frame.site_shapes, roots)
        ranks = choose_ranks(rank, spectra, frame.site_sizes)
        kept, error = _cut_in_product(cores, frame, center, roots, ranks)
        norm = _chain.norm(_weighted.absorb(cores, frame.site_shapes, roots))
        record = certify(ranks, spectra, error, norm, "product")
        return _finish(kept, frame, center, source, weight, record, norm)
    trials = Trials(cores, frame, weight, center)
    ranks = trials.ranks(rank)
    kept, error, plain_error = trials.cut(ranks)
    # no spectrum bounds an error in this norm from below; from above, the plain cut does
    relative = error / trials.norm if trials.norm > 0 else 0.0
    record = Truncation(ranks, error, relative, 0.0, plain_error, tuple(trials.spectra), "joint")
    return _finish(kept, frame, center, source, weight, record, trials.norm)


def _cut_in_product(
    cores: Sequence[Array], frame: Frame[Any], center: int, roots: SiteRoots, ranks: Sequence[int]
) -> tuple[Sequence[Array], float]:
    """The weighted sweep, or the plain one where that happens to be better: both are only nearly optimal."""
    if keeps_all(cores, ranks):
        return cores, 0.0
    kept, error = _weighted.cut(cores, frame.site_shapes, roots, ranks)
    plain, _ = _chain.cut(cores, center, ranks)
    plain_error = _chain.distance(*(_weighted.absorb(chain, frame.site_shapes, roots) for chain in (cores, plain)))
    return (plain, plain_error) if plain_error < error else (kept, error)


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
        error = _distance(source, train, weight)
        record = replace(record, error=error, relative_error=error / norm if norm > 0 else 0.0)
    train.truncation = record
    return train


def _distance(source: Array | Train, train: Train, weight: Weight | None) -> float:
    """``||source - train||`` in the norm of the weight; of two trains without densifying, where the metric allows."""
    if isinstance(source, Train):
        pair = [[double(core) for core in chain_of(one)] for one in (source, train)]
        if weight is None:
            return _chain.distance(*pair)
        sites = train.frame.site_shapes
        roots, is_product = site_roots(weight, shape_of(train.frame), pair[0][0])
        if is_product:
            return _chain.distance(*(_weighted.absorb(cores, sites, roots) for cores in pair))
    residual = (rebuilt(source) if isinstance(source, Train) else working(source)) - rebuilt(train)
    return frobenius_norm(residual) if weight is None else weight.norm(residual)


def rebuilt(train: Train) -> Array:
    """The dense array of the cores as they are, without the rounding that contracting them in 16 bits would add."""
    return type(train)([working(core) for core in train.cores])._dense()
