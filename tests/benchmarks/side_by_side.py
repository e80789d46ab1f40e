"""Contenders timed in turn, A B A B, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SHORT = 0.02  # seconds that one measurement takes at least; a shorter call is repeated
SHORT_ON_DEVICE = 0.005  # and by the clock of a GPU, whose ticks are half a microsecond
PATIENCE = 60.0  # a contender whose first call takes longer is not called again


class Timing(NamedTuple):
    """The median seconds of a call, of how many rounds (1: only the first call was made), and the least."""

    seconds: float
    rounds: int
    least: float


def timings(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    *,
    device: str = "cpu",
    first: Mapping[str, float] | None = None,
    patience: float = PATIENCE,
    settle: float = 0.0,
) -> dict[str, Timing]:
    """The median seconds of a call to each, after one call that is not counted.

    A short call is repeated until it takes 20 ms (on a GPU 5), and the mean of these counts as one. A contender whose
    first call takes longer than ``patience`` seconds is timed by that one alone; ``first`` are the seconds of first
    calls that were made already, to compare the results. ``settle`` seconds pass before every measurement, for the
    threads of the contender before to stop spinning: those of several BLAS libraries in one process take each other's
    processors.
    """
    clock, short = (_events, SHORT_ON_DEVICE) if device == "cuda" else (_wall, SHORT)
    first = first or {name: clock(call, 1) for name, call in contenders.items()}
    patient = {name: call for name, call in contenders.items() if first[name] <= patience}
    repeats = {}
    for name, call in patient.items():
        warm = clock(call, 1) if first[name] < 1 else first[name]  # the first call may have compiled or planned
        repeats[name] = max(1, round(short / max(warm, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in patient}
    for _ in range(rounds):
        for name, call in patient.items():
            time.sleep(settle)
            taken[name].append(clock(call, repeats[name]))
    return {
        name: Timing(statistics.median(each), len(each), min(each))
        for name in contenders
        for each in [taken.get(name, [first[name]])]
    }


def medians(contenders: Mapping[str, Callable[[], Any]], rounds: int = 5, **options: Any) -> dict[str, float]:
    """The seconds of ``timings`` alone."""
    return {name: timing.seconds for name, timing in timings(contenders, rounds, **options).items()}


def _wall(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _events(call: Callable[[], Any], repeats: int) -> float:
    """By the device's own clock, since calls return before their work is done."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / repeats
