"""PEFT adapters of compressed models: small, switched without crosstalk, merged, reloaded, refused on another base."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from tiny import albert, answer, batch, bert, family
from tnmpo.integrations import transformers as transformers_integration
from tnmpo.integrations.torch import MPOLayer, MPOLinear
from tnmpo.integrations.transformers import MPOConfig, absorb, compress, freeze_central, load, merge, save
from tnmpo.integrations.transformers.adapters import (
    MPOPeftConfig,
    adapter_from_finetuned,
    apply_adapter,
    export_adapter,
    register_lora,
)
from tnmpo.integrations.transformers.targets import mpo_layers
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

# PEFT asks transformers for an attribute that 5.23 calls deprecated.
LOW_RANK = MPOConfig(ratio=0.6, shape="low_rank")
INTERLEAVED = MPOConfig(rank=6, shape="interleaved", order=4)
EVERY_SHAPE = pytest.mark.parametrize("settings", [LOW_RANK, INTERLEAVED], ids=["low-rank", "interleaved"])


def classifier(settings=LOW_RANK, make=bert, seed=0):
    model = make({bert: "Bert", albert: "Albert"}[make] + "ForSequenceClassification", seed)
    compress(model, settings)
    return model


def adapted(model, seed=1, name="default", **settings):
    """With an adapter of random values."""
    model = get_peft_model(model, MPOPeftConfig(**{"task_type": "SEQ_CLS", **settings}), name)
    scramble(model, seed)
    return model


@torch.no_grad()
def scramble(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- what an adapter is


@EVERY_SHAPE
@pytest.mark.parametrize("make", [bert, albert])
def test_a_new_adapter_changes_nothing(make, settings):
    model = classifier(settings, make)
    before = answer(model)
    torch.testing.assert_close(answer(get_peft_model(model, MPOPeftConfig(task_type="SEQ_CLS"))), before)


@EVERY_SHAPE
def test_auxiliary_tensors_and_the_head_train_and_nothing_else(settings):
    model = get_peft_model(classifier(settings), MPOPeftConfig(task_type="SEQ_CLS"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".default." in name}
    assert all(".mpo_auxiliary." in name or ".classifier." in name for name in trained)
    before = values(model)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
    after = values(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= trained
    # the keys' bias apart from softmax, every adapted layer learns something
    assert len(moved) > 0.9 * len(trained)


def test_trainable_parameters_are_counted_once(capsys):
    model = classifier()
    layers = [layer for _, layer, _ in mpo_layers(model)]
    expected = sum(layer.ranks[1] ** 2 for layer in layers) + sum(p.numel() for p in model.classifier.parameters())
    total = sum(p.numel() for p in model.parameters()) + expected
    get_peft_model(model, MPOPeftConfig(task_type="SEQ_CLS")).print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {expected:,d} || all params: {total:,d} || trainable%: {100 * expected / total:.4f}\n"
    )


def test_the_folder_holds_auxiliary_tensors_and_the_head_alone(tmp_path):
    model = classifier(INTERLEAVED)
    shapes = {
        f"base_model.model.{name}.mpo_auxiliary.core_{site}": layer.cores[site].shape
        for name, layer, _ in mpo_layers(model)
        for site in layer.auxiliary
    }
    head = {f"base_model.model.classifier.{name}": p.shape for name, p in model.classifier.named_parameters()}
    adapted(model).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert {name: tensor.shape for name, tensor in load_file(file).items()} == {**shapes, **head}
    numbers = sum(shape.numel() for shape in {**shapes, **head}.values())
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == 8 + header + 4 * numbers


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["query", "value"], {"query", "value"}),
        (r".*attention\.self\.(query|key)", {"query", "key"}),
        ("all-linear", {"query", "key", "value", "dense"}),
        (None, {"word_embeddings", "query", "key", "value", "dense"}),
    ],
)
def test_targets_are_in_the_words_of_peft(wanted, expected):
    model = get_peft_model(classifier(), MPOPeftConfig(target_modules=wanted, exclude_modules=["pooler.dense"]))
    names = {name.split(".mpo_auxiliary")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in names} == expected
    assert not any("pooler" in name for name in names)


@pytest.mark.parametrize("make", [bert, albert])
def test_biases_join_when_they_are_asked_for(make, tmp_path):
    model = classifier(make=make)
    before = answer(model)
    model = adapted(model, train_bias=True)
    biases = [name for name in values(model) if name.endswith("mpo_bias.default")]
    assert len(biases) == sum(isinstance(layer, MPOLinear) for layer in model.modules())
    trained = answer(model)
    with model.disable_adapter():
        assert torch.equal(answer(model), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(answer(PeftModel.from_pretrained(classifier(make=make), tmp_path)), trained)
    torch.testing.assert_close(answer(model.merge_and_unload()), trained)


# --- the base


@EVERY_SHAPE
@pytest.mark.parametrize("make", [bert, albert])
def test_a_disabled_or_unloaded_adapter_leaves_the_base(make, settings):
    model = classifier(settings, make)
    before, tensors = answer(model), values(model)
    model = adapted(model)
    trained = answer(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(answer(model), before)
    assert torch.equal(answer(model), trained)
    plain = model.unload()
    assert torch.equal(answer(plain), before)
    left = values(plain)
    assert left.keys() == tensors.keys()
    assert all(torch.equal(left[name], tensors[name]) for name in tensors)


@EVERY_SHAPE
@pytest.mark.parametrize("make", [bert, albert])
def test_merging_gives_a_plain_compressed_model(make, settings, tmp_path):
    model = classifier(settings, make)
    names, shapes = list(values(model)), [p.shape for p in model.parameters()]
    model = adapted(model)
    trained = answer(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert (list(values(plain)), [p.shape for p in plain.parameters()]) == (names, shapes)
    torch.testing.assert_close(answer(plain), trained)
    save(plain, tmp_path / "merged")
    assert torch.equal(answer(load(tmp_path / "merged")), answer(plain))
    torch.testing.assert_close(answer(merge(plain)), trained)


def test_a_base_prepared_for_fine_tuning_is_a_base_too():
    """Its bond cores are where the adapter starts."""
    model = classifier()
    freeze_central(model)
    scramble(model, 3)
    before = answer(model)
    model = get_peft_model(model, MPOPeftConfig(task_type="SEQ_CLS"))
    torch.testing.assert_close(answer(model), before)
    scramble(model, 1)
    trained = answer(model)
    plain = model.merge_and_unload()
    torch.testing.assert_close(answer(plain), trained)
    assert {len(layer.cores) for _, layer, _ in mpo_layers(plain)} == {2}


@EVERY_SHAPE
def test_a_merged_adapter_can_be_taken_out_again(settings):
    model = classifier(settings)
    before = answer(model)
    model = adapted(model, train_bias=True)
    trained = answer(model)
    model.merge_adapter()
    torch.testing.assert_close(answer(model), trained)
    model.unmerge_adapter()
    assert torch.equal(answer(model), trained)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(answer(model), before)


def test_safe_merging_refuses_a_broken_adapter():
    model = adapted(classifier())
    with torch.no_grad():
        model.get_parameter(next(name for name in values(model) if "core_1" in name))[:] = float("nan")
    with pytest.raises(ValueError, match="adapter 'default' holds a NaN"):
        model.merge_and_unload(safe_merge=True)


# --- several adapters


@EVERY_SHAPE
@pytest.mark.parametrize("make", [bert, albert])
def test_two_adapters_of_one_base_are_switched_without_crosstalk(make, settings, tmp_path):
    expected = {}
    for seed, name in enumerate(["first", "second"], start=1):
        model = adapted(classifier(settings, make), seed)
        model.save_pretrained(tmp_path / name)
        expected[name] = answer(model)
    base = classifier(settings, make)
    before = answer(base)
    model = PeftModel.from_pretrained(base, tmp_path / "first", adapter_name="first")
    model.load_adapter(tmp_path / "second", adapter_name="second")
    for name in ["first", "second", "first", "second"]:
        model.set_adapter(name)
        assert torch.equal(answer(model), expected[name])
        with model.disable_adapter():
            assert torch.equal(answer(model), before)
    with pytest.warns(UserWarning, match="Setting active adapter to first"):
        model.delete_adapter("second")
    assert torch.equal(answer(model), expected["first"])
    assert not any(".second" in name for name in values(model))


def test_training_one_adapter_leaves_the_other_as_it_was():
    model = adapted(classifier(), name="first")
    first = answer(model)
    model.add_adapter("second", MPOPeftConfig(task_type="SEQ_CLS"))
    assert torch.equal(answer(model), first)
    model.set_adapter("second")
    scramble(model, 5)
    second = answer(model)
    assert not torch.allclose(second, first, atol=1e-2)
    model.set_adapter("first")
    assert torch.equal(answer(model), first)
    model.set_adapter("second")
    assert torch.equal(answer(model), second)


def test_adapters_of_different_layers_are_switched():
    model = adapted(classifier(), name="first", target_modules=["query"])
    first = answer(model)
    model.add_adapter("second", MPOPeftConfig(task_type="SEQ_CLS", target_modules=["value"]))
    model.set_adapter("second")
    scramble(model, 5)
    second = answer(model)
    model.set_adapter("first")
    assert torch.equal(answer(model), first)
    torch.testing.assert_close(answer(model.merge_and_unload(adapter_names=["second"])), second)


def test_two_adapters_at_once_are_refused():
    model = adapted(classifier(), name="first", task_type=None)
    model.add_adapter("second", MPOPeftConfig(target_modules=["value"]))
    with pytest.raises(ValueError, match=r"got \['first', 'second'\], expected one"):
        model.base_model.set_adapter(["first", "second"])
    with pytest.raises(ValueError, match=r"got the adapters \['first', 'second'\], expected one"):
        model.merge_and_unload(adapter_names=["first", "second"])


def test_a_step_of_training_is_seen_after_an_evaluation():
    """The dense weight that a layer keeps belongs to the values it was made from."""
    model = adapted(classifier(MPOConfig(rank=6, shape="interleaved", execution="dense")))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    for _ in range(2):
        before = answer(model)
        model.train()
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        fresh = copy.deepcopy(model)
        assert not torch.allclose(answer(model), before)
        assert torch.equal(answer(model), answer(fresh))


def test_adapters_move_and_change_dtype_with_the_model():
    model = adapted(classifier())
    single = answer(model)
    double = answer(model.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    model.add_adapter("second", MPOPeftConfig(task_type="SEQ_CLS"))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_an_adapter_of_a_base_in_half_precision_keeps_its_dtype(tmp_path):
    model = adapted(classifier().to(torch.bfloat16))
    assert {p.dtype for name, p in model.named_parameters() if "mpo_auxiliary" in name} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(classifier().to(torch.bfloat16), tmp_path)
    assert torch.equal(answer(reloaded), answer(model))


# --- tied weights


@EVERY_SHAPE
@pytest.mark.parametrize("make", [bert, albert])
def test_a_tied_decoder_has_the_embedding_s_adapter(make, settings, tmp_path):
    def base():
        model = make({bert: "Bert", albert: "Albert"}[make] + "ForMaskedLM")
        compress(model, settings)
        return model

    model = base()
    before = answer(model)
    decoder = "predictions.decoder"
    # named by either name
    model = adapted(model, task_type=None, target_modules=["decoder"], train_bias=True)
    trained = answer(model)
    core_names = {name.split(".mpo_auxiliary")[0] for name in values(model) if "mpo_auxiliary" in name}
    assert {name.rpartition(".")[2] for name in core_names} == {"word_embeddings"}
    assert any(f"{decoder}.mpo_bias" in name for name in values(model))
    with model.disable_adapter():
        assert torch.equal(answer(model), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(answer(PeftModel.from_pretrained(base(), tmp_path)), trained)
    model.add_adapter("second", MPOPeftConfig())
    model.set_adapter("second")
    torch.testing.assert_close(answer(model), before)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(answer(model), trained)
    plain = model.merge_and_unload()
    torch.testing.assert_close(answer(plain), trained)
    assert plain.config.tie_word_embeddings
    assert any(tied for _, _, tied in mpo_layers(plain))


def test_a_causal_model_is_adapted_and_generates_the_same_when_merged():
    model = family("llama", "LlamaForCausalLM", tie_word_embeddings=True)
    compress(model, MPOConfig(ratio=0.7, shape="low_rank", target_modules="all-linear"))
    model = adapted(model, task_type=TaskType.CAUSAL_LM)
    ids = batch()["input_ids"][:1]
    generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(ids, max_new_tokens=5, do_sample=False), generated)


def test_the_conv1d_layers_of_gpt2_are_adapted():
    model = family("gpt2", "GPT2LMHeadModel")
    compress(model, MPOConfig(ratio=0.7, shape="low_rank", target_modules="all-linear"))
    before = answer(model)
    model = adapted(model, task_type=None)
    trained = answer(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(answer(model), before)
    torch.testing.assert_close(answer(model.merge_and_unload()), trained)


def test_a_base_from_stock_loading_is_adapted_and_trained(tmp_path):
    classifier().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, MPOPeftConfig(task_type="SEQ_CLS"))
    trainer(model, tmp_path / "run", 2).train()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(answer(PeftModel.from_pretrained(again, tmp_path / "adapter")), answer(model))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(merged), answer(model.base_model.model))


# --- the Trainer


class Examples(torch.utils.data.Dataset):
    def __init__(self):
        inputs = batch(size=16)
        self.rows = [{key: inputs[key][row] for key in inputs} | {"labels": row % 2} for row in range(16)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def trainer(model, folder, steps):
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
        save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Examples())


def test_the_stock_trainer_trains_and_resumes(tmp_path):
    whole = get_peft_model(classifier(), MPOPeftConfig(task_type="SEQ_CLS"))
    start = values(whole)
    trainer(whole, tmp_path / "whole", 4).train()
    assert any(not torch.equal(value, start[name]) for name, value in values(whole).items())
    half = get_peft_model(classifier(), MPOPeftConfig(task_type="SEQ_CLS"))
    trainer(half, tmp_path / "half", 2).train()
    assert "adapter_model.safetensors" in {file.name for file in (tmp_path / "half" / "checkpoint-2").iterdir()}
    resumed = get_peft_model(classifier(), MPOPeftConfig(task_type="SEQ_CLS"))
    trainer(resumed, tmp_path / "half", 4).train(resume_from_checkpoint=True)
    torch.testing.assert_close(answer(resumed), answer(whole))


def test_an_adapter_loaded_for_training_trains_on(tmp_path):
    adapted(classifier()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(classifier(), tmp_path, is_trainable=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in values(model) if ".default." in name}
    frozen = PeftModel.from_pretrained(classifier(), tmp_path, low_cpu_mem_usage=True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(answer(frozen), answer(model))


def test_an_adapted_model_compiles_in_one_graph():
    model = adapted(classifier(INTERLEAVED)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        result = compiled(**batch())[0]
    torch.testing.assert_close(result, answer(model))


# --- from and to fine-tuned models


@EVERY_SHAPE
@pytest.mark.parametrize("at_rest", [False, True])
def test_a_fine_tuned_model_becomes_an_adapter_and_back(settings, at_rest, tmp_path):
    base = classifier(settings)
    finetuned = copy.deepcopy(base)
    freeze_central(finetuned)
    scramble(finetuned, 2)  # biases, norms and the head too
    if at_rest:
        absorb(finetuned)
    before, expected = values(base), answer(finetuned)
    flags = [parameter.requires_grad for parameter in base.parameters()]
    export_adapter(base, finetuned, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in values(base).items())
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(answer(model), expected, atol=1e-5, rtol=1e-4)
    applied = apply_adapter(base, tmp_path)
    torch.testing.assert_close(answer(applied), expected, atol=1e-5, rtol=1e-4)
    assert type(applied) is type(finetuned)


def test_only_what_was_trained_goes_into_the_adapter(tmp_path):
    base = classifier()
    finetuned = copy.deepcopy(base)
    freeze_central(finetuned)
    with torch.no_grad():
        finetuned.classifier.weight += 1
        finetuned.bert.encoder.layer[0].attention.self.query.cores[1].mul_(2)
    model = adapter_from_finetuned(base, finetuned)
    assert model.peft_config["default"].modules_to_save == ["classifier"]
    assert not any("mpo_bias" in name for name in values(model))
    assert torch.equal(answer(model), answer(finetuned))


def test_a_fine_tuned_masked_language_model_becomes_an_adapter(tmp_path):
    base = bert("BertForMaskedLM")
    compress(base, LOW_RANK)
    finetuned = copy.deepcopy(base)
    freeze_central(finetuned)
    scramble(finetuned, 2)
    export_adapter(base, finetuned, tmp_path)
    torch.testing.assert_close(answer(apply_adapter(base, tmp_path)), answer(finetuned))


@pytest.mark.parametrize("at_rest", [False, True])
def test_changed_central_tensors_are_refused(at_rest):
    base = classifier()
    finetuned = copy.deepcopy(base)
    if not at_rest:
        freeze_central(finetuned)
    with torch.no_grad():
        finetuned.bert.pooler.dense.cores[-1][:, :, 0] += 1
    with pytest.raises(ValueError, match=r"central tensors of bert\.pooler\.dense .* call freeze_central"):
        adapter_from_finetuned(base, finetuned)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: classifier(MPOConfig(ratio=0.3, shape="low_rank")),
            r"finetuned: bert\.\S+ has auxiliary .* 3x1x1x3, in the base 5x1x1x5",
        ),
        (lambda: classifier(MPOConfig(ratio=0.6, shape="low_rank", target_modules=["query"])), "not those of the base"),
        (lambda: bert("BertForSequenceClassification"), "without MPO layers"),
    ],
)
def test_another_model_is_no_fine_tuned_copy(other, message):
    with pytest.raises(ValueError, match=message):
        adapter_from_finetuned(classifier(), other())


def test_a_head_of_another_size_is_refused():
    base = classifier()
    finetuned = copy.deepcopy(base)
    finetuned.classifier = torch.nn.Linear(12, 3)
    with pytest.raises(ValueError, match=r"classifier\.weight has the shape \(3, 12\), that of the base \(2, 12\)"):
        adapter_from_finetuned(base, finetuned)


# --- refusals


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="BertModel without MPO layers, expected a compressed model; call compress"):
        get_peft_model(bert(), MPOPeftConfig())


def test_a_pattern_without_a_match_is_refused_with_near_misses():
    model = classifier()
    before = values(model)
    with pytest.raises(ValueError, match=r"'querry' matches none of the model's 14 MPO layers.* query"):
        get_peft_model(model, MPOPeftConfig(target_modules=["value", "querry"]))
    assert values(model).keys() == before.keys()


def test_excluding_everything_is_refused():
    with pytest.raises(ValueError, match="exclude fewer"):
        get_peft_model(classifier(), MPOPeftConfig(exclude_modules=".*"))


def test_an_adapter_of_other_bond_dimensions_is_refused(tmp_path):
    adapted(classifier(MPOConfig(rank=4, shape="low_rank"))).save_pretrained(tmp_path)
    other = classifier(MPOConfig(rank=3, shape="low_rank"))
    before = values(other)
    with pytest.raises(ValueError, match=r"for bert\.\S+ it has auxiliary tensors of shapes 4x1x1x4, the base 3x1x1x3"):
        PeftModel.from_pretrained(other, tmp_path)
    assert values(other).keys() == before.keys()
    model = adapted(other)
    with pytest.raises(ValueError, match="load it onto the base it was trained on"):
        model.load_adapter(tmp_path, adapter_name="second")
    assert list(model.peft_config) == ["default"]


def test_an_adapter_for_layers_that_the_base_lacks_is_refused(tmp_path):
    adapted(classifier()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the base none"):
        PeftModel.from_pretrained(classifier(MPOConfig(ratio=0.6, target_modules=["query"])), tmp_path)


def test_a_configuration_serves_several_models():
    config = MPOPeftConfig()
    get_peft_model(classifier(MPOConfig(rank=4, shape="low_rank")), config)
    get_peft_model(classifier(MPOConfig(rank=3, shape="low_rank")), config)
    assert config.shapes["bert.pooler.dense"] == ["3x1x1x3"]


def test_an_adapter_of_another_method_is_refused(tmp_path):
    get_peft_model(bert(), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an adapter of the method LORA, expected MPO"):
        apply_adapter(classifier(), tmp_path)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        adapted(classifier()).load_adapter(tmp_path, adapter_name="second")


# --- LoRA


def test_a_lora_of_the_dense_layers_is_trained_saved_and_reloaded(tmp_path):
    def base():
        model = bert("BertForSequenceClassification")
        compress(model, MPOConfig(ratio=0.6, shape="low_rank", target_modules=["query", "key", "word_embeddings"]))
        return model

    model = base()
    before = answer(model)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["value", "dense"], r=2))
    scramble(model, 1)
    trained = answer(model)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(answer(reloaded), trained)
    with reloaded.disable_adapter():
        assert torch.equal(answer(reloaded), before)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(answer(merged), trained)
    assert sum(isinstance(layer, MPOLayer) for layer in merged.modules()) == 5


def test_a_lora_of_mpo_layers_needs_registering():
    with pytest.raises(ValueError, match=r"(?s)Target module MPOLinear\(.*\) is not supported"):
        get_peft_model(classifier(), LoraConfig(target_modules=["query"]))


@EVERY_SHAPE
def test_a_registered_lora_of_mpo_layers_is_trained_saved_and_reloaded(settings, tmp_path):
    model = classifier(settings)
    before = answer(model)
    config = register_lora(LoraConfig(task_type="SEQ_CLS", target_modules=["query", "classifier"], r=2))
    model = get_peft_model(model, config)
    torch.testing.assert_close(answer(model), before)
    scramble(model, 1)
    trained = answer(model)
    with model.disable_adapter():
        assert torch.equal(answer(model), before)
    model.save_pretrained(tmp_path)
    config = register_lora(LoraConfig.from_pretrained(tmp_path))
    assert torch.equal(answer(PeftModel.from_pretrained(classifier(settings), tmp_path, config=config)), trained)
    with pytest.raises(ValueError, match="LoRA cannot be folded into the cores"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="LoRA cannot be folded into the cores"):
        model.merge_adapter()
    with pytest.raises(ValueError, match="cannot take a LoRA off an MPO layer"):
        model.unload()
    dense = PeftModel.from_pretrained(merge(classifier(settings)), tmp_path).merge_and_unload()
    torch.testing.assert_close(answer(dense), trained)


# --- PEFT is optional


def test_three_modules_import_peft_and_the_command_line_alone_imports_these():
    """Others, and with them the package, do without it."""
    folder = Path(transformers_integration.__file__).parent
    texts = {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*.py")}
    uses_peft = {name for name, text in texts.items() if re.search(r"^\s*(from|import) peft\b", text, re.MULTILINE)}
    assert uses_peft == {"adapters.py", "adapter_targets.py", "adapter_tuner.py"}
    uses_these = {name for name, text in texts.items() if re.search(r"^\s*from \.+adapter", text, re.MULTILINE)}
    assert uses_these <= {*uses_peft, "cli/adapter.py"}
