"""Entropies of blocks of sites, wherever they lie in the train, without its dense tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from . import _chain
from ._backend import Array, backend_of, cast, dtype_name, like, permute
from ._entanglement import check_alpha, entropy_of
from ._factor import naming, thin_qr, thin_svd
from ._shapes import shown
from ._train import Train, chain_of, check_train


def mutual_information(train: Train, block_a: Iterable[int], block_b: Iterable[int], alpha: float = 1) -> Array:
    """What two blocks of sites know of each other, ``S_A + S_B - S_AB``, in nats.

    The entropies are those of the train as a normalised state, of an MPO as an operator in the Frobenius norm.

    Parameters
    ----------
    train : MPO or TT
    block_a, block_b : range or set of int
        Indices of sites from 0, in no order and not necessarily neighbours; the two share none.
    alpha : float
        The order of the entropies, as for ``tnmpo.entanglement_entropy``.

    Returns
    -------
    scalar
        For alpha = 1 between 0, where the blocks are independent, and ``2 min(S_A, S_B)``, reached where B is all
        that is not A. For other alpha it may be negative. 0 for a train of zeros.

    Raises
    ------
    ValueError, TypeError
        If a block is empty, holds what is no site, or shares one with the other.

    Notes
    -----
    The sites are grouped into the maximal runs inside and outside the block. The first and the last run are isometries
    of their bonds; each other run has its merged site turned by a QR into at most ``r_l r_r`` directions, a local
    isometry, which changes no entropy; one SVD of what remains gives the spectrum. For a block of neighbours that costs
    O(sum_k d_k r^6) at most, with bonds r; the matrix of the SVD grows with every further run, up to a factor
    ``r^2`` each, so blocks of many pieces need small bonds.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> state = np.zeros((2, 2, 2))
    >>> state[0, 0, 0] = state[1, 1, 1] = 1  # GHZ: any two sites share one classical bit
    >>> tt = tnmpo.tt_decompose(state)
    >>> information = [mutual_information(tt, {0}, {2}), mutual_information(tt, {0}, {1, 2})]
    >>> np.round(information / np.log(2), 12).tolist()
    [1.0, 2.0]
    """
    check_train(train)
    alpha = check_alpha(alpha)
    a, b = (_check_block(block, name, train.order) for block, name in ((block_a, "block_a"), (block_b, "block_b")))
    if a & b:
        raise ValueError(f"block_b: got sites {sorted(a & b)}, which are in block_a; expected disjoint blocks")
    cores = chain_of(train)
    backend = backend_of(cores[0], "train")
    with naming("train"):
        spectra = [block_spectrum(cores, block) for block in (a, b, a | b)]
    of_a, of_b, of_both = (entropy_of(backend, spectrum, alpha) for spectrum in spectra)
    information = of_a + of_b - of_both
    if alpha == 1:
        information = backend.clip(information, 0.0)  # subadditivity, which rounding does not know
    return cast(information, dtype_name(spectra[0]))


def block_spectrum(cores: Sequence[Array], block: set[int]) -> Array:
    """The Schmidt values between the sites of ``block`` and all others, up to a factor."""
    inside = [site in block for site in range(len(cores))]
    borders = [site for site in range(1, len(cores)) if inside[site] != inside[site - 1]]
    first, last = (borders[0], borders[-1]) if borders else (0, 0)
    #  ▶━▶━○━◀━◀━◀      the first run is left of the center, the last run right of what is in between:
    #    ━━○━◀━━        both are isometries, so they are open to their bonds alone
    cores, _ = _chain.scaled_orthogonalize(cores, first)  # up to a factor, which an entropy does not see
    cores = cores[first : max(last, first + 1)]
    left = cores[0].shape[0]
    state = cast(like(np.eye(left), cores[0]), dtype_name(cores[0]))
    state = state.reshape((left, 1, left) if inside[0] else (1, left, left))  # (inside, outside, bond)
    for run, is_inside in _runs(cores, inside[first:]):
        state = _absorb(state, run, is_inside)
    right = state.shape[2]
    state = _absorb(state, cast(like(np.eye(right), run), dtype_name(run))[:, :, None], inside[-1])
    return thin_svd(state[:, :, 0])[1]


def _absorb(state: Array, run: Array, is_inside: bool) -> Array:
    """The (inside, outside, bond) array with one more run on its side."""
    within, without, bond = state.shape
    grown = state.reshape(-1, bond) @ run.reshape(bond, -1)
    grown = grown.reshape(within, without, -1, run.shape[2])
    if is_inside:
        return permute(grown, (0, 2, 1, 3)).reshape(-1, without, run.shape[2])
    return grown.reshape(within, -1, run.shape[2])


def _runs(cores: Sequence[Array], inside: Sequence[bool]) -> list[tuple[Array, bool]]:
    """Each maximal run on one side as one core, and its side."""
    runs: list[tuple[Array, bool]] = []
    for core, is_inside in zip(cores, inside, strict=False):  # the last run is left out
        merged = _seen(core)
        if runs and runs[-1][1] == is_inside:
            before = runs.pop()[0]
            product = before.reshape(-1, before.shape[2]) @ merged.reshape(merged.shape[0], -1)
            merged = _seen(product.reshape(before.shape[0], -1, merged.shape[2]))
        runs.append((merged, is_inside))
    return runs


def _seen(core: Array) -> Array:
    """The core with its site turned into the directions that its bonds see, at most their product."""
    left, size, right = core.shape
    if size <= left * right:
        return core
    triangle = thin_qr(permute(core, (1, 0, 2)).reshape(size, left * right))[1]
    return permute(triangle.reshape(-1, left, right), (1, 0, 2))


def _check_block(block: Any, argument: str, order: int) -> set[int]:
    expected = f"a range or set of site indices from 0 to {order - 1}"
    if isinstance(block, str) or not isinstance(block, Iterable):
        raise TypeError(f"{argument}: got {shown(block)}, expected {expected}")
    sites = list(block)
    for site in sites:
        if isinstance(site, bool) or not isinstance(site, Integral):
            raise TypeError(f"{argument}: got {shown(site)} among the sites, expected {expected}")
        if not 0 <= int(site) < order:
            raise ValueError(f"{argument}: got site {site}, expected {expected}")
    if not sites:
        raise ValueError(f"{argument}: got no sites, expected {expected}, at least one")
    return {int(site) for site in sites}
