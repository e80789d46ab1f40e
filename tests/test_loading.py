"""Compressed models in transformers' own ``save_pretrained`` and ``from_pretrained``."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from tiny import albert, answer, batch, bert, family
from tnmpo.integrations.transformers import (
    MPOConfig,
    absorb,
    compress,
    freeze_central,
    load,
    merge,
    parameter_report,
    save,
    squeeze,
)
from tnmpo.integrations.transformers.models import with_head
from tnmpo.integrations.transformers.targets import mpo_layers
from tnmpo.integrations.transformers.tasks import get_task

LOSSLESS = {}
LOW_RANK = {"ratio": 0.5, "shape": "low_rank"}
MODELS = {
    "albert classifier": lambda **settings: albert("AlbertForSequenceClassification", **settings),
    "albert masked": lambda **settings: albert("AlbertForMaskedLM", **settings),
    "bert": lambda **settings: bert(**settings),
    "bert masked": lambda **settings: bert("BertForMaskedLM", **settings),
    "bert tokens": lambda **settings: bert("BertForTokenClassification", **settings),
}


def assert_equal(model, other):
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert torch.equal(answer(other), answer(model))


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


def base_of(model):
    return getattr(model, model.base_model_prefix, model)


@pytest.mark.parametrize("settings", [LOSSLESS, LOW_RANK], ids=["lossless", "low rank"])
@pytest.mark.parametrize("kind", MODELS)
def test_stock_saving_and_loading_is_bit_identical(kind, settings, tmp_path):
    model = MODELS[kind]()
    compress(model, MPOConfig(**settings))
    freeze_central(model)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    other, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal(model, other)
    assert parameter_report(other) == parameter_report(model)  # frozen cores are frozen again
    assert not other.training
    assert_equal(other, load(tmp_path))


@pytest.mark.parametrize("kind", MODELS)
def test_what_changed_after_compression_is_what_is_saved(kind, tmp_path):
    model = MODELS[kind]()
    compress(model, MPOConfig(ratio=0.8, shape="low_rank"))
    freeze_central(model)
    squeeze(model, lambda _: 1.0, lambda _: None, max_drop=0.0, max_steps=3)
    absorb(model)
    model.save_pretrained(tmp_path)
    other = type(model).from_pretrained(tmp_path)
    assert_equal(model, other)
    other.save_pretrained(tmp_path / "again")
    assert_equal(model, type(model).from_pretrained(tmp_path / "again"))


def test_matrices_that_stay_whole_are_not_drawn_anew_on_load(tmp_path):
    """GPT-2 draws some of its weights by name, whatever the module that holds them."""
    model = family("gpt2", "GPT2LMHeadModel")
    report = compress(model, MPOConfig(tol=0.1, target_modules="all-linear"))
    assert any(module.kind == "whole" and module.name.endswith("c_proj") for module in report.modules)
    model.save_pretrained(tmp_path)
    assert_equal(model, type(model).from_pretrained(tmp_path))


def test_answers_do_not_depend_on_where_tensors_lie_in_a_file(tmp_path):
    """Sums of a BLAS do: of unaligned matrices half of such models differed in the last bits."""
    ids = {"input_ids": torch.randint(1, 90, (2, 7), generator=torch.Generator().manual_seed(0))}
    for seed in range(5):
        model = bert("BertForMaskedLM", seed=seed, vocab_size=90, hidden_size=24, intermediate_size=48)
        compress(model, MPOConfig(**LOW_RANK))
        model.save_pretrained(tmp_path)
        other = type(model).from_pretrained(tmp_path)
        assert all(parameter.data_ptr() % 64 == 0 for parameter in other.parameters())
        assert torch.equal(answer(other, ids), answer(model, ids))


def test_a_sharded_checkpoint(tmp_path):
    model = MODELS["bert masked"]()
    compress(model, MPOConfig())
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal(model, transformers.AutoModelForMaskedLM.from_pretrained(tmp_path))


def test_half_precision_and_another_dtype_on_load(tmp_path):
    model = MODELS["albert classifier"]().to(torch.bfloat16)
    compress(model, MPOConfig(**LOW_RANK))
    model.save_pretrained(tmp_path)
    other = type(model).from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
    assert_equal(model, other)
    wide = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert_equal(copy.deepcopy(model).float(), wide)
    assert wide.half().dtype == torch.float16  # as any model of transformers


@pytest.mark.parametrize("settings", [LOSSLESS, LOW_RANK], ids=["lossless", "low rank"])
def test_other_heads_and_the_bare_model(settings, tmp_path):
    model = MODELS["bert masked"]()
    compress(model, MPOConfig(**settings))
    freeze_central(model)
    model.save_pretrained(tmp_path / "masked")
    bare = transformers.AutoModel.from_pretrained(tmp_path / "masked", add_pooling_layer=False)
    assert torch.equal(answer(bare), answer(base_of(model)))
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "masked", num_labels=3)
    assert answer(classifier).shape == (4, 3)
    layer = next(iter(mpo_layers(classifier)))[1]
    assert not layer.cores[layer.central[0]].requires_grad
    bare.save_pretrained(tmp_path / "bare")
    masked = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "bare")
    decoder, embedding = masked.get_output_embeddings(), masked.get_input_embeddings()
    # the bare model had no decoder: it shares the embedding's cores, as it would share its weight
    assert all(a is b for a, b in zip(decoder.cores, embedding.cores, strict=True))
    assert torch.equal(answer(base_of(masked)), answer(bare))
    masked.save_pretrained(tmp_path / "again")
    assert_equal(masked, transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "again"))


def test_the_base_model_inside_can_be_saved_alone(tmp_path):
    model = MODELS["albert classifier"]()
    compress(model, MPOConfig(**LOW_RANK))
    model.albert.save_pretrained(tmp_path)
    assert_equal(model.albert, transformers.AutoModel.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path / "whole")
    assert_equal(model, type(model).from_pretrained(tmp_path / "whole"))


def test_a_bare_model_put_under_a_head(tmp_path):
    model = bert()
    compress(model, MPOConfig(**LOW_RANK))
    headed = with_head(model, get_task("sst2"))
    headed.save_pretrained(tmp_path)
    assert_equal(headed, transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path))


@pytest.mark.parametrize("kind", MODELS)
def test_compression_on_load(kind, tmp_path):
    model = MODELS[kind]()
    model.save_pretrained(tmp_path / "dense")
    other = type(model).from_pretrained(tmp_path / "dense", quantization_config=MPOConfig(**LOW_RANK))
    report = compress(model, MPOConfig(**LOW_RANK))
    assert other.hf_quantizer.report.to_dict() == report.to_dict()
    assert_equal(model, other)
    other.save_pretrained(tmp_path / "small")
    assert_equal(model, type(model).from_pretrained(tmp_path / "small"))


def test_tied_weights_are_stored_once_and_stay_tied_through_training(tmp_path):
    model = MODELS["albert masked"]()
    compress(model, MPOConfig())
    freeze_central(model)
    model.save_pretrained(tmp_path)
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert not [name for name in file.keys() if "decoder.cores" in name]  # noqa: SIM118
    other = type(model).from_pretrained(tmp_path)
    assert other.get_output_embeddings().cores[0] is other.get_input_embeddings().cores[0]
    other.tie_weights()
    assert_equal(model, other)
    optimiser = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=0.1)
    other(**batch(), labels=batch()["input_ids"]).loss.backward()
    optimiser.step()
    assert not torch.equal(answer(other), answer(model))
    assert torch.equal(other.get_output_embeddings().weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", MODELS)
def test_merge_and_dequantize_give_models_of_transformers(kind, tmp_path):
    dense = MODELS[kind]()
    model = MODELS[kind]()
    compress(model, MPOConfig())
    model.save_pretrained(tmp_path / "small")
    loaded = type(model).from_pretrained(tmp_path / "small").dequantize()
    assert merge(model) is model
    for other in (model, loaded):
        assert [type(module) for module in other.modules()] == [type(module) for module in dense.modules()]
        assert {k: v.shape for k, v in other.state_dict().items()} == {
            k: v.shape for k, v in dense.state_dict().items()
        }
        torch.testing.assert_close(answer(other), answer(dense), rtol=1e-4, atol=1e-4)
        assert not hasattr(other.config, "quantization_config")
        other.save_pretrained(tmp_path / "dense")
        assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
        assert_equal(other, type(dense).from_pretrained(tmp_path / "dense"))


def test_copies_and_pickles_can_be_saved(tmp_path):
    model = MODELS["bert masked"]()
    compress(model, MPOConfig(**LOW_RANK))
    for number, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        freeze_central(other)  # the original keeps two cores a layer
        other.save_pretrained(tmp_path / str(number))
        assert_equal(other, type(model).from_pretrained(tmp_path / str(number)))
    model.save_pretrained(tmp_path)
    assert_equal(model, type(model).from_pretrained(tmp_path))


def test_the_config_survives_json():
    config = MPOConfig(rank={"query": 3, "key": 2}, shape="interleaved", exclude_modules=["pooler"], order=3)
    values = json.loads(config.to_json_string())
    assert values["quant_method"] == "mpo"
    assert MPOConfig.from_dict(values) == config
    assert "MPOConfig" in repr(config)


def test_a_vocabulary_can_be_resized_to_what_it_is_and_to_another_size_once_dense():
    model = MODELS["bert masked"]()
    compress(model, MPOConfig(**LOW_RANK))
    model.resize_token_embeddings(61)
    assert model.get_input_embeddings().num_embeddings == 61
    with pytest.raises(TypeError, match="MPOEmbedding"):
        model.resize_token_embeddings(70)
    with pytest.raises(ValueError, match=r"num_embeddings: got 70, but the cores have 61 rows; merge"):
        model.get_input_embeddings().num_embeddings = 70
    merge(model).resize_token_embeddings(70)
    compress(model, MPOConfig(**LOW_RANK))
    assert model.get_input_embeddings().num_embeddings == 70


# --- what is refused


@pytest.fixture
def saved(tmp_path):
    model = MODELS["albert classifier"]()
    compress(model, MPOConfig(**LOW_RANK))
    model.save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def change_ranks(quantization):
    entry = next(entry for name, entry in quantization["layers"].items() if name.endswith("ffn"))
    entry["ranks"] = [1, entry["ranks"][1] + 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        # transformers' own error, whose report names the cores; older ones leave it to us
        (
            change_ranks,
            (RuntimeError, ValueError),
            r"ignore_mismatched_sizes|in another shape: albert\..*ffn\.cores\.0",
        ),
        (lambda quantization: quantization.update(layers=None), ValueError, r"describes no layers; save it again"),
    ],
)
def test_missing_and_misshapen_cores_are_refused(saved, change, error, message):
    change_config(saved, change)
    with pytest.raises(error, match=message):
        transformers.AutoModelForSequenceClassification.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"folder: "):
        load(saved)


def test_a_state_dict_without_a_core_is_refused(saved):
    config = transformers.AutoConfig.from_pretrained(saved)
    model = transformers.AlbertForSequenceClassification.from_pretrained(saved)
    state = model.state_dict()
    name = next(name for name in state if name.endswith("query.cores.1"))
    del state[name]
    with pytest.raises(ValueError, match=rf"lacks 1 cores of its layers, or has them in another shape: {name}"):
        transformers.AlbertForSequenceClassification.from_pretrained(None, config=config, state_dict=state)


def test_another_class_that_has_none_of_the_layers_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    with pytest.raises(ValueError, match=r"none of which a BertModel has; load the class that was saved"):
        transformers.BertModel.from_pretrained(
            saved, config=transformers.BertConfig(quantization_config=config["quantization_config"])
        )


def test_a_model_of_another_quantizer_is_refused():
    model = MODELS["bert"]()
    model.hf_quantizer = type("Other", (), {"quantization_config": transformers.BitsAndBytesConfig()})()
    with pytest.raises(ValueError, match=r"model: got a BertModel quantized with 'bitsandbytes'"):
        compress(model, MPOConfig())
    assert not list(mpo_layers(model))


@pytest.mark.parametrize("compressed", [False, True])
def test_weights_that_are_offloaded_are_refused(tmp_path, compressed):
    model = bert()
    if compressed:
        compress(model, MPOConfig())
    model.save_pretrained(tmp_path / "model")
    options = {} if compressed else {"quantization_config": MPOConfig()}
    with pytest.raises(
        ValueError, match=r"device_map: got one that offloads weights \(cpu, disk\), from where nothing"
    ):
        transformers.AutoModel.from_pretrained(
            tmp_path / "model",
            device_map={"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"},
            offload_folder=tmp_path / "offloaded",
            **options,
        )


def test_without_the_import_transformers_warns_and_the_card_says_so(saved):
    save(load(saved), saved)
    code = (
        "import sys, transformers; m, info = transformers.AutoModelForSequenceClassification.from_pretrained("
        "sys.argv[1], output_loading_info=True); print(len(info['missing_keys']) > 0)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"  # random weights
    assert "Unknown quantization type, got mpo" in run.stderr
    assert "import tnmpo.integrations.transformers" in (saved / "README.md").read_text()
