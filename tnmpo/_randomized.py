"""Randomised decomposition: one bond of the train is sketched, what is left is small and cut exactly.

A bond splits the sites into a prefix and a suffix, and the matrix becomes its unfolding ``M`` (L x D). With a rank r
that is small against L and D,

    P = orth(M (M^H M)^q Omega)       the prefix space, Omega Gaussian (D x l), l a little above r
    V = the suffix train of P^H M     (l x D, in memory), cut to the ranks from its far end, so V^H V = 1
    C = M V                           (L x r, in memory): its train, cut to the ranks, is the prefix

``M`` is only ever multiplied, so it may come in chunks of rows (``_streaming``).

The error is exact. ``M - C V^H`` has rows orthogonal to V; what the cut of C changes has rows in V. Hence
``error^2 = ||M - C V^H||^2 + cut^2``. A cut of all bonds at the end would not do: it moves V, and the two parts meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from . import _chain
from ._backend import (
    Array,
    adjoint,
    backend_of,
    cast,
    check_norm,
    check_values,
    conj,
    detach,
    dtype_name,
    is_half,
    is_jax_tracer,
    like,
    peak,
    permute,
    to_numpy,
    transposed,
    working,
)
from ._bounds import certify, l2_norm
from ._decompose import mpo_decompose
from ._factor import thin_qr
from ._mpo import MPO
from ._ranks import MaxRank, choose_ranks
from ._shapes import MPOShape, as_shape, shown
from ._train import Frame, check_center, interleaved


@dataclass(frozen=True)
class Sketch:
    """How the space of a bond is found from random vectors.

    Parameters
    ----------
    oversampling : int
        So many vectors are drawn beyond the rank of the bond.
    power_iterations : int
        So often the vectors are sent through the matrix and back, with a QR after each way: the slower the spectrum
        falls, the more it helps. Each costs two more products with the matrix, when streaming two more passes.
    seed : int
        The same seed gives the same result, up to rounding on every backend.

    Raises
    ------
    ValueError, TypeError
        If one of them is not an integer >= 0.

    Notes
    -----
    Halko, Martinsson, Tropp, SIAM Rev. 53 (2011), algorithm 4.4. Without power iterations the expected error of the
    projection is within ``sqrt(1 + r / (oversampling - 1))`` of the best rank r (theorem 10.5); corollary 10.10 shows
    how they pull such a factor towards 1.

    Examples
    --------
    >>> Sketch(seed=7)
    Sketch(oversampling=10, power_iterations=2, seed=7)
    """

    oversampling: int = 10
    power_iterations: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("oversampling", "power_iterations", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name}: got {shown(value)}, expected an integer >= 0")
            if value < 0:
                raise ValueError(f"{name}: got {value}, expected an integer >= 0")
            object.__setattr__(self, name, int(value))


_SKETCH = Sketch()


def randomized_decompose(
    W: Array, shape: Any, rank: Any, *, sketch: Sketch = _SKETCH, center: int | None = None
) -> MPO:
    """Write a matrix as a matrix product operator of known ranks, faster than by exact Schmidt values.

    Parameters
    ----------
    W : (I, J) array of numpy, torch or jax
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    shape : (rows, cols), MPOShape or None
        As for ``tnmpo.mpo_decompose``.
    rank : int, tuple or MaxRank
        Ranks that are known beforehand; other policies need the whole spectra.
    sketch : Sketch, optional
        Oversampling, power iterations and seed.
    center : int, optional
        The orthogonality center, by default ``order // 2``.

    Returns
    -------
    MPO
        As of ``tnmpo.mpo_decompose``, without a derivative. In ``truncation``

        - ``error`` is exact;
        - ``spectra`` are those of the matrix projected on one side of the bond. Each value is at most the true Schmidt
          value, and the sketched bond has only ``rank + oversampling`` of them;
        - ``lower_bound`` follows from these and is therefore below the error of *every* MPO of these ranks, though not
          the largest such number;
        - ``upper_bound`` bounds the error of this MPO: the residual of the projection and the tails of the bonds left
          of the sketched one.

        Where no bond is cut below its full size less the oversampling, it is ``mpo_decompose(W, shape, rank)``.

    Raises
    ------
    ValueError, TypeError
        As ``tnmpo.mpo_decompose``; if ``rank`` needs the spectra; if ``W`` is traced for a derivative by jax.

    Notes
    -----
    The bond that leaves the fewest numbers is sketched (Halko, Martinsson, Tropp, SIAM Rev. 53, 2011, algorithm 4.4),
    the rest is the TT-SVD of small tensors. Cost: ``2 (2 q + 4) I J (r + oversampling)`` flops for q power iterations
    and the rank r of the sketched bond, and one temporary of the size of ``W`` beside its regrouped copy. It pays where
    a full bond is many times its rank; ``docs/large.md`` has measurements.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.vander(np.linspace(0.1, 1, 64), 64)  # its Schmidt values fall fast
    >>> mpo = randomized_decompose(W, ((4, 4, 4), (4, 4, 4)), rank=4)
    >>> mpo.ranks, bool(np.isclose(mpo.truncation.error, np.linalg.norm(W - mpo.to_matrix())))
    ((1, 4, 4, 1), True)
    """
    backend_of(W, "W")
    if is_jax_tracer(W):
        raise TypeError("W: got a jax array under jax.grad, expected values; use tnmpo.mpo_decompose for derivatives")
    if len(W.shape) != 2:
        raise ValueError(f"W: got {len(W.shape)} axes, expected a matrix; reshape it to two")
    check_values(W, "W")
    check_norm(W, "W")
    W = detach(W)
    shape = as_shape(shape, tuple(W.shape))
    center = check_center(center, shape.order)
    ranks, check = known_ranks(rank, shape), check_sketch(sketch)
    splits = [split for split in all_splits(shape, ranks, check) if split.width < min(split.rows, split.cols)]
    if not splits:
        return mpo_decompose(W, shape, ranks[1:-1], center=center)
    split = min(splits, key=lambda split: split.entries)
    unfolded = split.unfold(working(W))
    return sketched(Unfolding(split, unfolded, lambda: [unfolded]), ranks, check, center, dtype_name(W))


def check_sketch(sketch: Any) -> Sketch:
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch: got {shown(sketch)}, expected a tnmpo.Sketch, e.g. tnmpo.Sketch(seed=1)")
    return sketch


def known_ranks(rank: Any, shape: MPOShape) -> tuple[int, ...]:
    """The ranks that are asked for, with the boundary ones, or an error where spectra would have to decide."""
    known = isinstance(rank, Integral | tuple | list | MaxRank) and not isinstance(rank, bool)
    if not known:
        raise TypeError(
            f"rank: got {shown(rank)}, expected an int, a tuple or tnmpo.MaxRank; what else there is needs the whole "
            "spectra: use tnmpo.mpo_decompose, or tnmpo.truncate the result"
        )
    lengths = [np.broadcast_to(0.0, full) for full in shape.full_ranks[1:-1]]  # only how long spectra are counts
    return choose_ranks(rank, lengths, shape.site_sizes)


@dataclass(frozen=True)
class Split:
    """A bond, the sizes of its unfolding, and how many random vectors its sketch takes."""

    shape: MPOShape
    bond: int
    width: int

    @property
    def prefix(self) -> MPOShape:
        return MPOShape(self.shape.rows[: self.bond], self.shape.cols[: self.bond])

    @property
    def suffix(self) -> MPOShape:
        return MPOShape(self.shape.rows[self.bond :], self.shape.cols[self.bond :])

    @property
    def rows(self) -> int:
        return math.prod(self.prefix.matrix_shape)

    @property
    def cols(self) -> int:
        return math.prod(self.suffix.matrix_shape)

    @property
    def entries(self) -> int:
        """What is left of the matrix: both sides of the bond."""
        return self.width * (self.rows + self.cols)

    def unfold(self, block: Array) -> Array:
        """The rows of the unfolding that whole suffix fibres, so many rows of the matrix, make.

        Both sides keep row indices before column indices; they are interleaved once they are small.
        """
        below, (left, right) = self.suffix.matrix_shape[0], (self.prefix.matrix_shape[1], self.suffix.matrix_shape[1])
        return permute(block.reshape((-1, below, left, right)), (0, 2, 1, 3)).reshape((-1, self.cols))


def all_splits(shape: MPOShape, ranks: tuple[int, ...], sketch: Sketch) -> Iterator[Split]:
    """The sketch of every inner bond."""
    for bond in range(1, shape.order):
        split = Split(shape, bond, ranks[bond])
        yield replace(split, width=min(ranks[bond] + sketch.oversampling, split.rows, split.cols))


@dataclass(frozen=True)
class Unfolding:
    """The (rows, cols) matrix of a bond, as something to multiply; every product is one pass over its chunks."""

    split: Split
    where: Array  # an array of the backend, device and dtype of the chunks
    chunks: Callable[[], Iterable[Array]]

    def times(self, right: Array) -> Array:
        """``M right``."""
        return _stacked([chunk @ right for chunk in self.chunks()])

    def adjoint_times(self, left: Array) -> Array:
        """``M^H left``."""
        total, start = 0, 0
        for chunk in self.chunks():
            stop = start + chunk.shape[0]
            total = total + conj(transposed(chunk) @ conj(left[start:stop]))
            start = stop
        return total

    def project(self, right: Array) -> tuple[Array, float]:
        """``C = M right`` for orthonormal columns, and ``||M - C right^H||`` from the entries themselves."""
        lefts, norms = [], []
        for chunk in self.chunks():
            lefts.append(chunk @ right)
            norms.append(_norm(chunk - lefts[-1] @ adjoint(right)))
        return _stacked(lefts), l2_norm(np.array(norms))

    def distance(self, left: Array, right: Array) -> float:
        """``||M - left right||``."""
        norms, start = [], 0
        for chunk in self.chunks():
            stop = start + chunk.shape[0]
            norms.append(_norm(chunk - left[start:stop] @ right))
            start = stop
        return l2_norm(np.array(norms))


def sketched(unfolding: Unfolding, ranks: tuple[int, ...], sketch: Sketch, center: int, dtype: str) -> MPO:
    """The MPO of these ranks around one sketched bond, with its record, in ``dtype``."""
    split = unfolding.split
    bond = split.bond
    projected = _project_prefix(unfolding, sketch)  # (width, cols)
    #  ○━◀━◀━◀      site 0 stands for the prefix: the suffix in isometries, cut from its far end
    tensor = interleaved(projected, Frame(MPO, ((split.width, 1), *_sites(split.suffix))))
    cores, suffix_spectra = _chain.decompose(tensor, (split.width, *split.suffix.site_sizes), 0)
    suffix, _ = _chain.cut(cores, 0, (1, *ranks[bond:]))
    left, residual = unfolding.project(adjoint(_dense_right(suffix[1:], split)))  # (rows, rank)
    #  ▶━▶━▶━○      the last site stands for the suffix: the prefix, cut
    tensor = interleaved(left, Frame(MPO, (*_sites(split.prefix), (1, ranks[bond]))))
    prefix, prefix_spectra = _chain.decompose(tensor, (*split.prefix.site_sizes, ranks[bond]), bond)
    discarded = 0.0
    if any(kept < len(spectrum) for kept, spectrum in zip(ranks[1:bond], prefix_spectra, strict=False)):
        prefix, discarded = _chain.cut(prefix, bond, (*ranks[: bond + 1], 1))
    #  ▶━▶━▶━○━◀━◀━◀      both, with the norm on the bond: it goes into site ``bond``
    carried = prefix[-1].reshape(ranks[bond], ranks[bond]) @ suffix[1].reshape(ranks[bond], -1)
    joined = [*prefix[:-1], carried.reshape(suffix[1].shape), *suffix[2:]]
    joined, _ = _chain.schmidt(joined, center)
    mpo = Frame(MPO, _sites(split.shape)).build(joined, dtype, center=center)
    tails = [to_numpy(spectrum) for spectrum in prefix_spectra[:-1]]
    local = [residual, *(l2_norm(tail[kept:]) for tail, kept in zip(tails, ranks[1:bond], strict=True))]
    error = math.hypot(residual, discarded)
    norm = math.hypot(residual, _norm(left))
    if is_half(mpo.cores[0]):  # the cores were rounded to 16 bits: measured anew
        rounded = [working(core).reshape(core.shape[0], -1, core.shape[-1]) for core in mpo.cores]
        error = unfolding.distance(_dense_left(rounded[:bond], split), _dense_right(rounded[bond:], split))
    spectra = [*tails, *map(to_numpy, suffix_spectra)]
    mpo.truncation = replace(certify(ranks, spectra, error, norm), upper_bound=l2_norm(np.array(local)))
    return mpo


def _project_prefix(unfolding: Unfolding, sketch: Sketch) -> Array:
    """``P^H M`` for a randomised basis P of the prefix space, (width, cols)."""
    right = _gaussian(unfolding.split.cols, unfolding.split.width, sketch.seed, unfolding.where)
    projected = right
    for iteration in range(sketch.power_iterations + 1):
        if iteration > 0:
            right, _ = thin_qr(projected)
        prefix, _ = thin_qr(unfolding.times(right))
        projected = unfolding.adjoint_times(prefix)  # M^H P, (cols, width)
    return adjoint(projected)


def _gaussian(rows: int, cols: int, seed: int, where: Array) -> Array:
    """Columns of random direction and length 1, so that a product with them does not exceed the norm of the matrix.

    Drawn by numpy and moved over: the same numbers on every backend.
    """
    name = dtype_name(where)
    parts = 2 if "complex" in name else 1
    numbers = np.random.default_rng(seed).standard_normal((rows, parts * cols))
    numbers = numbers.view(complex) if parts == 2 else numbers
    return like(cast(numbers / np.linalg.norm(numbers, axis=0), name), where)


def _sites(shape: MPOShape) -> tuple[tuple[int, int], ...]:
    return tuple(zip(shape.rows, shape.cols, strict=True))


def _dense_left(cores: Sequence[Array], split: Split) -> Array:
    """The (rows, rank) matrix of the prefix cores."""
    rank = cores[-1].shape[2]
    end = _identity(rank, cores[0])[:, :, None]
    train = Frame(MPO, (*_sites(split.prefix), (1, rank))).build([*cores, end], dtype_name(cores[0]))
    return train.to_matrix().reshape(split.rows, rank)


def _dense_right(cores: Sequence[Array], split: Split) -> Array:
    """The (rank, cols) matrix of the suffix cores."""
    rank = cores[0].shape[0]
    end = _identity(rank, cores[0])[None]
    train = Frame(MPO, ((rank, 1), *_sites(split.suffix))).build([end, *cores], dtype_name(cores[0]))
    return train.to_matrix().reshape(rank, split.cols)


def _identity(size: int, where: Array) -> Array:
    return like(np.eye(size, dtype=dtype_name(where)), where)


def _stacked(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else backend_of(parts[0], "parts").concatenate(parts, axis=0)


def _norm(tensor: Array) -> float:
    """The Frobenius norm, on the device of ``tensor``, at any scale."""
    largest = peak(tensor)
    if largest == 0:
        return 0.0
    entries = tensor.reshape(-1) / largest
    energy = conj(entries) @ entries
    return largest * math.sqrt(float(energy.real))
