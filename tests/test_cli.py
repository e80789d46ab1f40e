"""The commands of ``tnmpo`` on a tiny BERT and a tiny task in GLUE's layout."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from distributed import Client
from tiny import bert
from tnmpo.integrations.transformers import load, save
from tnmpo.integrations.transformers.acceptability import acceptability_task, word_tokenizer
from tnmpo.integrations.transformers.checkpoint import is_checkpoint
from tnmpo.integrations.transformers.cli import app, stages
from tnmpo.integrations.transformers.evaluation import evaluate
from tnmpo.integrations.transformers.models import open_model
from tnmpo.integrations.transformers.perplexity import evaluate_perplexity
from tnmpo.integrations.transformers.runfile import TEMPLATE
from tnmpo.integrations.transformers.targets import mpo_layers
from tnmpo.integrations.transformers.tasks import load_task
from typer.testing import CliRunner

TOKENIZER = word_tokenizer()
SCRIPT = Path(sys.executable).with_name("tnmpo")
COMMANDS = ("demo", "inspect", "compress", "finetune", "squeeze", "evaluate", "merge", "run", "reproduce")
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


def test_a_cluster_compresses_to_the_same_files(folder, tmp_path):
    options = ("--ratio", 0.5, "--shape", "low_rank")
    run("compress", folder / "model", tmp_path / "one", *options)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        address = client.scheduler.address
        lines = run("compress", folder / "model", tmp_path / "many", *options, "--cluster", address)
    assert lines[-1] == f"saved in {tmp_path / 'many'}"
    one, many = tmp_path / "one", tmp_path / "many"
    assert (many / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    assert read(many / "compression.json") == read(one / "compression.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]
    command = ("compress", folder / "model", tmp_path / "out", *options)
    assert_error(call(*command, "--workers", 2), "workers: got 2, expected a positive number with --cluster local")
    assert_error(call(*command, "--cluster", "local", "--workers", 0), "workers: got 0, expected a positive number")
    assert_error(call("compress", folder / "model", many, *options, "--cluster", "local"), "output: .*many exists")


def test_a_cluster_calibrates_the_model_that_it_compresses(folder, tmp_path):
    """An encoder that is stored with the head of its pre-training: all its names have a prefix."""
    model = bert("BertForMaskedLM", vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    command = ("compress", tmp_path / "model", tmp_path / "out", "--ratio", 0.5, *on_glue(folder), "--examples", 16)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        run(*command, "--cluster", client.scheduler.address)
    assert type(load(tmp_path / "out")).__name__ == "BertForMaskedLM"
    modules = read(tmp_path / "out" / "compression.json")["modules"]
    assert all(module["weighted"] for module in modules if module["name"].endswith("query"))
    # and is fine-tuned under the head of a task
    finetuning = ("finetune", tmp_path / "out", tmp_path / "tuned", *on_glue(folder), "--steps", 2, "--batch-size", 4)
    run(*finetuning)
    assert type(load(tmp_path / "tuned")).__name__ == "BertForSequenceClassification"


def test_sixteen_bits_are_trained_in_thirty_two(folder, tmp_path):
    bert(vocab_size=len(TOKENIZER)).bfloat16().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    command = ("finetune", tmp_path / "model", tmp_path / "out", *on_glue(folder), "--steps", 2, "--batch-size", 4)
    assert "trains, and saves, in float32; the model was in torch.bfloat16" in run(*command)
    assert {parameter.dtype for parameter in open_model(tmp_path / "out").parameters()} == {torch.float32}


def test_a_teacher_without_a_head_is_refused_before_the_training(folder, tmp_path):
    command = ("finetune", folder / "model", tmp_path / "out", *on_glue(folder), "--teacher", folder / "model")
    assert_error(call(*command), "teacher: a BertModel has no classification head, so its sentence vectors")


def test_lossless_compression_keeps_the_score(folder, tmp_path):
    run("compress", folder / "model", tmp_path / "out")
    dense = run("evaluate", folder / "model", *on_glue(folder, "stsb"))[-1]
    mpo = run("evaluate", tmp_path / "out", *on_glue(folder, "stsb"))[-1]
    assert dense.endswith("0 MPO weights")
    assert mpo.endswith("14 MPO weights")
    score = dev_score(open_model(folder / "model"), folder, "stsb")
    assert dense.startswith("stsb dev (31 examples): ")
    assert f"spearman {score:.4f}" in dense
    assert "(cosine of mean token vectors)" in dense
    assert float(re.search(r"spearman (-?[\d.]+)", mpo)[1]) == pytest.approx(score, abs=0.01)


def test_finetune_lightly_then_squeeze_and_evaluate(folder, small, tmp_path):
    tuned, squeezed = tmp_path / "tuned", tmp_path / "squeezed"
    lines = run("finetune", small[0], tuned, *on_glue(folder), "--steps", 3, "--batch-size", 8, "--lfa", "--seed", 7)
    assert any(line.startswith("trainable params: ") for line in lines)
    record = read(tuned / "finetune.json")
    score = dev_score(load(tuned), folder)
    assert record["score"] == pytest.approx(score)
    assert record["seeds"][0]["seed"] == 7
    expected = {"task": "sst2", "metric": "accuracy", "split": "dev", "steps": 3, "batch_size": 8}
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
    assert f"sst2 dev (32 examples): accuracy {score:.4f}" in lines[-1]
    assert "(head)" in lines[-1]


def test_finetune_a_dense_model_on_a_regression(folder, tmp_path):
    run("finetune", folder / "model", tmp_path / "out", *on_glue(folder, "stsb"), "--steps", 1, "--batch-size", 4)
    record = read(tmp_path / "out" / "finetune.json")
    assert (record["metric"], record["split"]) == ("spearman", "dev")
    assert record["trained_parameters"] == record["parameters"]
    assert open_model(tmp_path / "out").config.num_labels == 1


def test_what_squeezing_decides_on_can_be_kept_out_of_fine_tuning(folder, small, tmp_path, monkeypatch):
    train, seen = stages.finetune_model, []

    def noted(*arguments, **settings):
        seen.append(arguments[3].texts)
        return train(*arguments, **settings)

    monkeypatch.setattr(stages, "finetune_model", noted)
    command = (*on_glue(folder), "--steps", 1, "--batch-size", 4, "--hold-out", 16, "--seed", 3)
    run("finetune", small[0], tmp_path / "out", *command)
    rest, _ = load_task("sst2", folder / "glue").train.hold_out(16, 3)
    assert seen == [rest.texts]
    assert len(rest) == 64 - 16


def interrupt_after(monkeypatch, count):
    """Ctrl-C in the middle of the ``count``-th fine-tuning that a stage does."""
    train, calls = stages.finetune_model, []

    def interrupted(*arguments, **settings):
        calls.append(settings)
        if len(calls) < count:
            return train(*arguments, **settings)
        train(*arguments, **{**settings, "save_steps": 2})
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "finetune_model", interrupted)


def assert_interrupted(result):
    assert result.exit_code == 130
    assert "interrupted; start the same command again to go on" in result.stderr


def test_an_interrupted_fine_tuning_ends_in_130_and_goes_on(folder, small, tmp_path, monkeypatch):
    output = tmp_path / "out"
    command = ("finetune", small[0], output, *on_glue(folder), "--steps", 3, "--batch-size", 8, "--seeds", "0,1")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert_interrupted(call(*command))
    assert not output.exists()
    assert list((tmp_path / ".out.training" / "seed-1").glob("checkpoint-*"))
    assert_error(call(*command, "--batch-size", 4), r".*holds an interrupted run with other settings \(batch_size 8\)")
    lines = run(*command)
    assert any(line.startswith("seed 0: finished before, accuracy ") for line in lines)
    assert is_checkpoint(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    record = read(output / "finetune.json")
    scores = [entry["score"] for entry in record["seeds"]]
    assert [entry["seed"] for entry in record["seeds"]] == [0, 1]
    assert record["score"] == pytest.approx(statistics.mean(scores))
    assert record["deviation"] == pytest.approx(statistics.stdev(scores))
    assert dev_score(load(output), folder) == pytest.approx(scores[0])  # the first seed's model is kept
    assert f"+- {record['deviation']:.4f} (standard deviation); seed 0, 1, 3 steps of 8" in lines[-1]


SQUEEZE = ("--max-steps", 3, "--finetune-steps", 1, "--hold-out", 16, "--batch-size", 8, "--max-drop", 1, "--step", 2)


def test_an_interrupted_squeezing_goes_on_to_the_same_result(folder, small, tmp_path, monkeypatch):
    command = (*on_glue(folder), *SQUEEZE, "--examples", 8)
    run("squeeze", small[0], tmp_path / "whole", *command)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert_interrupted(call("squeeze", small[0], tmp_path / "out", *command))
    assert not (tmp_path / "out").exists()
    assert [step["number"] for step in read(tmp_path / ".out.squeezing" / "log.json")["steps"]] == [1, 2]
    lines = run("squeeze", small[0], tmp_path / "out", *command)
    assert "going on after step 2" in lines
    assert sum(bool(re.match(r"step \d of at most 3", line)) for line in lines) == 1
    assert read(tmp_path / "out" / "squeeze.json")["steps"] == read(tmp_path / "whole" / "squeeze.json")["steps"]
    whole, resumed = load(tmp_path / "whole").state_dict(), load(tmp_path / "out").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_finished_squeezing_that_could_not_be_saved_is_only_saved_again(folder, small, tmp_path, monkeypatch):
    command = ("squeeze", small[0], tmp_path / "out", *on_glue(folder), *SQUEEZE, "--examples", 0)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "written_beside", full)
        result = call(*command)
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines()[-1] == "error: OSError: [Errno 28] No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == [".out.squeezing"]
    lines = run(*command)
    assert not any(line.startswith("step 1 ") for line in lines)
    assert read(tmp_path / "out" / "squeeze.json")["stopped"] == "max_steps"


def test_a_killed_squeezing_goes_on(folder, small, tmp_path):
    """A real signal to the console script: nothing half-written is left in the output's place."""
    output = tmp_path / "out"
    slow = ("--examples", 0, "--finetune-steps", 20)  # three steps, each long enough to be interrupted
    command = [str(part) for part in ("squeeze", small[0], output, *on_glue(folder), *SQUEEZE, *slow)]
    process = subprocess.Popen(
        [SCRIPT, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    for line in process.stdout:
        if line.startswith("step 1 "):
            process.send_signal(signal.SIGINT)
            break
    _, words = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in words
    assert not output.exists()
    lines = run(*command)
    assert any(re.fullmatch(r"going on after step \d", line) for line in lines)
    assert read(output / "squeeze.json")["stopped"] == "max_steps"


def test_two_processes_fine_tune_together_and_one_speaks(folder, small, tmp_path):
    output = tmp_path / "out"
    options = ("--steps", 2, "--batch-size", 4, "--lfa", "--json")
    command = ("torchrun", "--standalone", "--nproc-per-node", 2, SCRIPT, "finetune", small[0], output, *options)
    torchrun = [SCRIPT.with_name("torchrun"), *map(str, (*command[1:], *on_glue(folder)))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(torchrun, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == read(output / "finetune.json")
    assert len(DEVICE.findall(result.stderr)) == 1
    assert dev_score(load(output), folder) == pytest.approx(read(output / "finetune.json")["score"])


def test_merge(folder, small, tmp_path):
    run("merge", small[0], tmp_path / "dense")
    model = transformers.AutoModel.from_pretrained(tmp_path / "dense")
    assert not list(mpo_layers(model))
    inputs = TOKENIZER(["these dogs sleep"], return_tensors="pt", return_token_type_ids=False)
    torch.testing.assert_close(model(**inputs)[0], load(small[0])(**inputs)[0])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "dense")("these dogs sleep") is not None
    assert_error(call("merge", folder / "model", tmp_path / "other"), "merge: got a BertModel without MPO layers")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_inspect_shows_every_layer_and_draws(folder, tmp_path):
    picture = tmp_path / "pictures" / "spectra.png"
    names = [f"encoder.layer.{k}.attention.self.query" for k in (0, 1)]
    command = ("inspect", folder / "model", "--target", "query", "--plot", picture)
    result = call(*command, *on_glue(folder), "--examples", 8, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [layer["name"] for layer in found["layers"]] == names
    assert all(layer["weighted"] and layer["low_rank"]["deficit"] >= 0 for layer in found["layers"])
    assert found["budgets"]
    assert all(name in result.stderr for name in names)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = "\n".join(run(*command[:-2], "--layer", names[1], "--no-interleaved"))
    assert f"{names[1]}: 12 x 12, dense" in text
    assert names[0] not in text
    assert_error(call(*command[:-2], "--layer", "quer"), r"layer: 'quer' is none of the 2 matrices; near: encoder")
    assert_error(call("inspect", tmp_path / "no", "--plot", "x.pdf"), r"plot: got x\.pdf, expected a file that ends in")


# --- a whole run from a file


def write_run(folder, tmp_path, text="", steps=2):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
model: {folder / "model"}
output: {tmp_path / "runs"}
task: sst2
data_dir: {folder / "glue"}
compress: {{ratio: 0.6, shape: low_rank}}
calibration: {{examples: 8, count_all: false}}
finetune: {{steps: {steps}, batch_size: 8, lfa: true, seeds: [3, 4]}}
squeeze: {{max_steps: 1, finetune_steps: 1, hold_out: 16, batch_size: 8, max_drop: 1, examples: 0}}
evaluate:
{text}""",
        encoding="utf-8",
    )
    return path


def test_a_run_from_a_file_is_recorded_and_its_finished_stages_are_not_run_again(folder, tmp_path, monkeypatch):
    path, output = write_run(folder, tmp_path), tmp_path / "runs"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)  # in the squeezing
        assert_interrupted(call("run", path))
    assert sorted(entry.name for entry in output.iterdir()) == [".squeezed.squeezing", "compressed", "finetuned"]
    written = (output / "finetuned" / "finetune.json").stat().st_mtime_ns
    result = call("run", path, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == read(output / "run.json")
    assert (output / "finetuned" / "finetune.json").stat().st_mtime_ns == written
    assert f"finetune: finished before, {output / 'finetuned'}" in result.stderr
    assert record["settings"]["squeeze"]["criterion"] == "per_parameter"
    assert record["settings"]["finetune"]["seeds"] == [3, 4]
    assert {"tnmpo", "torch", "transformers", "python"} <= set(record["versions"])
    stages_ = record["stages"]
    assert list(stages_) == ["compress", "finetune", "squeeze", "evaluate"]
    assert len(stages_["finetune"]["seeds"]) == 2
    assert stages_["evaluate"]["score"] == pytest.approx(stages_["squeeze"]["score"])
    assert stages_["evaluate"]["score"] == pytest.approx(dev_score(load(output / "squeezed"), folder))

    lines = run("run", path)
    assert sum("finished before" in line for line in lines) == 4
    assert read(output / "run.json") == record
    assert_error(
        call("run", write_run(folder, tmp_path, steps=3)),
        r"output: .*finetuned holds a result of other settings \(finetune\.steps was 2\); choose another output",
    )


def test_a_wrong_run_file_ends_in_one_sentence(folder, tmp_path):
    path = write_run(folder, tmp_path, "max_lenght: 3\n")
    assert_error(call("run", path), r".*run\.yaml, line 11: unknown key 'max_lenght'; near misses: max_length")
    assert_error(call("run"), r"run: got no file; pass RUN\.yaml, or --template for an example")
    assert not (tmp_path / "runs").exists()


def test_the_template_is_printed(tmp_path):
    result = call("run", "--template")
    assert result.exit_code == 0
    assert result.stdout == TEMPLATE


# --- the paper's experiment


def test_reproduce_goes_on_where_it_was_interrupted_and_puts_the_published_ratios_beside(tmp_path, monkeypatch):
    output = tmp_path / "out"
    command = ("reproduce", "--quick", "--output", output, "--seeds", "1", "--steps", 2, "--squeeze-steps", 1)
    command += ("--batch-size", 8, "--max-drop", 2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)  # in the light fine-tuning
        assert_interrupted(call(*command))
    assert (output / "mpo-1" / "finetune.json").is_file()
    assert not (output / "lfa-1").exists()
    lines = run(*command)
    assert "mpo-1: finished before" in lines
    dense, full, light, squeezed, low = read(output / "reproduce.json")["rows"]
    assert full["parameters"] == full["trained"] == light["parameters"] > dense["parameters"] == dense["trained"]
    assert light["auxiliary"] < light["trained"] < dense["trained"]
    assert squeezed["parameters"] < light["parameters"]
    assert low["parameters"] <= squeezed["parameters"]
    assert light["published"] == "91% fewer trained (auxiliary tensors alone)"
    assert squeezed["published"] == "0.906 of dense"
    text = "\n".join(lines)
    for row in (dense, full, light, squeezed, low):
        assert re.search(rf"^{re.escape(row['model'])} +{row['mean']:.4f} +{row['trained']:,} ", text, re.MULTILINE)
    assert f"as the paper counts: {light['auxiliary']:,}, {1 - light['auxiliary'] / dense['parameters']:.1%}" in text


def test_adapter_extract_and_apply_give_the_fine_tuned_model_back(folder, small, tmp_path):
    tuned, adapter, back = tmp_path / "tuned", tmp_path / "adapter", tmp_path / "back"
    run("finetune", small[0], tuned, *on_glue(folder), "--steps", 2, "--lfa", "--learning-rate", 0.01)
    run("adapter", "extract", small[0], tuned, adapter)
    assert (adapter / "adapter_config.json").is_file()
    run("adapter", "apply", small[0], adapter, back)
    inputs = TOKENIZER(["these dogs sleep"], return_tensors="pt", return_token_type_ids=False)
    torch.testing.assert_close(load(back)(**inputs)[0], load(tuned)(**inputs)[0], atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "back", "tuned"]
    assert_error(call("adapter", "apply", small[0], folder / "model", back), "adapter: .*holds no adapter_config.json")


def test_perplexity_of_a_causal_model_on_a_text(tmp_path):
    settings = {"vocab_size": len(TOKENIZER), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**settings, num_attention_heads=2, max_position_embeddings=32)
    save(transformers.LlamaForCausalLM(config), tmp_path / "model", TOKENIZER)
    text = tmp_path / "text.txt"
    text.write_text("these dogs sleep " * 30, encoding="utf-8")
    result = call("evaluate", tmp_path / "model", "--text", text, "--max-length", 16, "--json")
    assert result.exit_code == 0, result.output
    expected = evaluate_perplexity(open_model(tmp_path / "model"), TOKENIZER, text, max_length=16)
    assert json.loads(result.stdout)["perplexity"] == pytest.approx(expected.perplexity)
    assert f"perplexity {expected.perplexity:.4f}" in result.stderr
    assert_error(call("evaluate", tmp_path / "model"), "evaluate: got neither --task nor --text, expected one")
    assert_error(call("evaluate", tmp_path / "model", "--text", tmp_path / "no"), "text: .*/no is no file; pass a text")
    assert_error(call("evaluate", tmp_path / "model", "--task", "cola", "--stride", 3), "stride: got 3 without --text")


def test_a_teacher_another_rate_for_cores_and_an_early_stop(folder, small, tmp_path):
    teacher = tmp_path / "teacher"
    run("finetune", folder / "model", teacher, *on_glue(folder), "--steps", 1, "--batch-size", 8)
    options = ("--steps", 3, "--batch-size", 8, "--save-steps", 1, "--early-stop", 1, "--core-learning-rate", 1e-3)
    run("finetune", small[0], tmp_path / "out", *on_glue(folder), *options, "--teacher", teacher, "--lfa")
    assert 1 <= read(tmp_path / "out" / "finetune.json")["seeds"][0]["steps"] <= 3
    assert dev_score(load(tmp_path / "out"), folder) == pytest.approx(read(tmp_path / "out" / "finetune.json")["score"])


# --- for programs


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "small", "--task", "stsb"),
        ("merge", "small", "out"),
        ("compress", "model", "out", "--ratio", "0.5", "--task", "stsb", "--examples", "4"),
        ("finetune", "small", "out", "--task", "stsb", "--steps", "1", "--batch-size", "4", "--lfa"),
        ("squeeze", "small", "out", "--task", "stsb", "--max-steps", "1", "--finetune-steps", "1", "--hold-out", "16"),
    ],
)
def test_json_is_all_that_standard_output_gets(folder, small, tmp_path, command):
    places = {"small": small[0], "model": folder / "model", "out": tmp_path / "out"}
    data = ("--data-dir", folder / "glue") if "--task" in command else ()
    result = call(*(places.get(part, part) for part in command), *data, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert DEVICE.search(result.stderr)
    file = {"compress": "compression", "finetune": "finetune", "squeeze": "squeeze"}.get(command[0])
    if file is not None:
        assert answer == read(tmp_path / "out" / f"{file}.json")
    else:
        assert answer["parameters"] > 0


def test_json_of_a_command_that_fails_is_empty(folder):
    result = call("evaluate", folder / "model", "--task", "odd", "--json")
    assert_error(result, "get_task")
    assert result.stdout == ""


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
    assert_error(call("squeeze", missing, tmp_path / "out", *on_glue(folder), "--hold-out", 16), message)
    assert_error(call("merge", missing, tmp_path / "out"), message)
    assert_error(call("evaluate", missing, *on_glue(folder)), message)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model(folder, small, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small[0] / name).read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_error(call("evaluate", tmp_path, *on_glue(folder)), r"folder: a file of weights in .* is damaged")


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
        (("--finetune-steps", 0), "finetune_steps: got 0, expected a positive integer"),
    ],
)
def test_bad_settings_of_squeeze(folder, small, tmp_path, options, message):
    settings = ("--hold-out", 16, "--examples", 8, *options)
    assert_error(call("squeeze", small[0], tmp_path / "out", *on_glue(folder), *settings), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "0,a"), "seeds: got '0,a', expected whole numbers with commas"),
        (("--seeds", "1,1"), r"seeds: got \[1, 1\], expected at least one, none of them twice"),
        (("--seeds", "0,1", "--seed", 2), "seeds: got --seeds 0,1 and --seed 2, expected one of the two"),
        (("--learning-rate", 0), "learning_rate: got 0.0, expected a positive number"),
        (("--early-stop", 2), "early_stop: with save_steps 500 of 3 steps only the last is evaluated"),
        (("--max-length", 0), "max_length: got 0, expected a positive integer"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(folder, tmp_path, options, message):
    missing = tmp_path / "missing"
    assert_error(call("finetune", missing, tmp_path / "out", *on_glue(folder), "--steps", 3, *options), message)


def test_an_output_that_is_a_file_is_refused_before_any_work(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    missing = tmp_path / "missing"
    for command in ("compress", "merge"):
        assert_error(call(command, missing, tmp_path / "file"), "output: .*file is a file, expected a folder")
    assert_error(call("compress", missing, tmp_path / "file" / "out"), "output: .*file is a file, expected a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_fault_of_the_program_keeps_its_traceback(folder, monkeypatch):
    def broken(*arguments, **settings):
        raise KeyError("fault")

    monkeypatch.setattr(stages, "evaluate_task", broken)
    result = call("evaluate", folder / "model", *on_glue(folder, "stsb"))
    assert result.exit_code == 1
    assert isinstance(result.exception, KeyError)


def test_a_wrong_option_is_exit_code_2_and_words_on_standard_error():
    result = call("evaluate", "model", "--tsk", "sst2")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--task" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert f"Example: tnmpo {command}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize("command", ["extract", "apply"])
def test_every_adapter_command_explains_itself(command):
    result = CliRunner().invoke(app, ["adapter", command, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert f"Example: tnmpo adapter {command}" in result.stdout
