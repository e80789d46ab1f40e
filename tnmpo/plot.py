"""Figures of an MPO's bonds, with matplotlib (the ``plot`` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._backend import to_numpy
from ._bounds import l2_norm
from ._entanglement import bond_spectra, entanglement_entropy
from ._train import Train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bonds = Train | Sequence[Any]  # a train, or the spectra of its bonds


def bonds(before: Mapping[str, Bonds], after: Mapping[str, Bonds] | None = None) -> Figure:
    """Draw the Schmidt spectrum and the entanglement entropy of every bond.

    One row per matrix: the spectra on the left, each divided by its norm, the entropies with
    their ceiling ``ln r`` on the right. With ``after``, dashed lines and hatched bars show the same bonds
    of another state of the same matrices, e.g. after squeezing.

    Parameters
    ----------
    before, after : mapping from a name to an MPO or TT, or to the list of its bond spectra

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not registered with pyplot; ``figure.savefig(path)`` writes it.

    Raises
    ------
    ValueError, TypeError
        If ``before`` is empty, one is no mapping, or ``after`` has a name that ``before`` lacks.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.mpo_decompose(np.random.default_rng(0).normal(size=(64, 64)))
    >>> figure = bonds({"full": mpo}, {"full": tnmpo.truncate(mpo, rank=8)})
    >>> len(figure.axes)
    2
    """
    from matplotlib.figure import Figure

    after = after or {}
    for argument, states in (("before", before), ("after", after)):
        if not isinstance(states, Mapping):
            raise TypeError(
                f"{argument}: got {type(states).__name__}, expected names with their MPOs, e.g. {{'layer': mpo}}"
            )
    if not before:
        raise ValueError("before: got no matrices, expected at least one name with its MPO")
    if unknown := set(after) - set(before):
        raise ValueError(f"after: got {sorted(unknown)}, which before lacks; pass the same names")
    figure = Figure(figsize=(10, 2.6 * len(before) + 0.4), layout="constrained")
    grid = figure.subplots(len(before), 2, squeeze=False, width_ratios=(3, 2))
    for (name, state), (left, right) in zip(before.items(), grid, strict=True):
        _draw_spectra(left, _spectra(state), _spectra(after.get(name, ())))
        _draw_entropies(right, _spectra(state), _spectra(after.get(name, ())))
        left.set_title(name, loc="left", fontsize="medium")
    grid[-1][0].set_xlabel("direction")
    grid[-1][1].set_xlabel("bond")
    return figure


def _spectra(state: Bonds) -> list[np.ndarray]:
    return [to_numpy(spectrum) for spectrum in (bond_spectra(state) if isinstance(state, Train) else state)]


def _draw_spectra(axes: Any, before: list[np.ndarray], after: list[np.ndarray]) -> None:
    for bond, spectrum in enumerate(before):
        axes.plot(*_points(spectrum), color=f"C{bond}", marker=".", ms=3, lw=1, label=f"bond {bond + 1}")
    for bond, spectrum in enumerate(after):
        axes.plot(*_points(spectrum), color=f"C{bond}", ls="--", lw=1.4)
    axes.set_ylabel("Schmidt value / norm")
    axes.grid(alpha=0.3)
    if any(spectrum.any() for spectrum in before + after):  # a logarithmic axis needs something to show
        axes.set(xscale="log", yscale="log")
    if before:
        axes.legend(fontsize="x-small", ncols=2, title="dashed: after" if after else None, title_fontsize="x-small")


def _points(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction numbers and normalised values; exact zeros have no place on a logarithmic axis."""
    values = spectrum / (l2_norm(spectrum) or 1.0)
    shown = values > 1e-12
    return np.arange(1, len(values) + 1)[shown], values[shown]


def _draw_entropies(axes: Any, before: list[np.ndarray], after: list[np.ndarray]) -> None:
    width = 0.38 if after else 0.7
    for shift, spectra, style in (
        (-0.2 if after else 0, before, {}),
        (0.2, after, {"hatch": "///", "alpha": 0.6}),
    ):
        for bond, spectrum in enumerate(spectra):
            place = bond + 1 + shift
            axes.bar(place, float(entanglement_entropy(spectrum)), width, color=f"C{bond}", **style)
            axes.plot([place - width / 2, place + width / 2], [np.log(len(spectrum))] * 2, color="k", lw=1)
    axes.set_xticks(range(1, len(before) + 1))
    axes.set_ylabel("entropy / nats")
    axes.set_title("line: ln r" + (", hatched: after" if after else ""), fontsize="small", loc="right")
