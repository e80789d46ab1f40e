"""Every family of models: what is targeted, that it still answers, and that it goes back to what it was."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import transformers
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from tiny import albert, answer, batch, bert, family, pixels
from tnmpo.integrations.torch import MPOEmbedding, MPOLayer, MPOLinear
from tnmpo.integrations.transformers import (
    MPOConfig,
    absorb,
    calibrate,
    compress,
    freeze_central,
    load,
    merge,
    save,
)
from tnmpo.integrations.transformers.conv1d import MPOConv1D
from tnmpo.integrations.transformers.targets import mpo_layers
from torch import nn
from transformers.pytorch_utils import Conv1D

import tnmpo

GPT2 = ["wte", "c_attn", "c_proj", "c_fc"]
LLAMA = ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VIT = r".*\.(q_proj|query|fc1|intermediate\.dense)|pooler\.dense"  # earlier versions name them as BERT does
ENCODERS = [
    ("albert", "AlbertForMaskedLM", None),
    ("bert", "BertForMaskedLM", None),
    ("roberta", "RobertaForMaskedLM", None),
    ("xlm-roberta", "XLMRobertaForSequenceClassification", None),
    ("camembert", "CamembertForTokenClassification", None),
    ("distilbert", "DistilBertForMaskedLM", None),
    ("mobilebert", "MobileBertForMaskedLM", None),
    ("mobilebert", "MobileBertForSequenceClassification", "all-linear"),
]
DECODERS = [
    ("gpt2", "GPT2LMHeadModel", GPT2),
    ("gpt2", "GPT2LMHeadModel", "all-linear"),
    ("llama", "LlamaForCausalLM", [*LLAMA, "lm_head"]),
    ("llama-tied", "LlamaForCausalLM", LLAMA),
    ("qwen2", "Qwen2ForCausalLM", r".*\.(q_proj|mlp\..*)|lm_head"),
    ("qwen3", "Qwen3ForCausalLM", "all-linear"),
    ("mixtral", "MixtralForCausalLM", "all-linear"),
    ("qwen3_moe", "Qwen3MoeForCausalLM", "all-linear"),
]
VISION = [("vit", "ViTForImageClassification", "all-linear"), ("vit", "ViTModel", VIT)]


def cases(rows):
    names = [f"{kind}-{'preset' if targets is None else number}" for number, (_, kind, targets) in enumerate(rows)]
    return pytest.mark.parametrize(("model_type", "kind", "targets"), rows, ids=names)


def make(model_type, kind):
    """A model and what it takes; ``-tied`` after the type ties the output embedding to the input's."""
    name = model_type.removesuffix("-tied")
    model = family(name, kind, **({"tie_word_embeddings": True} if name != model_type else {}))
    return model, pixels() if name == "vit" else batch()


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def classes(model):
    """Of all modules but lists of cores, which tied layers may hold together or each for itself."""
    modules = {name: type(module) for name, module in model.named_modules()}
    return {name: kind for name, kind in modules.items() if kind is not nn.ParameterList}


def covered(model):
    """The names of all MPO layers, numbers of layers left out."""
    return {re.sub(r"\.\d+", "", name) for name, module in model.named_modules() if isinstance(module, MPOLayer)}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


PROMPTS = {"input_ids": torch.tensor([[3, 14, 15, 9], [26, 5, 35, 8]]), "attention_mask": torch.ones(2, 4).long()}
PADDED = {"input_ids": torch.tensor([[0, 0, 15, 9], [26, 5, 35, 8]])}
PADDED["attention_mask"] = (PADDED["input_ids"] != 0).long()


def generate(model, prompts):
    return model.generate(**prompts, max_new_tokens=8, do_sample=False)


# --- every family: lossless, smaller, and back


@cases(ENCODERS + DECODERS + VISION)
def test_at_full_rank_the_answers_are_the_same(model_type, kind, targets):
    model, inputs = make(model_type, kind)
    expected = answer(model, inputs)
    report = compress(model, MPOConfig(target_modules=targets))
    assert not any(module.relative_error for module in report.modules)
    torch.testing.assert_close(answer(model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.02  # an answer that says something


@cases(ENCODERS + DECODERS + VISION)
def test_at_half_the_parameters_the_model_is_smaller_and_merges_back(model_type, kind, targets):
    model, inputs = make(model_type, kind)
    dense = copy.deepcopy(model)
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules=targets))
    assert report.ratio <= 0.5
    assert parameters(model) == report.model_parameters < parameters(dense)
    before = answer(model, inputs)
    assert torch.isfinite(before).all()
    assert not torch.allclose(before, answer(dense, inputs), rtol=1e-3, atol=1e-3)
    assert merge(model) is model
    assert classes(model) == classes(dense)
    assert shapes(model) == shapes(dense)
    assert parameters(model) == parameters(dense)  # what was tied is tied
    torch.testing.assert_close(answer(model, inputs), before, rtol=1e-4, atol=1e-4)


@cases(ENCODERS + DECODERS + VISION)
def test_what_is_saved_answers_the_same_when_it_is_loaded(model_type, kind, targets, tmp_path):
    model, inputs = make(model_type, kind)
    compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules=targets))
    expected = answer(model, inputs)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert classes(again) == classes(model)
    assert parameters(again) == parameters(model)
    assert torch.equal(answer(again, inputs), expected)


@cases(DECODERS)
def test_generation_is_the_same_before_save_and_after_load(model_type, kind, targets, tmp_path):
    model, _ = make(model_type, kind)
    compress(model, MPOConfig(ratio=0.7, shape="low_rank", target_modules=targets))
    expected = [generate(model, prompts) for prompts in (PROMPTS, PADDED)]
    assert {tuple(ids.shape) for ids in expected} == {(2, 12)}
    model.save_pretrained(tmp_path / "stock")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(again) is type(model)
    assert classes(again) == classes(model)
    assert torch.equal(generate(again, PROMPTS), expected[0])
    assert torch.equal(generate(again, PADDED), expected[1])


@cases(DECODERS)
def test_generation_equals_that_of_the_merged_model(model_type, kind, targets):
    """In double precision, so that no two words are nearly as likely."""
    model, _ = make(model_type, kind)
    if "experts" in str(classes(model)):
        model.set_experts_implementation("eager")  # the grouped product of torch knows no double precision
    compress(model.double(), MPOConfig(ratio=0.7, target_modules=targets))
    expected = [generate(model, prompts) for prompts in (PROMPTS, PADDED)]
    merge(model)
    assert not list(mpo_layers(model))
    assert torch.equal(generate(model, PROMPTS), expected[0])
    assert torch.equal(generate(model, PADDED), expected[1])
    assert len(expected[0].unique()) > 4  # not one word over and over


# --- presets

BERT_LAYER = {f"encoder.layer.{name}" for name in ("attention.output.dense", "intermediate.dense", "output.dense")} | {
    f"encoder.layer.attention.self.{name}" for name in ("query", "key", "value")
}
MOBILEBERT_LAYER = BERT_LAYER | {
    f"encoder.layer.{name}"
    for name in (
        "output.bottleneck.dense",
        "bottleneck.input.dense",
        "bottleneck.attention.dense",
        "ffn.intermediate.dense",
        "ffn.output.dense",
    )
}
DISTILBERT_LAYER = {
    f"transformer.layer.{name}"
    for name in ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2")
}
WORDS = "embeddings.word_embeddings"


@pytest.mark.parametrize(
    ("model_type", "kind", "prefix", "expected", "heads"),
    [
        ("bert", "BertForSequenceClassification", "bert.", {WORDS, *BERT_LAYER, "pooler.dense"}, set()),
        ("roberta", "RobertaForSequenceClassification", "roberta.", {WORDS, *BERT_LAYER}, set()),
        ("roberta", "RobertaModel", "", {WORDS, *BERT_LAYER, "pooler.dense"}, set()),
        ("xlm-roberta", "XLMRobertaForMaskedLM", "roberta.", {WORDS, *BERT_LAYER}, {"lm_head.decoder"}),
        ("camembert", "CamembertForMaskedLM", "roberta.", {WORDS, *BERT_LAYER}, {"lm_head.decoder"}),
        ("distilbert", "DistilBertForMaskedLM", "distilbert.", {WORDS, *DISTILBERT_LAYER}, {"vocab_projector"}),
        ("distilbert", "DistilBertForSequenceClassification", "distilbert.", {WORDS, *DISTILBERT_LAYER}, set()),
        ("distilbert", "DistilBertModel", "", {WORDS, *DISTILBERT_LAYER}, set()),
        ("mobilebert", "MobileBertForMaskedLM", "mobilebert.", {WORDS, *MOBILEBERT_LAYER}, {"cls.predictions.decoder"}),
        ("mobilebert", "MobileBertModel", "", {WORDS, *MOBILEBERT_LAYER, "pooler.dense"}, set()),
    ],
)
def test_a_preset_means_the_word_embedding_the_encoder_and_the_pooler(model_type, kind, prefix, expected, heads):
    settings = {"classifier_activation": True} if kind == "MobileBertModel" else {}  # which gives it a pooler
    model = family(model_type, kind, **settings)
    compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    assert covered(model) == {prefix + name for name in expected} | heads


def test_the_papers_shapes_come_by_size():
    config = MPOConfig()
    up, down, square = (
        config.interleaved_shape(size, is_embedding=False) for size in ((3072, 768), (768, 3072), (768, 768))
    )
    assert up == tnmpo.MPOShape((4, 4, 8, 6, 4), (3, 4, 4, 4, 4))
    assert (down.rows, down.cols) == (up.cols, up.rows)
    assert square == tnmpo.MPOShape((3, 4, 4, 4, 4), (4, 4, 4, 4, 3))


@pytest.mark.parametrize(
    "size",
    [(50265, 768), (32005, 768), (250002, 768), (28996, 768), (30522, 128), (50257, 768), (151936, 896)],
    ids=["roberta", "camembert", "xlm-roberta", "bert-cased", "mobilebert", "gpt2", "qwen2"],
)
def test_a_vocabulary_is_padded_by_less_than_a_percent_into_balanced_factors(size):
    shape = MPOConfig().interleaved_shape(size, is_embedding=True)
    rows, cols = shape.matrix_shape
    assert cols == size[1]
    assert 0 <= rows - size[0] < 0.01 * size[0]
    assert max(shape.rows) <= 2 * rows ** (1 / 5)
    assert shape.n_parameters(shape.full_ranks) < 1.08 * size[0] * size[1]


# --- all-linear and patterns


@pytest.mark.parametrize(
    ("model_type", "kind", "task"),
    [
        ("bert", "BertForMaskedLM", None),
        ("bert", "BertForSequenceClassification", "SEQ_CLS"),
        ("albert", "AlbertModel", None),
        ("distilbert", "DistilBertForSequenceClassification", "SEQ_CLS"),
        ("gpt2", "GPT2LMHeadModel", "CAUSAL_LM"),
        ("gpt2", "GPT2ForSequenceClassification", "SEQ_CLS"),
        ("llama", "LlamaForCausalLM", "CAUSAL_LM"),
        ("llama-tied", "LlamaForCausalLM", "CAUSAL_LM"),
        ("llama", "LlamaForSequenceClassification", "SEQ_CLS"),
        ("mixtral", "MixtralForCausalLM", "CAUSAL_LM"),
        ("vit", "ViTModel", None),
    ],
)
def test_all_linear_means_what_it_means_in_peft(model_type, kind, task):
    model, _ = make(model_type, kind)
    peft = _maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear", task_type=task), model)
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules="All-Linear"))
    assert {module.name for module in report.modules} == set(peft.target_modules)


def test_all_linear_spares_a_classification_head_of_several_layers():
    model = family("roberta", "RobertaForSequenceClassification")
    compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules="all-linear"))
    assert covered(model) == {f"roberta.{name}" for name in BERT_LAYER}
    assert type(model.classifier.dense) is type(model.classifier.out_proj) is nn.Linear


def test_all_linear_of_a_plain_model_is_every_linear_layer():
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12))
    compress(model, MPOConfig(ratio=0.5, target_modules="all-linear"))
    assert [type(module) for module in model] == [nn.Embedding, MPOLinear, nn.Tanh, MPOLinear]


def test_all_linear_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"'all-linear' finds no linear layer in a Sequential besides its head; name"):
        compress(nn.Sequential(nn.Embedding(30, 12)), MPOConfig(ratio=0.5, target_modules="all-linear"))


def test_a_model_without_a_preset_is_told_what_to_pass():
    with pytest.raises(
        ValueError, match=r"type 'llama', which has no preset .*\['q_proj', 'v_proj'\], or 'all-linear'"
    ):
        compress(family("llama", "LlamaForCausalLM"), MPOConfig(ratio=0.5))


def test_excluded_modules_of_a_decoder_stay_dense():
    model = family("llama", "LlamaForCausalLM")
    config = MPOConfig(
        ratio=0.5, shape="low_rank", target_modules="all-linear", exclude_modules=["k_proj", "layers.0.mlp.down_proj"]
    )
    report = compress(model, config)
    assert len(report.modules) == 2 * 7 - 2 - 1
    assert type(model.model.layers[1].self_attn.k_proj) is nn.Linear
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    assert isinstance(model.model.layers[1].mlp.down_proj, MPOLinear)


def test_ranks_per_pattern_reach_the_modules_of_a_decoder():
    model = family("gpt2", "GPT2LMHeadModel")
    rank = {"c_attn": 3, r"transformer\.h\.1\.mlp\..*": 2, "wte": 5}
    report = compress(model, MPOConfig(rank=rank, shape="low_rank", target_modules=GPT2))
    ranks = {module.name: module.ranks for module in report.modules}
    assert ranks["transformer.h.0.attn.c_attn"] == ranks["transformer.h.1.attn.c_attn"] == (1, 3, 1)
    assert ranks["transformer.h.1.mlp.c_fc"] == ranks["transformer.h.1.mlp.c_proj"] == (1, 2, 1)
    assert ranks["transformer.wte"] == (1, 5, 1)
    exact = [module for module in report.modules if module.relative_error == 0]
    assert {module.name for module in exact} == {
        "transformer.h.0.attn.c_proj",
        "transformer.h.1.attn.c_proj",
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj",
    }


# --- tied and shared


@pytest.mark.parametrize(("model_type", "kind", "targets"), [DECODERS[0], DECODERS[3]], ids=["gpt2", "llama"])
@pytest.mark.parametrize("named", ["embedding", "head"])
def test_a_tied_head_and_its_embedding_are_one_weight(model_type, kind, targets, named):
    model, inputs = make(model_type, kind)
    dense = copy.deepcopy(model)
    wanted = targets[:1] if named == "embedding" else ["lm_head"]
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules=wanted))
    (module,) = report.modules
    assert module.tied == ("lm_head",)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert type(embedding) is MPOEmbedding
    assert type(head) is MPOLinear
    assert all(one is other for one, other in zip(embedding.cores, head.cores, strict=True))
    freeze_central(model)
    assert all(one is other for one, other in zip(embedding.cores, head.cores, strict=True))
    absorb(model)
    before = answer(model, inputs)
    merge(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shapes(model) == shapes(dense)
    torch.testing.assert_close(answer(model, inputs), before, rtol=1e-4, atol=1e-4)


def test_the_layer_that_albert_uses_twelve_times_is_compressed_once():
    model = albert("AlbertForMaskedLM", num_hidden_layers=12)
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    assert len(report.modules) == 7  # the embedding with its decoder, and six of the one layer; no pooler
    ffn = model.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn
    calls = []
    ffn.register_forward_hook(lambda *_: calls.append(1))
    answer(model)
    assert len(calls) == 12


def test_a_weight_that_a_module_of_another_class_holds_too_is_left_to_it():
    """Gemma's embedding scales: it cannot become an MPO, and the head alone would no longer be tied to it."""
    model = family("gemma3_text", "Gemma3ForCausalLM")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    message = (
        r"'lm_head' matches none of the 14 linear and embedding modules; it matches lm_head "
        r"\(Linear, its weight is shared with a module of another class\)"
    )
    with pytest.raises(ValueError, match=message):
        compress(model, MPOConfig(ratio=0.5, target_modules=["lm_head"]))
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules=LLAMA[1:]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {weight.name: weight.reason for weight in report.uncovered} == {
        "model.embed_tokens.weight": "Gemma3TextScaledWordEmbedding, an Embedding with a forward of its own"
    }


# --- Conv1D


def test_an_mpo_of_a_conv1d_is_one_of_its_transposed_weight():
    model = family("gpt2", "GPT2Model")
    conv = model.h[0].attn.c_attn
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    report = compress(model, MPOConfig(target_modules=["c_attn"]))
    layer = model.h[0].attn.c_attn
    assert type(layer) is MPOConv1D
    assert (layer.nf, layer.nx) == (conv.nf, conv.nx) == (36, 12)
    assert report.modules[0].weight_shape == layer.weight_shape == (36, 12)
    assert layer.bias is conv.bias
    torch.testing.assert_close(layer.weight, conv.weight.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    again = layer.to_conv1d()
    assert type(again) is Conv1D
    torch.testing.assert_close(again.weight, conv.weight, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.bias, conv.bias)
    layer(x).sum().backward()
    assert all(core.grad is not None and core.grad.abs().sum() > 0 for core in layer.cores)


def test_a_stock_checkpoint_of_gpt2_is_compressed_on_load_and_merged_back(tmp_path):
    dense = family("gpt2", "GPT2LMHeadModel")
    dense.save_pretrained(tmp_path / "dense")
    config = MPOConfig(target_modules="all-linear")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config)
    assert type(model.transformer.h[1].mlp.c_proj) is MPOConv1D
    torch.testing.assert_close(answer(model), answer(dense), rtol=1e-4, atol=1e-4)
    merge(model).save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(again.transformer.h[1].mlp.c_proj) is Conv1D
    torch.testing.assert_close(answer(again), answer(dense), rtol=1e-4, atol=1e-4)


def test_a_frozen_conv1d_keeps_training_its_auxiliary_cores_after_load(tmp_path):
    model = family("gpt2", "GPT2LMHeadModel")
    compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules="all-linear"))
    freeze_central(model)
    save(model, tmp_path / "saved")
    layer = load(tmp_path / "saved").transformer.h[0].mlp.c_fc
    assert type(layer) is MPOConv1D
    assert [core.requires_grad for core in layer.cores] == [False, True, False]
    assert layer.bias.requires_grad


# --- calibration


@pytest.mark.parametrize(
    ("model_type", "kind", "module"),
    [
        ("gpt2", "GPT2LMHeadModel", "transformer.h.1.mlp.c_fc"),
        ("llama", "LlamaForCausalLM", "model.layers.1.mlp.up_proj"),
        ("qwen3", "Qwen3ForCausalLM", "lm_head"),
    ],
)
@pytest.mark.parametrize("padding", ["none", "right", "left", "unmasked"])
def test_the_inputs_of_a_decoder_are_collected_without_its_padding(model_type, kind, module, padding):
    model = family(model_type, kind)
    inputs = batch()
    if padding == "left":
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    if padding in ("none", "unmasked"):
        mask = torch.ones_like(inputs["input_ids"])
        inputs = {"input_ids": inputs["input_ids"]} | ({"attention_mask": mask} if padding == "none" else {})
    seen = []
    with torch.no_grad():
        hook = model.get_submodule(module).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        model(**inputs)
        hook.remove()
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    rows = seen[0][mask].double()
    calibration = calibrate(model, [inputs])
    torch.testing.assert_close(calibration.covariances[module], rows.T @ rows / len(rows), rtol=1e-6, atol=1e-9)
    counts = torch.bincount(inputs["input_ids"][mask], minlength=61).double()
    assert torch.equal(calibration.token_counts[calibration.input_embedding], counts)
    assert calibration.input_embedding in ("transformer.wte", "model.embed_tokens")


@cases(DECODERS + VISION)
def test_a_calibrated_cut_loses_less_of_what_flows(model_type, kind, targets):
    model, inputs = make(model_type, kind)
    calibration = calibrate(model, [inputs])
    plain, weighted = copy.deepcopy(model), copy.deepcopy(model)
    config = MPOConfig(ratio=0.5, shape="low_rank", allot="module", target_modules=targets)
    compress(plain, config)
    report = compress(weighted, config, calibration)
    merge(plain)
    merge(weighted)
    for module in report.modules:
        assert module.weighted
        dense, *cut = (one.get_submodule(module.name) for one in (model, plain, weighted))
        lost = [dense.weight.detach().double() - one.weight.detach().double() for one in cut]
        lost = [error.T if isinstance(dense, Conv1D) else error for error in lost]
        norm = calibration.weight(module.name)
        lost = [error @ norm.cols * error if norm.rows is None else norm.rows[:, None] * error**2 for error in lost]
        assert lost[1].sum() <= lost[0].sum() * (1 + 1e-6)


def test_an_encoder_decoder_is_calibrated_and_compressed():
    """BART's positions are a subclass of Embedding, whose forward takes more than one argument."""
    model = family("bart", "BartForConditionalGeneration")
    inputs = batch()
    inputs["decoder_input_ids"] = inputs["input_ids"].flip(1)
    expected = answer(model, inputs)
    calibration = calibrate(model, [inputs])
    assert not [name for name in calibration.token_counts if "position" in name]
    report = compress(model, MPOConfig(target_modules="all-linear"), calibration)
    assert len(report.modules) == 2 * 6 + 2 * 10
    assert set(calibration.covariances) == {module.name for module in report.modules} | {"lm_head"}
    assert model.lm_head.weight is model.model.shared.weight  # an embedding that scales: both stay dense
    torch.testing.assert_close(answer(model, inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_compressed_gpt2_is_calibrated_again():
    model = family("gpt2", "GPT2LMHeadModel")
    dense = calibrate(model, [batch()])
    compress(model, MPOConfig(target_modules=GPT2))
    again = calibrate(model, [batch()])
    assert again.covariances.keys() == dense.covariances.keys()
    assert len(again.covariances) == 2 * 4 + 1
    for name, covariance in dense.covariances.items():
        torch.testing.assert_close(again.covariances[name], covariance, rtol=1e-3, atol=1e-3)


# --- what cannot be covered, in words


@pytest.mark.parametrize(
    ("model", "pattern", "message"),
    [
        (("gpt2", "GPT2Model"), "c_atn", r"none of the 10 linear and embedding modules; near misses: c_attn"),
        (
            ("llama", "LlamaForCausalLM"),
            "self_attn",
            r"it matches model\.layers\.0\.self_attn \(LlamaAttention\); "
            r"name what is inside: k_proj, o_proj, q_proj, v_proj$",
        ),
        (
            ("llama", "LlamaForCausalLM"),
            "input_layernorm",
            r"it matches model\.layers\.0\.input_layernorm \(LlamaRMSNorm, 1 axis: not a matrix\)$",
        ),
        (
            ("vit", "ViTModel"),
            "projection",
            r"it matches embeddings\.patch_embeddings\.projection \(Conv2d, 4 axes: not a matrix\)$",
        ),
        (
            ("mixtral", "MixtralForCausalLM"),
            "gate_up_proj",
            r"it matches model\.layers\.0\.mlp\.experts\.gate_up_proj "
            r"\(a parameter of MixtralExperts, 3 axes: not a matrix\)$",
        ),
        (
            ("mixtral", "MixtralForCausalLM"),
            "gate",
            r"it matches model\.layers\.0\.mlp\.gate "
            r"\(MixtralTopKRouter, 2 axes: not the weight of a Linear, Embedding or Conv1D\)$",
        ),
    ],
    ids=["typing error", "container", "norm", "convolution", "experts", "router"],
)
def test_a_pattern_that_covers_nothing_says_what_it_matches(model, pattern, message):
    model = family(*model)
    before = classes(model)
    with pytest.raises(ValueError, match=message):
        compress(model, MPOConfig(ratio=0.5, target_modules=[pattern]))
    assert classes(model) == before


def test_a_second_compression_says_that_the_modules_are_compressed_already():
    model = bert()
    compress(model, MPOConfig(ratio=0.5, target_modules=["query"]))
    message = r"it matches encoder\.layer\.0\.attention\.self\.query \(MPOLinear, compressed already\)$"
    with pytest.raises(ValueError, match=message):
        compress(model, MPOConfig(ratio=0.5, target_modules=["query"]))
    report = compress(model, MPOConfig(ratio=0.5, target_modules=["key"]))
    assert not [weight for weight in report.uncovered if "query" in weight.name]


def test_fused_experts_are_named_with_their_share():
    model = family("mixtral", "MixtralForCausalLM")
    dense = parameters(model)
    report = compress(model, MPOConfig(ratio=0.5, shape="low_rank", target_modules="all-linear"))
    reasons = {weight.name: weight.reason for weight in report.uncovered}
    assert reasons["model.layers.1.mlp.experts.down_proj"] == "MixtralExperts, 3 axes: not a matrix"
    router = "MixtralTopKRouter, 2 axes: not the weight of a Linear, Embedding or Conv1D"
    assert reasons["model.layers.0.mlp.gate.weight"] == router
    assert reasons["lm_head.weight"] == "Linear, not targeted"
    assert reasons["model.embed_tokens.weight"] == "Embedding, not targeted"
    share = 2 * (2 * 48 * 12) / dense
    assert (
        f"not covered: model.layers.*.mlp.experts.gate_up_proj (2 weights), 2,304 parameters, {share:.1%} of the dense "
        "model: MixtralExperts, 3 axes: not a matrix"
    ) in str(report)
    assert report.to_dict()["uncovered"][0][-1] == "MixtralExperts, 3 axes: not a matrix"


def test_convolutions_and_positions_of_a_vision_model_are_named():
    report = compress(family("vit", "ViTModel"), MPOConfig(ratio=0.5, shape="low_rank", target_modules="all-linear"))
    assert {(weight.name, weight.parameters, weight.reason) for weight in report.uncovered} == {
        ("embeddings.patch_embeddings.projection.weight", 12 * 3 * 4 * 4, "Conv2d, 4 axes: not a matrix"),
        ("embeddings.position_embeddings", 5 * 12, "ViTEmbeddings, 3 axes: not a matrix"),
        ("embeddings.cls_token", 12, "ViTEmbeddings, 3 axes: not a matrix"),
    }
