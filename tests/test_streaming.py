"""The laws of decomposing from blocks of rows: the same matrix however it comes, exact errors, and the memory kept."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SLACK, Case, array_of, cases, dense_of, dense_spectra, exact_ranks, norm, numpy_of

from tnmpo import MPOShape, Sketch, is_canonical, mpo_decompose, randomized_decompose, stream_decompose

MANY = settings(max_examples=80)
SHAPE = MPOShape((4, 4, 8), (4, 4, 4))  # 128 x 64
MEBIBYTE = 2**20

sketches = st.builds(Sketch, st.integers(0, 4), st.integers(0, 2))


def in_blocks(matrix, heights):
    """Row blocks of these heights in turn, until the matrix is used up; an iterator, to be read once."""
    start = 0
    while start < len(matrix):
        for height in heights:
            yield matrix[start : start + height]
            start += height


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.cores, other.cores, strict=True))


def train(rng, shape, ranks):
    """A random matrix of these ranks."""
    sizes = zip(ranks, shape.rows, shape.cols, ranks[1:], strict=False)
    return dense_of([rng.normal(size=size) for size in sizes])


class Rows:
    """What h5py and zarr offer: a shape, a dtype, and slices of rows. Counts what was read."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.read = 0

    def __getitem__(self, rows):
        block = self.matrix[rows]
        self.read += len(block)
        return block


@MANY
@given(cases(min_order=2, backends=("numpy",)), sketches, st.data())
def test_the_error_is_exact_and_the_bounds_hold(case: Case, sketch, data):
    ranks = data.draw(exact_ranks(case.shape))
    center = data.draw(st.none() | st.integers(0, case.shape.order - 1))
    memory = data.draw(st.sampled_from([least_memory(case.W, case.shape, ranks, sketch), 2**30]))
    mpo = stream_decompose(case.W, case.shape, ranks, memory=memory, sketch=sketch, center=center)
    record = mpo.truncation
    assert mpo.ranks == record.ranks == (1, *ranks, 1)
    assert mpo.shape == case.shape
    assert mpo.center == (case.shape.order // 2 if center is None else center)
    assert is_canonical(mpo)
    assert {core.dtype for core in mpo.cores} == {case.W.dtype}
    error = norm(case.dense - dense_of(mpo.cores))
    assert abs(record.error - error) <= case.slack
    assert abs(record.relative_error * norm(case.dense) - error) <= 2 * case.slack
    spectra = dense_spectra(case.dense, case.shape)
    tails = [norm(spectrum[rank:]) for spectrum, rank in zip(spectra, ranks, strict=True)]
    assert record.lower_bound - case.slack <= max(tails) <= error + case.slack <= record.upper_bound + 2 * case.slack
    for seen, spectrum in zip(record.spectra, spectra, strict=True):
        assert np.all(seen <= spectrum[: len(seen)] + case.slack)


def least_memory(matrix, shape, ranks, sketch):
    with pytest.raises(ValueError, match="memory: got 1 bytes") as caught:
        stream_decompose(matrix, shape, ranks, memory=1, sketch=sketch)
    return int(str(caught.value).partition("at least ")[2].split()[0])


@MANY
@given(
    cases(min_order=2, max_order=4, backends=("numpy", "torch")),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    st.data(),
)
def test_it_does_not_matter_how_the_rows_come(case: Case, heights, data):
    """Slices of an array, blocks of any heights, empty ones too, numpy or torch: the same numbers, to the last bit."""
    ranks = data.draw(exact_ranks(case.shape))
    host = case.W.numpy() if isinstance(case.W, torch.Tensor) else case.W
    whole = stream_decompose(host, case.shape, ranks)
    assert equal(whole, stream_decompose(in_blocks(case.W, heights), case.shape, ranks))
    assert equal(whole, stream_decompose(list(in_blocks(case.W, heights)), case.shape, ranks))
    assert equal(whole, stream_decompose(Rows(case.W), case.shape, ranks))
    assert equal(whole, stream_decompose(host.astype(host.dtype.newbyteorder(">")), case.shape, ranks))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_is_read_as_an_array(tmp_path, order):
    matrix = np.random.default_rng(0).normal(size=SHAPE.matrix_shape).astype("float32")
    np.save(tmp_path / "W.npy", np.asarray(matrix, order=order))
    mapped = np.load(tmp_path / "W.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    mpo = stream_decompose(mapped, SHAPE, 5)
    assert equal(mpo, stream_decompose(matrix, SHAPE, 5))
    assert not any(isinstance(core, np.memmap) for core in mpo.cores)


@given(st.sampled_from(["float32", "float64", "complex64", "complex128"]), st.integers(0, 99), st.integers(0, 1))
@settings(max_examples=25)
def test_a_matrix_of_these_ranks_is_found_again(dtype, seed, iterations):
    rng = np.random.default_rng(seed)
    ranks = (1, 3, 2, 3, 1)
    shape = MPOShape((3, 4, 2, 5), (4, 2, 4, 3))
    dense = train(rng, shape, ranks) * (np.exp(1j) if dtype.startswith("complex") else 1)
    matrix = array_of(dense, "numpy", dtype)
    mpo = stream_decompose(in_blocks(matrix, (7,)), shape, ranks, seed=seed, sketch=Sketch(3, iterations))
    exact = mpo_decompose(matrix, shape, ranks)
    assert norm(dense_of(mpo.cores) - dense_of(exact.cores)) <= 2 * SLACK[dtype] * norm(dense)
    assert mpo.truncation.error <= SLACK[dtype] * norm(dense)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_an_error_far_below_the_norm_is_right(scale):
    rng = np.random.default_rng(0)
    matrix = scale * (train(rng, SHAPE, (1, 2, 3, 1)) + 1e-12 * rng.normal(size=(128, 64)))
    mpo = stream_decompose(matrix, SHAPE, (2, 3))
    error = norm(matrix - dense_of(mpo.cores))
    assert error < 1e-10 * norm(matrix)
    assert mpo.truncation.error == pytest.approx(error, rel=1e-2)


def test_it_comes_near_the_exact_sweep():
    """Over ten seeds, for singular values ``1 / k``: within 5 % on four passes, 2 % on six."""
    rng = np.random.default_rng(1)
    u, v = np.linalg.qr(rng.normal(size=(128, 64)))[0], np.linalg.qr(rng.normal(size=(64, 64)))[0]
    matrix = (u / np.arange(1, 65.0)) @ v
    exact = mpo_decompose(matrix, SHAPE, 6).truncation.error
    for iterations, factor in ((0, 1.05), (1, 1.02)):
        errors = [
            stream_decompose(matrix, SHAPE, 6, seed=seed, sketch=Sketch(5, iterations)).truncation.error
            for seed in range(10)
        ]
        assert np.mean(errors) <= factor * exact


def test_it_is_the_randomised_decomposition_where_both_sketch_the_same_bond():
    matrix = np.random.default_rng(2).normal(size=SHAPE.matrix_shape)
    sketch = Sketch(4)
    streamed = stream_decompose(matrix, SHAPE, 6, seed=3, sketch=sketch)
    at_once = randomized_decompose(matrix, SHAPE, 6, seed=3, sketch=sketch)
    assert streamed.truncation.error == pytest.approx(at_once.truncation.error, rel=1e-12)
    assert norm(dense_of(streamed.cores) - dense_of(at_once.cores)) <= 1e-11 * norm(matrix)


def test_of_one_bond_the_memory_decides_the_chunks_only():
    matrix = np.random.default_rng(3).normal(size=(512, 256))
    shape, sketch = MPOShape((64, 8), (8, 32)), Sketch(power_iterations=1)
    least = least_memory(matrix, shape, (1, 4, 1), sketch)
    results = [stream_decompose(matrix, shape, 4, memory=memory) for memory in (least, round(1.3 * least), 2**30)]
    for mpo in results[:2]:
        assert norm(dense_of(mpo.cores) - dense_of(results[2].cores)) <= 1e-11 * norm(matrix)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_counts_its_rounding(dtype):
    matrix = torch.randn(SHAPE.matrix_shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    mpo = stream_decompose(in_blocks(matrix, (50,)), SHAPE, 5)
    assert {str(core.dtype) for core in mpo.cores} == {"float16" if dtype == "float16" else "float32"}
    error = norm(numpy_of(matrix) - dense_of(mpo.cores))
    assert mpo.truncation.error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(("iterations", "dtype", "passes"), [(0, "float64", 4), (1, "float64", 6), (1, "float16", 6)])
def test_progress_counts_the_rows_of_all_passes(iterations, dtype, passes):
    source = Rows(np.random.default_rng(4).normal(size=SHAPE.matrix_shape).astype(dtype))
    calls, sketch = [], Sketch(2, iterations)
    memory = least_memory(source, SHAPE, (1, 5, 5, 1), sketch)
    source.read = 0

    def progress(done, total):
        calls.append((done, total))

    stream_decompose(source, SHAPE, 5, memory=memory, sketch=sketch, progress=progress)
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {passes * 128}
    assert list(done) == sorted(set(done))
    assert done[-1] == passes * 128 == source.read - 1  # one row tells the dtype
    assert len(done) > passes


# ---------------------------------------------------------------------------------------------------------------------
# The temporary file
# ---------------------------------------------------------------------------------------------------------------------


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by way of /proc")
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_temporary_file_is_gone_afterwards(tmp_path, monkeypatch, spoilt):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    matrix = np.random.default_rng(5).normal(size=SHAPE.matrix_shape)
    matrix[100, 3] = np.nan if spoilt else 0.0
    before, during = open_files(), []

    def watched():
        for block in in_blocks(matrix, (10,)):
            during.append(open_files())
            yield block

    if spoilt:
        with pytest.raises(ValueError, match="source: got NaN or Inf in row 100 of block 10"):
            stream_decompose(watched(), SHAPE, 5)
    else:
        stream_decompose(watched(), SHAPE, 5)
    assert max(during) == before + 1
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_iterator_comes_through():
    def broken():
        yield np.ones((64, 64))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        stream_decompose(broken(), SHAPE, 5)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


class Made(Rows):
    """A matrix that is made when it is read, so that it is nowhere as a whole."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype, self.read = shape, np.dtype(dtype), 0

    def __getitem__(self, rows):
        start, stop, _ = rows.indices(self.shape[0])
        self.read += stop - start
        block = np.empty((stop - start, self.shape[1]), self.dtype)
        for row in range(start, stop):
            block[row - start] = np.cos(0.01 * row + 0.1 * row * np.arange(self.shape[1], dtype="float32") ** 0.5)
        return block


# Everything in the middle, a heavy first site, many small sites, and ranks near the full bond.
SHAPES_AND_RANKS = [
    (MPOShape((8, 8, 16), (16, 8, 8)), 16),
    (MPOShape((1024, 1), (1, 1024)), 32),
    (MPOShape((256, 2, 2), (1, 32, 32)), 20),
    (MPOShape((2,) * 10, (2,) * 10), 16),
    (MPOShape((16, 64), (32, 32)), 100),
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("shape", "rank"), SHAPES_AND_RANKS)
@pytest.mark.parametrize("spare", [1.0, 1.7])
def test_the_memory_is_kept(shape, rank, dtype, spare):
    source = Made(shape.matrix_shape, dtype)
    ranks = tuple(min(rank, full) for full in shape.full_ranks)
    memory = math.floor(spare * least_memory(source, shape, ranks, Sketch(power_iterations=1)))
    tracemalloc.start()
    try:
        stream_decompose(source, shape, rank, memory=memory)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= memory


OF_THE_PROCESS = """
import resource, sys
import numpy as np
import tnmpo

rows, memory = int(sys.argv[1]), int(sys.argv[2])

def block(start):
    return np.random.default_rng(start).random((256, 4096), dtype="float32")

def stream(source, rows):
    return tnmpo.stream_decompose(source, ((rows // 256, 16, 16), (8, 8, 64)), 8, memory=memory)

stream((block(k) for k in range(2)), 512)  # what importing and the first calls take
"""

ITERATED = (
    OF_THE_PROCESS
    + """
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mpo = stream((block(k) for k in range(rows // 256)), rows)
print(mpo.truncation.relative_error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
)

MAPPED = (
    OF_THE_PROCESS
    + """
mapped = np.lib.format.open_memmap(sys.argv[3], "w+", "float32", (rows, 4096))
for k in range(rows // 256):
    mapped[256 * k : 256 * (k + 1)] = block(k)
mapped.flush()
del mapped
mapped = np.load(sys.argv[3], mmap_mode="r")
status = dict(line.split(":") for line in open("/proc/self/status"))
used = 1024 * int(status["VmData"].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))  # of a file that is mapped nothing counts
mpo = stream(mapped, rows)
print(mpo.truncation.relative_error)
try:
    tnmpo.randomized_decompose(mapped, ((rows // 256, 16, 16), (8, 8, 64)), 8)
except MemoryError:
    print("the limit bites")
"""
)


def in_a_process(script, *arguments):
    """What ``script`` prints, in words."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_blocks_larger_than_the_memory_stay_on_disk():
    """Of the whole process: 256 MiB of matrix, 64 MiB allowed, and what numpy and LAPACK take beside it."""
    rows, memory = 16384, 64 * MEBIBYTE
    error, grown = map(float, in_a_process(ITERATED, rows, memory))
    assert rows * 4096 * 4 == 4 * memory
    assert grown * 1024 <= memory
    assert 0.4 < error < 0.6  # uniform numbers: the mean is kept, the rest is noise


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all private memory on Linux only")
def test_a_memory_map_larger_than_the_memory_is_decomposed_within_it(tmp_path):
    """The operating system refuses every byte above 64 MiB, and does so where the matrix is taken as a whole."""
    error, *words = in_a_process(MAPPED, 16384, 64 * MEBIBYTE, tmp_path / "W.npy")
    assert 0.4 < float(error) < 0.6
    assert words == ["the", "limit", "bites"]
