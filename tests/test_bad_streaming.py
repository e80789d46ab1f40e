"""Bad calls of the randomised and of the streaming decomposition, in the manner of ``test_bad_input.py``."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import refused

from tnmpo import MPOShape, Sketch, Tolerance, randomized_decompose, randomized_tt_decompose, stream_decompose

W = np.random.default_rng(0).normal(size=(16, 24))
SHAPE = ((4, 4), (4, 6))


def spoilt(row, value=np.nan):
    matrix = W.copy()
    matrix[row, 5] = value
    return matrix


def blocks(matrix, height):
    return (matrix[start : start + height] for start in range(0, len(matrix), height))


class Shrinking:
    """An array-like whose slices are shorter than its shape says."""

    shape, dtype = (16, 24), np.dtype(float)

    def __getitem__(self, rows):
        return W[rows][:3]


KNOWN = [
    (lambda rank=rank, verb=verb: verb(W, SHAPE, rank), TypeError, f"rank: got {shown}, expected an int, a tuple or")
    for verb in (randomized_decompose, stream_decompose)
    for rank, shown in [
        (None, "None"),
        (True, "True"),
        (0.5, "0.5"),
        ("same", "'same'"),
        (Tolerance(0.1), "Tolerance(relative=0.1)"),
    ]
]
BOTH = [
    row
    for verb in (randomized_decompose, stream_decompose)
    for row in [
        (lambda verb=verb: verb(W, SHAPE, 0), ValueError, "rank: got 0, expected a positive integer"),
        (lambda verb=verb: verb(W, SHAPE, (3, 4)), ValueError, "rank: got (3, 4) for 1 inner bonds, expected 1"),
        (lambda verb=verb: verb(W, SHAPE, (17,)), ValueError, "rank: got 17 for bond 1, whose full bond is 16"),
        (lambda verb=verb: verb(W, ((4, 4), (4, 4)), 2), ValueError, "shape: rows (4, 4) and cols (4, 4) make a"),
        (lambda verb=verb: verb(W, 7, 2), TypeError, "shape: got 7, expected (rows, columns)"),
        (lambda verb=verb: verb(W, SHAPE, 2, center=2), ValueError, "center: got 2, expected a site index from 0 to 1"),
        (lambda verb=verb: verb(W, SHAPE, 2, seed=None), TypeError, "seed: got None, expected an integer >= 0"),
        (lambda verb=verb: verb(W, SHAPE, 2, seed=-1), ValueError, "seed: got -1, expected an integer >= 0"),
        (lambda verb=verb: verb(W, SHAPE, 2, sketch=3), TypeError, "sketch: got 3, expected a tnmpo.Sketch"),
    ]
]
BAD_CALLS = [
    *KNOWN,
    *BOTH,
    (lambda: Sketch(-1), ValueError, "oversampling: got -1, expected an integer >= 0"),
    (lambda: Sketch(2.0), TypeError, "oversampling: got 2.0, expected an integer >= 0"),
    (lambda: Sketch(power_iterations=True), TypeError, "power_iterations: got True, expected an integer >= 0"),
    # the matrix in memory
    (lambda: randomized_decompose([[1.0]], SHAPE, 2), TypeError, "W: got list, expected a numpy array"),
    (lambda: randomized_decompose(W[0], SHAPE, 2), ValueError, "W: got 1 axes, expected a matrix"),
    (lambda: randomized_decompose(W.astype(int), SHAPE, 2), TypeError, "W: got dtype int64, expected one of"),
    (lambda: randomized_decompose(spoilt(3), SHAPE, 2), ValueError, "W: got NaN or Inf among its entries"),
    (lambda: randomized_decompose(spoilt(3, 1e308), SHAPE, 2), ValueError, "W: got entries up to 1e+308, whose norm"),
    # the tensor
    (lambda: randomized_tt_decompose([1.0], 2), TypeError, "tensor: got list, expected a numpy array"),
    (lambda: randomized_tt_decompose(np.float64(3.0), 2), ValueError, "tensor: got a scalar, expected at least one"),
    (lambda: randomized_tt_decompose(spoilt(3), 2), ValueError, "tensor: got NaN or Inf among its entries"),
    (lambda: randomized_tt_decompose(W, 0.5), TypeError, "rank: got 0.5, expected an int, a tuple or"),
    (lambda: randomized_tt_decompose(W, (17,)), ValueError, "rank: got 17 for bond 1, whose full bond is 16"),
    (lambda: randomized_tt_decompose(W, 2, seed=-1), ValueError, "seed: got -1, expected an integer >= 0"),
    # the source
    (lambda: stream_decompose(7, SHAPE, 2), TypeError, "source: got int, expected an array-like with a shape and row"),
    (lambda: stream_decompose("W.npy", SHAPE, 2), TypeError, "source: got str, expected an array-like with a shape"),
    (lambda: stream_decompose(W[0], SHAPE, 2), ValueError, "source: got shape (24,), expected a matrix with at least"),
    (lambda: stream_decompose(W[:0], SHAPE, 2), ValueError, "source: got shape (0, 24), expected a matrix with at"),
    (lambda: stream_decompose(W.astype(int), SHAPE, 2), TypeError, "source: got dtype int64, expected one of"),
    (
        lambda: stream_decompose(Shrinking(), SHAPE, 2),
        ValueError,
        "source: got shape (3, 24) for rows 0 to 15, expected",
    ),
    (lambda: stream_decompose(spoilt(13), SHAPE, 2), ValueError, "source: got NaN or Inf in row 13, expected finite"),
    (lambda: stream_decompose(spoilt(13, 1e308), SHAPE, 2), ValueError, "source: got entries up to 1e+308, whose norm"),
    # blocks
    (lambda: stream_decompose([], SHAPE, 2), ValueError, "source: got no rows, expected blocks of rows; was the"),
    (lambda: stream_decompose([W[:0]], SHAPE, 2), ValueError, "source: got no rows, expected blocks of rows"),
    (lambda: stream_decompose([[1.0]], SHAPE, 2), TypeError, "source: got list, expected a numpy array"),
    (
        lambda: stream_decompose(iter(W), SHAPE, 2),
        ValueError,
        "source: got float64 of shape (24,) for block 0, expected",
    ),
    (
        lambda: stream_decompose([W[:4], W[4:, :3]], SHAPE, 2),
        ValueError,
        "source: got float64 of shape (12, 3) for block 1, expected float64 of shape (any, 24) like the blocks before",
    ),
    (
        lambda: stream_decompose([W[:4], W[4:].astype("float32")], SHAPE, 2),
        ValueError,
        "source: got float32 of shape (12, 24) for block 1, expected float64 of shape (any, 24) like the blocks before",
    ),
    (
        lambda: stream_decompose(blocks(spoilt(13, np.inf), 2), SHAPE, 2),
        ValueError,
        "source: got NaN or Inf in row 13 of block 6, expected finite numbers; clean it first",
    ),
    (
        lambda: stream_decompose([spoilt(0, 1e308)], SHAPE, 2),
        ValueError,
        "source: got entries up to 1e+308, whose norm",
    ),
    (
        lambda: stream_decompose(blocks(W[:15], 4), SHAPE, 2),
        ValueError,
        "a (16, 24) matrix, the matrix is (15, 24)",
    ),
    (
        lambda: stream_decompose([*blocks(W, 4), W[:1], None], SHAPE, 2),
        ValueError,
        "source: got more than 16 rows with block 4, expected the (16, 24) matrix of shape ((4, 4), (4, 6))",
    ),
    # memory
    (lambda: stream_decompose(W, ((16,), (24,)), 2), ValueError, "shape: got one site, expected at least two"),
    (lambda: stream_decompose(W, SHAPE, 2, memory=0), ValueError, "memory: got 0, expected a positive integer"),
    (lambda: stream_decompose(W, SHAPE, 2, memory=1e9), TypeError, "memory: got 1000000000.0, expected a positive"),
    (lambda: stream_decompose(W, SHAPE, 2, memory=999), ValueError, "memory: got 999 bytes, expected at least "),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment):
    argument, rest = refused(call, error, fragment)
    assert argument.isidentifier()  # who
    assert "got" in rest or "make a" in rest  # what came
    assert "expected" in rest or ";" in rest  # what to do


def test_the_memory_that_is_asked_for_is_enough():
    shape = MPOShape((8, 8, 8), (8, 8, 8))
    matrix = np.random.default_rng(1).normal(size=(512, 512))
    with pytest.raises(ValueError) as caught:
        stream_decompose(matrix, shape, 4, memory=1000)
    needed = int(str(caught.value).partition("at least ")[2].split()[0])
    assert stream_decompose(matrix, shape, 4, memory=needed).ranks == (1, 4, 4, 1)
    with pytest.raises(ValueError, match="allow that much, lower the ranks or move row indices"):
        stream_decompose(matrix, shape, 4, memory=needed - 1)
