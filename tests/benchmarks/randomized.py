"""randomized_decompose against mpo_decompose: CPU time and error. The table is in docs/large.md.

OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/randomized.py
"""

from __future__ import annotations

import time

import numpy as np

import tnmpo


def measured(decompose):
    """The least CPU time of three calls, and the error of the result."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        mpo = decompose()
        seconds.append(time.process_time() - start)
    return min(seconds), mpo.truncation.error


def compare(W, shape, rank):
    exact, optimum = measured(lambda: tnmpo.mpo_decompose(W, shape, rank))
    print(f"| {exact:.2f} s", end=" |", flush=True)
    for iterations in (0, 1, 2):
        sketch = tnmpo.Sketch(power_iterations=iterations)
        seconds, error = measured(lambda sketch=sketch: tnmpo.randomized_decompose(W, shape, rank, sketch=sketch))
        print(f" {exact / seconds:.1f} x, {error / optimum:.4f}", end=" |", flush=True)
    print()


def matrices(rows, cols):
    rng = np.random.default_rng(0)
    yield "noise", rng.standard_normal((rows, cols), dtype="float32")
    short = min(rows, cols)
    u, v = (rng.standard_normal((size, short), dtype="float32") for size in (rows, cols))
    yield "1/k", (u / np.arange(1, short + 1, dtype="float32")) @ v.T


if __name__ == "__main__":
    for size, rank in [((768, 3072), 64), ((768, 3072), 144), ((3072, 8192), 64)]:
        for kind, W in matrices(*size):
            for name, shape in [("planned", tnmpo.plan_shape(size)), ("low rank", tnmpo.MPOShape.low_rank(size))]:
                print(f"| {size[0]} x {size[1]} | {name} | {rank} | {kind} ", end="", flush=True)
                compare(W, shape, rank)
