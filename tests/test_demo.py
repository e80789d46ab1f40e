"""The embedded default, on very few steps: what it computes must hang together, whatever the scores."""

import io

import pytest
from rich.console import Console
from tnmpo.integrations.transformers import load
from tnmpo.integrations.transformers.cli import demo_table
from tnmpo.integrations.transformers.demo import DemoSizes, run_demo

SIZES = DemoSizes(
    pretrain_sentences=64,
    pretrain_steps=2,
    finetune_steps=2,
    squeeze_steps=2,
    squeeze_finetune_steps=1,
    train_sentences=64,
    validation_sentences=32,
    test_sentences=32,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), seed=1, sizes=SIZES)


def test_the_table_has_the_papers_rows_and_the_low_rank_one(demo):
    dense, full, light, squeezed, cut, low = demo.rows
    assert [row.model for row in demo.rows] == [
        "dense",
        "MPO, full rank",
        "MPO, full rank + LFA",
        "MPO + LFA, squeezed",
        "MPO, cut at once + LFA",
        "low rank, calibrated + LFA",
    ]
    assert dense.trained == dense.parameters
    assert full.trained == full.parameters == light.parameters > dense.parameters  # full rank expands
    assert light.trained < 0.3 * dense.trained
    assert squeezed.parameters < light.parameters
    assert (cut.parameters, cut.trained) == (squeezed.parameters, squeezed.trained)  # the same bonds
    assert low.parameters <= squeezed.parameters
    assert all(row.size == 4 * row.parameters for row in demo.rows)  # float32
    assert all(0 <= row.score <= 1 and row.seconds_per_step > 0 for row in demo.rows)


def test_the_squeezed_model_is_on_disk_and_the_picture_beside_it(demo):
    model = load(demo.picture.parent / "squeezed")
    assert sum(parameter.numel() for parameter in model.parameters()) == demo.rows[3].parameters
    assert demo.picture.read_bytes().startswith(b"\x89PNG")
    assert [step.new_rank < step.rank for step in demo.squeezing.steps] == [True, True]


def test_the_table_can_be_read(demo):
    console = Console(width=120, file=io.StringIO())
    console.print(demo_table(demo))
    text = console.file.getvalue()
    assert all(f"{row.model}" in text and f"{row.parameters:,}" in text for row in demo.rows)
