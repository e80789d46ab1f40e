"""truncate: cut the bonds of a train and record how far the result is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _chain, _weighted
from ._backend import Array, cast, dtype_name, is_half, to_numpy, working
from ._bounds import certify, l2_norm
from ._mpo import MPO
from ._ranks import choose_ranks
from ._train import AnyTrain, Frame, Train, chain_of, check_center, check_train
from ._weights import Weight


def truncate(train: AnyTrain, rank: Any, *, weight: Weight | None = None) -> AnyTrain:
    """Cut the bonds of an MPO or a TT.

    Parameters
    ----------
    train : MPO or TT
    rank : int, tuple, float or policy
        As for ``tnmpo.mpo_decompose``; a full bond here is one of ``train``.
    weight : Weight, optional
        The norm to cut in, for MPOs of low-rank shapes.

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
    if weight is not None:
        _weighted.check(weight, check_train(train, kind=MPO).shape)
        return cut_weighted(_weighted.of_train(cores, weight), train.frame, rank, center, train, weight)
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
    if any(kept < len(spectrum) for kept, spectrum in zip(ranks[1:-1], spectra, strict=True)):
        cores, error = _chain.cut(cores, center, ranks)
    else:
        error = 0.0
    return _finish(cores, frame, center, source, None, ranks, spectra, error, norm)


def cut_weighted(
    factors: _weighted.Factors,
    frame: Frame[AnyTrain],
    rank: Any,
    center: int,
    source: Array | Train,
    weight: Weight,
) -> AnyTrain:
    """The same for a low-rank shape, in the weighted norm."""
    spectrum = to_numpy(factors.spectrum)
    order = len(frame.site_shapes)
    spectra = [spectrum] * (order - 1)
    ranks = choose_ranks(rank, spectra, frame.site_sizes)
    kept = min(ranks[1:-1])
    train = _weighted.train(factors, kept, order)
    dtype = dtype_name(working(source.cores[0] if isinstance(source, Train) else source))
    cores, _ = _chain.schmidt([cast(core, dtype) for core in train], center)
    return _finish(cores, frame, center, source, weight, ranks, spectra, l2_norm(spectrum[kept:]), l2_norm(spectrum))


def _finish(
    cores: Sequence[Array],
    frame: Frame[AnyTrain],
    center: int,
    source: Array | Train,
    weight: Weight | None,
    ranks: Sequence[int],
    spectra: Sequence[np.ndarray],
    error: float,
    norm: float,
) -> AnyTrain:
    """Cast back to the dtype of ``source`` and attach the record."""
    given = source.cores[0] if isinstance(source, Train) else source
    train = frame.build(cores, dtype_name(given), center=center)
    if is_half(given):
        # What the sweep discarded is not all: the cores were rounded to 16 bits afterwards.
        before = _dense(source) if isinstance(source, Train) else working(source)
        residual = before - _dense(train)
        error = l2_norm(to_numpy(residual)) if weight is None else weight.norm(residual)
    train.truncation = certify(ranks, spectra, error, norm)
    return train


def _dense(train: Train) -> Array:
    """The dense array of the cores as they are, without the rounding that contracting them in 16 bits would add."""
    return type(train)([working(core) for core in train.cores])._dense()
