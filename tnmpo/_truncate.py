"""truncate: cut the bonds of an MPO and record how far the result is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _chain, _weighted
from ._backend import Array, Backend, backend_of, cast, dtype_name, is_half, to_numpy, working
from ._bounds import certify, l2_norm
from ._mpo import MPO, check_center, check_mpo, four_way, three_way
from ._ranks import choose_ranks
from ._shapes import MPOShape
from ._weights import Weight


def truncate(mpo: MPO, rank: Any, *, weight: Weight | None = None) -> MPO:
    """Cut the bonds of an MPO.

    Parameters
    ----------
    mpo : MPO
    rank : int, tuple, float or policy
        As for ``tnmpo.mpo_decompose``; a full bond here is one of ``mpo``.
    weight : Weight, optional
        The norm to cut in, for low-rank shapes.

    Returns
    -------
    MPO
        With the center of ``mpo`` (``order // 2`` where it has none), in the Schmidt basis of
        every bond. ``truncation`` records the distance to ``mpo``.

    Raises
    ------
    ValueError, TypeError
        If ``rank`` cannot be met, ``mpo`` is no MPO, or the weight does not fit.

    Notes
    -----
    One sweep of SVDs over orthogonal residuals: the error is exact, and at most ``sqrt(n - 1)`` times that of the best
    MPO of these ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, corollary 2.4). Cost: O(sum_k d_k r^3).

    Examples
    --------
    >>> import numpy as np
    >>> mpo = MPO([np.eye(4).reshape(1, 4, 1, 4), np.diag([3.0, 2, 1, 0]).reshape(4, 1, 4, 1)])
    >>> cut = truncate(mpo, rank=2)
    >>> cut.ranks, round(cut.truncation.error, 12)
    ((1, 2, 1), 1.0)
    """
    mpo = check_mpo(mpo)
    center = check_center(mpo.center, mpo.order)
    backend = backend_of(mpo.cores[0], "mpo")
    cores = [working(core) for core in three_way(mpo.cores)]
    if weight is not None:
        _weighted.check(weight, mpo.shape)
        factors = _weighted.of_train(backend, cores, weight)
        return cut_weighted(backend, factors, mpo.shape, rank, center, mpo, weight)
    cores, spectra = _chain.schmidt(backend, cores, center)
    return cut_canonical(backend, cores, spectra, mpo.shape, rank, center, mpo)


def cut_canonical(
    backend: Backend,
    cores: Sequence[Array],
    spectra: Sequence[Array],
    shape: MPOShape,
    rank: Any,
    center: int,
    source: Array | MPO,
) -> MPO:
    """Cut a train that is canonical around ``center`` and certify the result against ``source``."""
    spectra = [to_numpy(spectrum) for spectrum in spectra]
    ranks = choose_ranks(rank, spectra, shape.site_sizes)
    norm = l2_norm(spectra[0]) if spectra else l2_norm(to_numpy(cores[0]))
    if any(kept < len(spectrum) for kept, spectrum in zip(ranks[1:-1], spectra, strict=True)):
        cores, error = _chain.cut(backend, cores, center, ranks)
    else:
        error = 0.0
    return _finish(cores, shape, center, source, None, ranks, spectra, error, norm)


def cut_weighted(
    backend: Backend,
    factors: _weighted.Factors,
    shape: MPOShape,
    rank: Any,
    center: int,
    source: Array | MPO,
    weight: Weight,
) -> MPO:
    """The same for a low-rank shape, in the weighted norm."""
    spectrum = to_numpy(factors.spectrum)
    spectra = [spectrum] * (shape.order - 1)
    ranks = choose_ranks(rank, spectra, shape.site_sizes)
    kept = min(ranks[1:-1])
    train = _weighted.train(factors, kept, shape.order)
    dtype = dtype_name(working(source.cores[0] if isinstance(source, MPO) else source))
    cores, _ = _chain.schmidt(backend, [cast(core, dtype) for core in train], center)
    return _finish(cores, shape, center, source, weight, ranks, spectra, l2_norm(spectrum[kept:]), l2_norm(spectrum))


def _finish(
    cores: Sequence[Array],
    shape: MPOShape,
    center: int,
    source: Array | MPO,
    weight: Weight | None,
    ranks: Sequence[int],
    spectra: Sequence[np.ndarray],
    error: float,
    norm: float,
) -> MPO:
    """Cast back to the dtype of ``source`` and attach the record."""
    given = source.cores[0] if isinstance(source, MPO) else source
    mpo = MPO(four_way(cores, shape, dtype_name(given)), center=center)
    if is_half(given):
        # What the sweep discarded is not all: the cores were rounded to 16 bits afterwards.
        before = _dense(source) if isinstance(source, MPO) else working(source)
        error = (weight or Weight()).norm(before - _dense(mpo))
    return MPO(mpo.cores, center=center, truncation=certify(ranks, spectra, error, norm))


def _dense(mpo: MPO) -> Array:
    """The matrix of the cores as they are, without the rounding that contracting them in 16 bits would add."""
    return MPO([working(core) for core in mpo.cores]).to_matrix()
