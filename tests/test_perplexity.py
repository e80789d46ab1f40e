"""Perplexity against the same number computed by hand, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from tiny import bert, build
from tnmpo.integrations.transformers import MPOConfig, compress, merge
from tnmpo.integrations.transformers.perplexity import evaluate_perplexity, perplexity
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{k}": k for k in range(3, 40)}}
POSITIONS = 24


def tokenizer(template: str = "$A"):
    """One token a word; ``template`` says what is added, as Llama's tokenizer begins with a token and GPT-2's not."""
    fast = Tokenizer(WordLevel(WORDS, unk_token="<pad>"))
    fast.pre_tokenizer = WhitespaceSplit()
    fast.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )


def text(n: int, seed: int = 0) -> str:
    ids = torch.randint(3, 40, (n,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{k}" for k in ids.tolist())


def llama(seed: int = 0):
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
    )
    return build("LlamaForCausalLM", config, seed)


def gpt2(seed: int = 0):
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    return build("GPT2LMHeadModel", config, seed)


@torch.no_grad()
def by_hand(model, sequences, max_length, stride):
    """The loss of every token, each given the tokens of the window that it falls into first, without padding."""
    losses = []
    for ids in sequences:
        for position in range(1, len(ids)):
            start = 0
            while start + max_length <= position:  # the first window that holds the token
                start += stride
            logits = model(input_ids=torch.tensor([ids[start:position]])).logits[0, -1].double()
            losses.append(float(torch.logsumexp(logits, 0) - logits[ids[position]]))
    return losses


MODELS = pytest.mark.parametrize("make", [llama, gpt2])


@MODELS
@pytest.mark.parametrize(("max_length", "stride"), [(8, 4), (8, 7), (8, 1), (8, 3), (24, 12), (2, 1)])
def test_every_token_is_scored_once_in_its_window(make, max_length, stride):
    model, texts = make(), [text(23), text(8, 1), text(2, 2), text(9, 3)]
    sequences = [tokenizer()(entry)["input_ids"] for entry in texts]
    losses = by_hand(model, sequences, max_length, stride)
    result = evaluate_perplexity(model, tokenizer(), texts, max_length=max_length, stride=stride)
    assert (result.n_tokens, result.n_texts) == (len(losses), 4)
    assert result.n_tokens == 23 + 8 + 2 + 9 - 4
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert perplexity(model, tokenizer(), texts, max_length=max_length, stride=stride) == math.exp(result.loss)


@MODELS
def test_a_text_within_one_window_has_the_loss_of_transformers(make):
    model, ids = make(), tokenizer()(text(20), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert evaluate_perplexity(model, tokenizer(), [text(20)]).loss == pytest.approx(loss, rel=1e-5)


@MODELS
def test_the_windows_are_those_of_transformers_documentation(make):
    model, ids, max_length, stride = make(), tokenizer()(text(45), return_tensors="pt")["input_ids"], 16, 5
    total = count = end_before = 0
    for begin in range(0, 45, stride):
        end = min(begin + max_length, 45)
        target = ids[:, begin:end].clone()
        target[:, : -(end - end_before)] = -100
        with torch.no_grad():
            loss = float(model(ids[:, begin:end], labels=target).loss)
        valid = int((target != -100).sum()) - (1 if begin == 0 else 0)  # nothing predicts the first token
        total, count, end_before = total + loss * valid, count + valid, end
        if end == 45:
            break
    result = evaluate_perplexity(model, tokenizer(), [text(45)], max_length=max_length, stride=stride)
    assert result.n_tokens == count == 44
    assert result.loss == pytest.approx(total / count, rel=1e-5)


@MODELS
def test_batches_and_padding_change_nothing(make):
    model, texts = make(), [text(n, n) for n in (3, 24, 11, 2, 17)]
    one, *others = (
        evaluate_perplexity(model, tokenizer(), texts, max_length=10, stride=5, batch_size=size).loss
        for size in (1, 2, 3, 50)
    )
    assert others == pytest.approx([one] * 3, rel=1e-5)


def test_a_token_at_the_beginning_is_context_and_one_at_the_end_is_scored():
    model, sentence = llama(), text(6)
    plain, begun, ended = (
        evaluate_perplexity(model, tokenizer(template), [sentence]) for template in ("$A", "<s> $A", "<s> $A </s>")
    )
    assert (plain.n_tokens, begun.n_tokens, ended.n_tokens) == (5, 6, 7)
    ids = tokenizer("<s> $A </s>")(sentence)["input_ids"]
    losses = by_hand(model, [ids], POSITIONS, 1)
    assert begun.loss == pytest.approx(sum(losses[:6]) / 6, rel=1e-5)
    assert ended.loss == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_texts_know_nothing_of_each_other():
    model, texts = llama(), [text(9, 1), text(12, 2)]
    parts = [evaluate_perplexity(model, tokenizer(), [entry]) for entry in texts]
    mean = sum(part.loss * part.n_tokens for part in parts) / sum(part.n_tokens for part in parts)
    assert evaluate_perplexity(model, tokenizer(), texts).loss == pytest.approx(mean, rel=1e-5)


def test_a_file_is_one_text(tmp_path):
    model, path = llama(), tmp_path / "text.txt"
    path.write_text(text(10, 1) + "\n\n" + text(30, 2) + "\n")
    result = evaluate_perplexity(model, tokenizer(), path)
    assert (result.n_tokens, result.n_texts) == (39, 1)
    assert result == evaluate_perplexity(model, tokenizer(), [text(10, 1) + " " + text(30, 2)])


def test_the_mode_of_the_model_is_kept_and_dropout_is_off():
    model = build("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1), 0).train()
    losses = [perplexity(model, tokenizer(), [text(20)]) for _ in range(2)]
    assert losses[0] == losses[1]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{}, {"ratio": 0.5, "shape": "low_rank"}, {"ratio": 0.6, "shape": "interleaved"}])
def test_a_compressed_model_scores_as_its_merged_one(settings):
    model, texts = llama(), [text(23, 1), text(40, 2)]
    dense = perplexity(model, tokenizer(), texts)
    compress(model, MPOConfig(target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], **settings))
    compressed = perplexity(model, tokenizer(), texts)
    merge(model)
    assert compressed == pytest.approx(perplexity(model, tokenizer(), texts), rel=1e-5)
    assert (compressed == pytest.approx(dense, rel=1e-4)) is (not settings)


def test_the_result_is_printed_and_has_plain_values():
    result = evaluate_perplexity(llama(), tokenizer(), [text(30)])
    assert result.to_dict() == {
        "perplexity": result.perplexity,
        "loss": result.loss,
        "n_tokens": 29,
        "n_texts": 1,
        "max_length": POSITIONS,
        "stride": POSITIONS // 2,
    }
    assert str(result).startswith(f"perplexity {result.perplexity:.4f} (")
    assert str(result).endswith("over 29 tokens of 1 texts; windows of 24, stride 12")


def test_a_loss_beyond_all_numbers_is_infinite():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    result = evaluate_perplexity(model, tokenizer(), [text(30)])
    assert result.loss > 1000
    assert result.perplexity == math.inf


# --- what is refused


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_a_model_without_a_causal_head_is_refused(kind):
    with pytest.raises(TypeError, match=r"model: got a Bert\w+, which has no causal language-modelling head; load it"):
        perplexity(bert(kind), tokenizer(), [text(5)])


def test_an_encoder_that_sees_both_sides_is_refused_and_a_decoder_is_not():
    with pytest.raises(ValueError, match=r"got a BertLMHeadModel whose tokens see those after them; load it with is_d"):
        perplexity(bert("BertLMHeadModel"), tokenizer(), [text(5)])
    model = bert("BertLMHeadModel", is_decoder=True)
    losses = by_hand(model, [tokenizer()(text(20))["input_ids"]], 10, 5)
    result = evaluate_perplexity(model, tokenizer(), [text(20)], max_length=10, stride=5)
    assert result.loss == pytest.approx(sum(losses) / 19, rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, r"texts: got an empty list, expected at least one text"),
        (["w3 w4", " \n"], ValueError, r"texts\[1\]: is empty; leave it out"),
        (["w3"], ValueError, r"texts: none has two tokens, so there is nothing to predict"),
        ("w3 w4", TypeError, r"texts: got str, expected a list of texts, or a pathlib.Path of a file"),
        ([3], TypeError, r"texts\[0\]: got int, expected str"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(texts, error, message):
    with pytest.raises(error, match=message):
        perplexity(llama(), tokenizer(), texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 25}, r"max_length: got 25, expected 2 to 24, the model's positions"),
        ({"max_length": 1}, r"max_length: got 1, expected 2 to 24"),
        ({"max_length": 8, "stride": 8}, r"stride: got 8, expected 1 to 7, less than max_length"),
        ({"stride": 0}, r"stride: got 0, expected 1 to 23"),
        ({"batch_size": 0}, r"batch_size: got 0, expected a positive integer"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        perplexity(llama(), tokenizer(), [text(5)], **settings)
