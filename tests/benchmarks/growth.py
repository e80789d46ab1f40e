"""Time of ``mpo_decompose``, uncut, against the size of a square float32 matrix. The exponent of the time in the number
of entries N is the slope of a straight line through the logarithms, with its 95 % confidence interval. Theory: Gram
matrices and projections cost ``N sum d_k``, with the bonds' dimensions ``d_k``; the slope of that over the same sizes
is what the time must show where every product runs at one rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from decompose import relative_error
from memory import matrix, peaks
from peers import as_mpo
from records import Row
from scipy import stats
from side_by_side import timings

import tnmpo

SUITE = "growth"
SIZES = [256, 512, 1024, 2048, 4096]
ORDERS = [3, 5]


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    for order in ORDERS:
        yield from grown(order, [16, 32, 64] if quick else SIZES, quick=quick, device=device)


def grown(order: int, sizes: list[int], *, quick: bool, device: str) -> Iterator[Row]:
    matrices = {size: placed(size, device) for size in sizes}
    shapes = {size: tnmpo.plan_shape((size, size), order) for size in sizes}
    calls = {size: partial(tnmpo.mpo_decompose, matrices[size], shapes[size]) for size in sizes}
    for size, call in calls.items():
        assert relative_error(torch.from_numpy(matrix(size, size)), as_mpo(call().cores, shapes[size])) < 1e-5
    timed = timings({f"{size} x {size}": call for size, call in calls.items()}, 1 if quick else 5, device=device)
    for name, timing in timed.items():
        yield Row(SUITE, f"{order} sites", name, timing.seconds, timing.rounds)
    entries = [size * size for size in sizes]
    slope, half = exponent(entries, [timing.seconds for timing in timed.values()])
    predicted, _ = exponent(entries, [size * size * sum(shapes[size].full_ranks[1:-1]) for size in sizes])
    note = f"95 % confidence {slope - half:.2f} .. {slope + half:.2f}"
    yield Row(SUITE, f"{order} sites", "exponent of the time in N", measured=slope, note=note)
    yield Row(SUITE, f"{order} sites", "exponent of N sum d_k in N", measured=predicted)
    if device == "cpu":
        for size in sizes[-2:]:
            yield from peaks(SUITE, f"{size} x {size}, {order} sites", (size, size), order, None, quick=quick)


def placed(size: int, device: str) -> object:
    W = matrix(size, size)
    return W if device == "cpu" else torch.from_numpy(W).to(device)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The slope of log seconds over log sizes, and half the width of its 95 % confidence interval."""
    fit = stats.linregress(np.log(sizes), np.log(seconds))
    quantile = stats.t.ppf(0.975, len(sizes) - 2)
    return float(fit.slope), float(quantile * fit.stderr)
