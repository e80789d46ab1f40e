"""Figures of trains and their bonds, with matplotlib (the ``plot`` extra).

Every function returns a ``matplotlib.figure.Figure`` that is neither shown nor registered with pyplot;
``figure.savefig(path)`` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._backend import backend_of, dtype_name, to_numpy
from ._bounds import l2_norm
from ._entanglement import bond_spectra, check_alpha, entanglement_entropy
from ._train import Train, check_train, size_in_words
from ._truncate import truncate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bonds = Train | Sequence[Any]  # a train, or the spectra of its bonds
Curve = Train | tuple[Sequence[float], Sequence[float]]  # a train to cut, or ratios and errors

_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_INK, _PALE = "#37474f", "#b0bec5"


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
        If ``before`` is empty, one is no mapping or holds something else, or ``after`` has a name that ``before``
        lacks.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.mpo_decompose(np.random.default_rng(0).normal(size=(64, 64)))
    >>> figure = bonds({"full": mpo}, {"full": tnmpo.truncate(mpo, rank=8)})
    >>> len(figure.axes)
    2
    """
    after = after or {}
    _check_named(before, "before")
    if not isinstance(after, Mapping):
        raise TypeError(f"after: got {type(after).__name__}, {_NAMED}")
    if unknown := set(after) - set(before):
        raise ValueError(f"after: got {sorted(unknown)}, which before lacks; pass the same names")
    figure = _figure(10, 2.6 * len(before) + 0.4)
    grid = figure.subplots(len(before), 2, squeeze=False, width_ratios=(3, 2))
    for (name, state), (left, right) in zip(before.items(), grid, strict=True):
        spectra = _spectra(state, name, "before"), _spectra(after.get(name, ()), name, "after")
        _draw_spectra(left, *spectra)
        _draw_entropies(right, *spectra)
        left.set_title(name, loc="left", fontsize="medium")
    grid[-1][0].set_xlabel("direction")
    grid[-1][1].set_xlabel("bond")
    return figure


def entropies(states: Mapping[str, Bonds], *, alpha: float = 1) -> Figure:
    """Draw the entanglement entropy along one or several trains, with its ceiling ``ln r``.

    Parameters
    ----------
    states : mapping from a name to an MPO or TT, or to the list of its bond spectra
    alpha : float
        As for ``tnmpo.entanglement_entropy``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        If ``states`` is empty, no mapping or holds something else, or alpha is negative.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.mpo_decompose(np.random.default_rng(0).normal(size=(64, 64)))
    >>> figure = entropies({"full": mpo, "cut": tnmpo.truncate(mpo, rank=8)})
    >>> [line.get_label() for line in figure.axes[0].lines[::2]]
    ['full', 'cut']
    """
    _check_named(states, "states")
    alpha = check_alpha(alpha)
    figure = _figure(6.5, 3.6)
    axes = figure.subplots()
    longest = 0
    for number, (name, state) in enumerate(states.items()):
        spectra = _spectra(state, name, "states")
        places = range(1, len(spectra) + 1)
        values = [float(entanglement_entropy(spectrum, alpha)) for spectrum in spectra]
        axes.plot(places, values, color=f"C{number}", marker="o", ms=5, label=name)
        ceilings = [math.log(len(spectrum)) for spectrum in spectra]
        axes.plot(places, ceilings, color=f"C{number}", marker="_", ms=10, ls=":", lw=1.2, label="_ceiling")
        longest = max(longest, len(spectra))
    _bond_axis(axes, longest)
    kind = {1.0: "von Neumann entropy", math.inf: "min-entropy"}.get(alpha, f"Rényi-{alpha:g} entropy")
    axes.set(xlabel="bond", ylabel=f"{kind} / nats")
    axes.legend(fontsize="small", title="dash, dotted: ln r", title_fontsize="small", **_beside(len(states)))
    return figure


def error_vs_parameters(curves: Mapping[str, Curve], *, ratios: Sequence[float] | None = None) -> Figure:
    """Draw the relative error of a cut over the share of the parameters that it keeps.

    Parameters
    ----------
    curves : mapping from a name to an MPO or TT, or to a pair of sequences
        A train is cut to each ratio and its exact relative error is drawn, over the ratio that was reached: not more
        than the one asked. The error counts from the train that is given, which is the matrix only if nothing has been
        cut before. A pair is drawn as it is: ratios of parameters, relative errors.
    ratios : sequence of float, optional
        The ratios of ``n_parameters`` to the dense size that trains are cut to. Those below the rank-one size are left
        out. By default eleven from 0.05 to 1, for a train that is smaller than the dense array times its own ratio.

    Returns
    -------
    matplotlib.figure.Figure
        The error has a logarithmic axis where it spans more than a decade; cuts without error are left out there.

    Raises
    ------
    ValueError, TypeError
        If ``curves`` is empty, no mapping, holds something else, or a ratio is no positive number.

    Notes
    -----
    One ``tnmpo.truncate`` for every train and ratio.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> W = np.random.default_rng(0).normal(size=(64, 64))
    >>> shapes = {"interleaved": ((4, 4, 4), (4, 4, 4)), "low rank": tnmpo.MPOShape.low_rank(W.shape)}
    >>> figure = error_vs_parameters({name: tnmpo.mpo_decompose(W, shape) for name, shape in shapes.items()})
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['interleaved', 'low rank']
    """
    _check_named(curves, "curves")
    if ratios is not None:
        _check_ratios(ratios)
    points = {name: _points_of_curve(name, curve, ratios) for name, curve in curves.items()}
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    errors = np.concatenate([error for _, error in points.values()])
    visible = errors[errors > 1e-14]  # below, rounding
    logarithmic = len(visible) > 0 and visible.max() > 10 * visible.min()
    for number, (name, (kept, error)) in enumerate(points.items()):
        shown = error > 1e-14 if logarithmic else np.full(len(error), True)
        alone = len({*zip(kept[shown], error[shown], strict=True)}) == 1
        # not clipped: a point on an axis is seen whole
        style: dict[str, Any] = {"marker": "o", "ms": 8 if alone else 4, "clip_on": False, "zorder": 3}
        axes.plot(kept[shown], error[shown], color=f"C{number}", lw=1.4, label=name, **style)
    axes.set(xlabel="ratio (parameters / dense parameters)", ylabel="relative error", xlim=(0, None))
    axes.set(yscale="log") if logarithmic else axes.set_ylim(0, 1.05 * errors.max(initial=0) or 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", **_beside(len(curves)))
    return figure


def train(train: Train) -> Figure:
    """Draw a train as a tensor network: nodes, physical legs and bonds with their dimensions.

    A bond is the wider the larger the logarithm of its rank. Where the gauge is known a triangle is an isometry that
    points to the center, and the disc is the center.

    Parameters
    ----------
    train : MPO or TT
        The legs of an MPO are the rows above and the columns below.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If ``train`` is none.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> figure = train(tnmpo.mpo_decompose(np.eye(64), ((4, 4, 4), (4, 4, 4))))
    >>> [text.get_text() for text in figure.axes[0].texts[:5]]
    ['rows', 'cols', '4', '4', '16']
    """
    check_train(train)
    directions = (1, -1)[: len(train.frame.site_shapes[0])]
    figure = _figure(1.05 * max(train.order, 2) + 1.7, 1.2 + 0.7 * len(directions))
    axes = figure.subplots()
    for name, direction in zip(("rows", "cols") if len(directions) == 2 else ("sites",), directions, strict=True):
        axes.text(-0.6, 0.75 * direction, name, ha="right", va="center", color=_INK, style="italic")
    for site, dimensions in enumerate(train.frame.site_shapes):
        for dimension, direction in zip(dimensions, directions, strict=True):
            axes.plot([site, site], [0, 0.55 * direction], color=_INK if dimension > 1 else _PALE, lw=1.5, zorder=1)
            axes.text(site, 0.75 * direction, str(dimension), ha="center", va="center", color=_INK)
        rank = train.ranks[site + 1]
        if site + 1 < train.order:
            width = 1 + 5 * math.log(rank) / max(1.0, math.log(max(train.ranks)))
            axes.plot([site, site + 1], [0, 0], color="C0", lw=width, solid_capstyle="butt", zorder=1)
            axes.text(site + 0.5, 0.13, str(rank), ha="center", va="bottom", color="C0", size="small")
    for marker, fill, sites in _nodes(train):
        axes.scatter(sites, [0] * len(sites), s=260, marker=marker, color=fill, edgecolor=_INK, lw=1.5, zorder=2)
    what = train._summary()[0]
    array = f"{backend_of(train.cores[0], 'cores').backend_name}, {dtype_name(train.cores[0])}"
    figure.suptitle(
        f"{type(train).__name__}: {what if len(what) < 35 else f'order {train.order}'} ({array})\n"
        f"{size_in_words(train)}",
        size="medium",
    )
    axes.set(xlim=(-1.3, train.order - 0.4), ylim=(-1 if len(directions) == 2 else -0.4, 1))
    axes.set_axis_off()
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------

_NAMED = "expected names with their MPOs, e.g. {'layer': mpo}"


def _check_named(states: Any, argument: str) -> None:
    if not isinstance(states, Mapping):
        raise TypeError(f"{argument}: got {type(states).__name__}, {_NAMED}")
    if not states:
        raise ValueError(f"{argument}: got no matrices, expected at least one name with its MPO")


def _check_ratios(ratios: Any) -> None:
    values = np.asarray(ratios)
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"ratios: got {ratios!r}, expected a sequence of numbers above 0, shares of the dense size")


def _points_of_curve(name: str, curve: Any, ratios: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(curve, Train):
        try:
            kept, error = (np.asarray(values, dtype=float) for values in curve)
        except (TypeError, ValueError):
            kept = error = np.zeros(())
        if isinstance(curve, np.ndarray) or kept.ndim != 1 or kept.shape != error.shape:
            raise TypeError(
                f"curves: got {type(curve).__name__} for {name!r}, expected an MPO, a TT or (ratios, errors)"
            )
        return kept, error
    dense = math.prod(curve.frame.site_sizes)
    least = sum(curve.frame.site_sizes) * (1 - 1e-12)  # the ratio of a rank-one train may be a hair below
    own = min(1.0, curve.n_parameters / dense)
    asked = [own * ratio for ratio in _RATIOS] if ratios is None else sorted(ratios)
    cuts = [truncate(curve, float(ratio)) for ratio in asked if ratio * dense >= least]
    errors = [cut.truncation.relative_error for cut in cuts if cut.truncation is not None]
    return np.array([cut.n_parameters / dense for cut in cuts]), np.array(errors)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces
# ---------------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _spectra(state: Any, name: str, argument: str) -> list[np.ndarray]:
    if isinstance(state, Train):
        return [to_numpy(spectrum) for spectrum in bond_spectra(state)]
    entries: Sequence[Any] = state if isinstance(state, Sequence) and not isinstance(state, str) else [None]
    spectra = [to_numpy(values) if hasattr(values, "dtype") else np.asarray(values) for values in entries]
    if any(values.ndim == 0 or not values.size or values.dtype.kind not in "fiu" for values in spectra):
        raise TypeError(
            f"{argument}: got {type(state).__name__} for {name!r}, expected an MPO, a TT or the list of its bond "
            "spectra"
        )
    return spectra


def _draw_spectra(axes: Any, before: list[np.ndarray], after: list[np.ndarray]) -> None:
    every = -(-len(before) // 10)  # a legend that fits
    for bond, spectrum in enumerate(before):
        label = f"bond {bond + 1}" if bond % every == 0 else "_other"
        axes.plot(*_points(spectrum), color=_colour(bond, len(before)), marker=".", ms=3, lw=1, label=label)
    for bond, spectrum in enumerate(after):
        axes.plot(*_points(spectrum), color=_colour(bond, len(before)), ls="--", lw=1.4)
    axes.set_ylabel("Schmidt value / norm")
    axes.grid(alpha=0.3)
    if any(spectrum.any() for spectrum in before + after):  # a logarithmic axis needs something to show
        axes.set(xscale="log", yscale="log")
        _direction_ticks(axes, max(len(spectrum) for spectrum in before + after))
    else:
        _say(axes, "all values are 0" if before else "no inner bond")
    if before:
        axes.legend(fontsize="x-small", ncols=2, title="dashed: after" if after else None, title_fontsize="x-small")


def _direction_ticks(axes: Any, directions: int) -> None:
    """Plain whole numbers: every one up to ten, else 1, 2, 5, 10, 20, 50 and so on."""
    rough = [step * 10**decade for decade in range(len(str(directions))) for step in (1, 2, 5)]
    ticks = range(1, directions + 1) if directions <= 10 else [tick for tick in rough if tick <= directions]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


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
            colour = _colour(bond, len(before))
            axes.bar(place, float(entanglement_entropy(spectrum)), width, color=colour, **style)
            axes.plot([place - width / 2, place + width / 2], [np.log(len(spectrum))] * 2, color="k", lw=1)
    axes.set_xticks(range(1, len(before) + 1, _step(len(before))))
    axes.set_xlim(0.4, max(len(before), 3) + 0.6)  # one bond is no wall
    axes.set_ylabel("entropy / nats")
    if not before:
        _say(axes, "no inner bond")
    axes.set_title("line: ln r" + (", hatched: after" if after else ""), fontsize="small", loc="right")


def _bond_axis(axes: Any, bonds: int) -> None:
    """Whole numbers for the bonds, and 0 as the least entropy."""
    axes.set_xticks(range(1, bonds + 1, _step(bonds)))
    if not bonds:
        _say(axes, "no inner bond")
    axes.set(xlim=(0.5, max(bonds, 1) + 0.5), ylim=(0, None if bonds else 1))
    axes.grid(alpha=0.3)


def _step(bonds: int) -> int:
    """How many bonds from one tick to the next."""
    return max(1, -(-bonds // 12))


def _colour(bond: int, bonds: int) -> Any:
    """A colour of its own for every bond: the ten of matplotlib's cycle, or from a scale."""
    from matplotlib import colormaps

    return f"C{bond}" if bonds <= 10 else colormaps["viridis"](bond / (bonds - 1))


def _say(axes: Any, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=_INK)
    axes.set(xticks=[], yticks=[])


def _beside(entries: int) -> dict[str, Any]:
    """A long legend stands beside the axes, not on the data."""
    return {"loc": "upper left", "bbox_to_anchor": (1.02, 1)} if entries > 4 else {}


def _nodes(train: Train) -> list[tuple[str, str, list[int]]]:
    """Marker, colour and sites of the nodes."""
    sites = list(range(train.order))
    if train.center is None:
        return [("o", _PALE, sites)]
    left, right = sites[: train.center], sites[train.center + 1 :]
    return [(">", "#eceff1", left), ("o", "C1", [train.center]), ("<", "#eceff1", right)]
