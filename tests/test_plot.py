"""The figures draw the data they are given: numbers are read back from the axes."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from tnmpo import MPO, TT, MPOShape, bond_spectra, entanglement_entropy, mpo_decompose, plot, truncate, tt_decompose

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


def long_train(order=14):
    rng = np.random.default_rng(0)
    return MPO([rng.normal(size=(3 if k else 1, 2, 2, 3 if k < order - 1 else 1)) for k in range(order)])


def test_many_bonds_have_colours_of_their_own():
    figure = plot.bonds({"long": long_train()}, {"long": truncate(long_train(), 2)})
    lines = figure.axes[0].lines
    assert len({tuple(np.ravel(line.get_color())) for line in lines[:13]}) == 13
    assert [line.get_color() for line in lines[:13]] == [line.get_color() for line in lines[13:]]
    assert len(figure.axes[0].get_legend().get_texts()) <= 10


@pytest.mark.parametrize("alpha", [1, 2, math.inf])
def test_the_entropies_along_trains(alpha):
    states = {"full": mpo(), "cut": mpo(rank=5), "spectra": [np.ones(3), np.ones(2), np.array([1.0, 0.0])]}
    (axes,) = plot.entropies(states, alpha=alpha).axes
    values, ceilings = axes.lines[::2], axes.lines[1::2]
    assert [line.get_label() for line in values] == list(states)
    assert np.allclose(values[0].get_ydata(), entanglement_entropy(states["full"], alpha))
    assert np.allclose(values[1].get_ydata(), entanglement_entropy(states["cut"], alpha))
    assert np.allclose(values[2].get_ydata(), [math.log(3), math.log(2), 0])
    assert np.allclose(ceilings[1].get_ydata(), np.log([5, 5]))
    assert list(axes.get_xticks()) == [1, 2, 3]
    name = {1: "von Neumann entropy", 2: "Rényi-2 entropy", math.inf: "min-entropy"}[alpha]
    assert axes.get_ylabel() == f"{name} / nats"


def test_the_error_is_that_of_the_cuts():
    trains = {"interleaved": mpo(), "low rank": mpo_decompose(mpo().to_matrix(), MPOShape.low_rank((64, 64)))}
    curves = {**trains, "measured": ([0.5, 0.25], [0.1, 0.2])}
    (axes,) = plot.error_vs_parameters(curves, ratios=(1.0, 0.3, 0.001, 0.6)).axes  # 0.001: less than rank one
    assert axes.get_yscale() == "linear"
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == list(curves)
    for name, train in trains.items():
        cuts = [truncate(train, ratio) for ratio in (0.3, 0.6, 1.0)]
        assert np.allclose(lines[name].get_xdata(), [cut.n_parameters / 64**2 for cut in cuts])
        dense = [np.linalg.norm(cut.to_matrix() - train.to_matrix()) for cut in cuts]
        assert np.allclose(lines[name].get_ydata(), np.array(dense) / np.linalg.norm(train.to_matrix()))
    assert np.array_equal(lines["measured"].get_xdata(), [0.5, 0.25])
    assert np.array_equal(lines["measured"].get_ydata(), [0.1, 0.2])


def test_a_wide_range_of_errors_has_a_logarithmic_axis():
    (axes,) = plot.error_vs_parameters({"steep": ([0.1, 0.5, 1], [0.3, 1e-3, 0])}).axes
    assert axes.get_yscale() == "log"
    assert np.array_equal(axes.lines[0].get_ydata(), [0.3, 1e-3])  # no error has no place there
    (axes,) = plot.error_vs_parameters({"none": ([0.1, 0.5], [0, 0])}).axes
    assert axes.get_yscale() == "linear"
    assert np.array_equal(axes.lines[0].get_ydata(), [0, 0])


def test_a_small_train_is_cut_to_parts_of_its_own_size():
    small, least = mpo(rank=2), mpo(rank=1)
    (axes,) = plot.error_vs_parameters({"small": small, "least": least}).axes
    drawn, alone = axes.lines
    cuts = [truncate(small, f * small.n_parameters / 64**2) for f in (0.5, 0.6, 0.7, 0.8, 0.9, 1)]
    assert small.n_parameters < 0.05 * 64**2  # all the same cut, if shares of the dense size were taken
    assert len({*drawn.get_xdata()}) > 1
    assert np.allclose(drawn.get_xdata()[-6:], [cut.n_parameters / 64**2 for cut in cuts])
    assert np.allclose(drawn.get_ydata()[-6:], [cut.truncation.relative_error for cut in cuts])
    assert np.allclose(alone.get_xdata(), least.n_parameters / 64**2)
    assert len(alone.get_xdata()) == 1
    assert alone.get_markersize() > drawn.get_markersize()
    assert not alone.get_clip_on()
    assert axes.get_xlabel() == "ratio (parameters / dense parameters)"


@pytest.mark.parametrize(
    ("length", "ticks"), [(1, [1]), (4, [1, 2, 3, 4]), (10, list(range(1, 11))), (64, [1, 2, 5, 10, 20, 50])]
)
def test_directions_are_whole_numbers(length, ticks):
    figure = plot.bonds({"s": [np.linspace(1, 2, length)[::-1]]})
    assert rendered(figure)
    axis = figure.axes[0].xaxis
    assert axis.get_majorticklocs().tolist() == ticks
    assert [label.get_text() for label in axis.get_majorticklabels()] == [str(tick) for tick in ticks]
    assert len(axis.get_minorticklocs()) == 0


@pytest.mark.parametrize(
    ("share", "words"), [(1, "4 parameters, 1 of dense"), (2000, "8,000 parameters, 2,000 times dense")]
)
def test_the_size_in_words(share, words):
    rank = round(share)
    train = TT([np.ones((1, 2, rank)), np.ones((rank, 2, 1))])
    assert plot.train(train).get_suptitle() == f"TT: 2 x 2 tensor (numpy, float64)\n{words}"


@pytest.mark.parametrize("state", [5, "ab", [1.0, 2.0], np.ones(3), [[]], [["a"]], [None], [[1j]]])
def test_what_has_no_bonds_is_refused(state):
    words = f"got {type(state).__name__} for 'a', expected an MPO, a TT or the list of its bond spectra"
    for argument, draw in (
        ("states", lambda: plot.entropies({"a": state})),
        ("before", lambda: plot.bonds({"a": state})),
        ("after", lambda: plot.bonds({"a": mpo()}, {"a": state})),
    ):
        with pytest.raises(TypeError) as caught:
            draw()
        assert str(caught.value) == f"{argument}: {words}"


@pytest.mark.parametrize("center", [0, 1, 2, None])
def test_a_train_as_a_network(center):
    state = mpo_decompose(np.ones((2 * 3 * 1, 4 * 1 * 5)), ((2, 3, 1), (4, 1, 5)), center=center or 0)
    state = MPO(state.cores, center=center)
    (axes,) = plot.train(state).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["rows", "cols", "2", "4", "8", "3", "1", "5", "1", "5"]
    legs = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
    bonds = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert len(legs) == 6
    assert [tuple(line.get_xdata()) for line in bonds] == [(0, 1), (1, 2)]
    assert bonds[0].get_linewidth() > bonds[1].get_linewidth()  # 8 against 5
    places = [[tuple(point) for point in nodes.get_offsets().tolist()] for nodes in axes.collections]
    sites = [(float(site), 0.0) for site in range(3)]
    assert places == ([sites] if center is None else [sites[:center], [sites[center]], sites[center + 1 :]])
    title = plot.train(state).get_suptitle()
    assert title.startswith("MPO: 6 x 20 matrix (numpy, float64)\n")
    assert f"{state.n_parameters:,} parameters" in title


def test_a_tt_has_one_leg_a_site():
    (axes,) = plot.train(tt_decompose(np.ones((2, 3, 4)))).axes
    assert [text.get_text() for text in axes.texts] == ["sites", "2", "2", "3", "4", "4"]
    assert plot.train(TT([np.ones((1, 2, 1))] * 30)).get_suptitle().startswith("TT: order 30 (numpy, float64)\n")


@pytest.mark.parametrize("W", [np.zeros((4, 4)), np.ones((4, 4))])
@pytest.mark.parametrize("shape", [((4,), (4,)), ((2, 2), (2, 2))])
def test_nothing_to_draw_is_no_error(W, shape):
    flat = mpo_decompose(W, shape)
    for figure in (
        plot.bonds({"flat": flat}),
        plot.entropies({"flat": flat}),
        plot.error_vs_parameters({"flat": flat}),
        plot.train(flat),
    ):
        assert rendered(figure)
    words = [text.get_text() for text in plot.bonds({"flat": flat}).axes[0].texts]
    assert words == (["no inner bond"] if len(shape[0]) == 1 else [] if W.any() else ["all values are 0"])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.bonds({"layer": mpo()}),
        lambda: plot.entropies({"layer": mpo()}),
        lambda: plot.error_vs_parameters({"layer": mpo()}),
        lambda: plot.train(mpo()),
        lambda: plot.bonds({"long": long_train()}),
        lambda: plot.entropies({f"layer {k}": long_train() for k in range(6)}),
        lambda: plot.train(long_train()),
    ],
)
def test_a_figure_renders_and_is_not_registered_with_pyplot(draw):
    import matplotlib.pyplot as plt

    assert rendered(draw()).startswith(b"\x89PNG")
    assert plt.get_fignums() == []
