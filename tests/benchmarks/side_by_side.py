"""Contenders timed in turn, A B A B, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(contenders: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
    """The median seconds of a call to each, after one call that is not counted.

    A short call is repeated until it takes 20 ms, and the mean of these counts as one.
    """
    repeats = {}
    for name, call in contenders.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(0.02 / max(time.perf_counter() - start, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            taken[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
