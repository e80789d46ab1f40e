"""compress and what follows it: the paper's counts, budgets kept, ties kept, nothing silent."""

from __future__ import annotations

import copy
import json
import logging
import math

import pytest
import torch
import transformers
from tiny import albert, answer, batch, bert
from tnmpo.integrations.torch import MPOEmbedding, MPOLayer, MPOLinear
from tnmpo.integrations.transformers import (
    MPOConfig,
    absorb,
    calibrate,
    compress,
    freeze_central,
    load,
    merge,
    parameter_report,
    save,
)
from tnmpo.integrations.transformers import report as report_module
from tnmpo.integrations.transformers.targets import mpo_layers
from torch import nn

import tnmpo

DENSE = 11_683_584
CAPS = {"word_embeddings": 385, "ffn": 308, "ffn_output": 308, r".*\.attention\..*": 208, "pooler": 208}


def weights(model):
    """Every weight matrix by the name of its module, dense or MPO."""
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | MPOLayer)
    }


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# --- the paper's counts: Liu et al. (ACL 2021), ALBERT-base without a classifier


@pytest.fixture(scope="module")
def albert_base():
    config = transformers.AlbertConfig(
        vocab_size=30000,
        embedding_size=128,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AlbertModel(config).eval()


def test_albert_base_at_full_rank_has_the_papers_counts(albert_base):
    assert parameters(albert_base) == DENSE
    model = copy.deepcopy(albert_base)
    report = compress(model, MPOConfig())
    assert len(report.modules) == 8
    assert {module.ranks for module in report.modules} == {
        (1, 10, 200, 480, 12, 1),
        (1, 12, 192, 384, 16, 1),
        (1, 12, 192, 192, 12, 1),
    }
    counts = parameter_report(model)
    assert (counts.total, counts.trainable) == (12_693_748, 12_693_748)
    assert (counts.auxiliary, counts.other) == (1_010_164, 175_872)
    assert report.model_parameters == 12_693_748
    freeze_central(model)
    counts = parameter_report(model)
    assert (counts.total, counts.trainable, counts.auxiliary) == (12_693_748, 1_186_036, 1_010_164)
    assert round(100 * (1 - counts.auxiliary / DENSE), 1) == 91.4
    ids = {"input_ids": torch.randint(0, 30000, (2, 6), generator=torch.Generator().manual_seed(0))}
    torch.testing.assert_close(answer(model, ids), answer(albert_base, ids), rtol=1e-3, atol=1e-3)


def test_albert_base_under_the_papers_caps(albert_base):
    model = copy.deepcopy(albert_base)
    report = compress(model, MPOConfig(rank=CAPS, shape="interleaved"))
    assert parameters(model) == report.model_parameters == 10_895_892


def test_the_embedding_of_albert_base_capped_alone(albert_base):
    model = copy.deepcopy(albert_base)
    report = compress(model, MPOConfig(rank=240, shape="interleaved", target_modules=["word_embeddings"]))
    (embedding,) = report.modules
    assert embedding.parameters == report.parameters == 2_075_444
    assert parameters(model) == report.model_parameters == 9_919_028


# --- nothing lost


@pytest.mark.parametrize(("build", "matrices"), [(albert, 8), (bert, 14)])
def test_without_a_budget_the_outputs_are_the_dense_ones(build, matrices):
    model = build()
    expected, dense = answer(model), parameters(model)
    report = compress(model, MPOConfig())
    torch.testing.assert_close(answer(model), expected, rtol=1e-4, atol=1e-5)
    assert len(report.modules) == matrices
    assert not model.training
    assert all(module.relative_error == 0 for module in report.modules)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert report.model_parameters == parameters(model) == dense + report.parameters - report.dense_parameters
    assert set(report.slower) <= {module.name for module in report.modules}


def test_the_shared_layer_of_albert_is_compressed_once():
    model = albert(num_hidden_layers=5)
    report = compress(model, MPOConfig(ratio=0.5))
    assert [module.name.rpartition(".")[2] for module in report.modules].count("ffn") == 1
    assert len(list(mpo_layers(model))) == len(report.modules) == 8


@pytest.mark.parametrize("budget", [{}, {"ratio": 0.5}, {"rank": 5}, {"tol": 0.3}])
@pytest.mark.parametrize("shape", ["auto", "low_rank", "interleaved"])
def test_every_other_parameter_stays_what_it_was(shape, budget):
    if shape == "low_rank" and not budget:
        return  # refused: test_wrong_settings
    model = bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compress(model, MPOConfig(shape=shape, **budget))
    after = model.state_dict()
    for name in set(before) - {f"{name}.weight" for name, _, _ in mpo_layers(model)}:
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(training):
    model = albert().train(training)
    compress(model, MPOConfig(ratio=0.5))
    assert all(module.training is training for module in model.modules())


# --- budgets


def smallest_raise(report):
    """The parameters that the cheapest raise of one bond would need."""
    costs = []
    for module in report.modules:
        rows, cols = module.weight_shape
        if module.kind == "low-rank" and module.ranks[1] < (rows * cols - 1) // (rows + cols):
            costs.append(rows + cols)
    return min(costs)


@pytest.mark.parametrize("ratio", [0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("build", [albert, bert])
def test_one_budget_for_the_model_is_kept_and_not_wasted(build, ratio):
    model = build()
    report = compress(model, MPOConfig(ratio=ratio, shape="low_rank"))
    budget = math.floor(ratio * report.dense_parameters)
    assert report.parameters <= budget < report.parameters + smallest_raise(report)
    assert report.parameters == sum(layer.mpo.n_parameters for _, layer, _ in mpo_layers(model))
    assert len({module.ranks for module in report.modules}) > 1


@pytest.mark.parametrize("ratio", [0.9, 1.0])
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_low_rank_layer_is_as_large_as_the_matrix(ratio, calibrated):
    model = bert()
    calibration = calibrate(model, [batch(0), batch(1)]) if calibrated else None
    report = compress(model, MPOConfig(ratio=ratio, shape="low_rank"), calibration)
    assert all(module.parameters < module.dense_parameters for module in report.modules)


@pytest.mark.parametrize("shape", ["low_rank", "interleaved"])
def test_the_budget_is_shared_by_relative_errors(shape):
    model, scaled = bert(), bert()
    with torch.no_grad():  # by a power of two: the values stay the same to the last bit
        scaled.encoder.layer[0].attention.self.query.weight.mul_(1024)
        scaled.embeddings.word_embeddings.weight.div_(1024)
    ours, theirs = (compress(each, MPOConfig(ratio=0.5, shape=shape)) for each in (model, scaled))
    assert [module.ranks for module in ours.modules] == [module.ranks for module in theirs.modules]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.0])
def test_one_budget_for_an_interleaved_model(ratio):
    model = bert()
    report = compress(model, MPOConfig(ratio=ratio, shape="interleaved"))
    budget = math.floor(ratio * report.dense_parameters)
    assert report.parameters <= budget
    for _, layer, _ in mpo_layers(model):
        shape, ranks = layer.shape, layer.ranks
        for bond in range(1, len(ranks) - 1):
            raised = [*ranks[:bond], ranks[bond] + 1, *ranks[bond + 1 :]]
            if shape.clip_ranks(raised) == tuple(raised) and raised[bond] <= shape.full_ranks[bond]:
                assert report.parameters + shape.n_parameters(raised) - shape.n_parameters(ranks) > budget


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("shape", ["auto", "low_rank", "interleaved"])
def test_every_module_keeps_the_ratio_by_itself(shape, ratio):
    report = compress(bert(), MPOConfig(ratio=ratio, shape=shape, allot="module"))
    for module in report.modules:
        rows, cols = module.weight_shape
        assert module.parameters <= ratio * rows * cols
        if module.kind == "low-rank":
            assert module.parameters + rows + cols > ratio * rows * cols
    # the paper's baseline: one cap for all bonds of a matrix
    if shape == "interleaved":
        model = bert()
        compress(model, MPOConfig(ratio=ratio, shape=shape, allot="module"))
        for _, layer, _ in mpo_layers(model):
            cap, full = max(layer.ranks), layer.shape.full_ranks
            assert layer.ranks == tuple(min(cap, rank) for rank in full)
            higher = [min(cap + 1, rank) for rank in full]
            assert cap == max(full) or layer.shape.n_parameters(higher) > ratio * math.prod(layer.weight_shape)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("allot", ["model", "module"])
def test_auto_keeps_the_ratio_too(allot, ratio):
    report = compress(albert(), MPOConfig(ratio=ratio, allot=allot))
    assert report.parameters <= ratio * report.dense_parameters
    assert report.ratio == report.parameters / report.dense_parameters


def relative_errors(model, dense, calibration=None):
    errors = {}
    for name, layer, _ in mpo_layers(model):
        weight = dense[name].double()
        metric = calibration.weight(name) if calibration is not None else tnmpo.Weight()
        errors[name] = metric.norm(weight - layer.weight.detach().double()) / metric.norm(weight)
    return errors


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("tol", [0.0, 0.1, 0.4, 0.8])
@pytest.mark.parametrize("shape", ["auto", "low_rank", "interleaved"])
def test_a_tolerance_is_kept_by_every_matrix(shape, tol, calibrated):
    model = bert()
    dense = weights(model)
    calibration = calibrate(model, [batch(0), batch(1)]) if calibrated else None
    report = compress(model, MPOConfig(tol=tol, shape=shape), calibration)
    for name, error in relative_errors(model, dense, calibration).items():
        assert error <= tol + 1e-6, name
    if shape != "interleaved":  # never larger than the matrix itself
        assert all(module.parameters <= module.dense_parameters for module in report.modules)
    if tol == 0.8:
        assert report.ratio < 0.7


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.5},
        {"ratio": 0.5, "shape": "interleaved"},
        {"ratio": 0.4, "allot": "module"},
        {"rank": 3},
        {"tol": 0.3},
        {"rank": {"query": 3, "word_embeddings": 2}},
        {"rank": 3, "shape": "interleaved"},  # the vocabulary is padded
    ],
)
def test_the_reported_error_is_the_error(settings, calibrated):
    model = bert()
    dense = weights(model)
    calibration = calibrate(model, [batch(0), batch(1)]) if calibrated else None
    report = compress(model, MPOConfig(**settings), calibration)
    errors = relative_errors(model, dense, calibration)
    for module in report.modules:
        assert module.relative_error == pytest.approx(errors[module.name], rel=1e-3, abs=2e-6), module.name
        assert module.weighted == (calibrated and module.relative_error > 0) or module.relative_error < 1e-5


@pytest.mark.parametrize("rank", [1, 4, 7])
@pytest.mark.parametrize("shape", ["auto", "low_rank", "interleaved"])
def test_a_cap_holds_on_every_bond(shape, rank):
    model = bert()
    compress(model, MPOConfig(rank=rank, shape=shape))
    for _, layer, _ in mpo_layers(model):
        full = layer.shape.full_ranks
        if shape != "auto":
            assert layer.ranks == tuple(min(rank, most) for most in full)
        assert max(layer.ranks) <= rank


@pytest.mark.parametrize("shape", ["auto", "low_rank", "interleaved"])
def test_what_a_rank_dictionary_does_not_name_stays_whole(shape):
    model = albert()
    dense = weights(model)
    report = compress(model, MPOConfig(rank={"query": 2, r".*\.(key|value)": 3}, shape=shape))
    errors = relative_errors(model, dense)
    for module in report.modules:
        word = module.name.rpartition(".")[2]
        if word in {"query", "key", "value"}:
            assert max(module.ranks) <= {"query": 2, "key": 3, "value": 3}[word]
            assert errors[module.name] > 0.1
        else:
            assert errors[module.name] < 1e-5
            assert module.relative_error == 0


def test_a_rank_dictionary_names_tied_modules_by_any_of_their_names():
    model = albert("AlbertForMaskedLM")
    compress(model, MPOConfig(rank={"decoder": 2}, target_modules=["word_embeddings"], shape="low_rank"))
    assert model.albert.embeddings.word_embeddings.ranks == (1, 2, 1)


# --- which shape, which norm


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"ratio": 0.5, "allot": "module"}, {"rank": 4}, {"tol": 0.3}])
def test_auto_is_never_worse_than_low_rank(settings, calibrated):
    model = bert()
    suited = "encoder.layer.0.intermediate.dense"  # to interleaving: a Kronecker product
    shape = MPOConfig().interleaved_shape((24, 12), is_embedding=False)
    torch.manual_seed(0)
    sites = [torch.randn(1, i, j, 1) for i, j in zip(shape.rows, shape.cols, strict=True)]
    with torch.no_grad():
        model.get_submodule(suited).weight.copy_(tnmpo.MPO(sites).to_matrix())
    calibration = calibrate(model, [batch(0), batch(1)]) if calibrated else None
    auto, low_rank = copy.deepcopy(model), model
    ours = compress(auto, MPOConfig(**settings), calibration)
    theirs = compress(low_rank, MPOConfig(shape="low_rank", **settings), calibration)
    for mine, other in zip(ours.modules, theirs.modules, strict=True):
        assert mine.name == other.name
        assert mine.relative_error <= other.relative_error * (1 + 1e-6) + 1e-9
        assert mine.parameters <= other.parameters
    if "rank" not in settings:
        kinds = {module.name: module.kind for module in ours.modules}
        assert kinds[suited] == "interleaved"
        assert "low-rank" in kinds.values()


def test_auto_takes_low_rank_where_an_interleaved_train_is_too_large():
    model = nn.Sequential(nn.Linear(23, 29), nn.Linear(29, 31))  # primes: one site would carry everything
    report = compress(model, MPOConfig(ratio=0.5, target_modules=["0", "1"]))
    assert {module.kind for module in report.modules} == {"low-rank"}


def test_a_calibrated_cut_has_the_lower_error_in_the_calibrated_norm():
    model = albert()
    dense = weights(model)
    calibration = calibrate(model, [batch(seed) for seed in range(3)])
    plain, weighted = copy.deepcopy(model), copy.deepcopy(model)
    settings = {"ratio": 0.4, "shape": "low_rank", "allot": "module"}
    compress(plain, MPOConfig(**settings))
    report = compress(weighted, MPOConfig(**settings), calibration)
    assert all(module.weighted for module in report.modules)
    assert "weighted by the calibration" in str(report)
    without, with_it = (relative_errors(compressed, dense, calibration) for compressed in (plain, weighted))
    assert all(with_it[name] <= without[name] * (1 + 1e-6) for name in dense if name in with_it)
    assert sum(with_it.values()) < 0.9 * sum(without.values())


def test_a_calibration_of_another_model_is_refused():
    calibration = calibrate(bert(), [batch()])
    with pytest.raises(ValueError, match=r"calibration: .*none of the targeted modules"):
        compress(nn.Sequential(nn.Linear(8, 8)), MPOConfig(ratio=0.5, target_modules=["0"]), calibration)


# --- ties


def albert_mlm():
    return albert("AlbertForMaskedLM"), "albert.embeddings.word_embeddings", "predictions.decoder"


def bert_mlm():
    return bert("BertForMaskedLM"), "bert.embeddings.word_embeddings", "cls.predictions.decoder"


def assert_tied(model, embedding, decoder):
    embedding, decoder = model.get_submodule(embedding), model.get_submodule(decoder)
    assert isinstance(embedding, MPOEmbedding)
    assert isinstance(decoder, MPOLinear)
    assert all(a is b for a, b in zip(embedding.cores, decoder.cores, strict=True))
    assert len(embedding.cores) == len(decoder.cores)


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.5, "shape": "low_rank"}, {"ratio": 0.5, "shape": "interleaved"}])
@pytest.mark.parametrize("make", [albert_mlm, bert_mlm])
def test_a_tied_decoder_stays_tied(make, settings):
    model, embedding, decoder = make()
    dense, expected = parameters(model), answer(model)
    report = compress(model, MPOConfig(target_modules=["word_embeddings"], **settings))
    (module,) = report.modules
    assert (module.name, module.tied) == (embedding, (decoder,))
    assert_tied(model, embedding, decoder)
    assert report.model_parameters == parameters(model) == dense + module.parameters - module.dense_parameters
    compressed = answer(model)
    if not settings:
        torch.testing.assert_close(compressed, expected, rtol=1e-4, atol=1e-4)
    else:
        assert (compressed - expected).abs().max() > 1e-3

    freeze_central(model)
    assert_tied(model, embedding, decoder)
    torch.testing.assert_close(answer(model), compressed, rtol=1e-5, atol=1e-5)
    layer = model.get_submodule(embedding)
    assert [core.requires_grad for core in layer.cores] == [k in layer.auxiliary for k in range(len(layer.cores))]
    report = parameter_report(model)
    assert report.total == parameters(model)
    assert report.central + report.auxiliary == layer.mpo.n_parameters

    absorb(model)
    assert_tied(model, embedding, decoder)
    twin = copy.deepcopy(model)
    assert_tied(twin, embedding, decoder)
    compressed = answer(model)
    merged = merge(model)
    assert merged is model
    table, matrix = model.get_submodule(embedding), model.get_submodule(decoder)
    assert (type(table), type(matrix)) == (nn.Embedding, nn.Linear)
    assert table.weight is matrix.weight
    torch.testing.assert_close(answer(model), compressed, rtol=1e-5, atol=1e-5)
    assert parameters(model) == dense


@pytest.mark.parametrize("make", [albert_mlm, bert_mlm])
def test_a_gradient_reaches_tied_cores_from_both_sides(make):
    model, embedding, _ = make()
    compress(model, MPOConfig(ratio=0.5, target_modules=["word_embeddings"]))
    core = model.get_submodule(embedding).cores[0]
    inputs = batch()
    model(**inputs).logits.square().sum().backward()
    both = core.grad.clone()
    core.grad = None
    with torch.no_grad():
        vectors = model.get_submodule(embedding)(inputs["input_ids"])
    model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"]).logits.square().sum().backward()
    assert (core.grad - both).abs().max() > 1e-3 * both.abs().max() > 0


def test_a_bias_that_is_shared_stays_shared():
    model = bert("BertForMaskedLM")
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    compress(model, MPOConfig(ratio=0.5))
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    merge(model)
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


# --- freeze, absorb, merge


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.4}, {"ratio": 0.4, "shape": "low_rank"}, {"tol": 0.05}])
@pytest.mark.parametrize("build", [albert, bert])
def test_freeze_absorb_and_merge_keep_the_outputs(build, settings):
    model = build()
    names = set(weights(model))
    compress(model, MPOConfig(**settings))
    expected, at_rest = answer(model), parameters(model)
    freeze_central(model)
    torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    counts = parameter_report(model)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert counts.central == frozen
    assert counts.trainable == counts.auxiliary + counts.other == counts.total - frozen
    absorb(model)
    assert parameters(model) == at_rest
    torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    merge(model)
    assert not list(mpo_layers(model))
    assert set(weights(model)) == names
    assert all(
        type(module) in (nn.Linear, nn.Embedding)
        for module in model.modules()
        if hasattr(module, "weight") and not isinstance(module, nn.LayerNorm)
    )
    torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)
    assert model.get_input_embeddings().padding_idx == 0


def test_freezing_leaves_what_is_no_mpo_alone():
    model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("LayerNorm" not in name)
    compress(model, MPOConfig(ratio=0.5))
    freeze_central(model)
    for name, parameter in model.named_parameters():
        if "cores" not in name:
            assert parameter.requires_grad == ("LayerNorm" not in name), name


@pytest.mark.parametrize("verb", [freeze_central, absorb, merge])
def test_a_dense_model_is_refused(verb):
    with pytest.raises(ValueError, match=f"{verb.__name__}: got a BertModel without MPO layers.*call compress first"):
        verb(bert())


# --- models outside transformers


def test_a_plain_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12), nn.Linear(12, 2))
    ids = torch.arange(30)
    expected = model(ids)
    report = compress(model, MPOConfig(tol=1e-3, target_modules=["0", "1", "3"]))
    assert [module.name for module in report.modules] == ["0", "1", "3"]
    torch.testing.assert_close(model(ids), expected, rtol=0.05, atol=0.05)
    assert type(model[4]) is nn.Linear
    compress(model, MPOConfig(rank=1, target_modules="4"))
    assert isinstance(model[4], MPOLinear)
    merge(model)
    assert not list(mpo_layers(model))


def test_a_model_that_is_itself_a_layer_is_refused():
    with pytest.raises(ValueError, match=r"matches none of the 0 linear and embedding modules; their names: none"):
        compress(nn.Linear(8, 8), MPOConfig(ratio=0.5, target_modules=".*"))


def test_a_module_that_hangs_in_two_places_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.again = self.first
            self.other = nn.Linear(8, 8)
            self.other.weight = self.first.weight

        def forward(self, x):
            return self.other(self.again(self.first(x)))

    torch.manual_seed(0)
    model = Twice()
    expected = model(torch.eye(8))
    report = compress(model, MPOConfig(target_modules=["first"]))
    assert model.first is model.again
    assert isinstance(model.other, MPOLinear)
    assert model.other.bias is not model.first.bias
    assert [(module.name, module.tied) for module in report.modules] == [("first", ("other",))]
    torch.testing.assert_close(model(torch.eye(8)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"ratio": 0.5}, {"ratio": 0.5, "shape": "low_rank"}, {"tol": 0.1}, {}])
def test_small_and_odd_matrices(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 5), nn.Linear(5, 40), nn.Linear(40, 3))
    with torch.no_grad():
        model[1].weight.zero_()
    report = compress(model, MPOConfig(target_modules=".*", **settings))
    assert len(report.modules) == 4
    assert model(torch.ones(2, 7)).shape == (2, 3)
    if "ratio" in settings:
        assert report.ratio <= 0.5
    str(report)


def test_half_precision_is_kept():
    model = bert(dtype=torch.bfloat16).to(torch.bfloat16)
    compress(model, MPOConfig(ratio=0.5))
    freeze_central(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert answer(model).dtype == torch.bfloat16


# --- reports


def test_what_no_target_covers_is_named_with_its_share():
    model = albert("AlbertForSequenceClassification")
    dense = parameters(model)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
    report = compress(model, MPOConfig(ratio=0.5, exclude_modules=["word_embeddings"]))
    names = [weight.name for weight in report.uncovered]
    assert names[0] == "albert.embeddings.word_embeddings.weight"
    assert "albert.encoder.embedding_hidden_mapping_in.weight" in names
    assert "classifier.weight" in names
    counts = [weight.parameters for weight in report.uncovered]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) + report.dense_parameters + vectors == dense
    assert sum(weight.share for weight in report.uncovered) == pytest.approx(sum(counts) / dense)
    text = str(report)
    assert f"not covered: albert.embeddings.word_embeddings.weight, {60 * 8:,} parameters" in text
    for name in names[5:]:
        assert name not in text
    assert (f"not covered: {len(names) - 5} more" in text) == (len(names) > 5)


def test_the_text_of_a_report():
    report = compress(bert(), MPOConfig(ratio=0.5))
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "weight", "kind", "bonds", "kept", "error", "FLOPs"]
    for module, line in zip(report.modules, lines[1:], strict=False):
        words = line.split()
        assert words[0] == module.name
        assert words[1:4] == [str(module.weight_shape[0]), "x", str(module.weight_shape[1])]
        assert words[4] == module.kind
        assert float(words[6]) == pytest.approx(module.parameters / module.dense_parameters, abs=1e-3)
    assert f"kept {report.parameters:,} of {report.dense_parameters:,} parameters of 14 matrices" in str(report)
    assert "error: relative, Frobenius" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ratio"] == report.ratio


@pytest.mark.parametrize("settings", [{"ratio": 0.6}, {"ratio": 0.6, "allot": "module"}, {"tol": 0.6}])
def test_low_rank_bonds_are_multiples(settings):
    """Down within a ratio, up within a tolerance, and as they are where nothing would be left, or nothing saved."""
    plain, even = (
        compress(bert(), MPOConfig(shape="low_rank", rank_multiple=multiple, **settings)) for multiple in (1, 2)
    )
    changed = 0
    for one, other in zip(plain.modules, even.modules, strict=True):
        assert one.kind == other.kind
        if one.kind != "low-rank":
            continue
        rows, cols = one.weight_shape
        rank = one.ranks[1]
        rounded = rank + rank % 2 if "tol" in settings else rank - rank % 2 or rank
        rounded = rounded if rounded * (rows + cols) < rows * cols else rank
        assert other.ranks == (1, rounded, 1)
        changed += rounded != rank
    assert changed
    if "ratio" in settings:
        assert even.ratio < plain.ratio <= 0.6
    else:
        assert max(module.relative_error for module in even.modules) <= 0.6


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_an_embedding_that_acts_on_single_rows_stays_as_it_is(option):
    model = nn.Sequential(nn.Embedding(60, 8, **option), nn.Linear(8, 12))
    report = compress(model, MPOConfig(rank=2, target_modules="all-linear"))
    assert [module.name for module in report.modules] == ["1"]
    (left,) = report.uncovered
    assert left.name == "0.weight"
    assert "max_norm, sparse or scale_grad_by_freq" in left.reason


def speed_lines(report):
    words = ("faster", "slower", "fewer", "  ")
    return [line for line in str(report).splitlines() if line.startswith(words)]


def test_the_report_says_which_layers_are_slower():
    report = compress(bert(), MPOConfig())
    assert len(report.slower) == 13
    assert {f"{module.relative_cost:.2f}" for module in report.modules[1:]} == {"1.02"}
    assert speed_lines(report) == [
        "slower than dense: 13 of 13 linear layers, 1.02x the FLOPs in calls that contract their cores:",
        "  one for every optimiser step in training, the first in evaluation; the weight is then kept, and they are as "
        "fast as dense",
    ]
    fast = compress(bert(), MPOConfig(rank=2, shape="low_rank", target_modules=["query", "key"]))
    assert not fast.slower
    (cost,) = {module.relative_cost for module in fast.modules}
    assert speed_lines(fast) == [f"faster than dense: 4 of 4 linear layers, {cost:.2f}x the FLOPs"]


@pytest.mark.parametrize("settings", [{"cache": False}, {"execution": "factored"}])
def test_layers_that_keep_no_weight_are_slower_in_every_call(settings):
    report = compress(bert(), MPOConfig(**settings))
    first, second = speed_lines(report)
    assert first.startswith("slower than dense: 13 of 13 linear layers, ")
    assert first.endswith("x the FLOPs in every call:")
    assert second == "  they save storage and trained parameters, not time"


@pytest.mark.parametrize(("call", "is_slower"), [(0, False), (10**12, True)])
def test_the_report_says_which_layers_an_accelerator_makes_slower(monkeypatch, call, is_slower):
    """Two products of few FLOPs take longer than one of many, where to start a product takes long."""
    monkeypatch.setattr(report_module, "overheads", lambda core: {"move": 0, "call": call})
    report = compress(bert(), MPOConfig(rank=2, shape="low_rank", target_modules=["query", "key"]))
    ((cost, time),) = {(module.relative_cost, module.relative_time) for module in report.modules}
    first, *rest = speed_lines(report)
    assert cost < 1
    if is_slower:
        assert time == pytest.approx(2, rel=1e-3)
        assert first == f"fewer FLOPs than dense: 4 of 4 linear layers, {cost:.2f}x the FLOPs"
        assert rest[0] == "slower than dense all the same: 4 of them, about 2.0x to 2.0x the time at 512 tokens"
        assert rest[1] == "  (products so small that this device spends the time on starting them)"
        assert len(report.slower) == 4
    else:
        assert time == cost
        assert first.startswith("faster than dense: 4 of 4")
        assert rest == []
        assert report.slower == ()


def test_on_a_cpu_flops_tell_the_time():
    assert {module.relative_time for module in compress(bert(), MPOConfig()).modules} == {None}


@pytest.mark.parametrize("execution", ["auto", "dense", "factored"])
def test_the_relative_cost_is_that_of_the_execution(execution):
    model = bert()
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", execution=execution))
    layers = {name: layer for name, layer, _ in mpo_layers(model)}
    for module in report.modules[1:]:
        assert layers[module.name].execution == execution
        plan = tnmpo.contraction_plan(layers[module.name].shape, module.ranks, 512)
        dense, factored = plan.rebuild_flops + plan.dense_flops, plan.factored_flops
        flops = {"auto": min(dense, factored), "dense": dense, "factored": factored}[execution]
        assert module.relative_cost == flops / plan.dense_flops
    assert bool(report.slower) == (execution == "dense")


# --- what stays in memory


def held(model):
    """The bytes that the layers hold by kind, cores of tied ones once, after the model was used."""
    answer(model, {"input_ids": torch.arange(1, 513).reshape(16, 32) % 60})
    cores = sum(layer.resident_bytes["cores"] for _, layer, _ in mpo_layers(model))
    cached = sum(module.resident_bytes["cache"] for module in model.modules() if isinstance(module, MPOLayer))
    return cores, cached


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "keeps"),
    [
        ({}, True),
        ({"ratio": 0.5, "shape": "interleaved"}, True),
        ({"ratio": 0.5, "shape": "low_rank"}, False),
        ({"ratio": 0.5, "shape": "low_rank", "execution": "dense"}, True),
        ({"ratio": 0.5, "shape": "interleaved", "execution": "factored"}, True),  # the tables of the embedding
        ({"cache": False}, False),
        ({"ratio": 0.5, "cache": False, "execution": "dense"}, False),
    ],
)
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])  # alone, tied to a decoder
def test_the_report_tells_what_will_be_held_in_memory(kind, settings, keeps, dtype):
    model = bert(kind).to(dtype)
    report = compress(model, MPOConfig(**settings))
    cores, cached = (sum(getattr(module, f"{name}_bytes") for module in report.modules) for name in ("core", "cached"))
    assert held(model) == (cores, cached)
    assert (cached > 0) == keeps
    assert sum(module.dense_bytes for module in report.modules) == report.dense_parameters * dtype.itemsize
    line = f"memory: {cores / 1e3:.1f} kB of cores, where the dense weights had "
    line += f"{report.dense_parameters * dtype.itemsize / 1e3:.1f} kB"
    if keeps:
        line += f"; in use, {cached / 1e3:.1f} kB of contracted weights and tables besides (none with cache=False)"
    assert line in str(report).splitlines()


def test_what_stays_whole_holds_nothing_besides():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    report = compress(model, MPOConfig(tol=0.0, shape="low_rank", target_modules=["0", "1"]))
    assert [(module.kind, module.core_bytes, module.cached_bytes) for module in report.modules] == [
        ("whole", 256, 0)
    ] * 2
    layer = model[0].eval()
    with torch.no_grad():
        layer(torch.ones(512, 8))
        weight = layer._weight_cache.weight(layer._core_list(), (8, 8), keep=True)
    assert weight.untyped_storage().data_ptr() == layer.cores[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("settings", [{}, {"cache": False}, {"execution": "factored"}])
def test_execution_and_cache_reach_the_layers_and_the_file(settings, tmp_path):
    config = MPOConfig(ratio=0.5, **settings)
    model = bert("BertForMaskedLM")
    compress(model, config)
    save(model, tmp_path)
    for each in (model, load(tmp_path)):
        layers = [module for module in each.modules() if isinstance(module, MPOLayer)]
        assert len(layers) == 14
        assert {layer.cache for layer in layers} == {config.cache}
        assert {layer.execution for layer in layers if isinstance(layer, MPOLinear)} == {config.execution}


def test_a_lookup_is_not_counted_among_the_slow_linear_layers():
    report = compress(bert(), MPOConfig())
    assert not [name for name in report.slower if "embeddings" in name]


# --- what cannot be done is said, and changes nothing


def assert_refused(config, message, model=None, error=ValueError):
    model = model if model is not None else bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        compress(model, config)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_pattern_that_matches_nothing_names_the_near_misses():
    message = "target_modules: 'querry' matches none of the 16 linear and embedding modules; near misses: .*query"
    assert_refused(MPOConfig(ratio=0.5, target_modules=["key", "querry"]), message)
    assert_refused(MPOConfig(ratio=0.5, target_modules="querry"), message)
    assert_refused(MPOConfig(ratio=0.5, target_modules="query"), "target_modules: 'query' matches none.*query")
    assert_refused(MPOConfig(ratio=0.5, target_modules=["zzz"]), "their names: dense, ")
    assert_refused(MPOConfig(rank={"querry": 3}), "rank: the pattern 'querry' matches none of the targeted modules")


def test_a_suffix_matches_whole_words():
    assert_refused(MPOConfig(ratio=0.5, target_modules=["ery"]), "'ery' matches none")
    report = compress(bert(), MPOConfig(ratio=0.5, target_modules=["attention.output.dense"]))
    assert len(report.modules) == 2


def test_a_regular_expression_matches_whole_names():
    report = compress(bert(), MPOConfig(ratio=0.5, target_modules=r"encoder\.layer\.0\..*(query|key)"))
    assert [module.name[-5:] for module in report.modules] == ["query", "f.key"]


@pytest.mark.parametrize("pattern", ["*query", "(query", "[a"])
def test_what_is_no_regular_expression_is_refused(pattern):
    message = "got .*, which is no regular expression"
    with pytest.raises(ValueError, match=r"target_modules: " + message):
        MPOConfig(ratio=0.5, target_modules=pattern)
    with pytest.raises(ValueError, match=r"exclude_modules: " + message):
        MPOConfig(ratio=0.5, exclude_modules=pattern)
    with pytest.raises(ValueError, match=r"rank: " + message):
        MPOConfig(rank={pattern: 3})


def test_an_architecture_without_a_preset_wants_targets():
    model = nn.Sequential(nn.Linear(8, 8))
    assert_refused(MPOConfig(ratio=0.5), r"target_modules: got None for a model of type None.*\['q_proj'", model)


def test_exclusions():
    assert_refused(
        MPOConfig(ratio=0.5, target_modules=["query"], exclude_modules=["query"]),
        r"exclude_modules: got \['query'\], which removes every targeted module; exclude fewer",
    )
    report = compress(bert(), MPOConfig(ratio=0.5, exclude_modules=r".*\.layer\.1\..*"))
    assert len(report.modules) == 8
    assert not [module.name for module in report.modules if "layer.1" in module.name]


def test_an_exclusion_of_nothing_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        compress(bert(), MPOConfig(ratio=0.5, exclude_modules=["decoder"]))
    assert "exclude_modules=['decoder'] removes none of the targeted modules" in caplog.text


def test_a_budget_below_rank_one_is_refused():
    assert_refused(MPOConfig(ratio=0.01), "the rank-one size is")
    assert_refused(MPOConfig(ratio=0.01, shape="interleaved"), "the rank-one size is")
    for shape in ("auto", "low_rank", "interleaved"):
        message = (
            r"ratio: got 0.01, which is below the rank-one size of embeddings.word_embeddings \(61, 12\); raise it"
        )
        assert_refused(MPOConfig(ratio=0.01, allot="module", shape=shape), message)


def test_a_weight_that_is_not_finite_is_refused_by_name():
    model = bert()
    with torch.no_grad():
        model.pooler.dense.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"model: the weight of pooler.dense holds NaN or Inf"):
        compress(model, MPOConfig(ratio=0.5))
    assert type(model.pooler.dense) is nn.Linear
    assert type(model.embeddings.word_embeddings) is nn.Embedding


def test_a_second_compression_finds_nothing_dense():
    model = bert()
    compress(model, MPOConfig(ratio=0.5))
    with pytest.raises(ValueError, match=r"matches none of the"):
        compress(model, MPOConfig(ratio=0.3))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ratio": 0.5, "tol": 0.1}, ValueError, "MPOConfig: got ratio and tol, expected at most one budget"),
        ({"ratio": 0.5, "rank": 3}, ValueError, "MPOConfig: got ratio and rank, expected at most one budget"),
        ({"ratio": 0}, ValueError, r"ratio: got 0, expected a number in \(0, 1\]"),
        ({"ratio": 1.5}, ValueError, r"ratio: got 1.5, expected a number in \(0, 1\]"),
        ({"ratio": math.nan}, ValueError, "ratio: got nan"),
        ({"ratio": "half"}, TypeError, "ratio: got 'half', expected a number"),
        ({"ratio": True}, TypeError, "ratio: got True, expected a number"),
        ({"tol": 1.0}, ValueError, r"tol: got 1.0, expected a number in \[0, 1\)"),
        ({"tol": -0.1}, ValueError, "tol: got -0.1"),
        ({"rank": 0}, ValueError, "rank: got 0, expected a positive integer"),
        ({"rank": 2.5}, TypeError, "rank: got 2.5, expected a positive integer"),
        ({"rank": True}, TypeError, "rank: got True, expected a positive integer"),
        ({"rank": {"query": 0}}, ValueError, r"rank\['query'\]: got 0, expected a positive integer"),
        ({"rank": {}}, ValueError, "rank: got an empty dictionary"),
        ({"order": 0}, ValueError, "order: got 0, expected a positive integer"),
        ({"shape": "svd"}, ValueError, "shape: got 'svd', expected one of 'auto', 'low_rank', 'interleaved'"),
        ({"allot": "layer"}, ValueError, "allot: got 'layer', expected one of 'model', 'module'"),
        ({"shape": "low_rank"}, ValueError, "shape='low_rank' without a budget would only enlarge the model"),
        ({"execution": "fast"}, ValueError, "execution: got 'fast', expected one of 'auto', 'dense', 'factored'"),
        ({"cache": "no"}, TypeError, "cache: got 'no', expected True or False"),
        ({"target_modules": []}, ValueError, "target_modules: got an empty list"),
        ({"target_modules": [3]}, TypeError, r"target_modules: got \[3\], expected a list of name suffixes"),
        ({"exclude_modules": 3}, TypeError, "exclude_modules: got 3"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        MPOConfig(**settings)


def test_what_is_no_configuration_is_refused():
    assert_refused({"ratio": 0.5}, "config: got dict, expected an MPOConfig such as", error=TypeError)


def test_a_configuration_as_plain_values():
    config = MPOConfig(rank={"query": 3}, target_modules=["query"], cache=False, execution="dense")
    assert MPOConfig(**json.loads(json.dumps(config.to_dict()))) == config
