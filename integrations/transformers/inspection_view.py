"""An inspection as a table and as a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .cuts import Cut
    from .inspection import Inspection, LayerInspection

_WIDTH = 120
_PANELS = 4  # in a row
_NUMBER = re.compile(r"\b\d+\b")


def table(inspection: Inspection) -> str:
    """No wider than 120 columns; long names lose their beginning."""
    layers = inspection.layers
    ratios = [cut.ratio for cut in layers[0].cuts]
    is_compressed = any(layer.kind != "dense" for layer in layers)
    shown = [f"{layer.weight_shape[0]} x {layer.weight_shape[1]}" for layer in layers]
    size = max(map(len, shown))
    fixed = 2 + size + 7 + 9 + len(ratios) * 11 + (8 if is_compressed else 0)
    width = min(max(len(layer.name) for layer in layers), _WIDTH - fixed)
    head = f"{'module':{width}}  {'weight':>{size}}" + ("    kept" if is_compressed else "")
    head += f"{'exp S':>7}  {'ln r-S':>7}" + "".join(f"{f'at {ratio:g}':>11}" for ratio in ratios)
    lines = [head]
    for layer, words in zip(layers, shown, strict=True):
        line = f"{_short(layer.name, width):{width}}  {words:>{size}}"
        if is_compressed:
            line += f"{layer.parameters / layer.dense_parameters:8.3f}"
        line += f"{layer.profile.effective_ranks[0]:7.1f}  {layer.profile.deficits[0]:7.3f}"
        lines.append(line + "".join(f"{_errors(cut):>11}" for cut in layer.cuts))
    return "\n".join([*lines, *_legend(inspection), *_totals(inspection)])


def layer_table(layer: LayerInspection) -> str:
    """The bonds of one matrix and its cuts."""
    rows, cols = layer.weight_shape
    lines = [
        f"{layer.name}: {rows} x {cols}, {layer.kind}, {layer.parameters:,} parameters",
        "low-rank bond:",
        str(layer.profile),
    ]
    shape = layer.interleaved_shape
    if shape is not None:
        sites = " / ".join(",".join(map(str, side)) for side in (shape.rows, shape.cols))
        lines += [f"interleaved bonds, {sites}:", str(layer.interleaved_profile)]
    norm = "weighted by the calibration" if layer.weighted else "Frobenius"
    lines.append(f"{'ratio':>5} {'rank':>6} {'error':>8} {'interleaved':>20} {'error':>8}   relative errors, {norm}")
    for cut in layer.cuts:
        bonds = "-".join(map(str, (cut.interleaved_ranks or ())[1:-1]))
        errors = ["-" if error is None else f"{error:.4f}" for error in (cut.error, cut.interleaved_error)]
        lines.append(f"{cut.ratio:5.2f} {cut.rank or '-':>6} {errors[0]:>8} {bonds or '-':>20} {errors[1]:>8}")
    for tol, count in layer.needed.items():
        share = count / layer.dense_parameters
        lines.append(f"a relative error of {tol:g} needs {count:,} parameters ({share:.3f} of the dense ones)")
    return "\n".join(lines)


def _legend(inspection: Inspection) -> list[str]:
    weighted = any(layer.weighted for layer in inspection.layers)
    norm = "weighted by the calibration" if weighted else "Frobenius"
    pairs = ", low-rank/interleaved" if inspection.layers[0].interleaved_shape is not None else ", low-rank"
    return [
        "exp S: effective rank of the low-rank bond, S its entropy in nats; ln r - S: 0 for a flat spectrum",
        f"at a ratio of its parameters: relative error{pairs}, {norm}",
        "print(inspection[name]) shows the bonds of one matrix",
    ]


def _totals(inspection: Inspection) -> list[str]:
    dense = inspection.dense_parameters
    lines = [
        f"{len(inspection.layers)} matrices, {dense:,} parameters dense, {inspection.parameters:,} now; "
        f"the whole model has {inspection.model_parameters:,}",
        "one budget over all of them, low-rank, as compress(ratio=...) allots it:",
    ]
    for budget in inspection.budgets:
        lowest, highest = min(budget.ranks.values()), max(budget.ranks.values())
        lines.append(
            f"  {budget.ratio:4.2f}: {budget.parameters:13,} parameters, ranks {lowest} to {highest}, error "
            f"{budget.error:.3f} on average, at most {budget.largest_error:.3f} ({_short(budget.worst, 24)})"
        )
    lines.append("every matrix by itself, low-rank, as compress(tol=...) cuts it:")
    for tol in inspection.layers[0].needed:
        count = inspection.needed(tol)
        lines.append(f"  {tol:4.2f}: {count:13,} parameters, {count / dense:.3f} of the dense ones")
    return lines


def _errors(cut: Cut) -> str:
    if cut.interleaved_error is None:
        return _share(cut.error)
    return f"{_share(cut.error)}/{_share(cut.interleaved_error)}"


def _share(value: float | None) -> str:
    """Three digits without the leading zero."""
    return "-" if value is None else f"{value:.3f}".removeprefix("0")


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else ".." + name[2 - width :]


def figure(inspection: Inspection) -> Figure:
    """A panel of spectra for every kind of layer, then the errors of all kinds and how full their bonds are."""
    from matplotlib.figure import Figure

    kinds = _kinds(inspection.layers)
    rows = -(-len(kinds) // _PANELS)
    figure = Figure(figsize=(13, 2.6 * rows + 4.4), layout="constrained")
    subfigures: Any = figure.subfigures(2, 1, height_ratios=(2.6 * rows, 4.4))
    upper, lower = subfigures
    panels = upper.subplots(rows, min(_PANELS, len(kinds)), squeeze=False, sharey=True).ravel()
    for axes, (kind, layers) in zip(panels, kinds.items(), strict=False):
        _draw_spectra(axes, kind, layers)
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    upper.supxlabel("direction over their number (share of the full rank)", fontsize="medium")
    upper.supylabel("Schmidt value / largest", fontsize="medium")
    left, right = lower.subplots(1, 2, width_ratios=(3, 2))
    _draw_errors(left, kinds)
    _draw_fullness(lower, right, kinds)
    return figure


def _kinds(layers: Sequence[LayerInspection]) -> dict[str, list[LayerInspection]]:
    """Layers whose names differ in numbers alone, in the order of the model."""
    kinds: dict[str, list[LayerInspection]] = {}
    for layer in layers:
        kinds.setdefault(_NUMBER.sub("*", layer.name), []).append(layer)
    return kinds


def _draw_spectra(axes: Any, kind: str, layers: Sequence[LayerInspection]) -> None:
    """The low-rank bond of every layer, from the first (dark) to the last (light)."""
    for number, layer in enumerate(layers):
        values = layer.spectrum / (layer.spectrum[0] or 1.0)
        places = np.arange(1, len(values) + 1) / len(values)
        seen = values > 1e-6  # below, rounding
        axes.plot(places[seen], values[seen], color=_depth(number, len(layers)), lw=1)
    rows, cols = layers[0].weight_shape
    axes.set_title(f"{_short(kind, 36)}\n{len(layers)} of {rows} x {cols}", fontsize="small")
    axes.set(yscale="log", xlim=(0, 1), ylim=(1e-3, 1.5))
    axes.grid(alpha=0.3)


def _draw_errors(axes: Any, kinds: dict[str, list[LayerInspection]]) -> None:
    """The median layer of every kind."""
    for number, (kind, layers) in enumerate(kinds.items()):
        colour = f"C{number % 10}"
        for attribute, style in (("error", "-"), ("interleaved_error", ":")):
            points = [
                (cuts[0].ratio, float(np.median(errors)))
                for cuts in zip(*(layer.cuts for layer in layers), strict=True)
                if (errors := [getattr(cut, attribute) for cut in cuts if getattr(cut, attribute) is not None])
            ]
            if points:
                label = _short(kind, 40) if attribute == "error" else "_interleaved"
                axes.plot(*zip(*points, strict=True), color=colour, ls=style, marker="o", ms=3, lw=1.3, label=label)
    axes.set(xlabel="kept parameters / dense", xlim=(0, None), ylim=(0, None))
    weighted = any(layer.weighted for layers in kinds.values() for layer in layers)
    axes.set_ylabel("relative error, weighted" if weighted else "relative error")
    axes.set_title("median layer of each kind; line: low-rank, dots: interleaved", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1))


def _draw_fullness(figure: Any, axes: Any, kinds: dict[str, list[LayerInspection]]) -> None:
    """The effective rank over the full one of every layer: one column a depth, one row a kind."""
    depth = max(map(len, kinds.values()))
    values = np.full((len(kinds), depth), np.nan)
    for row, layers in enumerate(kinds.values()):
        for column, layer in enumerate(layers):
            values[row, column] = layer.profile.effective_ranks[0] / layer.profile.ranks[0]
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(kinds)), [_short(kind, 34) for kind in kinds], fontsize="x-small")
    axes.set_xticks(range(0, depth, max(1, depth // 12)))
    axes.set_xlabel("layer")
    axes.set_title("effective rank / full rank of the low-rank bond", fontsize="small")
    if values.size <= 120:
        for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
            value = values[row, column]
            colour = "w" if value < 0.6 else "k"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    figure.colorbar(image, ax=axes, pad=0.02)


def _depth(number: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * number / max(1, count - 1))
