"""How far a process grows that streams 1 GiB within several limits. The table is in docs/large.md.

for memory in 192 256 512; do OMP_NUM_THREADS=1 python tests/benchmarks/streaming.py $memory; done
"""

from __future__ import annotations

import resource
import sys

import numpy as np

import tnmpo

ROWS, COLS, HEIGHT = 65536, 4096, 256
MEBIBYTE = 2**20


def blocks(count):
    return (np.random.default_rng(k).random((HEIGHT, COLS), dtype="float32") for k in range(count))


def stream(count, memory):
    shape = ((count, 16, 16), (8, 8, 64))
    return tnmpo.stream_decompose(blocks(count), shape, 16, memory=memory * MEBIBYTE)


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    memory = int(sys.argv[1])
    stream(2, memory)  # what importing and the first calls take
    before = resident()
    mpo = stream(ROWS // HEIGHT, memory)
    print(f"| {memory} MiB | {resident() - before:.0f} MiB | {mpo.truncation.relative_error:.4f} |")
