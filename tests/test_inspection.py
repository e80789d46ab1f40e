"""What inspection says of every matrix, against dense singular values and against what compression then does."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from tiny import albert, answer, batch, bert
from tnmpo.integrations.transformers import MPOConfig, calibrate, compress
from tnmpo.integrations.transformers.inspection import Inspection, inspect_model
from torch import nn

import tnmpo

LAYER = "encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def dense():
    model = bert()
    return model, inspect_model(model)


def weight(model, name=LAYER):
    return model.get_submodule(name).weight.detach().double().numpy()


# --- the numbers


def test_the_low_rank_bond_has_the_singular_values(dense):
    model, inspection = dense
    for layer in inspection.layers:
        values = np.linalg.svd(weight(model, layer.name), compute_uv=False)
        values /= np.linalg.norm(values)
        assert layer.spectrum == pytest.approx(values, abs=1e-6)
        entropy = -float((values**2 * np.log(values**2)).sum())
        assert layer.profile.entropies[0] == pytest.approx(entropy, rel=1e-5)
        assert layer.profile.effective_ranks[0] == pytest.approx(math.exp(entropy), rel=1e-5)
        assert layer.profile.deficits[0] == pytest.approx(math.log(len(values)) - entropy, abs=1e-5)


def test_the_interleaved_bonds_have_the_singular_values_of_their_unfoldings(dense):
    model, inspection = dense
    layer = inspection[LAYER]
    rows, cols = layer.interleaved_shape.rows, layer.interleaved_shape.cols
    order = len(rows)
    sites = weight(model).reshape(*rows, *cols).transpose([k + side * order for k in range(order) for side in (0, 1)])
    assert len(layer.interleaved_spectra) == order - 1
    for bond, spectrum in enumerate(layer.interleaved_spectra, start=1):
        size = math.prod(rows[:bond]) * math.prod(cols[:bond])
        values = np.linalg.svd(sites.reshape(size, -1), compute_uv=False)
        assert spectrum == pytest.approx(values / np.linalg.norm(values), abs=1e-6)
    assert layer.interleaved_profile.ranks == tuple(map(len, layer.interleaved_spectra))


def test_a_cut_has_the_largest_rank_within_its_ratio_and_the_error_of_the_svd(dense):
    model, inspection = dense
    for layer in inspection.layers:
        rows, cols = layer.weight_shape
        values = np.linalg.svd(weight(model, layer.name), compute_uv=False)
        assert [cut.ratio for cut in layer.cuts] == [0.75, 0.5, 0.33, 0.25, 0.1]
        for cut in layer.cuts:
            rank = math.floor(cut.ratio * rows * cols / (rows + cols))
            assert (cut.rank or 0) == rank
            if rank:
                error = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
                assert cut.error == pytest.approx(error, rel=1e-4)
            else:
                assert cut.error is None


def test_the_interleaved_cut_has_no_more_parameters_and_an_error_within_its_bounds(dense):
    _, inspection = dense
    compared = 0
    for layer in inspection.layers:
        for cut in layer.cuts:
            if cut.interleaved_ranks is None:
                assert cut.interleaved_error is None
                continue
            size = layer.interleaved_shape.n_parameters(cut.interleaved_ranks)
            budget = (cut.rank or 0) * sum(layer.weight_shape) or cut.ratio * layer.dense_parameters
            assert size <= budget
            tails = [
                np.linalg.norm(spectrum[rank:])
                for spectrum, rank in zip(layer.interleaved_spectra, cut.interleaved_ranks[1:], strict=False)
            ]
            assert max(tails) - 1e-6 <= cut.interleaved_error <= np.linalg.norm(tails) + 1e-6
            compared += 1
    assert compared > 30


def test_a_tolerance_needs_what_compression_uses(dense):
    model, inspection = dense
    for tol in (0.05, 0.1, 0.2):
        report = compress(copy.deepcopy(model), MPOConfig(tol=tol, shape="low_rank"))
        assert inspection.needed(tol) == report.parameters
        assert {layer.name: layer.needed[tol] for layer in inspection.layers} == {
            module.name: module.parameters for module in report.modules
        }


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_budget_costs_what_compression_then_loses(calibrated):
    model = bert()
    calibration = calibrate(model, [batch(k, vocabulary=61) for k in range(4)]) if calibrated else None
    inspection = inspect_model(model, calibration=calibration)
    assert [layer.weighted for layer in inspection.layers] == [calibrated] * len(inspection.layers)
    assert [budget.ratio for budget in inspection.budgets] == [0.75, 0.5, 0.33, 0.25]  # rank one is above a tenth
    for budget in inspection.budgets:
        config = MPOConfig(ratio=budget.ratio, shape="low_rank")
        report = compress(copy.deepcopy(model), config, calibration)
        assert budget.parameters == report.parameters <= budget.ratio * inspection.dense_parameters
        assert budget.ranks == {module.name: module.ranks[1] for module in report.modules}
        errors = [module.relative_error for module in report.modules]
        assert budget.error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-4)
        assert budget.largest_error == pytest.approx(max(errors), rel=1e-4)
        assert budget.worst == report.modules[int(np.argmax(errors))].name


def test_calibrated_errors_are_those_of_the_outputs():
    model = bert()
    batches = [batch(k, vocabulary=61) for k in range(4)]
    calibration = calibrate(model, batches)
    layer = inspect_model(model, calibration=calibration)[LAYER]
    covariance = calibration.covariances[LAYER].numpy()
    values, vectors = np.linalg.eigh(covariance)
    output = weight(model) @ (vectors * np.sqrt(values.clip(0)))
    singular = np.linalg.svd(output, compute_uv=False)
    for cut in layer.cuts[:4]:
        assert cut.error == pytest.approx(np.linalg.norm(singular[cut.rank :]) / np.linalg.norm(singular), rel=1e-4)
        mpo = tnmpo.mpo_decompose(weight(model), layer.interleaved_shape, cut.interleaved_ranks[1:-1])
        lost = (weight(model) - mpo.to_matrix()) @ (vectors * np.sqrt(values.clip(0)))
        # the first is the same sweep, the others start from the cut before
        close = 1e-4 if cut is layer.cuts[0] else 0.1
        assert cut.interleaved_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(singular), rel=close)


# --- what is inspected


def test_nothing_in_the_model_changes():
    model = bert().train()
    model.pooler.dense.weight.requires_grad_(False)
    before, result = copy.deepcopy(model.state_dict()), answer(model)
    inspect_model(model)
    assert model.training
    assert torch.equal(result, answer(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["pooler.dense.weight"]


@pytest.mark.parametrize("shape", ["low_rank", "interleaved"])
def test_a_compressed_model_is_inspected_as_it_is(shape):
    model = bert()
    report = compress(model, MPOConfig(ratio=0.5, shape=shape))
    before, bytes_before = copy.deepcopy(model.state_dict()), resident(model)
    inspection = inspect_model(model)
    assert resident(model) == bytes_before  # no dense weight was left in a layer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert inspection.parameters == report.parameters
    assert inspection.dense_parameters == report.dense_parameters
    for layer, module in zip(inspection.layers, report.modules, strict=True):
        assert (layer.name, layer.weight_shape, layer.parameters) == (
            module.name,
            module.weight_shape,
            module.parameters,
        )
        assert layer.kind == module.kind == shape.replace("_", "-")
        own = [np.count_nonzero(spectrum > 1e-6) for spectrum in layer.interleaved_spectra]
        if shape == "low_rank":
            assert np.count_nonzero(layer.spectrum > 1e-6) == module.ranks[1]
            assert layer.cuts[0].rank <= module.ranks[1]
        elif module.name != "embeddings.word_embeddings":  # whose padding is cut off
            assert tuple(own) == module.ranks[1:-1]
    if shape == "low_rank":
        loose = [layer.cuts[0] for layer in inspection.layers if layer.cuts[0].rank == np.sum(layer.spectrum > 1e-6)]
        assert loose
        assert all(cut.error < 1e-6 for cut in loose)


def resident(model):
    return [layer.resident_bytes for layer in model.modules() if hasattr(layer, "resident_bytes")]


def test_shared_layers_are_inspected_once():
    inspection = inspect_model(albert())
    assert len({layer.name for layer in inspection.layers}) == len(inspection.layers) == 8
    assert inspection.model_parameters == sum(parameter.numel() for parameter in albert().parameters())


def test_modules_are_chosen_as_for_compression():
    config = MPOConfig(target_modules=["query", "key"], ratio=0.5)
    inspection = inspect_model(bert(), config)
    assert {layer.name.rpartition(".")[2] for layer in inspection.layers} == {"query", "key"}
    with pytest.raises(ValueError, match=r"target_modules: 'qery' matches none .* near misses: query"):
        inspect_model(bert(), MPOConfig(target_modules=["qery"]))
    with pytest.raises(ValueError, match=r"target_modules: got None for a model of type None"):
        inspect_model(nn.Sequential(nn.Linear(4, 4)))


def test_without_interleaved_bonds_the_rest_is_the_same(dense):
    model, inspection = dense
    quick = inspect_model(model, interleaved=False)
    for one, other in zip(quick.layers, inspection.layers, strict=True):
        assert one.interleaved_shape is None
        assert one.interleaved_spectra == ()
        assert [(cut.rank, cut.error) for cut in one.cuts] == [(cut.rank, cut.error) for cut in other.cuts]
        assert one.needed == other.needed
    assert quick.budgets == inspection.budgets
    assert quick.to_dict()["layers"][0]["interleaved"] is None
    assert "low-rank, Frobenius" in str(quick)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    model = bert()
    with torch.no_grad():
        model.get_submodule(LAYER).weight[3, 2] = value
    with pytest.raises(ValueError, match=rf"the weight of {LAYER} holds NaN or Inf; load a sound checkpoint"):
        inspect_model(model)


def test_a_weight_of_zeros_loses_nothing():
    model = bert()
    with torch.no_grad():
        model.get_submodule(LAYER).weight.zero_()
    layer = inspect_model(model)[LAYER]
    assert [cut.error for cut in layer.cuts if cut.rank] == [0.0] * 4
    assert [cut.interleaved_error for cut in layer.cuts if cut.interleaved_ranks] == [0.0] * 5
    assert layer.needed[0.05] == 36
    assert math.isfinite(layer.profile.deficits[0])


def test_half_precision_is_inspected_in_single_precision():
    model = bert()
    half = copy.deepcopy(model).bfloat16()
    for one, other in zip(inspect_model(model).layers, inspect_model(half).layers, strict=True):
        assert one.spectrum == pytest.approx(other.spectrum, abs=5e-3)
        assert one.cuts[1].interleaved_error == pytest.approx(other.cuts[1].interleaved_error, abs=2e-2)


# --- how it is shown


def test_the_table_is_readable(dense):
    _, inspection = dense
    lines = str(inspection).splitlines()
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if line.startswith(LAYER))
    cut = inspection[LAYER].cuts[1]
    assert f"{cut.error:.3f}/{cut.interleaved_error:.3f}".replace("0.", ".") in row
    assert "24 x 12" in row
    assert f"{inspection[LAYER].profile.effective_ranks[0]:.1f}" in row
    totals = next(line for line in lines if line.startswith("  0.50:"))
    assert f"{inspection.budgets[1].parameters:,} parameters" in totals


def test_the_table_of_a_calibrated_model_is_no_wider():
    model = bert()
    text = str(inspect_model(model, calibration=calibrate(model, [batch(vocabulary=61)]), interleaved=False))
    assert "relative error, low-rank, weighted by the calibration" in text
    assert max(map(len, text.splitlines())) <= 120


def test_long_names_lose_their_beginning():
    model = bert()
    deep = nn.ModuleDict({"a" * 60: nn.ModuleDict({"b" * 60: model})})
    lines = str(inspect_model(deep, MPOConfig(target_modules=["query"]))).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].startswith("..")
    assert ".attention.self.query " in lines[1]


def test_a_compressed_model_says_what_is_kept():
    model = bert()
    compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    inspection = inspect_model(model)
    lines = str(inspection).splitlines()
    assert "kept" in lines[0]
    assert max(map(len, lines)) <= 120
    layer = inspection[LAYER]
    assert f"{layer.parameters / layer.dense_parameters:.3f}" in next(line for line in lines if LAYER[4:] in line)


def test_one_matrix_is_printed_with_its_bonds(dense):
    layer = dense[1][LAYER]
    text = str(layer)
    assert text.startswith(f"{LAYER}: 24 x 12, dense, 288 parameters\nlow-rank bond:\n")
    assert str(layer.interleaved_profile) in text
    assert f"a relative error of 0.2 needs {layer.needed[0.2]} parameters" in text
    with pytest.raises(KeyError, match=r"'layer' is no inspected matrix; the first are"):
        dense[1]["layer"]


def test_the_dictionary_is_json(dense):
    _, inspection = dense
    values = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))
    assert values["dense_parameters"] == inspection.dense_parameters
    layer = next(entry for entry in values["layers"] if entry["name"] == LAYER)
    assert layer["low_rank"]["spectrum"] == pytest.approx(inspection[LAYER].spectrum.tolist(), rel=1e-5)
    assert layer["low_rank"]["effective_rank"] == inspection[LAYER].profile.effective_ranks[0]
    assert [bond["rank"] for bond in layer["interleaved"]["bonds"]] == list(inspection[LAYER].interleaved_profile.ranks)
    assert [cut["error"] for cut in layer["cuts"]] == [cut.error for cut in inspection[LAYER].cuts]
    assert values["needed"][0] == {"tolerance": 0.05, "parameters": inspection.needed(0.05)}
    assert values["budgets"][0]["ranks"] == inspection.budgets[0].ranks


def test_the_figure_has_a_panel_for_every_kind_of_layer(dense, tmp_path):
    inspection: Inspection = dense[1]
    figure = inspection.plot()
    titles = [axes.get_title().partition("\n")[0] for axes in figure.axes if axes.get_title()]
    assert "encoder.layer.*.intermediate.dense" in titles
    spectra = next(axes for axes in figure.axes if axes.get_title().startswith("encoder.layer.*.intermediate.dense"))
    assert len(spectra.lines) == 2  # one for each layer
    errors = next(axes for axes in figure.axes if axes.get_title().startswith("median layer"))
    labels = [line.get_label() for line in errors.lines]
    assert len([label for label in labels if not label.startswith("_")]) == 8
    line = next(line for line in errors.lines if line.get_label() == "encoder.layer.*.intermediate.dense")
    both = [inspection[f"encoder.layer.{k}.intermediate.dense"].cuts[0].error for k in (0, 1)]
    assert line.get_ydata()[0] == pytest.approx(np.mean(both))
    figure.savefig(tmp_path / "inspection.png")
    assert (tmp_path / "inspection.png").stat().st_size > 10_000
