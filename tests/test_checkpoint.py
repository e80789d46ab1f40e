"""save and load: bit for bit, whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import albert, answer, batch, bert
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
    squeeze,
)
from tnmpo.integrations.transformers.acceptability import word_tokenizer
from tnmpo.integrations.transformers.checkpoint import is_checkpoint
from tnmpo.integrations.transformers.models import open_model
from tnmpo.integrations.transformers.targets import mpo_layers
from torch import nn

MODELS = {
    "albert": lambda: albert(),
    "albert classifier": lambda: albert("AlbertForSequenceClassification", num_labels=3),
    "bert": lambda: bert(),
    "bert regression": lambda: bert("BertForSequenceClassification", num_labels=1),
    "albert masked": lambda: albert("AlbertForMaskedLM"),
    "bert masked": lambda: bert("BertForMaskedLM"),
    "bert untied": lambda: bert("BertForMaskedLM", tie_word_embeddings=False),
}
SETTINGS = {
    "full rank": {},
    "interleaved": {"ratio": 0.6, "shape": "interleaved"},
    "low-rank": {"ratio": 0.6, "shape": "low_rank"},
    "whole": {"tol": 0.01},
}


def assert_same(model, other):
    assert type(other) is type(model)
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert list(ours) == list(theirs)  # shared ones once: the ties are the same
    for name, parameter in ours.items():
        assert torch.equal(theirs[name], parameter), name
        assert theirs[name].dtype == parameter.dtype
        if "cores" in name:
            assert theirs[name].requires_grad == parameter.requires_grad, name
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert torch.equal(answer(other), answer(model))
    for (name, layer, tied), (same, twin, others) in zip(mpo_layers(model), mpo_layers(other), strict=True):
        assert (same, len(others)) == (name, len(tied))
        assert (twin.shape, twin.ranks, twin.weight_shape) == (layer.shape, layer.ranks, layer.weight_shape)
        assert all(a is b for other in others for a, b in zip(twin.cores, other.cores, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_comes_back_bit_for_bit(kind, settings, frozen, tmp_path):
    model = MODELS[kind]()
    compress(model, MPOConfig(**SETTINGS[settings]))
    if frozen:
        freeze_central(model)
        with torch.no_grad():
            for _, layer, _ in mpo_layers(model):
                for site in layer.auxiliary:
                    layer.cores[site].add_(0.01)
    save(model, tmp_path / "model")
    other = load(tmp_path / "model")
    assert not other.training
    assert_same(model, other)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if "masked" in kind:
        assert other.get_input_embeddings().cores[0] is other.get_output_embeddings().cores[0]

    # it can go on: squeezed, merged, saved again
    absorb(other)
    squeeze(other, lambda _: 1.0, lambda _: None, max_drop=0.0, max_steps=1)
    save(other, tmp_path / "again")
    assert_same(other, load(tmp_path / "again"))
    merge(other)
    assert not list(mpo_layers(other))


def test_a_tied_decoder_without_its_embedding_as_a_target_stays_dense_and_tied(tmp_path):
    for kind in ("albert masked", "bert masked"):
        model = MODELS[kind]()
        compress(model, MPOConfig(ratio=0.5, exclude_modules=["word_embeddings"]))
        save(model, tmp_path / kind)
        other = load(tmp_path / kind)
        assert_same(model, other)
        assert other.get_input_embeddings().weight is other.get_output_embeddings().weight


@pytest.mark.parametrize("kind", ["albert classifier", "bert masked"])
def test_half_precision(kind, tmp_path):
    model = MODELS[kind]().to(torch.bfloat16)
    compress(model, MPOConfig(ratio=0.5))
    freeze_central(model)
    save(model, tmp_path)
    assert_same(model, load(tmp_path))


def test_a_dense_model_and_a_merged_one_are_those_of_transformers(tmp_path):
    model = MODELS["bert masked"]()
    save(model, tmp_path / "dense")
    assert_same(model, type(model).from_pretrained(tmp_path / "dense"))
    compress(model, MPOConfig(ratio=0.5))
    merge(model)
    save(model, tmp_path / "merged")
    for folder in ("dense", "merged"):
        assert not is_checkpoint(tmp_path / folder)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["config.json", "model.safetensors"]
    assert_same(model, type(model).from_pretrained(tmp_path / "merged"))


def test_a_compressed_model_in_training_mode_is_saved_as_it_is(tmp_path):
    model = MODELS["albert"]().train()
    compress(model, MPOConfig(ratio=0.5))
    save(model, tmp_path)
    assert model.training
    assert_same(model, load(tmp_path))


def test_loading_draws_no_random_numbers_that_the_caller_would_miss(tmp_path):
    model = MODELS["albert"]()
    compress(model, MPOConfig())
    save(model, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_settings_can_be_overridden(tmp_path):
    model = MODELS["bert"]()
    compress(model, MPOConfig(ratio=0.5))
    save(model, tmp_path)
    other = load(tmp_path, attn_implementation="eager")
    assert other.config._attn_implementation == "eager"
    torch.testing.assert_close(answer(other), answer(model), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_can_be_calibrated_and_opened_by_its_folder(tmp_path):
    model = MODELS["albert classifier"]()
    compress(model, MPOConfig(ratio=0.5))
    save(model, tmp_path)
    other = open_model(tmp_path)
    assert_same(model, other)
    assert calibrate(other, [batch()]).covariances


def test_the_folder_holds_no_pickle(tmp_path):
    model = MODELS["bert"]()
    compress(model, MPOConfig(ratio=0.5))
    save(model, tmp_path, word_tokenizer())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


# --- interrupted


class Full(Exception):
    pass


class FullDisk:
    """A tokenizer that writes a file and then finds no more room."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{")
        raise Full


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [Full, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_model_alone(error, tmp_path, monkeypatch):
    model = MODELS["albert"]()
    compress(model, MPOConfig(ratio=0.7))
    folder = tmp_path / "model"
    save(model, folder, word_tokenizer())
    before, expected = contents(tmp_path), answer(model)
    squeeze(model, lambda _: 1.0, lambda _: None, max_drop=0.0, max_steps=3)
    monkeypatch.setattr(f"{__name__}.Full", error)
    with pytest.raises(error):
        save(model, folder, FullDisk())
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert torch.equal(answer(load(folder)), expected)
    save(model, folder, word_tokenizer())
    assert_same(model, load(folder))


def test_an_interrupted_first_save_leaves_nothing(tmp_path):
    with pytest.raises(Full):
        save(MODELS["albert"](), tmp_path / "new" / "model", FullDisk())
    assert contents(tmp_path) == {}
    assert not (tmp_path / "new" / "model").exists()


def test_other_files_in_the_folder_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.txt").write_text("run")
    model = MODELS["albert"]()
    compress(model, MPOConfig())
    save(model, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "logs" / "run.txt").read_text() == "run"
    assert is_checkpoint(tmp_path)


def test_weights_of_an_earlier_save_do_not_stay(tmp_path):
    model = MODELS["albert"]()
    compress(model, MPOConfig())
    save(model, tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    save(model, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same(model, load(tmp_path))


def test_the_card_names_the_import_and_one_that_was_rewritten_stays(tmp_path):
    model = MODELS["albert classifier"]()
    compress(model, MPOConfig(ratio=0.5))
    save(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import tnmpo.integrations.transformers" in card
    assert "AlbertForSequenceClassification.from_pretrained" in card
    assert f"{parameter_report(model).total:,} parameters" in card
    assert f"dense form {parameter_report(MODELS['albert classifier']()).total:,}" in card
    merge_counts = card.count("tnmpo")
    save(model, tmp_path)
    assert (tmp_path / "README.md").read_text().count("tnmpo") == merge_counts
    (tmp_path / "README.md").write_text("my own words")
    save(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_others_may_read_a_new_folder_as_far_as_the_umask_lets_them(tmp_path):
    mask = os.umask(0o022)
    try:
        save(MODELS["albert"](), tmp_path / "model", word_tokenizer())
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o644}


# --- what cannot be loaded


@pytest.fixture
def saved(tmp_path):
    model = MODELS["albert"]()
    compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    save(model, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    """Change the tensors, and the description, of a checkpoint."""
    path, config = str(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    change(tensors, config["quantization_config"])
    save_file(tensors, path, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def core_of(tensors):
    return next(name for name in tensors if name.endswith("query.cores.0"))


def test_a_missing_core_is_refused(saved):
    rewrite(saved, lambda tensors, _: tensors.pop(core_of(tensors)))
    with pytest.raises(ValueError, match=r"folder: the weights in .* do not fit their description.*query\.cores\.0"):
        load(saved)


def test_a_superfluous_core_is_refused(saved):
    rewrite(saved, lambda tensors, _: tensors.update(odd=torch.ones(2)))
    with pytest.raises(ValueError, match=r"do not fit their description.*odd"):
        load(saved)


def test_a_misshapen_core_is_refused(saved):
    def change(tensors, _):
        name = core_of(tensors)
        tensors[name] = tensors[name][..., :-1].contiguous()

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"do not fit their description.*query\.cores\.0"):
        load(saved)


def test_a_layer_that_the_model_does_not_have_is_refused(saved):
    def change(tensors, description):
        name, entry = next(iter(description["layers"].items()))
        description["layers"]["encoder.odd"] = entry
        tensors |= {f"encoder.odd.cores.{site}": tensors[f"{name}.cores.{site}"].clone() for site in (0, 1)}

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"folder: .* describes the layer encoder\.odd, which a AlbertModel does not"):
        load(saved)


def test_a_torn_file_is_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (load, open_model):
        with pytest.raises(ValueError, match=r"folder: .*is damaged"):
            read(saved)


def test_a_class_that_transformers_does_not_have_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "architectures": ["OddModel"]}))
    with pytest.raises(ValueError, match=r"folder: its config\.json names the class 'OddModel'"):
        load(saved)


def test_a_foreign_folder_is_refused(tmp_path):
    model = MODELS["albert"]()
    model.save_pretrained(tmp_path / "foreign")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "foreign", tmp_path / "empty", tmp_path / "missing"):
        assert not is_checkpoint(folder)
        with pytest.raises(ValueError, match=r"folder: .* holds no model that tnmpo saved; for others use"):
            load(folder)
    assert torch.equal(answer(open_model(tmp_path / "foreign")), answer(model))


def test_only_models_of_transformers_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"model: got Linear, expected a model of transformers"):
        save(nn.Linear(3, 3), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
