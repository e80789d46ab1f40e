"""``import tnmpo`` and ``import tensorly`` in fresh interpreters, in turn; the median of eleven each."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from records import Row, verdict

SUITE = "import"


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    rounds = 1 if quick else 11
    taken: dict[str, list[float]] = {"python": [], "tensorly": [], "tnmpo": []}
    for _ in range(rounds + 1):  # the first fills the disk's cache
        for name, seconds in taken.items():
            seconds.append(import_seconds(name))
    medians = {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}
    for name, seconds in medians.items():
        yield Row(SUITE, "fresh interpreter", name, seconds, rounds, seconds / medians["tensorly"], "tensorly")
    yield verdict(SUITE, "fresh interpreter", "tnmpo / tensorly", medians["tnmpo"] / medians["tensorly"], at_most=1.5)


def import_seconds(name: str) -> float:
    """Wall-clock time of an interpreter that imports the package and ends; ``python`` alone imports nothing."""
    code = "" if name == "python" else f"import {name}"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start
