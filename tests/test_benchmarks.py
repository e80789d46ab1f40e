"""The benchmark suite: its helpers are right, and every benchmark runs on tiny sizes. Nothing here is timed."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorly
import torch

import tnmpo

FOLDER = Path(__file__).parent / "benchmarks"
DOCS = FOLDER.parents[1] / "docs"
sys.path.insert(0, str(FOLDER))  # benchmarks are scripts that import each other by bare names

import cost_model  # noqa: E402
import decompose  # noqa: E402
import growth  # noqa: E402
import limits  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import page  # noqa: E402
import peers  # noqa: E402
import run  # noqa: E402
import side_by_side  # noqa: E402
from cost_model import CELLS, regret  # noqa: E402
from records import Row, geometric_mean, verdict  # noqa: E402


def written(path, *names):
    """A results file with one row for each suite named."""
    entry = {
        "module": "imports",
        "quick": True,
        "machine": {"device": "a CPU", "threads": 1, "date": "2030-01-01", "seed": 0, "command": "run.py"},
        "rates": {"half": 4e9, "single": 2e9, "double": 1e9, "gram": 1e9, "copy": 3e9},
        "rows": [Row("import", "a case", "tnmpo", 0.25, 3, 2.0, "dense").to_dict()],
    }
    for name in names:
        results = page.update(path, name, entry)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# side by side
# ---------------------------------------------------------------------------------------------------------------------


def test_contenders_are_called_in_turn(monkeypatch):
    called = []
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    calls = {name: lambda name=name: called.append(name) for name in "AB"}
    timings = side_by_side.timings(calls, rounds=3)
    assert "".join(called).endswith("ABABAB")
    assert [timing.rounds for timing in timings.values()] == [3, 3]


def test_a_contender_that_takes_too_long_is_called_once():
    called = []
    timings = side_by_side.timings({"slow": lambda: called.append(1), "other": int}, rounds=2, patience=0)
    assert called == [1]
    assert timings["slow"].rounds == 1
    again = side_by_side.timings({"slow": lambda: called.append(1)}, first={"slow": 90.0})
    assert again["slow"] == (90.0, 1, 90.0)
    assert called == [1]


def test_the_median_and_the_least_of_the_rounds(monkeypatch):
    taken = iter([9.0, 5.0, 1.0, 3.0])
    monkeypatch.setattr(side_by_side, "_wall", lambda call, repeats: next(taken))
    assert side_by_side.timings({"A": int}, rounds=3)["A"] == (3.0, 3, 1.0)


def test_threads_may_settle_before_every_measurement(monkeypatch):
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    order = []
    monkeypatch.setattr(side_by_side.time, "sleep", lambda seconds: order.append(seconds))
    side_by_side.timings({"A": lambda: order.append("A")}, rounds=2, settle=0.25)
    assert order[-4:] == [0.25, "A", 0.25, "A"]


# ---------------------------------------------------------------------------------------------------------------------
# rows, limits, memory
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "met", "goal"),
    [
        ({"at_most": 2}, True, "<= 2 x"),
        ({"at_most": 1.9}, False, "<= 1.9 x"),
        ({"at_least": 2}, True, ">= 2 x"),
        ({"at_least": 2.1}, False, ">= 2.1 x"),
    ],
)
def test_a_goal_is_met_or_missed(bounds, met, goal):
    row = verdict("suite", "case", "what", 2.0, **bounds)
    assert (row.met, row.goal) == (met, goal)


def test_the_geometric_mean_of_ratios():
    assert math.isclose(geometric_mean([2, 8]), 4)


def test_a_limit_is_the_longer_of_products_and_copies():
    rates = limits.Rates(half=20, single=10, double=5, gram=4, copy=2)
    assert rates.seconds(half=20, single=20, double=10, gram=4) == 6
    assert rates.seconds(single=20, moved=20) == 10


def test_rates_are_measured():
    rates = limits.measured_rates("cpu", 64)
    assert all(value > 1e6 for value in rates.to_dict().values())


def test_memory_at_its_peak_is_seen_though_it_is_given_back():
    grown = machine.growth_of(lambda: np.ones(8 * 2**20).sum())
    assert 0.9 * 64 * 2**20 < grown < 1.5 * 64 * 2**20


def test_a_failure_in_a_fresh_process_is_told():
    with pytest.raises(RuntimeError, match=r"memory.matrix\('two', 3\): failed in a fresh process"):
        machine.fresh("memory", "matrix", "two", 3)


def test_a_fresh_process_answers_as_this_one():
    assert machine.fresh("page", "duration", 2.0) == machine.fresh("page", "duration", 2.0, here=True) == "2 s"


def test_the_exponent_of_a_power_law():
    sizes = [16, 64, 256, 1024]
    slope, half = growth.exponent(sizes, [3e-6 * size**1.5 for size in sizes])
    assert math.isclose(slope, 1.5)
    assert half < 1e-6
    _, wide = growth.exponent(sizes, [1.0, 8.0, 2.0, 16.0])
    assert wide > 1


def test_a_cell_is_judged_by_the_execution_that_was_chosen():
    seconds = {"dense": 1.0, "rebuild": 6.0, "factored": 3.0}
    entry = {"seconds": seconds, "choice": {"cached": "factored", "rebuilt": "factored"}}
    assert (regret(entry, "cached"), regret(entry, "rebuilt")) == (3, 1)


def test_the_cached_weight_is_contracted_once_whatever_else_is_timed(monkeypatch):
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    contracted = []
    executed = cost_model.executed

    def counted(layer, x, execution, *, cache):
        before = layer.reconstructions
        answer = executed(layer, x, execution, cache=cache)
        contracted.append((execution, cache, layer.reconstructions - before))
        return answer

    monkeypatch.setattr(cost_model, "executed", counted)
    (layer, *_) = cost_model.layers([(48, 96)], [3], [4], "cpu")
    cost_model.cell(layer, 4, "cpu")
    assert sum(count for execution, cache, count in contracted if (execution, cache) == ("dense", True)) == 1
    assert all(count == 1 for execution, cache, count in contracted if (execution, cache) == ("dense", False))


# ---------------------------------------------------------------------------------------------------------------------
# peers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 5])
def test_every_peer_gives_a_train_of_the_matrix(cap):
    W, before = torch.from_numpy(memory.matrix(24, 30)), tensorly.get_backend()
    shape = tnmpo.plan_shape(W.shape, 3)
    reference = tnmpo.mpo_decompose(W, shape, cap)
    error = 0 if cap is None else reference.truncation.relative_error
    for name, (call, cores) in peers.contenders(W, shape, cap).items():
        mpo = peers.as_mpo(cores(call()), shape)
        assert mpo.ranks == reference.ranks, name
        assert abs(decompose.relative_error(W, mpo) - error) < 0.02, name
    assert tensorly.get_backend() == before


def test_the_schmidt_basis_is_told_from_another_gauge():
    W = torch.from_numpy(memory.matrix(24, 30))
    shape = tnmpo.plan_shape(W.shape, 3)
    tensor = peers._site_tensor(W, shape)
    chain = peers.as_mpo(peers.svd_chain(tensor, shape.full_ranks), shape)
    other = peers.as_mpo(peers.qr_chain(tensor), shape)
    assert decompose.relative_error(W, chain) < 1e-5
    assert decompose.relative_error(W, other) < 1e-5
    assert peers.is_in_schmidt_basis(chain)
    assert not peers.is_in_schmidt_basis(other)


def test_the_cap_for_a_quarter_of_the_parameters():
    shape = tnmpo.plan_shape((48, 60), 3)
    cap = decompose.cap_of(shape, 0.25)
    kept = [shape.n_parameters([min(each, full) for full in shape.full_ranks]) for each in (cap, cap + 1)]
    assert kept[0] <= 0.25 * 48 * 60 < kept[1]


# ---------------------------------------------------------------------------------------------------------------------
# every suite, the results and their page
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")  # the peers' own
@pytest.mark.parametrize("name", run.SUITES)
def test_every_suite_runs_on_tiny_sizes(name, monkeypatch):
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    rows = list(importlib.import_module(run.SUITES[name]).rows(True, device="cpu"))
    assert {row.suite for row in rows} == {name}
    assert any(row.goal for row in rows)
    for row in rows:
        assert row.seconds is None or row.seconds > 0
        assert (row.met is None) == (row.goal == "")
        assert row.measured is None or np.isfinite(row.measured)


def test_a_run_of_one_suite_keeps_the_others(tmp_path):
    path = tmp_path / "results.json"
    first = written(path, "import", "growth")
    changed = {**first["suites"]["growth"], "rows": []}
    page.update(path, "growth", changed)
    stored = json.loads(path.read_text())["suites"]
    assert list(stored) == ["import", "growth"]
    assert stored["import"] == first["suites"]["import"]
    assert stored["growth"]["rows"] == []
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_suites_stand_in_their_order_whenever_they_ran(tmp_path):
    path = tmp_path / "results.json"
    entry = written(path, "import", "layers, cuda")["suites"]["import"]
    results = page.update(path, "layers", entry, tuple(run.SUITES))
    assert list(results["suites"]) == ["layers, cuda", "layers", "import"]


def test_an_interrupted_run_keeps_the_suites_before(tmp_path, monkeypatch):
    def stopped(quick, *, device):
        yield verdict("import", "a case", "what", 1.0, at_most=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "SUITES", {"cost-model": "cost_model", "import": "imports"})
    monkeypatch.setattr(importlib.import_module("imports"), "rows", stopped)
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    path = tmp_path / "results.json"
    assert run.main(["--quick", "--threads", "1", "--json", str(path)]) == 130
    assert list(json.loads(path.read_text())["suites"]) == ["cost-model"]


def test_the_command_writes_results_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "SHORT", 0)
    results, text = tmp_path / "results.json", tmp_path / "page.md"
    options = ["--quick", "--threads", "1", "--json", str(results), "--page", str(text)]
    assert run.main(["cost-model", *options]) == 0
    stored = json.loads(results.read_text())
    entry = stored["suites"]["cost-model"]
    assert entry["machine"]["threads"] == 1
    assert entry["machine"]["packages"]["torch"] == torch.__version__
    assert entry["machine"]["command"] == "run.py cost-model --quick --threads 1 --device cpu"
    assert text.read_text() == page.page(stored)
    assert "choice within 15 %" in text.read_text()
    assert "cost-model: numbers and goals" in capsys.readouterr().out


def test_a_quick_run_writes_nothing_by_default():
    assert run.arguments(["--quick"]).json is None
    assert run.arguments([]).json == DOCS / "benchmarks.json"
    assert run.arguments(["import", "decompose"]).suites == ["decompose", "import"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["layer"], "SUITE: got layer, expected some of decompose, decompose-large, growth, layers"),
        (["--threads", "0"], "--threads: got 0, expected a positive integer"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit):
        run.arguments(argv)
    assert message in capsys.readouterr().err


def test_the_page_shows_a_missed_goal_as_missed(tmp_path):
    results = written(tmp_path / "results.json", "import")
    missed = verdict("import", "a | case", "what", 1.25, at_most=1.1, note="a reason").to_dict()
    met = verdict("import", "another", "what", 1.0, at_most=1.1, note="a reason").to_dict()
    results["suites"]["import"]["rows"] += [missed, met]
    text = page.page(results)
    assert "| a \\| case | what | <= 1.1 x | 1.25 x | **missed** |" in text
    assert "| another | what | <= 1.1 x | 1 x | yes |" in text
    assert "- what: a reason (a | case; another)" in text
    assert "| a case | 250 ms (2.00 x) |" in text
    assert "A quick run on tiny sizes: no result." in text


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.5e-7, "0.45 us")])
def test_durations_in_the_unit_that_fits(seconds, text):
    assert page.duration(seconds) == text


def test_the_stored_page_is_that_of_the_stored_results():
    results = json.loads((DOCS / "benchmarks.json").read_text())
    assert (DOCS / "benchmarks.md").read_text() == page.page(results)
    assert not any(entry["quick"] for entry in results["suites"].values())


def test_the_stored_cells_cover_the_grid():
    cells = json.loads(CELLS["cpu"].read_text())["cells"]
    assert {cell["tokens"] for cell in cells} == {1, 16, 128, 512, 4096}
    assert {len(cell["rows"]) for cell in cells} == {2, 3, 5}
    assert all(regret(cell, mode) >= 1 for cell in cells for mode in ("cached", "rebuilt"))
