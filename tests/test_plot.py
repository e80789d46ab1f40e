"""The figures draw the data they are given: numbers are read back from the axes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from tnmpo import bond_spectra, entanglement_entropy, mpo_decompose, plot, truncate

SHAPE = ((4, 4, 4), (4, 4, 4))


def mpo(seed=0, **kwargs):
    return mpo_decompose(np.random.default_rng(seed).normal(size=(64, 64)), SHAPE, **kwargs)


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_the_spectra_and_entropies_of_one_matrix():
    state = mpo()
    figure = plot.bonds({"layer": state})
    spectra_axes, entropy_axes = figure.axes
    assert spectra_axes.get_title(loc="left") == "layer"
    assert spectra_axes.get_xscale() == spectra_axes.get_yscale() == "log"
    assert len(spectra_axes.lines) == 2
    for line, spectrum in zip(spectra_axes.lines, bond_spectra(state), strict=True):
        assert line.get_linestyle() == "-"
        assert np.array_equal(line.get_xdata(), np.arange(1, len(spectrum) + 1))
        assert np.allclose(line.get_ydata(), spectrum / np.linalg.norm(spectrum))
    assert [text.get_text() for text in spectra_axes.get_legend().get_texts()] == ["bond 1", "bond 2"]
    heights = [bar.get_height() for bar in entropy_axes.patches]
    assert np.allclose(heights, entanglement_entropy(state))
    ceilings = [line.get_ydata()[0] for line in entropy_axes.lines]
    assert np.allclose(ceilings, np.log(state.ranks[1:-1]))
    assert list(entropy_axes.get_xticks()) == [1, 2]
    assert rendered(figure).startswith(b"\x89PNG")


def test_before_and_after():
    states = {"one": mpo(0), "two": mpo(1), "three": mpo(2)}
    cut = truncate(states["two"], 5)
    figure = plot.bonds(states, {"two": cut})
    assert len(figure.axes) == 6
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == list(states)
    assert [len(axes.lines) for axes in figure.axes[::2]] == [2, 4, 2]
    dashed = figure.axes[2].lines[2:]
    for line, spectrum in zip(dashed, bond_spectra(cut), strict=True):
        assert line.get_linestyle() == "--"
        assert np.allclose(line.get_ydata(), spectrum / np.linalg.norm(spectrum))
    # each bond keeps its colour
    assert [line.get_color() for line in dashed] == [line.get_color() for line in figure.axes[2].lines[:2]]
    bars = figure.axes[3].patches
    assert [bar.get_hatch() for bar in bars] == [None, None, "///", "///"]
    assert np.allclose([bar.get_height() for bar in bars[2:]], entanglement_entropy(cut))
    assert figure.axes[2].get_legend().get_title().get_text() == "dashed: after"
    assert figure.axes[0].get_legend().get_title().get_text() == ""
    assert rendered(figure)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1])
def test_spectra_are_drawn_relative_to_their_norm(scale):
    (line,) = plot.bonds({"s": [scale * np.array([4.0, 3.0, 0.0])]}).axes[0].lines
    assert np.allclose(line.get_ydata(), [0.8, 0.6])  # an exact zero has no place on a logarithmic axis
    assert np.array_equal(line.get_xdata(), [1, 2])


def test_torch_and_numpy_draw_the_same():
    W = np.random.default_rng(0).normal(size=(64, 64))
    one, two = (plot.bonds({"W": mpo_decompose(array, SHAPE)}) for array in (W, torch.tensor(W)))
    for a, b in zip(one.axes[0].lines, two.axes[0].lines, strict=True):
        assert np.allclose(a.get_ydata(), b.get_ydata())
    leaf = torch.tensor(W, requires_grad=True)
    assert rendered(plot.bonds({"leaf": mpo_decompose(leaf, SHAPE)}))


@pytest.mark.parametrize("W", [np.zeros((4, 4)), np.ones((4, 4))])
@pytest.mark.parametrize("shape", [((4,), (4,)), ((2, 2), (2, 2))])
def test_nothing_to_draw_is_no_error(W, shape):
    assert rendered(plot.bonds({"flat": mpo_decompose(W, shape)}))


def test_a_figure_is_not_registered_with_pyplot():
    import matplotlib.pyplot as plt

    plot.bonds({"layer": mpo()})
    assert plt.get_fignums() == []
