"""squeeze against brute force, and what it leaves behind whatever happens."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from tiny import albert, answer, batch, bert
from tnmpo.integrations.transformers import (
    MPOConfig,
    SqueezeLog,
    absorb,
    calibrate,
    compress,
    freeze_central,
    squeeze,
)
from tnmpo.integrations.transformers.targets import mpo_layers

import tnmpo

SETTINGS = {
    "full rank": {},
    "interleaved": {"ratio": 0.6, "shape": "interleaved"},
    "low-rank": {"ratio": 0.6, "shape": "low_rank"},
    "auto": {"rank": 6},
}


def model_of(kind, *, build=albert, frozen=True):
    model = build()
    compress(model, MPOConfig(**SETTINGS[kind]))
    if frozen:
        freeze_central(model)
    return model


def disturb(model):
    """Stands for training: moves every trainable parameter, the same way each time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def nothing(model):
    pass


def always_equal(model):
    return 1.0


def state(model):
    values = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return values, {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def assert_same(model, before):
    values, flags = state(model)
    assert list(values) == list(before[0])
    assert all(torch.equal(value, before[0][name]) for name, value in values.items())
    assert flags == before[1]


def at_rest(model):
    return sum(layer.shape_at_rest.n_parameters(layer.ranks_at_rest) for _, layer, _ in mpo_layers(model))


# --- the choice


def brute_force(model, step, criterion, calibration=None):
    """The price of every cut, from the dense unfoldings of every matrix."""
    prices = {}
    for name, layer, _ in mpo_layers(model):
        shape, ranks = layer.shape_at_rest, layer.ranks_at_rest
        matrix = tnmpo.MPO([core.detach().double() for core in layer.cores]).to_matrix()
        metric = calibration.weight(name) if calibration is not None and layer.is_low_rank else None
        if metric is not None:
            rows, cols = metric.roots(tuple(matrix.shape), matrix)
            matrix = matrix if rows is None else rows[:, None] * matrix
            matrix = matrix if cols is None else matrix @ cols
        order = shape.order
        tensor = matrix.reshape(*shape.rows, *shape.cols)
        tensor = tensor.permute([axis for k in range(order) for axis in (k, order + k)])
        for bond in range(1, order):
            if ranks[bond] == 1:
                continue
            values = torch.linalg.svdvals(tensor.reshape(math.prod(shape.site_sizes[:bond]), -1)).square()
            kept = max(1, ranks[bond] - step)
            loss = float(values[kept:].sum() / values.sum())
            lowered = shape.clip_ranks([*ranks[:bond], kept, *ranks[bond + 1 :]])
            saved = shape.n_parameters(ranks) - shape.n_parameters(lowered)
            prices[name, bond] = loss / saved if criterion == "per_parameter" else loss
    return prices


@pytest.mark.parametrize("criterion", ["per_parameter", "error"])
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("kind", SETTINGS)
def test_it_lowers_the_bond_that_brute_force_would(kind, step, criterion):
    model = model_of(kind)
    disturb(model)  # no core is in any gauge any more
    for number in range(1, 5):
        prices = brute_force(model, step, criterion)
        ranks = {name: layer.ranks_at_rest for name, layer, _ in mpo_layers(model)}
        log = squeeze(model, always_equal, disturb, max_drop=0.0, max_steps=1, step=step, criterion=criterion)
        (done,) = log.steps
        least = min(prices.values())
        assert prices[done.module, done.bond] <= least * (1 + 1e-3) + 1e-9, number
        assert done.rank == ranks[done.module][done.bond]
        assert done.new_rank == max(1, done.rank - step)
        after = {name: layer.ranks_at_rest for name, layer, _ in mpo_layers(model)}
        assert after[done.module][done.bond] == done.new_rank
        assert {name for name in ranks if ranks[name] != after[name]} == {done.module}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_loss_is_the_weight_that_was_discarded(kind, calibrated):
    model = model_of(kind, build=bert)
    calibration = calibrate(model, [batch(0), batch(1)]) if calibrated else None
    seen = []

    def compare(current):
        """Between the cut and the training."""
        now = {name: layer.mpo.to_matrix().detach().double() for name, layer, _ in mpo_layers(current)}
        (name,) = [name for name in now if not torch.allclose(now[name], then[name], atol=1e-4)]
        low_rank = dict(current.named_modules())[name].is_low_rank
        metric = calibration.weight(name) if calibrated and low_rank else tnmpo.Weight()
        seen.append((name, (metric.norm(now[name] - then[name]) / metric.norm(then[name])) ** 2))

    for _ in range(4):
        disturb(model)
        then = {name: layer.mpo.to_matrix().detach().double() for name, layer, _ in mpo_layers(model)}
        log = squeeze(model, always_equal, compare, max_drop=0.0, max_steps=1, step=2, calibration=calibration)
        assert (log.steps[0].module, pytest.approx(log.steps[0].loss, rel=1e-3)) == seen[-1]
        assert log.steps[0].loss > 0
    assert len(seen) == 4


def test_calibrated_choices_are_those_of_the_calibrated_norm():
    model = model_of("low-rank", build=bert)
    calibration = calibrate(model, [batch(seed) for seed in range(3)])
    for _ in range(4):
        prices = brute_force(model, 1, "per_parameter", calibration)
        log = squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=1, calibration=calibration)
        (done,) = log.steps
        assert prices[done.module, done.bond] <= min(prices.values()) * (1 + 1e-3)


def test_several_steps_at_once_are_several_single_steps():
    one, many = model_of("interleaved"), model_of("interleaved")
    log = squeeze(many, always_equal, disturb, max_drop=0.0, max_steps=5)
    for expected in log.steps:
        single = squeeze(one, always_equal, disturb, max_drop=0.0, max_steps=1).steps[0]
        assert (single.module, single.bond, single.new_rank) == (expected.module, expected.bond, expected.new_rank)
    assert torch.equal(answer(one), answer(many))


# --- when it ends


def falling(scores):
    """An ``evaluate`` that answers one score after another."""
    remaining = iter(scores)
    return lambda model: next(remaining)


def test_it_goes_on_while_the_drop_is_allowed():
    model = model_of("interleaved")
    kept = []

    def remember(current):
        disturb(current)
        kept.append(state(current))

    log = squeeze(model, falling([0.9, 0.89, 0.95, 0.85, 0.79]), remember, max_drop=0.1, max_steps=10)
    assert [step.score for step in log.steps] == [0.89, 0.95, 0.85, 0.79]
    assert [step.kept for step in log.steps] == [True, True, True, False]
    assert [step.number for step in log.steps] == [1, 2, 3, 4]
    assert (log.baseline, log.stopped) == (0.9, "max_drop")
    assert_same(model, kept[2])
    assert "put back" in str(log).splitlines()[-2]


def test_a_score_that_is_no_number_is_not_kept():
    model = model_of("low-rank")
    before = state(model)
    log = squeeze(model, falling([0.9, math.nan]), disturb, max_drop=0.5, max_steps=3)
    assert log.stopped == "max_drop"
    assert_same(model, before)


def test_the_first_step_can_be_one_too_many():
    model = model_of("interleaved")
    before, expected, parameters = state(model), answer(model), at_rest(model)
    log = squeeze(model, falling([0.9, 0.8]), disturb, max_drop=0.05, max_steps=3)
    assert_same(model, before)
    assert torch.equal(answer(model), expected)
    assert log.parameters == parameters == at_rest(model)
    assert log.steps[0].parameters < parameters


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize("kind", ["auto", "low-rank"])
def test_it_stops_at_rank_one(kind, step):
    model = model_of(kind)
    log = squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=1000, step=step)
    assert log.stopped == "rank one"
    assert len(log.steps) < 1000
    assert all(set(layer.ranks_at_rest) == {1} for _, layer, _ in mpo_layers(model))
    assert log.steps[-1].parameters == at_rest(model)
    again = squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=5)
    assert (again.steps, again.stopped) == ([], "rank one")


def test_it_stops_at_max_steps():
    model = model_of("interleaved")
    log = squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=3)
    assert (len(log.steps), log.stopped) == (3, "max_steps")
    parameters = [log.parameters, *(step.parameters for step in log.steps)]
    assert parameters == sorted(parameters, reverse=True)
    assert len(set(parameters)) == 4
    assert parameters[-1] == at_rest(model)


# --- what it leaves behind


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["finetune", "evaluate"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_an_interruption_leaves_the_last_kept_state(kind, where, error):
    model = model_of(kind)
    kept = []

    def tune(current):
        current.train()
        disturb(current)
        if len(kept) == 3 and where == "finetune":
            raise error("stop")

    def score(current):
        if len(kept) == 3 and where == "evaluate":
            raise error("stop")
        kept.append((state(current), answer(current)))
        return 1.0

    with pytest.raises(error):
        squeeze(model, score, tune, max_drop=0.0, max_steps=10)
    assert_same(model, kept[2][0])
    assert torch.equal(answer(model), kept[2][1])


def test_dropout_is_off_again_after_an_interruption():
    model = model_of("interleaved")

    def tune(current):
        current.train()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        squeeze(model, always_equal, tune, max_drop=0.0, max_steps=3)
    assert not model.training


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_frozen_stays_frozen(kind):
    model = model_of(kind)
    frozen = {name: layer.central for name, layer, _ in mpo_layers(model)}
    values = {name: parameter.clone() for name, parameter in model.named_parameters() if "cores" not in name}
    squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=6)
    for name, layer, _ in mpo_layers(model):
        assert [core.requires_grad for core in layer.cores] == [k not in frozen[name] for k in range(len(layer.cores))]
    assert all(torch.equal(parameter, values[name]) for name, parameter in model.named_parameters() if name in values)


def test_the_fine_tuning_moves_only_what_is_trainable():
    model = model_of("interleaved")
    seen = []

    def tune(current):
        central = [core for _, layer, _ in mpo_layers(current) for core in (layer.cores[k] for k in layer.central)]
        before = [core.detach().clone() for core in central]
        disturb(current)
        assert all(torch.equal(core, old) for core, old in zip(central, before, strict=True))
        seen.append(len(central))

    squeeze(model, always_equal, tune, max_drop=0.0, max_steps=2)
    assert seen == [8, 8]


def test_an_optimiser_that_is_built_inside_works_on_the_new_parameters():
    model = model_of("interleaved")
    inputs = batch()
    target = torch.zeros_like(answer(model))
    losses = []

    def tune(current):
        optimiser = torch.optim.Adam([p for p in current.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            loss = (current(**inputs)[0] - target).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))

    squeeze(model, always_equal, tune, max_drop=0.0, max_steps=2)
    assert losses[2] < losses[0]
    assert losses[5] < losses[3]


@pytest.mark.parametrize(("build", "kind"), [(albert, "AlbertForMaskedLM"), (bert, "BertForMaskedLM")])
@pytest.mark.parametrize("scores", [[1.0] * 4, [1.0, 1.0, 1.0, 0.0]])
@pytest.mark.parametrize("settings", [SETTINGS["interleaved"], SETTINGS["low-rank"]])
def test_tied_layers_are_lowered_together_and_stay_tied(build, kind, scores, settings):
    model = build(kind)
    compress(model, MPOConfig(target_modules=["word_embeddings"], **settings))
    freeze_central(model)
    log = squeeze(model, falling(scores), disturb, max_drop=0.0, max_steps=3)
    assert len(log.steps) == 3
    embedding, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert all(a is b for a, b in zip(embedding.cores, decoder.cores, strict=True))
    assert torch.equal(embedding.weight, decoder.weight)
    assert [step.kept for step in log.steps] == [score == 1.0 for score in scores[1:]]
    absorb(model)
    assert embedding.cores[0] is decoder.cores[0]


def test_matrices_that_are_whole_are_passed_over():
    model = bert()
    with torch.no_grad():
        for layer in model.encoder.layer:  # of rank two, the others of full rank
            layer.intermediate.dense.weight.copy_(torch.randn(24, 2) @ torch.randn(2, 12))
    report = compress(model, MPOConfig(tol=0.02))
    whole = {module.name for module in report.modules if module.kind == "whole"}
    assert whole
    assert len(whole) < len(report.modules)
    log = squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=500, step=4)
    assert not {step.module for step in log.steps} & whole
    assert log.stopped == "rank one"


# --- the log


def test_every_step_is_reported_while_it_runs():
    model = model_of("interleaved")
    seen = []
    log = squeeze(
        model,
        falling([1.0, 1.0, 0.0]),
        disturb,
        max_drop=0.1,
        max_steps=5,
        on_step=lambda log: seen.append((len(log.steps), log.stopped, state(model))),
    )
    assert [entry[:2] for entry in seen] == [(1, "running"), (2, "max_drop")]
    assert_same(model, seen[0][2])  # the second step was put back before it was reported
    assert_same(model, seen[1][2])
    assert json.loads(json.dumps(log.to_dict()))["steps"][0]["module"] == log.steps[0].module


def test_the_text_of_a_log():
    log = squeeze(model_of("interleaved"), falling([0.9, 0.9, 0.1]), nothing, max_drop=0.1, max_steps=5)
    lines = str(log).splitlines()
    assert lines[0].split() == ["step", "module", "bond", "rank", "loss", "parameters", "score"]
    assert lines[1].split() == ["0", f"{log.parameters:,}", "0.9000"]
    first = log.steps[0]
    assert lines[2].split() == [
        *("1", first.module, str(first.bond), str(first.rank), "->", str(first.new_rank)),
        *(f"{first.loss:.2e}", f"{first.parameters:,}", "0.9000"),
    ]
    assert lines[3].endswith("0.1000  put back")
    assert lines[-1] == "stopped: max_drop"


# --- wrong arguments


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_drop": -0.1}, ValueError, "max_drop: got -0.1, expected a number >= 0"),
        ({"max_drop": math.inf}, ValueError, "max_drop: got inf"),
        ({"max_drop": math.nan}, ValueError, "max_drop: got nan"),
        ({"max_drop": "1%"}, TypeError, "max_drop: got '1%', expected a number"),
        ({"max_drop": True}, TypeError, "max_drop: got True"),
        ({"max_steps": 0}, ValueError, "max_steps: got 0, expected a positive integer"),
        ({"max_steps": 2.5}, TypeError, "max_steps: got 2.5, expected a positive integer"),
        ({"step": 0}, ValueError, "step: got 0, expected a positive integer"),
        ({"step": None}, TypeError, "step: got None, expected a positive integer"),
        ({"criterion": "loss"}, ValueError, "criterion: got 'loss', expected one of 'per_parameter', 'error'"),
    ],
)
def test_wrong_arguments(settings, error, message):
    model = model_of("interleaved")
    before = state(model)
    with pytest.raises(error, match=message):
        squeeze(model, always_equal, disturb, **{"max_drop": 0.0, "max_steps": 1, **settings})
    assert_same(model, before)


def test_a_dense_model_is_refused_before_it_is_evaluated():
    with pytest.raises(ValueError, match="squeeze: got a BertModel without MPO layers"):
        squeeze(bert(), falling([]), nothing, max_drop=0.0, max_steps=1)


def test_a_calibration_of_another_model_is_refused():
    model = model_of("low-rank")
    calibration = calibrate(bert("BertForMaskedLM"), [batch()])
    with pytest.raises(ValueError, match="calibration: it knows none of the"):
        squeeze(model, always_equal, nothing, max_drop=0.0, max_steps=1, calibration=calibration)


def test_the_model_can_be_copied_afterwards():
    model = model_of("interleaved")
    squeeze(model, always_equal, disturb, max_drop=0.0, max_steps=2)
    assert torch.equal(answer(copy.deepcopy(model)), answer(model))


# --- going on


def test_a_squeeze_that_goes_on_from_its_log_ends_as_one_that_was_never_interrupted():
    whole, first = model_of("low-rank"), model_of("low-rank")
    expected = squeeze(whole, always_equal, disturb, max_drop=0.0, max_steps=4)
    begun = squeeze(first, always_equal, disturb, max_drop=0.0, max_steps=2)
    written = SqueezeLog.from_dict(json.loads(json.dumps({**begun.to_dict(), "stopped": "running"})))
    scores = []

    def evaluate(model):
        scores.append(1.0)
        return 1.0

    log = squeeze(first, evaluate, disturb, max_drop=0.0, max_steps=4, log=written)
    assert log == expected
    assert len(scores) == 2  # the baseline is that of the first start
    assert_same(first, state(whole))


def test_a_finished_log_comes_back_and_the_model_is_left_alone():
    model = model_of("low-rank")
    log = squeeze(model, always_equal, disturb, max_drop=0.0, max_steps=1)
    before = state(model)
    assert squeeze(model, always_equal, disturb, max_drop=0.0, max_steps=3, log=log) is log
    assert_same(model, before)
    assert len(log.steps) == 1
