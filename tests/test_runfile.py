"""Run files: what they may say, and what an error names."""

from __future__ import annotations

import dataclasses
import re

import pytest
from tnmpo.integrations.transformers import MPOConfig
from tnmpo.integrations.transformers.runfile import TEMPLATE, read_run

HEAD = "model: m\noutput: o\ntask: sst2\n"


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_run(path)


def test_the_template_is_a_run_and_shows_every_section(tmp_path):
    run = read(tmp_path, TEMPLATE)
    assert (run.model, str(run.output), run.task.task, run.task.data_dir) == (
        "bert-base-uncased",
        "runs/example",
        "sst2",
        None,
    )
    assert (run.compress.ratio, run.compress.shape) == (0.5, "low_rank")
    assert (run.calibration.examples, run.calibration.count_all) == (512, True)
    assert (run.finetune.lfa, run.finetune.seeds, run.finetune.rate) == (True, (0, 1, 2), 2e-4)
    assert (run.squeeze.max_drop, run.squeeze.step) == (0.01, 8)
    assert run.evaluate.batch_size == 64


def test_what_the_template_comments_out_is_valid_too(tmp_path):
    text = re.sub(r"^( *)# (\w+: .*)$", r"\1\2", TEMPLATE, flags=re.MULTILINE)
    run = read(tmp_path, text)
    assert str(run.task.data_dir) == "glue"
    assert run.compress.target_modules == ["query", "key", "value"]
    assert run.finetune.rate == 2e-4


def test_an_empty_section_takes_all_defaults(tmp_path):
    run = read(tmp_path, HEAD + "finetune:\nevaluate: {}\n")
    assert (run.finetune.steps, run.finetune.lfa, run.finetune.rate) == (2000, False, 5e-5)
    assert run.evaluate.batch_size == 64
    assert run.compress is run.squeeze is run.calibration is None


def test_a_lossless_compression_needs_no_task(tmp_path):
    run = read(tmp_path, "model: m\noutput: o\ncompress:\n")
    assert run.compress.is_lossless
    assert run.task is None


def test_numbers_with_an_exponent_and_without_a_point_are_numbers(tmp_path):
    run = read(tmp_path, HEAD + "finetune:\n  learning_rate: 1e-4\nsqueeze:\n  max_drop: 1e-2\n  learning_rate: 3\n")
    assert (run.finetune.learning_rate, run.squeeze.max_drop, run.squeeze.learning_rate) == (1e-4, 0.01, 3.0)


def test_a_rank_per_pattern_and_one_seed(tmp_path):
    run = read(tmp_path, HEAD + "compress:\n  rank: {query: 4, value: 8}\nfinetune:\n  seeds: 5\n")
    assert run.compress.rank == {"query": 4, "value": 8}
    assert run.finetune.seeds == (5,)


def test_the_resolved_settings_read_back_as_the_same_run(tmp_path):
    import yaml

    run = read(tmp_path, TEMPLATE)
    resolved = run.to_dict()
    assert resolved["squeeze"]["criterion"] == "per_parameter"  # a default that the file does not name
    again = read(tmp_path, yaml.safe_dump(resolved))
    assert again.to_dict() == resolved
    assert dataclasses.replace(again, compress=run.compress) == run
    assert isinstance(again.compress, MPOConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "finetun:\n  steps: 3\n", r"run\.yaml, line 4: unknown key 'finetun'; near misses: finetune"),
        (HEAD + "compress:\n  rato: 1\n", r"run\.yaml, line 5: unknown key 'rato' in compress; near misses: ratio"),
        (HEAD + "max_drop: 1\nsqueeze:\n", r"line 4: unknown key 'max_drop'; it belongs into squeeze"),
        (HEAD + "evaluate:\n  zzz: 1\n", r"line 5: unknown key 'zzz' in evaluate; known keys: batch_size"),
        (HEAD + "compress:\n  layers: {}\n", r"line 5: unknown key 'layers' in compress"),
        (HEAD + "finetune:\n  steps: many\n", r"line 5: steps: got 'many', expected a whole number"),
        (HEAD + "finetune:\n  steps: true\n", r"line 5: steps: got True, expected a whole number"),
        (HEAD + "finetune:\n  steps: 2.5\n", r"line 5: steps: got 2\.5, expected a whole number"),
        (HEAD + "finetune:\n  lfa: 1\n", r"line 5: lfa: got 1, expected true or false"),
        (HEAD + "finetune:\n  seeds: [a]\n", r"line 5: seeds: got \['a'\], expected a list of whole numbers"),
        (HEAD + "finetune:\n  seeds: [1, 1]\n", r"line 5: seeds: got \[1, 1\], expected at least one, none of them"),
        (HEAD + "finetune:\n  steps: 0\n", r"line 5: steps: got 0, expected a positive integer"),
        (HEAD + "finetune:\n  learning_rate: x\n", r"line 5: learning_rate: got 'x', expected a number or nothing"),
        (HEAD + "compress:\n  shape: x\n  ratio: 2\n", r"line 6: ratio: got 2\.0, expected a number in \(0, 1\]"),
        (HEAD + "compress:\n  ratio: 0.5\n  rank: 3\n", r"line 4: MPOConfig: got ratio and rank, expected at most one"),
        (HEAD + "squeeze:\n  criterion: odd\n", r"line 5: criterion: got 'odd', expected one of"),
        (HEAD + "squeeze:\n  examples: -1\n", r"line 5: examples: got -1, expected 0 \(no calibration\) or more"),
        (HEAD + "finetune: 3\n", r"line 4: finetune: got 3, expected keys with values"),
        (HEAD + "evaluate:\n  batch_size: 1\n  batch_size: 2\n", r"line 6: 'batch_size' is given twice"),
        ("model: m\noutput: o\ntask: sst\nevaluate:\n", r"line 3: get_task: name is 'sst'"),
        (HEAD + "max_length: 0\nevaluate:\n", r"line 4: max_length: got 0, expected a positive integer"),
        ("output: o\nevaluate:\n", r"run\.yaml: no 'model'; `tnmpo run --template` prints an example"),
        ("model: m\nevaluate:\n", r"run\.yaml: no 'output'"),
        ("model: 3\noutput: o\ncompress:\n", r"line 1: model: got 3, expected a text"),
        (HEAD, r"run\.yaml: no stage; add at least one of the sections compress, finetune, squeeze, evaluate"),
        ("model: m\noutput: o\nfinetune:\n", r"line 3: finetune needs a task"),
        (HEAD + "calibration:\nevaluate:\n", r"line 4: calibration without compress"),
        (HEAD + "finetune:\n\tsteps: 3\n", r"run\.yaml, line 5: no YAML: found character"),
        ("- model\n", r"run\.yaml: got list, expected keys such as model and output"),
        ("", r"run\.yaml: got NoneType, expected keys"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.yaml: cannot be read \(No such file or directory\)"):
        read_run(tmp_path / "missing.yaml")
