"""Peak memory of ``mpo_decompose``, measured in a process that has loaded nothing else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
from machine import fresh, growth_of
from records import Row, verdict

import tnmpo


def peaks(suite: str, case: str, size: tuple[int, int], order: int, cap: int | None, *, quick: bool) -> Iterator[Row]:
    """Peak memory on top of the matrix, as a multiple of it."""
    for kind in ("traced", "resident"):
        peak = fresh("memory", kind, *size, order, cap, here=quick)
        multiple = peak / (4 * size[0] * size[1])
        yield verdict(suite, case, f"peak memory / matrix, {kind}, numpy", multiple, at_most=3)


def traced(rows: int, cols: int, order: int, cap: int | None) -> int:
    """Bytes that Python and numpy held at the peak of a decomposition; LAPACK's own work space is not seen."""
    W, shape = matrix(rows, cols), tnmpo.plan_shape((rows, cols), order)
    tracemalloc.start()
    tnmpo.mpo_decompose(W, shape, cap)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def resident(rows: int, cols: int, order: int, cap: int | None) -> int:
    """Bytes by which the process grew, all libraries loaded and used before."""
    W, shape = matrix(rows, cols), tnmpo.plan_shape((rows, cols), order)
    tnmpo.mpo_decompose(matrix(256, 256), tnmpo.plan_shape((256, 256), order), None if cap is None else 16)
    return growth_of(lambda: tnmpo.mpo_decompose(W, shape, cap))


def matrix(rows: int, cols: int) -> np.ndarray:
    """Gaussian, in float32, made without a temporary."""
    return np.random.default_rng(0).standard_normal((rows, cols), dtype="float32")
