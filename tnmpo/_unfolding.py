"""One bond of a train as a matrix to multiply: the unfolding, which may arrive in chunks of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._backend import Array, backend_of, conj, detach, dtype_name, frobenius_norm, like, permute, transposed
from ._bounds import l2_norm
from ._train import Frame, interleaved


@dataclass(frozen=True)
class Split:
    """A bond, and how many vectors its sketch takes.

    In the unfolding every axis of the array keeps its order on either side of the bond; sites are made once the sides
    are small. A side with its bond is a train whose open end is one more site.
    """

    frame: Frame[Any]
    bond: int
    width: int

    @property
    def dims(self) -> tuple[tuple[int, int], ...]:
        """The sizes, left and right of the bond, of every axis of the array."""
        axes = zip(*self.frame.site_shapes, strict=True)
        return tuple((math.prod(axis[: self.bond]), math.prod(axis[self.bond :])) for axis in axes)

    @property
    def rows(self) -> int:
        return math.prod(left for left, _ in self.dims)

    @property
    def cols(self) -> int:
        return math.prod(right for _, right in self.dims)

    @property
    def fibre(self) -> int:
        """The number of rows of the array that fill whole rows of the unfolding."""
        return self.dims[0][1]

    @property
    def entries(self) -> int:
        """What is left of the array: both sides of the bond."""
        return self.width * (self.rows + self.cols)

    def unfold(self, block: Array) -> Array:
        """The rows of the unfolding that whole fibres of rows of the array make."""
        (_, below), *others = self.dims
        sizes = (-1, below, *(size for pair in others for size in pair))
        places = range(len(sizes))
        return permute(block.reshape(sizes), (*places[::2], *places[1::2])).reshape((-1, self.cols))

    def prefix_tensor(self, matrix: Array) -> Array:
        """A (rows, rank) matrix with one axis a site, the open end last."""
        frame = self._prefix(matrix.shape[1])
        return interleaved(matrix, frame).reshape(frame.site_sizes)

    def suffix_tensor(self, matrix: Array) -> Array:
        """A (rank, cols) matrix with one axis a site, the open end first."""
        frame = self._suffix(matrix.shape[0])
        return interleaved(matrix, frame).reshape(frame.site_sizes)

    def prefix_matrix(self, cores: Sequence[Array]) -> Array:
        """The (rows, rank) matrix of the cores left of the bond."""
        rank = cores[-1].shape[2]
        train = self._prefix(rank).build([*cores, _identity(rank, cores[0])[:, :, None]], dtype_name(cores[0]))
        return train._dense().reshape((self.rows, rank))

    def suffix_matrix(self, cores: Sequence[Array]) -> Array:
        """The (rank, cols) matrix of the cores right of the bond."""
        rank = cores[0].shape[0]
        train = self._suffix(rank).build([_identity(rank, cores[0])[None], *cores], dtype_name(cores[0]))
        return train._dense().reshape((rank, self.cols))

    def _prefix(self, rank: int) -> Frame[Any]:
        return Frame(self.frame.kind, (*self.frame.site_shapes[: self.bond], (*self._units, rank)))

    def _suffix(self, rank: int) -> Frame[Any]:
        return Frame(self.frame.kind, ((rank, *self._units), *self.frame.site_shapes[self.bond :]))

    @property
    def _units(self) -> tuple[int, ...]:
        return (1,) * (len(self.dims) - 1)


@dataclass(frozen=True)
class Unfolding:
    """The (rows, cols) matrix of a bond, as something to multiply; every product is one pass over its chunks."""

    split: Split
    where: Array  # an array of the backend, device and dtype of the chunks
    chunks: Callable[[], Iterable[Array]]

    def times(self, right: Array) -> Array:
        """``M right``."""
        products = [chunk @ right for chunk in self.chunks()]
        return products[0] if len(products) == 1 else backend_of(right, "right").concatenate(products, axis=0)

    def adjoint_times(self, left: Array) -> Array:
        """``M^H left``."""
        total, start = 0, 0
        for chunk in self.chunks():
            stop = start + chunk.shape[0]
            total = total + conj(transposed(chunk) @ conj(left[start:stop]))
            start = stop
        return total

    def distance(self, left: Array, right: Array) -> tuple[float, float]:
        """``||M - left right||`` and ``||M||``."""
        residuals, norms, start = [], [], 0
        for chunk in map(detach, self.chunks()):
            stop = start + chunk.shape[0]
            norms.append(frobenius_norm(chunk))
            residuals.append(frobenius_norm(chunk - left[start:stop] @ right))
            start = stop
        return l2_norm(np.array(residuals)), l2_norm(np.array(norms))


def _identity(size: int, where: Array) -> Array:
    return like(np.eye(size, dtype=dtype_name(where)), where)
