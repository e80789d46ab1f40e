"""The results page, docs/benchmarks.md, from the results in JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

HEAD = """# Benchmarks

One command runs everything and writes this page:

```bash
make bench                                                       # all suites: hours, most of them for decompose-large
.venv/bin/python tests/benchmarks/run.py decompose layers        # some; the others' results stay
.venv/bin/python tests/benchmarks/run.py --quick                 # tiny sizes, writes nothing: does it run?
.venv/bin/python tests/benchmarks/run.py layers --device cuda    # timed by the device's events
```

How it is measured: all contenders get the same numbers, dtype and threads in one process; their results are compared
before any time is taken, and a difference stops the run. Then they are called in turn, A B A B, and the median of the
rounds is told; calls shorter than 20 ms (on a GPU 5 ms) are repeated. A contender whose first call takes more than a
minute is called once, and the table says so. *limit* is the least time that the FLOPs and bytes of the case can take at
the rates measured on the same machine, that of copies taken outside the caches: what fits into them may beat it. A goal
that is missed is shown as missed.

The numbers are in `docs/benchmarks.json`, with the versions of every package.
"""


def page(results: Entry) -> str:
    """Markdown of all suites, in the order in which they are run."""
    return "\n".join([HEAD, *(_suite(name, results["suites"][name]) for name in results["suites"])]).rstrip() + "\n"


def update(path: Path, name: str, entry: Entry, order: Sequence[str] = ()) -> Entry:
    """Replace the results of one suite in the file, all others kept; beside and renamed, so that it is never half.

    ``order`` is that of the suites, and of the page; a name ends with ", cuda" where it was measured there.
    """
    results = json.loads(path.read_text()) if path.exists() else {"suites": {}}
    results["suites"][name] = entry
    places = {suite: place for place, suite in enumerate(order)}
    by_place = sorted(results["suites"].items(), key=lambda item: places.get(item[0].partition(",")[0], len(places)))
    results["suites"] = dict(by_place)
    _replace(path, json.dumps(results, indent=1) + "\n")
    return results


def write_page(path: Path, results: Entry) -> None:
    _replace(path, page(results))


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


def _suite(name: str, entry: Entry) -> str:
    machine, rows = entry["machine"], entry["rows"]
    text = importlib.import_module(entry["module"]).__doc__ or ""
    lines = [f"## {name[0].upper()}{name[1:]}", "", " ".join(text.split()), ""]
    where = f"{machine['device']}, {machine['threads']} threads, {machine['date']}, seed {machine['seed']}"
    quick = " **A quick run on tiny sizes: no result.**" if entry["quick"] else ""
    lines += [f"`{machine['command']}` on {where}.{quick}", ""]
    lines += [*_rates(entry["rates"]), *_goals(rows), *_seconds(rows), *_numbers(rows), *_notes(rows)]
    return "\n".join(lines)


def _rates(rates: dict[str, float]) -> list[str]:
    products = ", ".join(
        f"{kind} {rates[kind] / 1e9:,.0f}" for kind in ("half", "single", "double", "gram") if kind in rates
    )
    return [f"Rates of the machine in GFLOP/s: {products}; copy {rates['copy'] / 1e9:,.1f} GB/s.", ""]


def _goals(rows: Iterable[Entry]) -> list[str]:
    body = [
        [row["case"], row["contender"], row["goal"], quantity(row), "yes" if row["met"] else "**missed**"]
        for row in rows
        if "met" in row
    ]
    return table(["case", "what", "goal", "measured", "met"], body)


def _seconds(rows: Iterable[Entry]) -> list[str]:
    """One line a case, one column a contender."""
    timed = [row for row in rows if "seconds" in row]
    cases = list(dict.fromkeys(row["case"] for row in timed))
    contenders = list(dict.fromkeys(row["contender"] for row in timed))
    limits = any("limit" in row for row in timed)
    body = []
    for case in cases:
        cells = {row["contender"]: _cell(row) for row in timed if row["case"] == case}
        limit = next((duration(row["limit"]) for row in timed if row["case"] == case and "limit" in row), "")
        body.append([case, *([limit] if limits else []), *(cells.get(contender, "") for contender in contenders)])
    return table(["case", *(["limit"] if limits else []), *contenders], body)


def _numbers(rows: Iterable[Entry]) -> list[str]:
    """Measured numbers without a goal."""
    body = [[row["case"], row["contender"], quantity(row)] for row in rows if "measured" in row and "met" not in row]
    return table(["case", "what", "measured"], body)


def _notes(rows: Iterable[Entry]) -> list[str]:
    """A note that several rows have is said once."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if "note" in row:
            notes.setdefault(f"{row['contender']}: {row['note']}", []).append(row["case"])
    return [f"- {note} ({'; '.join(dict.fromkeys(cases))})" for note, cases in notes.items()] + [""] * bool(notes)


def _cell(row: Entry) -> str:
    once = ", once" if row.get("rounds") == 1 else ""
    return duration(row["seconds"]) + (f" ({row['ratio']:.2f} x{once})" if "ratio" in row else "")


def duration(seconds: float) -> str:
    """Three digits in the unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def quantity(row: Entry) -> str:
    return f"{row['measured']:.3g} {row.get('unit', '')}".strip()


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with an empty line after it, or nothing."""
    if not body:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in body]
    rule = ["---"] * len(head)
    return [*(f"| {' | '.join(row)} |" for row in [head, rule, *cells]), ""]
