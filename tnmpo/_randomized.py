"""Randomised decomposition: one bond of the train is sketched, what is left is small and cut exactly.

A bond splits the sites into a prefix and a suffix, and the array becomes its unfolding ``M`` (L x D). With a rank r
that is small against L and D,

    P = orth(M (M^H M)^q Omega)       the prefix space, Omega Gaussian (D x l), l a little above r
    V = the suffix train of P^H M     (l x D): TT-SVD at the ranks from its far end, so V^H V = 1
    C = M V                           (L x r): its TT-SVD at the ranks is the prefix

and the train is that of ``C V^H``. Only the thin matrices are kept. ``M`` is only ever multiplied, so it may come in
chunks of rows (``_streaming``).

The error is measured: one more product gives ``||M - M'||`` from the entries themselves. The difference of squares
``||M||^2 - ||M'||^2`` would need no product, but holds no digit of an error below ``sqrt(eps) ||M||``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    check_matrix,
    check_norm,
    detach,
    dtype_name,
    like,
    permute,
    to_numpy,
    working,
)
from ._bounds import certify
from ._decompose import mpo_decompose, tt_decompose
from ._factor import thin_qr, thin_svd
from ._mpo import MPO, frame_of
from ._ranks import MaxRank, choose_ranks
from ._shapes import as_shape, full_ranks, shown
from ._train import AnyTrain, Frame, chain_of, check_center
from ._tt import TT
from ._unfolding import Split, Unfolding


def count(value: Any, argument: str) -> int:
    """``value`` as an int, zero included, or an error that names ``argument``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}: got {shown(value)}, expected an integer >= 0")
    if value < 0:
        raise ValueError(f"{argument}: got {value}, expected an integer >= 0")
    return int(value)


@dataclass(frozen=True)
class Sketch:
    """How well random vectors find the space of a bond.

    Parameters
    ----------
    oversampling : int
        So many vectors are drawn beyond the rank of the bond.
    power_iterations : int
        So often the vectors are sent through the array and back, with a QR after each way: the slower the spectrum
        falls, the more it helps. Each costs two more products with the array, when streaming two more passes.

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
    >>> Sketch(power_iterations=1)
    Sketch(oversampling=10, power_iterations=1)
    """

    oversampling: int = 10
    power_iterations: int = 2

    def __post_init__(self) -> None:
        for name in ("oversampling", "power_iterations"):
            object.__setattr__(self, name, count(getattr(self, name), name))


_SKETCH = Sketch()


def randomized_decompose(
    W: Array, shape: Any, rank: Any, *, seed: int = 0, sketch: Sketch = _SKETCH, center: int | None = None
) -> MPO:
    """Write a matrix as a matrix product operator of known ranks, without the whole spectrum of its widest bonds.

    Parameters
    ----------
    W : (I, J) array of numpy, torch or jax
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    shape : (rows, cols), MPOShape or None
        As for ``tnmpo.mpo_decompose``.
    rank : int, tuple or MaxRank
        Ranks that are known beforehand; other policies need the whole spectra.
    seed : int
        The same seed gives the same result, up to rounding on every backend.
    sketch : Sketch, optional
        Oversampling and power iterations.
    center : int, optional
        The orthogonality center, by default ``order // 2``.

    Returns
    -------
    MPO
        As of ``tnmpo.mpo_decompose``. In ``truncation``

        - ``error`` is exact, and ``upper_bound`` the same number: it is measured on the cores that are returned;
        - ``spectra`` are those of the array projected on one side of the bond. Each value is at most the true Schmidt
          value, and the sketched bond has only ``rank + oversampling`` of them;
        - ``lower_bound`` follows from these and is therefore below the error of *every* MPO of these ranks, though not
          the largest such number.

        Where no bond is cut below its full size less the oversampling, it is ``mpo_decompose(W, shape, rank)``.

    Raises
    ------
    ValueError, TypeError
        As ``tnmpo.mpo_decompose``; if ``rank`` needs the spectra.

    Notes
    -----
    The bond that leaves the fewest numbers is sketched (Halko, Martinsson, Tropp, SIAM Rev. 53, 2011, algorithm 4.4),
    the rest is the TT-SVD of small tensors. Cost: ``2 (2 q + 4) I J (r + oversampling)`` flops for q power iterations
    and the rank r of the sketched bond, and one temporary of the size of ``W`` beside its regrouped copy. It pays where
    a full bond is many times its rank; ``docs/large.md`` has measurements. The error is that of the entries, exact to
    the rounding of ``W``: about ``eps ||W||``.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.vander(np.linspace(0.1, 1, 64), 64)  # its Schmidt values fall fast
    >>> mpo = randomized_decompose(W, ((4, 4, 4), (4, 4, 4)), rank=4, seed=1)
    >>> mpo.ranks, bool(np.isclose(mpo.truncation.error, np.linalg.norm(W - mpo.to_matrix())))
    ((1, 4, 4, 1), True)
    """
    check_matrix(W)
    shape = as_shape(shape, tuple(W.shape))
    frame = frame_of(shape)
    return _decomposed(
        W, frame, rank, seed, sketch, center, lambda ranks: mpo_decompose(W, shape, ranks, center=center)
    )


def randomized_tt_decompose(
    tensor: Array, rank: Any, *, seed: int = 0, sketch: Sketch = _SKETCH, center: int | None = None
) -> TT:
    """Write a tensor as a tensor train of known ranks, without the whole spectrum of its widest bonds.

    Parameters
    ----------
    tensor : array of any number of axes, at least one
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    rank, seed, sketch, center
        As for ``tnmpo.randomized_decompose``.

    Returns
    -------
    TT
        One site an axis; ``truncation`` as for ``tnmpo.randomized_decompose``.

    Raises
    ------
    ValueError, TypeError
        As ``tnmpo.tt_decompose``; if ``rank`` needs the spectra.

    Notes
    -----
    The same algorithm at the same cost.

    Examples
    --------
    >>> import numpy as np
    >>> i, j, k, l = np.indices((6, 6, 6, 6))
    >>> tt = randomized_tt_decompose(1 / (1.0 + i + j + k + l), rank=4)
    >>> tt.ranks, tt.truncation.relative_error < 1e-3
    ((1, 4, 4, 4, 1), True)
    """
    backend_of(tensor, "tensor")
    if len(tensor.shape) == 0:
        raise ValueError("tensor: got a scalar, expected at least one axis; reshape it to (1,)")
    check_norm(tensor, "tensor")
    frame = Frame(TT, tuple((int(d),) for d in tensor.shape))
    return _decomposed(
        tensor, frame, rank, seed, sketch, center, lambda ranks: tt_decompose(tensor, ranks, center=center)
    )


def _decomposed(
    array: Array,
    frame: Frame[AnyTrain],
    rank: Any,
    seed: Any,
    sketch: Any,
    center: Any,
    exactly: Callable[[tuple[int, ...]], AnyTrain],
) -> AnyTrain:
    center = check_center(center, len(frame.site_shapes))
    seed, sketch = count(seed, "seed"), check_sketch(sketch)
    ranks = known_ranks(rank, frame.site_sizes)
    splits = [split for split in all_splits(frame, ranks, sketch) if split.width < min(split.rows, split.cols)]
    if not splits:
        return exactly(ranks[1:-1])
    split = min(splits, key=lambda split: split.entries)
    unfolded = split.unfold(working(array))
    return sketched(Unfolding(split, unfolded, lambda: [unfolded]), ranks, seed, sketch, center, dtype_name(array))


def check_sketch(sketch: Any) -> Sketch:
    if not isinstance(sketch, Sketch):
        raise TypeError(f"sketch: got {shown(sketch)}, expected a tnmpo.Sketch, e.g. tnmpo.Sketch(power_iterations=1)")
    return sketch


def known_ranks(rank: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    """The ranks that are asked for, with the boundary ones, or an error where spectra would have to decide."""
    if isinstance(rank, bool) or not isinstance(rank, Integral | tuple | list | MaxRank):
        raise TypeError(
            f"rank: got {shown(rank)}, expected an int, a tuple or tnmpo.MaxRank; what else there is needs the whole "
            "spectra: use tnmpo.mpo_decompose, or tnmpo.truncate the result"
        )
    lengths = [np.broadcast_to(0.0, full) for full in full_ranks(sizes)[1:-1]]  # only how long spectra are counts
    return choose_ranks(rank, lengths, sizes)


def all_splits(frame: Frame[Any], ranks: Sequence[int], sketch: Sketch) -> list[Split]:
    """The sketch of every inner bond."""
    full = full_ranks(frame.site_sizes)
    return [
        Split(frame, bond, min(ranks[bond] + sketch.oversampling, full[bond]))
        for bond in range(1, len(frame.site_shapes))
    ]


def sketched(M: Unfolding, ranks: Sequence[int], seed: int, sketch: Sketch, center: int, dtype: str) -> Any:
    """The train of these ranks around one sketched bond, with its record, in ``dtype``."""
    split, bond = M.split, M.split.bond
    rank = ranks[bond]
    projected = adjoint(M.adjoint_times(_range(M, seed, sketch.power_iterations)))  # P^H M, (width, cols)
    #  ○━◀━◀━◀      site 0 stands for the prefix: the suffix, cut from its far end
    tensor = split.suffix_tensor(projected)
    turned = permute(tensor, range(len(tensor.shape))[::-1])
    isometries, right_spectra, _ = _tt_svd(turned, ranks[-2 : bond - 1 : -1])
    suffix = _chain.mirror(isometries)
    left = M.times(adjoint(split.suffix_matrix(suffix)))  # C = M V, (rows, rank)
    #  ▶━▶━▶━○      the last site stands for the suffix: the prefix, cut from its far end
    prefix, left_spectra, carried = _tt_svd(split.prefix_tensor(left), ranks[1 : bond + 1])
    #  ▶━▶━▶━○━◀━◀━◀      both, with the norm on the bond: it goes into site ``bond``
    first = (carried @ suffix[0].reshape((rank, -1))).reshape(suffix[0].shape)
    cores, _ = _chain.schmidt([*prefix, first, *suffix[1:]], center)
    train = split.frame.build(cores, dtype, center=center)
    rounded = [detach(core) for core in chain_of(train)]
    error, norm = M.distance(split.prefix_matrix(rounded[:bond]), split.suffix_matrix(rounded[bond:]))
    spectra = [to_numpy(spectrum) for spectrum in (*left_spectra[:-1], *right_spectra[::-1])]
    train.truncation = replace(certify(ranks, spectra, error, norm), upper_bound=error)
    return train


def _range(M: Unfolding, seed: int, iterations: int) -> Array:
    """An orthonormal basis P of nearly the strongest prefix directions, (rows, width)."""
    prefix, _ = thin_qr(M.times(_gaussian(M.split.cols, M.split.width, seed, M.where)))
    for _ in range(iterations):
        suffix, _ = thin_qr(M.adjoint_times(prefix))
        prefix, _ = thin_qr(M.times(suffix))
    return prefix


def _tt_svd(tensor: Array, ranks: Sequence[int]) -> tuple[list[Array], list[Array], Array]:
    """Left isometries for all axes but the last, cut to these right bonds, their spectra, and what is carried on.

    What was cut at one bond is missing in the spectra of the next ones, which can only make them smaller.
    """
    cores, spectra, left = [], [], 1
    for size, rank in zip(tensor.shape, ranks, strict=False):
        basis, spectrum, tensor = thin_svd(tensor.reshape((left * size, -1)), rank)
        cores.append(basis.reshape((left, size, rank)))
        spectra.append(spectrum)
        left = rank
    return cores, spectra, tensor


def _gaussian(rows: int, cols: int, seed: int, where: Array) -> Array:
    """Columns of random direction and length 1, so that a product with them does not exceed the norm of the matrix.

    Drawn by numpy and moved over: the same numbers on every backend.
    """
    name = dtype_name(where)
    parts = 2 if "complex" in name else 1
    numbers = np.random.default_rng(seed).standard_normal((rows, parts * cols))
    numbers = numbers.view(complex) if parts == 2 else numbers
    return like(cast(numbers / np.linalg.norm(numbers, axis=0), name), where)
