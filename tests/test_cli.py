"""The commands of ``tnmpo`` on a tiny BERT and a tiny task in GLUE's layout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from tiny import bert
from tnmpo.integrations.transformers import load
from tnmpo.integrations.transformers.acceptability import acceptability_task, word_tokenizer
from tnmpo.integrations.transformers.checkpoint import is_checkpoint
from tnmpo.integrations.transformers.cli import app
from tnmpo.integrations.transformers.evaluation import evaluate
from tnmpo.integrations.transformers.models import open_model
from tnmpo.integrations.transformers.targets import mpo_layers
from tnmpo.integrations.transformers.tasks import load_task
from typer.testing import CliRunner

TOKENIZER = word_tokenizer()
DEVICE = re.compile(r"tnmpo on (cpu \(threads: \d+\), float32|cuda \(.*\), bfloat16)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model with its tokenizer in ``model``, SST-2 and STS-B beside it."""
    root = tmp_path_factory.mktemp("cli")
    model = bert(vocab_size=len(TOKENIZER))
    model.save_pretrained(root / "model")
    TOKENIZER.save_pretrained(root / "model")
    data = acceptability_task(n_train=64, n_validation=32, n_test=2)
    (root / "glue" / "SST-2").mkdir(parents=True)
    (root / "glue" / "STS-B").mkdir()
    for name, split in (("train", data.train), ("dev", data.validation)):
        rows = [f"{text}\t{label}" for (text,), label in zip(split.texts, split.labels, strict=True)]
        lines = "\n".join(["sentence\tlabel", *rows])
        (root / "glue" / "SST-2" / f"{name}.tsv").write_text(lines + "\n", encoding="utf-8")
        pairs = zip(split.texts, split.texts[1:], range(len(split) - 1), strict=False)
        rows = [f"{a}\t{b}\t{k % 6}" for (a,), (b,), k in pairs]
        lines = "\n".join(["sentence1\tsentence2\tscore", *rows])
        (root / "glue" / "STS-B" / f"{name}.tsv").write_text(lines + "\n", encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def quiet():
    """The commands silence transformers for their process, which here is that of all tests."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert DEVICE.fullmatch(lines[0])
    return lines


def on_glue(folder, task="sst2"):
    return "--task", task, "--data-dir", folder / "glue"


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def dev_score(model, folder, task="sst2"):
    data = load_task(task, folder / "glue")
    return evaluate(model, TOKENIZER, data.task, data.dev)


@pytest.fixture(scope="module")
def small(folder):
    """The model compressed with calibration, made by the command itself."""
    output = folder / "small"
    result = call("compress", folder / "model", output, "--ratio", 0.6, *on_glue(folder), "--examples", 20)
    assert result.exit_code == 0, result.output
    return output, result.stdout


def test_compress(folder, small):
    output, text = small
    model = load(output)
    assert len(list(mpo_layers(model))) == 14
    report = read(output / "compression.json")
    assert report["ratio"] <= 0.6
    assert report["model_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(report["modules"]) == 14
    assert all(module["weighted"] or module["relative_error"] == 0 for module in report["modules"])
    lines = text.splitlines()
    assert DEVICE.fullmatch(lines[0])
    assert lines[1].split()[:2] == ["module", "weight"]
    assert f"kept {report['parameters']:,} of {report['dense_parameters']:,} parameters" in text
    assert lines[-1] == f"saved in {output}"
    assert not any(path.name.startswith(".") for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "count", "kind"),
    [
        ((), 14, "interleaved"),
        (("--rank", 3, "--shape", "interleaved", "--order", 3), 14, "interleaved"),
        (("--tol", 0.2, "--shape", "low_rank", "--target", "query", "--target", "key"), 4, None),
        (("--ratio", 0.5, "--target", r".*\.1\..*\.(query|key)", "--shape", "low_rank"), 2, "low-rank"),
        (("--ratio", 0.5, "--target", "attention.self.query", "--shape", "low_rank"), 2, "low-rank"),
        (("--ratio", 0.5, "--exclude", "word_embeddings", "--allot", "module"), 13, None),
    ],
)
def test_options_of_compress(folder, options, count, kind, tmp_path):
    run("compress", folder / "model", tmp_path / "out", *options)
    modules = read(tmp_path / "out" / "compression.json")["modules"]
    assert len(modules) == count
    if kind is not None:
        assert {module["kind"] for module in modules} == {kind}
    if "--order" in options:
        assert {len(module["ranks"]) for module in modules} == {4}


def test_lossless_compression_keeps_the_score(folder, tmp_path):
    run("compress", folder / "model", tmp_path / "out")
    dense = run("evaluate", folder / "model", *on_glue(folder, "stsb"))[-1]
    mpo = run("evaluate", tmp_path / "out", *on_glue(folder, "stsb"))[-1]
    assert dense.endswith("0 MPO weights")
    assert mpo.endswith("14 MPO weights")
    assert dense.startswith("stsb dev (31 examples), spearman ")
    score = dev_score(open_model(folder / "model"), folder, "stsb")
    assert f"spearman {score:.4f} (cosine of mean token vectors)" in dense
    assert float(re.search(r"spearman (\S+)", mpo)[1]) == pytest.approx(score, abs=0.01)


def test_finetune_lightly_then_squeeze_and_evaluate(folder, small, tmp_path):
    tuned, squeezed = tmp_path / "tuned", tmp_path / "squeezed"
    lines = run("finetune", small[0], tuned, *on_glue(folder), "--steps", 3, "--batch-size", 8, "--lfa", "--seed", 7)
    assert any(line.startswith("trainable params: ") for line in lines)
    record = read(tuned / "finetune.json")
    score = dev_score(load(tuned), folder)
    assert record["score"] == pytest.approx(score)
    expected = {"task": "sst2", "metric": "accuracy", "split": "dev", "seed": 7, "steps": 3, "batch_size": 8}
    assert expected.items() <= record.items()
    assert record["trained_parameters"] < record["parameters"]
    assert f"sst2 dev (32 examples), accuracy {score:.4f}; seed 7, 3 steps of 8" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]  # no checkpoints of the run

    before = {name: layer.weight for name, layer, _ in mpo_layers(load(small[0]))}
    after = {name.removeprefix("bert."): layer for name, layer, _ in mpo_layers(load(tuned))}
    assert set(after) == set(before)
    assert all(len(layer.cores) != 3 for layer in after.values())  # at rest
    assert any((after[name].weight - before[name]).abs().max() > 1e-4 for name in before)

    options = (
        "--max-steps",
        2,
        "--finetune-steps",
        1,
        "--hold-out",
        16,
        "--batch-size",
        8,
        "--max-drop",
        1,
        "--seed",
        7,
    )
    lines = run("squeeze", tuned, squeezed, *on_glue(folder), *options, "--step", 2, "--examples", 8)
    log = read(squeezed / "squeeze.json")
    assert [step["number"] for step in log["steps"]] == [1, 2]
    assert log["stopped"] == "max_steps"
    model = load(squeezed)
    assert sum(layer.mpo.n_parameters for _, layer, _ in mpo_layers(model)) == log["steps"][-1]["parameters"]
    score = dev_score(model, folder)
    assert f"sst2 dev (32 examples), accuracy {score:.4f}; seed 7" in lines[-1]
    assert "decided on 16 held-out training examples" in lines[-1]
    assert sum(line.startswith("step ") and " of at most 2: " in line for line in lines) == 2

    lines = run("evaluate", squeezed, *on_glue(folder))
    assert f"sst2 dev (32 examples), accuracy {score:.4f} (head)" in lines[-1]


def test_finetune_a_dense_model_on_a_regression(folder, tmp_path):
    run("finetune", folder / "model", tmp_path / "out", *on_glue(folder, "stsb"), "--steps", 1, "--batch-size", 4)
    record = read(tmp_path / "out" / "finetune.json")
    assert (record["metric"], record["split"]) == ("spearman", "dev")
    assert record["trained_parameters"] == record["parameters"]
    assert load(tmp_path / "out").config.num_labels == 1


def test_an_interrupted_fine_tuning_ends_in_130_and_goes_on(folder, small, tmp_path, monkeypatch):
    from tnmpo.integrations.transformers import cli

    output = tmp_path / "out"
    train = cli.finetune_model

    def interrupted(*arguments, **settings):
        train(*arguments, **{**settings, "save_steps": 2, "steps": 3})
        raise KeyboardInterrupt

    command = ("finetune", small[0], output, *on_glue(folder), "--steps", 3, "--batch-size", 8)
    monkeypatch.setattr(cli, "finetune_model", interrupted)
    result = call(*command)
    assert result.exit_code == 130
    assert "interrupted; what was saved before is whole" in result.stderr
    assert not output.exists()
    assert list((tmp_path / ".out.training").iterdir())
    monkeypatch.setattr(cli, "finetune_model", train)
    run(*command)
    assert is_checkpoint(output)
    assert not (tmp_path / ".out.training").exists()


# --- what is wrong is said in one sentence


def assert_error(result, message):
    assert result.exit_code == 2, result.output
    assert not isinstance(result.exception, KeyError | AttributeError)
    lines = result.stderr.strip().splitlines()  # progress bars come before
    assert re.match("error: " + message, lines[-1]), result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_task(folder, tmp_path):
    result = call("evaluate", folder / "model", "--task", "sst", "--data-dir", folder / "glue")
    assert_error(result, r"get_task: name is 'sst' \(did you mean '\w+'\?\); pass one of cola, sst2, ")
    for command in ("finetune", "squeeze"):
        assert_error(call(command, folder / "model", tmp_path / "out", "--task", "odd"), "get_task: name is 'odd'")
    assert_error(call("compress", folder / "model", tmp_path / "out", "--task", "odd"), "get_task: name is 'odd'")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_folder(folder, tmp_path):
    missing = tmp_path / "missing"
    for command in (("finetune", folder / "model", tmp_path / "out"), ("evaluate", folder / "model")):
        assert_error(call(*command, "--task", "sst2", "--data-dir", missing), "load_task: data_dir holds no files of")
    assert_error(
        call("evaluate", folder / "model", "--task", "rte", "--data-dir", folder / "glue"), "load_task: .*'rte'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ratio", 1.5), r"ratio: got 1\.5, expected a number in \(0, 1\]"),
        (("--ratio", 0), r"ratio: got 0\.0, expected a number"),
        (("--ratio", 0.001), r"budget: got \d+ parameters, the rank-one size is"),
        (("--ratio", 0.5, "--rank", 3), r"MPOConfig: got ratio and rank, expected at most one budget"),
        (("--shape", "svd"), r"shape: got 'svd', expected one of"),
        (("--shape", "low_rank"), r"MPOConfig: shape='low_rank' without a budget"),
        (("--target", "querry"), r"target_modules: 'querry' matches none of .*near misses: .*query"),
        (("--target", "*query"), r"target_modules: got '\*query', which is no regular expression"),
        (("--target", "query", "--exclude", "query"), r"exclude_modules: got \['query'\], which removes every"),
    ],
)
def test_a_bad_configuration(folder, tmp_path, options, message):
    assert_error(call("compress", folder / "model", tmp_path / "out", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model(folder, tmp_path):
    missing = tmp_path / "missing"
    message = f"model: {re.escape(str(missing))} "
    assert_error(call("compress", missing, tmp_path / "out", "--ratio", 0.5), message)
    assert_error(call("finetune", missing, tmp_path / "out", *on_glue(folder)), message)
    assert_error(call("squeeze", missing, tmp_path / "out", *on_glue(folder)), message)
    assert_error(call("evaluate", missing, *on_glue(folder)), message)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model(folder, small, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small[0] / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_error(call("evaluate", tmp_path, *on_glue(folder)), r"folder: .*model\.safetensors is damaged")


def test_a_dense_model_is_neither_squeezed_nor_tuned_lightly(folder, tmp_path):
    result = call("squeeze", folder / "model", tmp_path / "out", *on_glue(folder), "--hold-out", 16)
    assert_error(result, "freeze_central: got a BertForSequenceClassification without MPO layers.*call compress first")
    result = call("finetune", folder / "model", tmp_path / "out", *on_glue(folder), "--lfa")
    assert_error(result, "freeze_central: got a BertForSequenceClassification without MPO layers")


def test_a_model_without_a_head_cannot_classify(folder):
    assert_error(
        call("evaluate", folder / "model", *on_glue(folder)), "predict: a BertModel has no classification head"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", -1), "max_drop: got -1"),
        (("--step", 0), "step: got 0, expected a positive integer"),
        (("--criterion", "odd"), "criterion: got 'odd'"),
        (("--hold-out", 64), "hold_out: n is 64; pass 1 to 63"),
        (("--finetune-steps", 0), "steps: got 0, expected a positive integer"),
    ],
)
def test_bad_settings_of_squeeze(folder, small, tmp_path, options, message):
    settings = ("--hold-out", 16, "--examples", 8, *options)
    assert_error(call("squeeze", small[0], tmp_path / "out", *on_glue(folder), *settings), message)
    assert list(tmp_path.iterdir()) == []


def test_the_console_script():
    script = Path(sys.executable).with_name("tnmpo")
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    text = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, env=environment).stdout
    for command in ("demo", "compress", "finetune", "squeeze", "evaluate"):
        assert re.search(rf"\b{command}\b", text)


@pytest.mark.parametrize("command", ["demo", "compress", "finetune", "squeeze", "evaluate"])
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert f"Example: tnmpo {command}" in result.stdout
