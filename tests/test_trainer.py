"""MPOTrainer: rates of the cores, accumulation, a teacher, resuming, compiling, any family."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
import transformers
from tiny import batch, bert, build
from tnmpo.integrations.transformers import MPOConfig, compress, freeze_central
from tnmpo.integrations.transformers.distillation import distillation_loss, masked_mean
from tnmpo.integrations.transformers.presets import TARGETS_OF_ARCHITECTURE
from tnmpo.integrations.transformers.targets import mpo_layers
from tnmpo.integrations.transformers.trainer import MPOTrainer
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}


def classifier(seed=0, labels=3, **settings):
    return bert("BertForSequenceClassification", seed, num_labels=labels, **settings)


def llama(kind, **settings):
    sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return build(kind, transformers.LlamaConfig(**DECODER, **sizes, **settings), 0)


def light(model, **settings):
    compress(model, MPOConfig(**settings))
    freeze_central(model)
    return model


def examples(n=16, labels=3, seed=0):
    """All of one length, so that every batch size sees the same padding."""
    rows = batch(seed, size=n)
    targets = torch.arange(n) % labels if labels > 1 else torch.linspace(-1, 1, n)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": y}
        for ids, mask, y in zip(*rows.values(), targets, strict=True)
    ]


def without_labels(rows):
    return [{key: value for key, value in row.items() if key != "labels"} for row in rows]


def arguments(folder, **settings):
    options = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **{**options, **settings})


def trainer_of(model, folder, rows=None, kind=MPOTrainer, options=None, **settings):
    result = kind(model, arguments(folder, **settings), train_dataset=rows or examples(), **(options or {}))
    result.remove_callback(transformers.PrinterCallback)
    return result


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def central_ids(model):
    return {id(layer.cores[site]) for _, layer, _ in mpo_layers(model) for site in layer.central}


# --- rates


def test_cores_have_a_rate_of_their_own_and_biases_no_decay(tmp_path):
    model = light(classifier(), ratio=0.6, shape="interleaved")
    trainer = trainer_of(model, tmp_path, options={"core_learning_rate": 1e-3}, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {}
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            assert names[id(parameter)] not in seen
            seen[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(seen) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in seen.items():
        assert rate == (1e-3 if ".cores." in name else 1e-2), name
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name
    assert {rate for rate, _ in seen.values()} == {1e-3, 1e-2}


def test_both_rates_follow_the_schedule(tmp_path):
    model = light(classifier())
    settings = {"lr_scheduler_type": "linear", "warmup_steps": 1, "max_steps": 4}
    trainer = trainer_of(model, tmp_path, options={"core_learning_rate": 1e-3}, **settings)
    trainer.create_optimizer_and_scheduler(4)
    rates = []
    for _ in range(4):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        rates.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
    for low, high in rates[:-1]:
        assert high == pytest.approx(10 * low)
    assert rates[0] == pytest.approx([1e-3, 1e-2])
    assert rates[-1] == [0.0]


def test_without_a_core_rate_the_groups_are_the_trainers(tmp_path):
    model = light(classifier())
    ours, stock = (trainer_of(model, tmp_path, kind=kind).create_optimizer() for kind in (MPOTrainer, Trainer))
    assert [[id(p) for p in group["params"]] for group in ours.param_groups] == [
        [id(p) for p in group["params"]] for group in stock.param_groups
    ]


def test_a_tiny_core_rate_leaves_the_cores_nearly_where_they_were(tmp_path):
    model = light(classifier())
    before = values(model)
    trainer_of(model, tmp_path, options={"core_learning_rate": 1e-9}).train()
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in model.named_parameters()}
    cores = {name: distance for name, distance in moved.items() if ".cores." in name}
    assert 0 < max(cores.values()) < 1e-6
    assert moved["classifier.weight"] > 1e-3


def test_a_core_rate_without_cores_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"core_learning_rate: got a BertForSequenceClassification without MPO layers"):
        trainer_of(classifier(), tmp_path, options={"core_learning_rate": 1e-3})
    model = classifier()
    compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    for _, layer, _ in mpo_layers(model):
        layer.requires_grad_(False)
    with pytest.raises(ValueError, match=r"core_learning_rate: every core of the model is frozen"):
        trainer_of(model, tmp_path, options={"core_learning_rate": 1e-3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core_learning_rate": 0.0}, r"core_learning_rate: got 0.0, expected a positive number"),
        ({"temperature": float("nan")}, r"temperature: got nan, expected a positive number"),
        ({"alpha": 1.5}, r"alpha: got 1.5, expected a number from 0 .* to 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(classifier(), tmp_path, options=options)


# --- accumulation


def gradients(model, folder, kind=MPOTrainer, rows=None, options=None, **settings):
    """Those of one optimiser step, which a rate of zero makes harmless."""
    found = {}

    class Catch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer = trainer_of(
        model, folder, rows, kind, options, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, seed=1, **settings
    )
    trainer.add_callback(Catch())
    return found, trainer.train().training_loss


HEADS = {
    "classification": lambda: classifier(**NO_DROPOUT),
    "regression": lambda: classifier(labels=1, problem_type="regression", **NO_DROPOUT),
    "llama classification": lambda: llama("LlamaForSequenceClassification", num_labels=3),
}


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_four_small_batches_have_the_gradient_of_a_large_one(head, with_teacher, tmp_path):
    model = HEADS[head]()
    teacher = copy.deepcopy(model)
    compress(model, MPOConfig(ratio=0.5, target_modules="all-linear" if head.startswith("llama") else None))
    options = {"teacher": teacher} if with_teacher else {}
    rows = examples(16, 1 if head == "regression" else 3)
    whole, loss = gradients(model, tmp_path, rows=rows, options=options, per_device_train_batch_size=16)
    parts, mean = gradients(
        model, tmp_path, rows=rows, options=options, per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    assert mean == pytest.approx(loss, rel=1e-5)
    assert set(parts) == set(whole)
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_the_stock_trainer_inflates_the_gradient(tmp_path):
    """The reason for what the test above checks; when this fails the cure has become unnecessary."""
    model = classifier(**NO_DROPOUT)
    whole, _ = gradients(model, tmp_path, Trainer, per_device_train_batch_size=16)
    parts, _ = gradients(model, tmp_path, Trainer, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    weight = "classifier.weight"
    torch.testing.assert_close(parts[weight], 4 * whole[weight], rtol=1e-3, atol=1e-5)


def test_a_causal_model_counts_tokens_over_the_micro_batches(tmp_path):
    """With unequal numbers of labels in them the mean of means would be another."""
    model = llama("LlamaForCausalLM")
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher.lm_head.weight.mul_(1.3)
    rows = without_labels(examples(16))
    for row in rows:
        row["labels"] = torch.where(row["attention_mask"].bool(), row["input_ids"], -100)
    for options in ({}, {"teacher": teacher}):
        whole, loss = gradients(model, tmp_path, rows=rows, options=options, per_device_train_batch_size=16)
        small = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
        trainer = trainer_of(model, tmp_path, rows, options=options, **small)
        assert trainer.model_accepts_loss_kwargs
        parts, mean = gradients(model, tmp_path, rows=rows, options=options, **small)
        assert mean == pytest.approx(loss, rel=1e-5)
        for name, expected in whole.items():
            torch.testing.assert_close(parts[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_a_model_that_says_so_itself_is_believed(tmp_path):
    model = classifier()
    assert trainer_of(model, tmp_path).model_accepts_loss_kwargs is False
    assert not hasattr(model, "accepts_loss_kwargs")
    model.accepts_loss_kwargs = True
    assert trainer_of(model, tmp_path).model_accepts_loss_kwargs is True


# --- a teacher


def test_the_distance_of_classes_is_the_divergence_from_the_teacher():
    student, teacher = (
        torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]]),
        torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]]),
    )
    p, q = torch.softmax(teacher / 3, -1), torch.softmax(student / 3, -1)
    expected = 9 * (p * (p.log() - q.log())).sum(-1).mean()
    found = distillation_loss(classifier(), {"logits": student}, {"logits": teacher}, {}, temperature=3.0)
    torch.testing.assert_close(found, expected)
    same = distillation_loss(classifier(), {"logits": student}, {"logits": student}, {}, temperature=3.0)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_the_distance_of_a_regression_is_squared():
    model = classifier(labels=1, problem_type="regression")
    given, wanted = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
    assert distillation_loss(model, {"logits": given}, {"logits": wanted}, {}).item() == 2.5


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_count_where_their_labels_do(causal):
    model = llama("LlamaForCausalLM") if causal else bert("BertForMaskedLM")
    given, wanted = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.tensor([[-100, 7, -100, 3], [-100, -100, 2, -100]])
    rows = [(0, 0), (0, 2), (1, 1)] if causal else [(0, 1), (0, 3), (1, 2)]
    expected = torch.stack([F.kl_div(given[k].log_softmax(-1), wanted[k].softmax(-1), reduction="sum") for k in rows])
    answers = {"logits": given}, {"logits": wanted}
    found = distillation_loss(model, *answers, {"labels": labels}, temperature=1.0)
    torch.testing.assert_close(found, expected.mean())
    shared = distillation_loss(model, *answers, {"labels": labels}, temperature=1.0, n_items=10)
    torch.testing.assert_close(shared, expected.sum() / 10)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    unlabelled = distillation_loss(model, *answers, {"attention_mask": mask}, temperature=1.0)
    kept = [
        F.kl_div(given[k].log_softmax(-1), wanted[k].softmax(-1), reduction="sum") for k in [(0, 0), (0, 1), (1, 0)]
    ]
    torch.testing.assert_close(unlabelled, torch.stack(kept).mean())


def test_embeddings_are_compared_by_their_means_without_padding():
    given, wanted = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    means = [torch.stack([vectors[0].mean(0), vectors[1, :2].mean(0)]) for vectors in (given, wanted)]
    torch.testing.assert_close(masked_mean(given, mask), means[0])
    torch.testing.assert_close(masked_mean(given, None), given.mean(1))
    found = distillation_loss(
        bert(), {"last_hidden_state": given}, {"last_hidden_state": wanted}, {"attention_mask": mask}
    )
    torch.testing.assert_close(found, F.mse_loss(*means))


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    model = classifier()
    with pytest.raises(ValueError, match=r"teacher: got the model itself; pass the dense model"):
        trainer_of(model, tmp_path, options={"teacher": model})
    with pytest.raises(
        ValueError, match=r"teacher: its output has shape \(4, 2\), the student's \(4, 3\); pass the dense"
    ):
        trainer_of(model, tmp_path, options={"teacher": classifier(labels=2)}).train()
    vectors = {"last_hidden_state": torch.ones(1, 2, 3)}
    with pytest.raises(ValueError, match=r"teacher: its output has last_hidden_state, that of the Bert.* logits"):
        distillation_loss(classifier(), {"logits": torch.ones(1, 2)}, vectors, {})
    with pytest.raises(ValueError, match=r"teacher: got a multi-label head"):
        distillation_loss(classifier(problem_type="multi_label_classification"), {"logits": torch.ones(1, 3)}, {}, {})
    with pytest.raises(ValueError, match=r"teacher: the output of a BertModel has start_logits; expected logits"):
        distillation_loss(bert(), {"start_logits": torch.ones(1, 3)}, {}, {})


def test_the_loss_mixes_teacher_and_task(tmp_path):
    model, teacher, rows = classifier(1), classifier(0), examples(4)
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        ours, theirs = model(**inputs), teacher(**inputs)
        distance = distillation_loss(model, ours, theirs, inputs)
        for alpha, expected in ((0.0, ours.loss), (1.0, distance), (0.3, 0.3 * distance + 0.7 * ours.loss)):
            trainer = trainer_of(model, tmp_path, options={"teacher": teacher, "alpha": alpha})
            loss, outputs = trainer.compute_loss(model, dict(inputs), return_outputs=True)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(outputs.logits, ours.logits)
        unlabelled = {key: value for key, value in inputs.items() if key != "labels"}
        torch.testing.assert_close(trainer.compute_loss(model, unlabelled), distance)
        smooth = trainer_of(model, tmp_path, options={"teacher": teacher, "alpha": 1.0}, label_smoothing_factor=0.1)
        torch.testing.assert_close(smooth.compute_loss(model, dict(inputs)), distance)


@pytest.mark.parametrize("head", [True, False])
def test_a_teacher_heals_and_is_left_alone(head, tmp_path):
    teacher = (classifier() if head else bert()).train()
    model = copy.deepcopy(teacher)
    light(model, ratio=0.4, shape="low_rank")
    rows = without_labels(examples(16))
    before = values(teacher)
    options = {"teacher": teacher, "eval_dataset": rows}
    settings = {"max_steps": 40, "save_strategy": "steps", "save_steps": 40}
    trainer = trainer_of(model, tmp_path, rows, options=options, **settings)
    frozen = {
        id(core): core.clone() for _, layer, _ in mpo_layers(model) for core in layer.cores if not core.requires_grad
    }
    start = None if head else trainer.evaluate()["eval_loss"]
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def distance():
        with torch.no_grad():
            return distillation_loss(model, model.eval()(**inputs), teacher(**inputs), inputs).item()

    first = distance()
    trainer.train()
    assert not teacher.training
    assert distance() < 0.5 * first
    if not head:
        assert start == pytest.approx(first, rel=1e-4)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(distance(), rel=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.named_parameters())
    assert all(
        torch.equal(core, frozen[id(core)])
        for _, layer, _ in mpo_layers(model)
        for core in layer.cores
        if id(core) in frozen
    )
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint-40").glob("*.safetensors"))
    assert size < 1.2 * sum(parameter.nbytes for parameter in model.parameters()) + 8000


# --- resuming, compiling


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(accumulate, tmp_path):
    """With dropout, two rates, a linear schedule and a teacher."""

    def fresh():
        model = classifier()
        teacher = copy.deepcopy(model)
        return light(model, ratio=0.6, shape="low_rank"), {"teacher": teacher, "core_learning_rate": 3e-3}

    settings = {
        "max_steps": 6,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 3,
        "gradient_accumulation_steps": accumulate,
    }
    whole, options = fresh()
    trainer_of(whole, tmp_path, options=options, **settings).train()
    resumed, options = fresh()
    flags = [parameter.requires_grad for parameter in resumed.parameters()]
    before = values(resumed)
    trainer = trainer_of(resumed, tmp_path, options=options, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert [parameter.requires_grad for parameter in resumed.parameters()] == flags
    expected = values(whole)
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
    assert not torch.equal(resumed.classifier.weight, before["classifier.weight"])


def test_a_compiled_run_ends_like_an_eager_one(tmp_path):
    """With SGD: Adam makes a step out of the rounding errors of a gradient that is zero, such as a key's bias has."""
    found = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        torch._dynamo.reset()
        model = classifier(num_hidden_layers=1, **NO_DROPOUT)
        teacher = copy.deepcopy(model)
        light(model, ratio=0.6, shape="low_rank")
        options = {"core_learning_rate": 3e-3, "teacher": teacher}
        loss = trainer_of(model, tmp_path, options=options, max_steps=2, optim="sgd", **settings).train().training_loss
        found.append((loss, values(model)))
    (eager, expected), (compiled, result) = found
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert set(result) == set(expected)
    for name, value in result.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


# --- families

FAMILIES = {
    "albert": "AlbertForSequenceClassification",
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "mobilebert": "MobileBertForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
}


@pytest.mark.parametrize("shape", ["low_rank", "interleaved"])
@pytest.mark.parametrize("family", FAMILIES)
def test_light_fine_tuning_of_any_family_moves_only_the_auxiliary_tensors(family, shape, tmp_path):
    model = tiny.family(family, FAMILIES[family], num_labels=3)
    targets = None if family in TARGETS_OF_ARCHITECTURE else "all-linear"
    light(model, ratio=0.7, shape=shape, target_modules=targets)
    central = central_ids(model)
    before = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    result = trainer_of(model, tmp_path, options={"core_learning_rate": 5e-3}).train()
    assert result.global_step == 3
    assert torch.isfinite(torch.tensor(result.training_loss))
    cores = [(name, core) for name, layer, _ in mpo_layers(model) for core in layer.cores]
    assert central
    for name, core in cores:
        assert torch.equal(core, before[id(core)]) is (id(core) in central), name
    assert any(id(core) not in central for _, core in cores)
