"""Fine-tuning, prediction and scores on tiny generated data."""

from __future__ import annotations

import copy
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import albert, answer, batch, bert, family
from tnmpo.integrations.transformers import MPOConfig, compress, freeze_central, parameter_report
from tnmpo.integrations.transformers.acceptability import acceptability_task, corpus, word_tokenizer
from tnmpo.integrations.transformers.distillation import masked_mean
from tnmpo.integrations.transformers.evaluation import evaluate, predict, token_batches
from tnmpo.integrations.transformers.models import open_model, open_tokenizer, with_head
from tnmpo.integrations.transformers.report import print_trainable_parameters
from tnmpo.integrations.transformers.seeds import SeedScores, finetune_seeds
from tnmpo.integrations.transformers.targets import mpo_layers
from tnmpo.integrations.transformers.tasks import Split, Task, TaskData, get_task
from tnmpo.integrations.transformers.training import finetune
from transformers import TrainerCallback

TOKENIZER = word_tokenizer()
WORDS = {"vocab_size": len(TOKENIZER), "initializer_range": 0.5}
DATA = acceptability_task(n_train=48, n_validation=32, n_test=32)
PAIRS = Task("pairs", ("sentence1", "sentence2"), 1, "spearman")


def classifier(seed=0, **settings):
    """With dropout: a wrong seed must show."""
    return bert("BertForSequenceClassification", seed, num_labels=2, **WORDS, **settings)


def pairs(n=24):
    """A sentence, its first words before the end of another, and how many these are."""
    sentences = [sentence.split() for sentence in corpus(n + 1)]
    shared = [k % 4 for k in range(n)]
    both = zip(sentences, sentences[1:], shared, strict=False)
    texts = tuple((" ".join(a), " ".join([*a[:k], *b[k:]])) for a, b, k in both)
    return Split(texts, np.array(shared, dtype=float))


def train(model, task=DATA.task, split=DATA.train, **settings):
    options = {"steps": 4, "learning_rate": 1e-2, "batch_size": 8, "progress": False, **settings}
    return finetune(model, TOKENIZER, task, split, **options)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- fine-tuning


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.6, "shape": "low_rank"}, {"ratio": 0.6, "shape": "interleaved"}])
def test_only_what_is_trainable_is_trained(settings):
    model = classifier()
    compress(model, MPOConfig(**settings))
    freeze_central(model)
    model.bert.embeddings.LayerNorm.requires_grad_(False)
    before = values(model)
    log = train(model)
    assert log.steps == 4
    assert math.isfinite(log.loss)
    assert log.seconds_per_step > 0
    central = {id(layer.cores[site]) for _, layer, _ in mpo_layers(model) for site in layer.central}
    assert central
    for name, parameter in model.named_parameters():
        frozen = id(parameter) in central or name.startswith("bert.embeddings.LayerNorm")
        assert parameter.requires_grad is not frozen
        # the gradient of a key's bias vanishes, and of token types there is only one
        if frozen:
            assert torch.equal(parameter, before[name]), name
        elif "cores" in name:
            assert not torch.equal(parameter, before[name]), name
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    assert parameter_report(model).trainable < parameter_report(model).total


def test_a_dense_model_is_trained_whole():
    model = classifier()
    before = values(model)
    train(model, steps=2)
    unmoved = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not {name for name in unmoved if name.endswith("weight")}


def test_a_classification_is_learned():
    model = classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    few = Split(DATA.train.texts[:8], np.array([0, 1] * 4))
    compress(model, MPOConfig())
    freeze_central(model)
    log = train(model, split=few, steps=60)
    assert log.loss < 0.5
    assert evaluate(model, TOKENIZER, DATA.task, few) == 1.0


def test_a_regression_on_pairs_is_learned():
    model = with_head(bert(**WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), PAIRS)
    split = pairs()
    assert len(set(split.labels.tolist())) > 2
    compress(model, MPOConfig(ratio=0.7))
    log = train(model, PAIRS, split, steps=60)
    answers = predict(model, TOKENIZER, PAIRS, split)
    assert answers.shape == (24,)
    assert answers.dtype.kind == "f"
    assert evaluate(model, TOKENIZER, PAIRS, split) > 0.8
    assert log.loss < float(np.var(split.labels)) + float(np.mean(split.labels)) ** 2


@pytest.mark.parametrize("kind", ["dense", "light"])
def test_a_run_is_the_same_for_the_same_seed(kind):
    def run(seed):
        model = classifier()
        if kind == "light":
            compress(model, MPOConfig())
            freeze_central(model)
        torch.manual_seed(seed + 100)  # whatever was drawn before
        return values(model), train(model, seed=seed), values(model)

    _, log, first = run(3)
    _, again, second = run(3)
    _, other, third = run(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log.loss == again.loss != other.loss
    assert not torch.equal(first["classifier.weight"], third["classifier.weight"])


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Steps(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


@pytest.mark.parametrize("settings", [None, {}, {"ratio": 0.6, "shape": "low_rank"}])
def test_an_interrupted_run_goes_on_and_ends_the_same(settings, tmp_path):
    def fresh():
        model = classifier()
        if settings is not None:
            compress(model, MPOConfig(**settings))
            freeze_central(model)
        return model

    whole = fresh()
    train(whole, steps=9, save_steps=2, folder=tmp_path / "whole")
    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), steps=9, save_steps=2, folder=folder, callbacks=[Interrupt(5)])
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "settings.json"]
    steps = Steps()
    resumed = fresh()
    flags = {name: parameter.requires_grad for name, parameter in resumed.named_parameters()}
    train(resumed, steps=9, save_steps=2, folder=folder, callbacks=[steps])
    assert steps.seen == [5, 6, 7, 8, 9]
    expected = values(whole)
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0, msg=name)
        assert parameter.requires_grad == flags[name]


def test_checkpoints_of_a_run_with_other_settings_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(classifier(), steps=9, save_steps=2, folder=tmp_path, callbacks=[Interrupt(5)])
    with pytest.raises(ValueError, match=r"folder: .* other settings \(steps 9\); remove it"):
        train(classifier(), steps=8, save_steps=2, folder=tmp_path)


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(classifier(), steps=1)
    assert list(tmp_path.iterdir()) == []


def test_callbacks_are_called_and_nothing_is_printed(capfd):
    steps = Steps()
    train(classifier(), steps=3, callbacks=[steps])
    assert steps.seen == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=rf"steps: got {steps}, expected a positive integer"):
        train(classifier(), steps=steps)


# --- prediction and scores


def shuffled(split, seed=0):
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    return Split(tuple(split.texts[k] for k in order), split.labels[order]), order


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_predictions_come_in_the_order_of_the_texts(batch_size):
    model = classifier(seed=2)
    answers = predict(model, TOKENIZER, DATA.task, DATA.test)
    assert answers.dtype.kind == "i"
    assert set(answers.tolist()) == {0, 1}
    mixed, order = shuffled(DATA.test)
    assert predict(model, TOKENIZER, DATA.task, mixed, batch_size=batch_size).tolist() == answers[order].tolist()
    one_by_one = [
        model(**TOKENIZER(text, return_tensors="pt", return_token_type_ids=False)).logits.argmax().item()
        for (text,) in DATA.test.texts
    ]
    assert answers.tolist() == one_by_one
    score = evaluate(model, TOKENIZER, DATA.task, DATA.test)
    assert score == np.mean(answers == DATA.test.labels)
    assert evaluate(model, TOKENIZER, DATA.task, mixed, batch_size=batch_size) == score


def test_predictions_of_a_regression():
    model = with_head(bert(**WORDS), PAIRS)
    split = pairs()
    mixed, order = shuffled(split)
    answers = predict(model, TOKENIZER, PAIRS, split)
    np.testing.assert_allclose(predict(model, TOKENIZER, PAIRS, mixed, batch_size=3), answers[order], atol=1e-5)
    with torch.no_grad():
        first = model(**TOKENIZER(*split.texts[0], return_tensors="pt", return_token_type_ids=True)).logits.item()
    assert answers[0] == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("build", [albert, bert])
def test_a_model_without_a_head_answers_with_the_cosine_of_mean_vectors(build):
    model, split = build(**WORDS), pairs()

    def mean(text):
        encoded = TOKENIZER(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            return model(**encoded).last_hidden_state[0].mean(0)

    expected = [float(torch.cosine_similarity(mean(a), mean(b), dim=0)) for a, b in split.texts]
    task = get_task("stsb")
    np.testing.assert_allclose(predict(model, TOKENIZER, task, split, batch_size=5), expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
    assert evaluate(model, TOKENIZER, task, split) == pytest.approx(task.score(np.array(expected), split.labels))


def test_a_head_that_is_missing_or_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"predict: a BertModel has no classification head, which task"):
        evaluate(bert(**WORDS), TOKENIZER, DATA.task, DATA.test)
    with pytest.raises(ValueError, match=r"predict: the model has 2 labels, task 'mnli' 3; load it with"):
        predict(classifier(), TOKENIZER, get_task("mnli"), DATA.test)
    with pytest.raises(ValueError, match=r"predict: the model has 2 labels, task 'stsb' 1"):
        predict(classifier(), TOKENIZER, get_task("stsb"), pairs())


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_mode_alone(training):
    model = classifier(hidden_dropout_prob=0.9).train(training)
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    first = predict(model, TOKENIZER, DATA.task, DATA.test)
    assert predict(model, TOKENIZER, DATA.task, DATA.test).tolist() == first.tolist()
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError):
        predict(model, TOKENIZER, DATA.task, Split((("a", "b"), ("a",)), np.zeros(2)))
    assert [module.training for module in model.modules()] == modes


def test_long_texts_are_cut():
    model = classifier()
    long = Split((("the dog " * 200,),), np.array([1]))
    assert predict(model, TOKENIZER, DATA.task, long, max_length=16).shape == (1,)
    (batch,) = token_batches(model, TOKENIZER, long.texts, max_length=16)
    assert batch["input_ids"].shape == (1, 16)


def test_token_types_only_for_pairs():
    for model in (classifier(), bert(**WORDS)):
        (single,) = token_batches(model, TOKENIZER, [("the dog",), ("a cat sleeps",)])
        assert set(single) == {"input_ids", "attention_mask"}
        assert single["attention_mask"].sum(1).tolist() == [4, 5]
        (double,) = token_batches(model, TOKENIZER, [("the dog", "the cat")])
        assert double["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


# --- heads and folders


@pytest.mark.parametrize(("build", "prefix"), [(albert, "albert"), (bert, "bert")])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_head_is_put_on_a_bare_model(build, prefix, compressed):
    model = build(**WORDS)
    if compressed:
        compress(model, MPOConfig(ratio=0.5))
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    headed = with_head(model, PAIRS, seed=5)
    assert getattr(headed, prefix) is model
    assert headed.num_labels == headed.classifier.out_features == 1
    assert headed.config.problem_type == "regression"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    twin = with_head(build(**WORDS), PAIRS, seed=5)
    assert torch.equal(twin.classifier.weight, headed.classifier.weight)
    assert not torch.equal(with_head(build(**WORDS), PAIRS, seed=6).classifier.weight, twin.classifier.weight)
    assert with_head(headed, PAIRS) is headed


def test_a_head_of_another_size_is_not_replaced():
    with pytest.raises(ValueError, match=r"model: its head has 2 labels, task 'pairs' 1; start from a model without"):
        with_head(classifier(), PAIRS)


def test_a_model_is_opened_as_what_it_was_saved_as(tmp_path):
    for model in (bert(**WORDS), classifier(), albert("AlbertForSequenceClassification", num_labels=3, **WORDS)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        opened = open_model(folder)
        assert type(opened) is type(model)
        assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
        assert open_tokenizer(folder)("the dogs sleep")["input_ids"] == TOKENIZER("the dogs sleep")["input_ids"]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: bert("BertForMaskedLM", **WORDS), "BertModel"),
        (lambda: bert("BertForTokenClassification", **WORDS), "BertForTokenClassification"),
        (lambda: family("bart", "BartForConditionalGeneration"), "BartForConditionalGeneration"),
    ],
)
def test_a_head_is_kept_but_that_of_the_pre_training(model, kind, tmp_path):
    model().save_pretrained(tmp_path)
    assert type(open_model(tmp_path)).__name__ == kind
    assert type(open_model(tmp_path, as_stored=True)) is type(model())


def test_a_file_names_classes_of_models_alone(tmp_path):
    bert(**WORDS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertTokenizer"]}))
    assert type(open_model(tmp_path)).__name__ == "BertModel"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForTokenClassification"])
def test_another_head_gives_way_to_that_of_the_task(kind, compressed, tmp_path):
    model = bert(kind, **WORDS)
    if compressed:
        compress(model, MPOConfig(ratio=0.7, shape="low_rank"))
    expected = answer(model.base_model)
    headed = with_head(model, PAIRS)
    assert type(headed).__name__ == "BertForSequenceClassification"
    assert torch.equal(answer(headed.base_model), expected)
    assert headed(**batch()).logits.shape == (4, 1)
    headed.save_pretrained(tmp_path)
    again = type(headed).from_pretrained(tmp_path)
    assert torch.equal(answer(again), answer(headed))
    predicted = predict(bert(kind, **WORDS), TOKENIZER, PAIRS, pairs())  # cosines need vectors, which no head gives
    assert predicted.shape == (len(pairs()),)


def test_a_head_that_names_the_classes_in_another_order_is_read_by_its_names():
    """Trained, scored and answered alike, whatever its order and capitals; other names are taken to be in order."""
    task = Task("order", ("sentence",), 2, "f1", classes=("no", "yes"))
    scores = {}
    for names in (("no", "yes"), ("YES", "NO"), ("LABEL_0", "LABEL_1")):
        model = classifier()
        model.config.id2label = dict(enumerate(names))
        with torch.no_grad():
            if names[0] == "YES":  # the same head, its outputs in the other order
                for parameter in model.classifier.parameters():
                    parameter.copy_(parameter.flip(0))
        before = predict(model, TOKENIZER, task, DATA.train)
        log = train(model, task, hold_out=8)
        after = predict(model, TOKENIZER, task, DATA.train)
        scores[names] = (before.tolist(), after.tolist(), log.held_out)
    first, *others = scores.values()
    assert first[0] != first[1]
    assert all(other == first for other in others)


def test_a_folder_without_a_model_or_tokenizer_is_refused(tmp_path):
    for name in (tmp_path / "missing", tmp_path, str(tmp_path / "missing")):
        with pytest.raises(ValueError, match=rf"model: {Path(name)} is neither a folder with a model.*: [^\n]*$"):
            open_model(name)
        with pytest.raises(ValueError, match=rf"model: {Path(name)} has no tokenizer beside it: [^\n]*$"):
            open_tokenizer(name)


# --- what is set aside, a teacher, several seeds


def test_examples_that_are_set_aside_are_not_trained_on_and_are_scored():
    model = classifier()
    log = train(model, hold_out=16, seed=5)
    _, held_out = DATA.train.hold_out(16, 5)
    assert log.held_out == pytest.approx(evaluate(model, TOKENIZER, DATA.task, held_out))
    rest, _ = DATA.train.hold_out(16, 5)
    alone = classifier()
    assert train(alone, split=rest, seed=5).held_out is None
    assert all(torch.equal(value, values(alone)[name]) for name, value in values(model).items())


def worsening():
    """Memorises wrong labels, so that after a while the examples set aside are scored worse and worse."""
    rest, held_out = DATA.train.hold_out(16, 0)
    return Split(rest.texts, 1 - rest.labels), held_out


class Scores(TrainerCallback):
    def __init__(self):
        self.seen = {}

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.seen.setdefault(state.global_step, metrics["eval_score"])


def test_a_run_stops_early_and_leaves_the_best_model(tmp_path):
    model = classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    compress(model, MPOConfig())
    freeze_central(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    frozen = {id(p): p.clone() for p in model.parameters() if not p.requires_grad}
    rest, held_out = worsening()
    scores = Scores()
    options = {"steps": 60, "save_steps": 2, "early_stop": 2, "hold_out": held_out, "callbacks": [scores], "seed": 4}
    log = train(model, split=rest, folder=tmp_path, **options)
    assert log.steps == max(scores.seen) < 60
    best = max(scores.seen.values())
    assert list(scores.seen.values()).index(best) == len(scores.seen) - 3
    assert log.held_out == best == evaluate(model, TOKENIZER, DATA.task, held_out)
    assert scores.seen[log.steps] < best
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert frozen
    assert all(torch.equal(p, frozen[id(p)]) for p in model.parameters() if id(p) in frozen)


def test_an_interrupted_run_stops_early_where_the_whole_one_does(tmp_path):
    def run(folder, *callbacks):
        model = classifier()
        rest, held_out = worsening()
        options = {"steps": 60, "save_steps": 2, "early_stop": 3, "hold_out": held_out, "callbacks": callbacks}
        return train(model, split=rest, folder=folder, **options), model

    whole, expected = run(tmp_path / "whole")
    assert whole.steps < 60
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Interrupt(whole.steps - 1))
    log, model = run(tmp_path / "broken")
    assert log.steps == whole.steps
    assert log.held_out == whole.held_out
    assert all(torch.equal(value, values(expected)[name]) for name, value in values(model).items())


def test_a_tenth_decides_where_nothing_is_said():
    scores = Scores()
    train(classifier(), steps=3, save_steps=1, early_stop=1, callbacks=[scores])
    assert {round(4 * score, 6) % 1 for score in scores.seen.values()} == {0.0}  # of four examples


def test_early_stopping_that_cannot_happen_is_refused():
    with pytest.raises(ValueError, match=r"early_stop: got 0, expected a positive number of evaluations"):
        train(classifier(), early_stop=0)
    with pytest.raises(ValueError, match=r"early_stop: with save_steps 500 of 4 steps only the last is evaluated"):
        train(classifier(), early_stop=1)


def test_several_processes_need_a_shared_folder(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"early_stop: several processes load the best model from one place; pass"):
        train(classifier(), early_stop=1, save_steps=1)


def test_a_teacher_heals_a_regression_and_a_classification():
    for task, split, dense in (
        (DATA.task, DATA.train, classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
        (PAIRS, pairs(), with_head(bert(**WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), PAIRS)),
    ):
        right = predict(dense, TOKENIZER, task, split)
        model = copy.deepcopy(dense)
        compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
        freeze_central(model)

        def distance(model=model, task=task, split=split, right=right):
            return np.mean(np.square(predict(model, TOKENIZER, task, split) - right))

        before = distance()
        # its labels are the teacher's answers, so both parts of the loss draw one way
        train(model, task, Split(split.texts, right), steps=60, teacher=dense, learning_rate=1e-2)
        assert distance() < 0.5 * before


def test_a_model_without_a_head_learns_its_teachers_vectors_sentence_by_sentence():
    dense = bert(**WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = copy.deepcopy(dense)
    compress(model, MPOConfig(ratio=0.4, shape="low_rank"))
    freeze_central(model)
    task, split = get_task("stsb"), pairs()

    def distance():
        vectors = []
        for network in (model, dense):
            (batch,) = token_batches(network, TOKENIZER, [(text,) for texts in split.texts for text in texts])
            with torch.no_grad():
                vectors.append(masked_mean(network.eval()(**batch).last_hidden_state, batch["attention_mask"]))
        return torch.nn.functional.mse_loss(*vectors).item()

    before = distance()
    scores = Steps()
    options = {"hold_out": 4, "early_stop": 20, "save_steps": 20, "callbacks": [scores]}
    log = train(model, task, split, steps=60, teacher=dense, **options)
    assert distance() < 0.3 * before
    assert 0 < log.held_out < before
    assert scores.seen == list(range(1, 61))
    with pytest.raises(ValueError, match=r"model: a BertModel has no head for task 'stsb'; load it with one, or pass"):
        train(model, task, split)


def test_several_seeds_are_scored_on_dev_once_each():
    data = TaskData(DATA.task, DATA.train, DATA.test)
    made, left = [], {}

    def make(seed):
        made.append(seed)
        return classifier(seed)

    options = {"steps": 3, "learning_rate": 1e-2, "batch_size": 8, "progress": False}
    result = finetune_seeds(
        make, TOKENIZER, data, seeds=[3, 1], on_model=lambda seed, model, log: left.update({seed: model}), **options
    )
    assert made == list(result.scores) == list(left) == [3, 1]
    for seed in (3, 1):
        alone = classifier(seed)
        train(alone, steps=3, seed=seed)
        assert result.scores[seed] == evaluate(alone, TOKENIZER, DATA.task, DATA.test)
        assert all(torch.equal(value, values(alone)[name]) for name, value in values(left[seed]).items())
    found = [result.scores[3], result.scores[1]]
    assert result.mean == pytest.approx(statistics.mean(found))
    assert result.deviation == pytest.approx(statistics.stdev(found))
    record = json.loads(json.dumps(result.to_dict()))
    assert record == {
        "task": DATA.task.name,
        "split": "dev",
        "metric": "accuracy",
        "examples": len(DATA.test),
        "seeds": [3, 1],
        "scores": found,
        "mean": result.mean,
        "deviation": result.deviation,
        "settings": options,
    }
    assert f"{result.mean:.4f}" in str(result)
    assert len(str(result).splitlines()) == 6


def test_what_was_held_out_of_train_decides_for_every_seed(tmp_path):
    rest, chooser = DATA.train.hold_out(16, 7)
    data = TaskData(DATA.task, rest, DATA.test, validation=chooser)
    scores = []

    def compare(seed, model, log):
        scores.append((log.held_out, evaluate(model, TOKENIZER, data.task, chooser)))

    options = {"steps": 4, "learning_rate": 1e-2, "batch_size": 8, "progress": False, "early_stop": 1, "save_steps": 2}
    result = finetune_seeds(
        classifier,
        TOKENIZER,
        data,
        seeds=[0, 1],
        folder=tmp_path,
        on_model=compare,
        **options,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    assert result.settings == options
    assert len(scores) == 2
    assert all(reported == again for reported, again in scores)


def test_a_single_seed_has_no_deviation_and_none_or_two_alike_are_refused():
    single = SeedScores("sst2", "dev", "accuracy", 10, {4: 0.5})
    assert single.deviation is None
    assert single.mean == 0.5
    assert "dev." not in str(single)
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match=r"seeds: got \[.*\], expected different integers such as \[0, 1, 2\]"):
            finetune_seeds(classifier, TOKENIZER, TaskData(DATA.task, DATA.train, DATA.test), seeds=seeds)


def test_trainable_parameters_are_printed_in_pefts_words(capsys):
    model = classifier()
    compress(model, MPOConfig(ratio=0.6, shape="low_rank"))
    freeze_central(model)
    print_trainable_parameters(model)
    report = parameter_report(model)
    share = 100 * report.trainable / report.total
    assert capsys.readouterr().out == (
        f"trainable params: {report.trainable:,} || all params: {report.total:,} || trainable%: {share:.4f}\n"
    )
