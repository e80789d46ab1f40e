"""The entanglement of every inner bond side by side, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ._backend import Array, to_numpy
from ._entanglement import check_spectrum, entanglement_entropy, relative_spectra, schmidt_gap
from ._train import Train


@dataclass(frozen=True)
class EntanglementProfile:
    """What ``tnmpo.entanglement_profile`` reads from every inner bond; printed as a table.

    Attributes
    ----------
    ranks : tuple of int
        The number of Schmidt values of each inner bond.
    entropies : tuple of float
        The von Neumann entropies S, in nats.
    gaps : tuple of float
        The Schmidt gaps.

    Examples
    --------
    >>> profile = EntanglementProfile(ranks=(4,), entropies=(0.0,), gaps=(1.0,))
    >>> profile.effective_ranks, round(profile.deficits[0], 3)
    ((1.0,), 1.386)
    """

    ranks: tuple[int, ...]
    entropies: tuple[float, ...]
    gaps: tuple[float, ...]

    @property
    def ceilings(self) -> tuple[float, ...]:
        """``ln r``, the largest entropy that each bond can have."""
        return tuple(math.log(rank) for rank in self.ranks)

    @property
    def deficits(self) -> tuple[float, ...]:
        """``ln r - S`` of each bond."""
        pairs = zip(self.ceilings, self.entropies, strict=True)
        return tuple(max(0.0, ceiling - entropy) for ceiling, entropy in pairs)

    @property
    def effective_ranks(self) -> tuple[float, ...]:
        """``exp(S)`` of each bond."""
        return tuple(math.exp(entropy) for entropy in self.entropies)

    def __str__(self) -> str:
        columns = (self.ranks, self.entropies, self.ceilings, self.deficits, self.effective_ranks, self.gaps)
        head = f"{'bond':>4} {'rank':>6} {'S / nats':>9} {'ln r':>7} {'deficit':>8} {'exp S':>8} {'gap':>7}"
        rows = (
            f"{bond:4} {rank:6} {entropy:9.4f} {ceiling:7.4f} {deficit:8.4f} {effective:8.2f} {gap:7.4f}"
            for bond, (rank, entropy, ceiling, deficit, effective, gap) in enumerate(zip(*columns, strict=True), 1)
        )
        return "\n".join([head, *rows])


def entanglement_profile(train_or_spectra: Train | Sequence[Array]) -> EntanglementProfile:
    """Entropy, effective rank and gap of every inner bond, side by side.

    Of an MPO it is the operator-entanglement profile: what a cut at each bond has to give up.

    Parameters
    ----------
    train_or_spectra : MPO, TT or sequence of (r_k,) arrays
        Spectra of one's own, e.g. ``mpo.truncation.spectra``, which are those of the norm that was cut in.

    Returns
    -------
    EntanglementProfile
        Plain numbers, without derivatives; ``print`` shows a table.

    Raises
    ------
    ValueError, TypeError
        If it is neither, or a spectrum is none.

    Notes
    -----
    That of ``tnmpo.bond_spectra``. Prosen and Pizorn, Phys. Rev. A 76, 032316 (2007); Zanardi, Phys. Rev. A 63,
    040304(R) (2001).

    Examples
    --------
    >>> import numpy as np
    >>> print(entanglement_profile([np.ones(4), np.array([3.0, 1.0])]))
    bond   rank  S / nats    ln r  deficit    exp S     gap
       1      4    1.3863  1.3863   0.0000     4.00  0.0000
       2      2    0.3251  0.6931   0.3681     1.38  0.8000
    """
    if isinstance(train_or_spectra, Train):
        spectra: Sequence[Array] = relative_spectra(train_or_spectra)
    elif isinstance(train_or_spectra, list | tuple):
        spectra = train_or_spectra
    else:
        raise TypeError(
            f"train_or_spectra: got {type(train_or_spectra).__name__}, expected a tnmpo.MPO, a tnmpo.TT or a list of "
            "spectra, one per inner bond"
        )
    values = [to_numpy(check_spectrum(spectrum)) for spectrum in spectra]
    return EntanglementProfile(
        ranks=tuple(map(len, values)),
        entropies=tuple(float(entanglement_entropy(spectrum)) for spectrum in values),
        gaps=tuple(float(schmidt_gap(spectrum)) for spectrum in values),
    )
