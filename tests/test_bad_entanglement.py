"""Bad calls of what is read from spectra, blocks and figures, in the manner of ``test_bad_input.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import refused

from tnmpo import (
    MPO,
    effective_rank,
    entanglement_entropy,
    entanglement_profile,
    entropy_deficit,
    mpo_decompose,
    mutual_information,
    plot,
    schmidt_gap,
)

W = np.random.default_rng(0).normal(size=(12, 18))
TRAIN = mpo_decompose(W, ((2, 3, 2), (3, 3, 2)))
NAN = MPO([np.full((1, 2, 2, 1), np.nan)])
ones = np.ones

OF_SPECTRA = [
    (call, error, fragment)
    for measure in (entanglement_entropy, effective_rank, entropy_deficit, schmidt_gap)
    for call, error, fragment in [
        (lambda measure=measure: measure([1.0, 0.5]), TypeError, "spectrum: got list, expected a numpy array"),
        (lambda measure=measure: measure(W), ValueError, "spectrum: got 2 axes, expected one; for a matrix decompose"),
        (lambda measure=measure: measure(-ones(2)), ValueError, "spectrum: got a negative entry, expected Schmidt"),
        (lambda measure=measure: measure(ones(2) + 0j), TypeError, "spectrum: got complex numbers, expected Schmidt"),
        (lambda measure=measure: measure(np.array([np.inf])), ValueError, "spectrum: got NaN or Inf among its entries"),
        (lambda measure=measure: measure(torch.ones(0)), ValueError, "spectrum: got shape (0,), expected at least one"),
        (lambda measure=measure: measure(NAN), ValueError, "train: got NaN or Inf in core 0, expected finite numbers"),
    ]
]
OF_ALPHA = [
    (call, error, fragment)
    for measure in (
        entanglement_entropy,
        effective_rank,
        entropy_deficit,
        lambda train, alpha: mutual_information(train, {0}, {1}, alpha),
    )
    for call, error, fragment in [
        (lambda measure=measure: measure(TRAIN, -1), ValueError, "alpha: got -1, expected a number >= 0"),
        (lambda measure=measure: measure(TRAIN, float("nan")), TypeError, "alpha: got nan, expected a number >= 0"),
        (lambda measure=measure: measure(TRAIN, True), TypeError, "alpha: got True, expected a number >= 0"),
    ]
]
BAD_CALLS = [
    *OF_SPECTRA,
    *OF_ALPHA,
    # profiles
    (lambda: entanglement_profile(W), TypeError, "train_or_spectra: got ndarray, expected a tnmpo.MPO, a tnmpo.TT or"),
    (lambda: entanglement_profile(None), TypeError, "train_or_spectra: got NoneType, expected a tnmpo.MPO"),
    (lambda: entanglement_profile([1.0]), TypeError, "spectrum: got float, expected a numpy array"),
    (lambda: entanglement_profile([W]), ValueError, "spectrum: got 2 axes, expected one"),
    # blocks
    (lambda: mutual_information(W, {0}, {1}), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
    (lambda: mutual_information(NAN, {0}, {1}), ValueError, "train: got NaN or Inf in core 0"),
    (lambda: mutual_information(TRAIN, 0, {1}), TypeError, "block_a: got 0, expected a range or set of site indices"),
    (lambda: mutual_information(TRAIN, {0}, "1"), TypeError, "block_b: got '1', expected a range or set of site"),
    (lambda: mutual_information(TRAIN, {0.0}, {1}), TypeError, "block_a: got 0.0 among the sites, expected a range"),
    (lambda: mutual_information(TRAIN, [True], {1}), TypeError, "block_a: got True among the sites, expected a range"),
    (lambda: mutual_information(TRAIN, {0}, {3}), ValueError, "block_b: got site 3, expected a range or set of site"),
    (lambda: mutual_information(TRAIN, {-1}, {0}), ValueError, "block_a: got site -1, expected a range or set of"),
    (lambda: mutual_information(TRAIN, {0}, ()), ValueError, "block_b: got no sites, expected a range or set of site"),
    (
        lambda: mutual_information(TRAIN, {0, 2}, range(1, 3)),
        ValueError,
        "block_b: got sites [2], which are in block_a; expected disjoint blocks",
    ),
    # figures
    (lambda: plot.entropies({}), ValueError, "states: got no matrices, expected at least one name with its MPO"),
    (lambda: plot.entropies(TRAIN), TypeError, "states: got MPO, expected names with their MPOs, e.g. {'layer': mpo}"),
    (lambda: plot.entropies({"W": TRAIN}, alpha=-1), ValueError, "alpha: got -1, expected a number >= 0"),
    (lambda: plot.entropies({"W": [W]}), ValueError, "spectrum: got 2 axes, expected one"),
    (lambda: plot.error_vs_parameters({}), ValueError, "curves: got no matrices, expected at least one name"),
    (lambda: plot.error_vs_parameters([TRAIN]), TypeError, "curves: got list, expected names with their MPOs"),
    (lambda: plot.error_vs_parameters({"W": W}), TypeError, "curves: got ndarray for 'W', expected an MPO, a TT or ("),
    (lambda: plot.error_vs_parameters({"W": ([1], [1, 2])}), TypeError, "curves: got tuple for 'W', expected an MPO"),
    (lambda: plot.error_vs_parameters({"W": ("a", "b")}), TypeError, "curves: got tuple for 'W', expected an MPO, a"),
    (lambda: plot.error_vs_parameters({"W": TRAIN}, ratios=0.5), ValueError, "ratios: got 0.5, expected a sequence of"),
    (lambda: plot.error_vs_parameters({"W": TRAIN}, ratios=[0]), ValueError, "ratios: got [0], expected a sequence of"),
    (lambda: plot.error_vs_parameters({"W": TRAIN}, ratios=["a"]), ValueError, "ratios: got ['a'], expected a sequen"),
    (lambda: plot.train(W), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT"),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment):
    who, rest = refused(call, error, fragment)
    assert f"{who}:{rest}".startswith(fragment)
    assert "expected" in rest
