"""stream_decompose: a matrix that does not fit into memory, from blocks of its rows.

The unfolding of a bond arrives in chunks of rows as well, if a chunk holds whole suffix fibres: all row indices of the
sites right of the bond, for some of those left of it. So ``_randomized`` runs as it is, one pass a product.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from ._backend import as_numpy, backend_of, check_dtype, dtype_name, peak, working
from ._mpo import MPO, frame_of
from ._randomized import Sketch, all_splits, check_sketch, count, known_ranks, sketched
from ._shapes import MPOShape, as_shape, positive_int
from ._train import check_center
from ._unfolding import Split, Unfolding

Progress = Callable[[int, int], None]

_SKETCH = Sketch(power_iterations=1)
# Measured (tests/test_streaming.py): copies of a chunk, and of both sides of the bond in double precision, at a time.
_CHUNK_COPIES = 4
_SIDE_COPIES = 6


def stream_decompose(
    source: Any,
    shape: Any,
    rank: Any,
    *,
    memory: int = 2**30,
    seed: int = 0,
    sketch: Sketch = _SKETCH,
    center: int | None = None,
    progress: Progress | None = None,
) -> MPO:
    """Write a matrix that is larger than memory as a matrix product operator of known ranks.

    Parameters
    ----------
    source : array-like of shape (I, J), or iterable of (any, J) row blocks
        Anything with ``shape`` and slices of rows: ``numpy.memmap``, a dataset of h5py or zarr. Or the blocks in their
        order, of any heights; these are kept in a temporary file while the call lasts (``tempfile.gettempdir()``
        says where), since every pass reads them again.
    shape : (rows, cols), MPOShape or None
        As for ``tnmpo.mpo_decompose``, at least two sites.
    rank : int, tuple or MaxRank
        Ranks that are known beforehand; other policies need the whole spectra.
    memory : int
        The bytes that may be in use at a time, beside the interpreter and the blocks of an iterable.
    seed : int
        The same seed gives the same result.
    sketch : Sketch, optional
        Oversampling and power iterations. The matrix is read ``2 q + 4`` times for q power iterations.
    center : int, optional
        The orthogonality center, by default ``order // 2``.
    progress : callable, optional
        Called as ``progress(done, total)`` with the rows read so far and those of all passes.

    Returns
    -------
    MPO
        Of numpy arrays, of the dtype of ``source``. Its ``truncation`` is to be read as that of
        ``tnmpo.randomized_decompose``: ``error`` is exact. It does not depend on how rows come in blocks.

    Raises
    ------
    ValueError, TypeError
        If ``source`` does not fit ``shape``, holds NaN or Inf (the message names the row), or ``memory`` is too little:
        the message says how much is needed.

    Notes
    -----
    The bond to sketch is the one that leaves the fewest numbers among those whose chunks and sides fit into ``memory``.
    A chunk takes at least all row indices of the sites right of it, so a last site with a large row index needs much.
    Cost: as ``tnmpo.randomized_decompose``.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = (np.outer(np.arange(8.0) + k, np.ones(64)) for k in range(8))  # of 8 rows each
    >>> mpo = stream_decompose(blocks, ((4, 4, 4), (4, 4, 4)), rank=2)
    >>> mpo.ranks, mpo.truncation.error < 1e-10
    ((1, 2, 2, 1), True)
    """
    memory = positive_int(memory, "memory")
    seed, sketch = count(seed, "seed"), check_sketch(sketch)
    planned = None if shape is None else as_shape(shape)
    with _opened(source, planned) as rows:
        shape = as_shape(planned, rows.shape)
        center = check_center(center, shape.order)
        ranks = known_ranks(rank, shape.site_sizes)
        split, height = _plan(shape, ranks, sketch, rows.dtype, memory)
        chunks = _Chunks(rows, split, height, 2 * sketch.power_iterations + 4, progress)
        M = Unfolding(split, working(np.empty(0, rows.dtype)), chunks)
        return sketched(M, ranks, seed, sketch, center, rows.dtype.name)


def _plan(shape: MPOShape, ranks: tuple[int, ...], sketch: Sketch, dtype: np.dtype, memory: int) -> tuple[Split, int]:
    """The bond to sketch, and how many rows of the matrix a chunk holds."""
    if shape.order == 1:
        raise ValueError(
            "shape: got one site, expected at least two; the only core would be the matrix itself, which does not fit"
        )
    frame = frame_of(shape)
    cols = shape.matrix_shape[1]
    itemsize = working(np.empty(0, dtype)).itemsize

    def sides(split: Split) -> int:
        return _SIDE_COPIES * split.entries * (16 if dtype.kind == "c" else 8)

    def fibre(split: Split) -> int:
        return _CHUNK_COPIES * split.fibre * cols * itemsize

    splits = all_splits(frame, ranks, sketch)
    fitting = [split for split in splits if sides(split) + fibre(split) <= memory]
    if not fitting:
        needed = min(sides(split) + fibre(split) for split in splits)
        raise ValueError(
            f"memory: got {memory} bytes, expected at least {needed} for rows {shape.rows}, cols {shape.cols} and "
            f"ranks {ranks}; allow that much, lower the ranks or move row indices from the last sites to the first"
        )
    split = min(fitting, key=lambda split: (split.entries, fibre(split)))
    fibres = (memory - sides(split)) // fibre(split)
    return split, min(fibres * split.fibre, shape.matrix_shape[0])


@dataclass
class _Chunks:
    """The chunks of an unfolding; every call is a pass."""

    rows: _Rows
    split: Split
    height: int  # rows of the matrix in a chunk: whole fibres
    passes: int
    progress: Progress | None
    done: int = 0

    def __call__(self) -> Iterator[np.ndarray]:
        total = self.rows.shape[0]
        for start in range(0, total, self.height):
            stop = min(start + self.height, total)
            yield self.split.unfold(working(self.rows.read(start, stop)))
            self.done += stop - start
            if self.progress is not None:
                self.progress(self.done, self.passes * total)


class _Rows(Protocol):
    """A matrix as something to read rows from, again and again."""

    shape: tuple[int, int]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray: ...


class _Sliced:
    """The rows of an array-like."""

    def __init__(self, source: Any) -> None:
        if len(source.shape) != 2 or 0 in source.shape:
            raise ValueError(f"source: got shape {tuple(source.shape)}, expected a matrix with at least one entry")
        self.source = source
        self.shape = (int(source.shape[0]), int(source.shape[1]))
        self.dtype = _plain(source[:1]).dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        block = _plain(self.source[start:stop])
        if block.shape != (stop - start, self.shape[1]):
            raise ValueError(
                f"source: got shape {block.shape} for rows {start} to {stop - 1}, expected "
                f"{(stop - start, self.shape[1])}; source[start:stop] must be rows"
            )
        _check_norm(_finite_peak(block, start), self)
        return block


class _Spooled:
    """The rows of blocks that come once, kept in a file."""

    def __init__(self, blocks: Iterable[Any], planned: MPOShape | None, file: BinaryIO) -> None:
        self.file = file
        height, width, largest = 0, None, 0.0
        for number, given in enumerate(blocks):
            block = _plain(given)
            wanted = (width, self.dtype) if width is not None else (block.shape[-1], block.dtype)
            if block.ndim != 2 or (block.shape[1], block.dtype) != wanted:
                raise ValueError(
                    f"source: got {block.dtype} of shape {block.shape} for block {number}, expected {wanted[1]} of "
                    f"shape (any, {wanted[0]}) like the blocks before; cut the matrix along its rows only"
                )
            width, self.dtype = wanted
            if len(block) > 0:
                largest = max(largest, _finite_peak(block, height, f" of block {number}"))
                file.write(np.ascontiguousarray(block).data)
            height += len(block)
            if planned is not None and height > planned.matrix_shape[0]:
                raise ValueError(
                    f"source: got more than {planned.matrix_shape[0]} rows with block {number}, expected the "
                    f"{planned.matrix_shape} matrix of shape {(planned.rows, planned.cols)}; choose its factors anew"
                )
        if width is None or height == 0:
            raise ValueError("source: got no rows, expected blocks of rows; was the iterator used before?")
        self.shape = (height, width)
        _check_norm(largest, self)

    def read(self, start: int, stop: int) -> np.ndarray:
        block = np.empty((stop - start, self.shape[1]), self.dtype)
        self.file.seek(start * self.shape[1] * self.dtype.itemsize)
        self.file.readinto(block.data.cast("B"))  # type: ignore[attr-defined]
        return block


@contextmanager
def _opened(source: Any, planned: MPOShape | None) -> Iterator[_Rows]:
    """``source`` as rows. What comes once is kept in a file that has gone when the block is left, even by an error."""
    if hasattr(source, "shape") and hasattr(source, "__getitem__"):
        yield _Sliced(source)
    elif isinstance(source, Iterable) and not isinstance(source, str):
        with tempfile.TemporaryFile() as file:
            yield _Spooled(source, planned, file)
    else:
        raise TypeError(
            f"source: got {type(source).__name__}, expected an array-like with a shape and row slices (numpy.memmap, "
            "h5py, zarr), or an iterable of row blocks"
        )


def _plain(block: Any) -> np.ndarray:
    """A block as a numpy array in the byte order of the machine."""
    backend_of(block, "source")
    check_dtype(block, "source")
    array = as_numpy(block)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _finite_peak(block: np.ndarray, start: int, of: str = "") -> float:
    """The largest magnitude in the rows from ``start`` on."""
    largest = peak(block)
    if not math.isfinite(largest):
        row = start + int(np.argmin(np.all(np.isfinite(block), axis=1)))
        raise ValueError(f"source: got NaN or Inf in row {row}{of}, expected finite numbers; clean it first")
    return largest


def _check_norm(largest: float, rows: _Rows) -> None:
    """As ``_backend.check_norm``, of a matrix that is not there as a whole."""
    name = dtype_name(working(np.empty(0, rows.dtype)))
    if largest > float(np.finfo(name).max) / (2 * math.sqrt(math.prod(rows.shape))):
        raise ValueError(f"source: got entries up to {largest:.3g}, whose norm overflows {name}; scale them down first")
