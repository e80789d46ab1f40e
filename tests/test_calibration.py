"""calibrate against the covariances and counts that a dense oracle finds."""

from __future__ import annotations

import pytest
import torch
from tiny import albert, answer, batch, bert
from tnmpo.integrations.transformers import Calibration, MPOConfig, calibrate, compress
from torch import nn

WORDS = "embeddings.word_embeddings"


def inputs_of(model, name, inputs):
    """What flows into a module, every application one after another."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen


def covariance(model, name, batches):
    rows = []
    for inputs in batches:
        for x in inputs_of(model, name, inputs):
            keep = inputs["attention_mask"].bool() if x.ndim == 3 else slice(None)
            rows.append(x[keep].double())
    rows = torch.cat(rows)
    return rows.T @ rows / len(rows)


def same_ids():
    return [batch(0), batch(1, size=3, length=5)]


@pytest.mark.parametrize("build", [albert, bert])
def test_covariances_are_those_of_the_positions_that_are_no_padding(build):
    model = build()
    calibration = calibrate(model, same_ids())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert set(calibration.covariances) == set(names)
    for name in names:
        expected = covariance(model, name, same_ids())
        found = calibration.covariances[name]
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(calibration.weight(name).cols, found)
        assert calibration.weight(name).rows is None


def test_covariances_are_as_exact_as_the_numbers_that_flow():
    model = bert()
    calibration = calibrate(model, [batch(0, size=2)])  # fewer positions than features: no variance in some directions
    for name in ("encoder.layer.0.output.dense", "encoder.layer.1.output.dense"):
        expected = covariance(model, name, [batch(0, size=2)])
        found = calibration.covariances[name]
        assert torch.linalg.matrix_rank(expected) < len(expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 * float(expected.max()))
        assert torch.linalg.eigvalsh(found)[0] > -1e-14 * torch.linalg.eigvalsh(found)[-1]


def test_what_stands_on_padding_changes_nothing():
    model = bert()
    clean, dirty = batch(), batch()
    dirty["input_ids"] = torch.where(dirty["attention_mask"].bool(), dirty["input_ids"], 7)
    clean["input_ids"] = torch.where(clean["attention_mask"].bool(), clean["input_ids"], 0)
    ours, theirs = calibrate(model, [clean]), calibrate(model, [dirty])
    for name, found in ours.covariances.items():
        torch.testing.assert_close(found, theirs.covariances[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.token_counts[WORDS], theirs.token_counts[WORDS])


def test_without_a_mask_every_position_counts():
    model = bert()
    inputs = {"input_ids": batch()["input_ids"]}
    calibration = calibrate(model, [inputs])
    (x,) = inputs_of(model, "encoder.layer.1.intermediate.dense", inputs)
    rows = x.reshape(-1, x.shape[-1]).double()
    torch.testing.assert_close(
        calibration.covariances["encoder.layer.1.intermediate.dense"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5
    )
    assert calibration.token_counts[WORDS].sum() == inputs["input_ids"].numel()


def test_a_shared_layer_sums_over_all_its_applications():
    model = albert(num_hidden_layers=4)
    name = "encoder.albert_layer_groups.0.albert_layers.0.ffn"
    assert len(inputs_of(model, name, batch())) == 4
    found = calibrate(model, [batch()]).covariances[name]
    torch.testing.assert_close(found, covariance(model, name, [batch()]), rtol=1e-4, atol=1e-5)
    only_first = calibrate(albert(num_hidden_layers=1), [batch()]).covariances[name]
    assert not torch.allclose(found, only_first, rtol=1e-2)


def test_modules_that_share_their_input_share_one_weight():
    calibration = calibrate(bert(), same_ids())
    layer = "encoder.layer.{}.attention.self.{}"
    first = [calibration.weight(layer.format(0, name)) for name in ("query", "key", "value")]
    second = [calibration.weight(layer.format(1, name)) for name in ("query", "key", "value")]
    assert first[0] is first[1] is first[2]
    assert second[0] is second[1] is second[2]
    assert first[0] is not second[0]
    assert calibration.weight(layer.format(0, "query")) is first[0]


def test_token_counts():
    model = bert()
    calibration = calibrate(model, same_ids())
    expected = torch.zeros(61, dtype=torch.float64)
    for inputs in same_ids():
        for token in inputs["input_ids"][inputs["attention_mask"].bool()].tolist():
            expected[token] += 1
    assert calibration.input_embedding == WORDS
    assert torch.equal(calibration.token_counts[WORDS], expected)
    weight = calibration.weight(WORDS)
    assert weight.cols is None
    assert torch.equal(weight.rows, expected + 0.5)
    types = calibration.token_counts["embeddings.token_type_embeddings"]
    assert types.tolist() == [float(expected.sum()), 0.0]


def test_count_tokens_adds_in_place():
    model = albert()
    calibration = calibrate(model, same_ids())
    before = calibration.token_counts[WORDS].clone()
    old = calibration.weight(WORDS)
    more = {"input_ids": torch.tensor([[5, 5, 9], [5, 2, 2]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    assert calibration.count_tokens(iter([more, {"input_ids": torch.tensor([9])}])) is calibration
    added = calibration.token_counts[WORDS] - before
    assert {token: count for token, count in enumerate(added.tolist()) if count} == {5: 3.0, 9: 2.0}
    assert torch.equal(calibration.weight(WORDS).rows, before + added + 0.5)
    assert torch.equal(old.rows, before + 0.5)


def test_counting_needs_an_input_embedding_and_ids():
    model = albert()
    with pytest.raises(ValueError, match=r"count_tokens: got a batch with \['ids'\], expected 'input_ids'"):
        calibrate(model, [batch()]).count_tokens([{"ids": torch.ones(1)}])
    for wrong in (-1, 60):
        with pytest.raises(ValueError, match=r"batches: got an id outside 0 \.\. 59, the vocabulary"):
            calibrate(model, [batch()]).count_tokens([{"input_ids": torch.tensor([3, wrong])}])
    torch.manual_seed(0)

    class Plain(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    calibration = calibrate(Plain(nn.Linear(3, 4)), [{"x": torch.randn(5, 3)}])
    assert list(calibration.covariances) == ["0"]
    with pytest.raises(ValueError, match=r"count_tokens: this calibration saw no input embedding"):
        calibration.count_tokens([batch()])


def test_nothing_is_known_of_a_module_that_did_not_run():
    model = bert("BertForMaskedLM")
    model.odd = nn.Linear(3, 3)
    calibration = calibrate(model, [batch()])
    assert calibration.weight("odd") is None
    assert calibration.weight("no such module") is None
    assert calibration.weight("cls.predictions.decoder").cols.shape == (12, 12)


def test_compressed_layers_are_calibrated_like_dense_ones():
    model = bert()
    dense = calibrate(model, same_ids())
    compress(model, MPOConfig())
    compressed = calibrate(model, same_ids())
    assert set(compressed.covariances) == set(dense.covariances)
    for name, found in compressed.covariances.items():
        torch.testing.assert_close(found, dense.covariances[name], rtol=1e-3, atol=1e-4)
    assert torch.equal(compressed.token_counts[WORDS], dense.token_counts[WORDS])


# --- batches


def test_a_generator_is_consumed_once_and_kept():
    taken = []

    def generate():
        for inputs in same_ids():
            taken.append(1)
            yield inputs

    calibration = calibrate(bert(), generate())
    assert len(taken) == 2
    assert len(calibration.batches) == 2
    for kept, inputs in zip(calibration.batches, same_ids(), strict=True):
        assert set(kept) == set(inputs)
        assert all(torch.equal(kept[key], inputs[key]) and kept[key].device.type == "cpu" for key in inputs)


def test_labels_and_what_is_no_tensor_are_left_out():
    inputs = {**batch(), "labels": torch.tensor([99, 0, 1, 0]), "texts": ["a", "b", "c", "d"]}
    calibration = calibrate(bert("BertForSequenceClassification"), [inputs])  # label 99 would be refused
    assert set(calibration.batches[0]) == {"input_ids", "attention_mask"}
    assert set(inputs) == {"input_ids", "attention_mask", "labels", "texts"}


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, r"batches: got none, expected at least one tokenised batch"),
        (iter(()), ValueError, r"batches: got none"),
        ([torch.ones(2, 3)], TypeError, r"batches: got a Tensor, expected dicts of tensors"),
        (["a text"], TypeError, r"batches: got a str, expected dicts of tensors"),
        ([{"input_ids": [1, 2]}], ValueError, r"batches: got a batch with \['input_ids'\] and no tensors"),
        ([{"labels": torch.ones(2)}], ValueError, r"batches: got a batch with \['labels'\] and no tensors"),
    ],
)
def test_bad_batches(batches, error, message):
    with pytest.raises(error, match=message):
        calibrate(bert(), batches)


# --- the model is left as it was


def hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_mode_are_put_back(training):
    model = bert().train(training)
    model.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, same_ids())
    assert hooks(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_mode_are_put_back_after_an_error(training):
    model = bert().train(training)
    with pytest.raises(ValueError, match=r"batches: got an id outside 0 \.\. 60, the vocabulary; check the tokenizer"):
        calibrate(model, [batch(), {"input_ids": torch.tensor([[1, 99]])}])
    assert hooks(model) == 0
    assert all(module.training is training for module in model.modules())


def test_dropout_is_off_while_calibrating():
    model = bert(hidden_dropout_prob=0.9, attention_probs_dropout_prob=0.9)
    expected = calibrate(model, [batch()]).covariances
    found = calibrate(model.train(), [batch()]).covariances
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_calibrating_changes_no_output():
    model = albert()
    expected = answer(model)
    calibration = calibrate(model, same_ids())
    assert isinstance(calibration, Calibration)
    assert torch.equal(answer(model), expected)


def test_inputs_may_be_given_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(6, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.linear(input=self.table(input=ids))

    torch.manual_seed(0)
    model = ByName()
    calibration = calibrate(model, [{"ids": torch.tensor([[1, 5, 1]])}])
    assert calibration.token_counts["table"].tolist() == [0, 2, 0, 0, 0, 1]
    rows = model.table.weight[[1, 5, 1]].detach().double()
    torch.testing.assert_close(calibration.covariances["linear"], rows.T @ rows / 3, rtol=1e-5, atol=1e-6)
