"""A dense single precision tensor through two Gram matrices, those of its halves beside one site.

The tensor is seen as (L, m, R): the sites left of a middle one, that site, the sites right of it, with L and R at most
the square root of all. The Gram matrix of a half,

    G = M M^H,    M the L x (m R) unfolding,

is summed up in double precision, whose relative floor of 1e-8 for singular values is below what single precision can
tell. It knows every bond of its half: tracing out the innermost site gives the Gram matrix of the bond before. So two
passes over the tensor give the spectra of all bonds; with them the ranks are chosen; and a product with what is kept
of either half leaves the core of the middle site. No long unfolding is factorised, and nothing that is dropped is ever
rotated.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ._backend import (
    Array,
    adjoint,
    at_hand,
    backend_of,
    cast,
    conj,
    double,
    dtype_name,
    handed_over,
    is_jax_tracer,
    permute,
    to_numpy,
    transposed,
)
from ._bounds import l2_norm
from ._chain import Cores, carry, mirror
from ._factor import eigh, naming
from ._train import regrouped

Sites = Sequence[tuple[int, ...]]
ChooseRanks = Callable[[list[np.ndarray]], tuple[int, ...]]  # with the boundary ones, from the spectra of all bonds

_BLOCK = 1 << 19  # entries that are in double precision at a time, on the CPU: they stay in its cache
_BLOCK_ON_DEVICE = 1 << 26  # and on an accelerator, which wants few large products


@dataclass(frozen=True)
class Halved:
    """A train in the Schmidt basis of every bond, canonical around ``middle``.

    ``spectra`` are those of the tensor, before any cut; ``error`` is exact, as the parts that were cut off are
    orthogonal to each other.
    """

    cores: Cores
    middle: int
    spectra: list[np.ndarray]
    ranks: tuple[int, ...]
    error: float


def serves(tensor: Array) -> bool:
    """Whether ``decompose`` is for this tensor: in single precision, not differentiated, with a double of its own."""
    if is_jax_tracer(tensor) or getattr(tensor, "requires_grad", False):
        return False
    sample = at_hand(tensor.reshape(-1)[:1])
    return dtype_name(sample) != dtype_name(double(sample))


def decompose(tensor: Array, sites: Sites, choose: ChooseRanks) -> Halved:
    """The train of a dense tensor, cut to the ranks that are chosen from its spectra.

    Parameters
    ----------
    tensor : array in single precision, whose axes are the first axes of all sites, the second ones of all sites, ..
    sites : the axes of every site, at least two sites
    choose : the ranks with the boundary ones, from the (r_k,) spectra of all bonds

    Notes
    -----
    The left bonds are cut from the outermost inwards, then those of the right half of what is left: successive
    orthogonal projections, as in a sweep. Cost for N entries: N (L + R) multiplications in double precision, half of
    them where a product of a matrix with its own transpose is recognised, and N r in single precision, r the rank
    beside the middle. Memory: beside the tensor one copy of it and what is kept of it.
    """
    given, tensor = tensor, at_hand(tensor)
    name, sizes = dtype_name(tensor), [math.prod(site) for site in sites]
    middle = _middle(sizes)
    dense = _grouped(tensor, sites, middle)  # (L, m, R)
    rows, columns = dense.shape[0], dense.shape[2]
    left_sites, right_sites = sites[:middle], sites[middle + 1 :]
    left_bonds, right_bonds = range(1, middle + 1), range(len(sites) - 1, middle, -1)  # from the ends inwards
    left = _Half(_gram_of_rows(dense.reshape(rows, -1)), left_sites, left_bonds)
    right = _Half(_gram_of_columns(dense.reshape(-1, columns)), right_sites, right_bonds)
    spectra = left.spectra + right.spectra[::-1]
    ranks = choose(spectra)
    left_cores, basis, left_cut = left.kept(ranks[1 : middle + 1])
    center = dense.reshape(rows, -1)
    del dense
    if basis is not None:
        center = adjoint(cast(basis, name)) @ center
    center = center.reshape(-1, columns)  # (r m, R)
    wanted = ranks[-2:middle:-1]
    if any(left_cut) and right.is_cut_by(wanted):
        right = _Half(_gram_of_columns(center), right_sites, right_bonds)
    right_cores, basis, right_cut = right.kept(wanted)
    if basis is not None:
        center = center @ conj(cast(basis, name))
    center = center.reshape(ranks[middle], sizes[middle], ranks[middle + 1])
    if any(left_cut) or any(right_cut):
        left_cores, center, right_cores = _in_schmidt_basis(left_cores, center, right_cores)
    cores = [*left_cores, center, *mirror(right_cores)]
    cores = [handed_over(cast(core, name), given) for core in cores]
    return Halved(cores, middle, spectra, tuple(ranks), l2_norm(np.array([*left_cut, *right_cut])))


class _Half:
    """The sites on one side of the middle, outermost first, by the Gram matrix of each of their bonds.

    Parameters
    ----------
    gram : (D, D) array in double precision, over the site axes in the order of the tensor
    sites : in the order of the tensor
    bonds : their numbers, from the end of the train inwards
    """

    def __init__(self, gram: Array, sites: Sites, bonds: range) -> None:
        self.sites, self.bonds = sites, bonds
        self.inwards = list(range(len(sites)))[:: bonds.step]
        self.sizes = [math.prod(sites[k]) for k in self.inwards]
        self.grams: list[Array] = [_by_sites(gram, sites, self.inwards)] if sites else []
        for size in self.sizes[:0:-1]:
            inner = self.grams[0]
            rows = inner.shape[0] // size
            self.grams.insert(0, backend_of(gram, "tensor").einsum("iaja->ij", inner.reshape(rows, size, rows, size)))
        self.parts = [_eigen(matrix, bond) for matrix, bond in zip(self.grams, bonds, strict=True)]

    @property
    def spectra(self) -> list[np.ndarray]:
        """Of the bond after each site."""
        return [_roots(values) for values, _ in self.parts]

    def is_cut_by(self, ranks: Sequence[int]) -> bool:
        return any(rank < len(values) for rank, (values, _) in zip(ranks, self.parts, strict=True))

    def kept(self, ranks: Sequence[int]) -> tuple[Cores, Array | None, list[float]]:
        """The cores, their dense product over the site axes in the order of the tensor, (D, r), and what each cut lost.

        Every bond is cut within what the bonds before it left.
        """
        cores: Cores = []
        lost: list[float] = []
        basis = None  # (D, r), the product of the cores so far; None is 1
        steps = zip(self.sizes, self.bonds, ranks, self.grams, self.parts, strict=True)
        for size, bond, rank, gram, (values, vectors) in steps:
            if basis is not None and basis.shape[1] < basis.shape[0]:
                half = _lifted(basis, gram, size)
                values, inside = _eigen(_lifted(basis, adjoint(half), size), bond)
            else:
                inside = vectors if basis is None else _lifted(basis, vectors, size)
            lost.append(l2_norm(_roots(values)[rank:]))
            inside = inside[:, :rank]  # (r d, r')
            cores.append(inside.reshape(-1, size, rank))
            basis = inside if basis is None else (basis @ inside.reshape(basis.shape[1], -1)).reshape(-1, rank)
        return cores, basis if basis is None else _by_axes(basis, self.sites, self.inwards), lost


def _lifted(basis: Array, matrix: Array, size: int) -> Array:
    """``(basis (x) 1)^H matrix`` with the identity on one site more: (D d, n) to (r d, n)."""
    columns = matrix.shape[1]
    return (adjoint(basis) @ matrix.reshape(basis.shape[0], size * columns)).reshape(-1, columns)


def _in_schmidt_basis(left: Cores, center: Array, right: Cores) -> tuple[Cores, Array, Cores]:
    """Turn every bond of a train with isometries on either side, the right ones mirrored, into its Schmidt basis."""
    left_bonds = range(1, len(left) + 1)
    right_bonds = range(len(left) + len(right), len(left), -1)
    name = dtype_name(center)
    rank_left, size, rank_right = center.shape
    left, turn = _turned(left, _gram_of_rows(center.reshape(rank_left, -1)), left_bonds)
    if turn is not None:
        center = adjoint(cast(turn, name)) @ center.reshape(rank_left, -1)
    right, turn = _turned(right, _gram_of_columns(center.reshape(-1, rank_right)), right_bonds)
    if turn is not None:
        center = center.reshape(-1, rank_right) @ conj(cast(turn, name))
    return left, center.reshape(rank_left, size, rank_right), right


def _turned(cores: Cores, density: Array, bonds: range) -> tuple[Cores, Array | None]:
    """The isometries, outermost first, in Schmidt bases, given the density matrix of the last bond; and how that turns.

    The density of the bond before is that of this one, carried through the core between.
    """
    cores, innermost = list(cores), None
    for k in range(len(cores) - 1, -1, -1):
        _, vectors = _eigen(density, bonds[k])
        core = cores[k]
        left, size, right = core.shape
        pushed = (core.reshape(-1, right) @ density).reshape(left, size * right)
        density = pushed @ adjoint(core.reshape(left, size * right))
        cores[k] = (core.reshape(-1, right) @ vectors).reshape(left, size, right)
        if k == len(cores) - 1:
            innermost = vectors
        else:
            cores[k + 1] = carry(adjoint(vectors), cores[k + 1])
    return cores, innermost


def _middle(sizes: Sequence[int]) -> int:
    """The site left and right of which there is at most the square root of all entries."""
    entries, before = math.prod(sizes), 1
    for site, size in enumerate(sizes):
        before *= size
        if before * before > entries or site == len(sizes) - 1:
            return site
    raise AssertionError("there is at least one site")


def _grouped(tensor: Array, sites: Sites, middle: int) -> Array:
    """(L, m, R), each with its first axes before its second ones."""
    groups = [sites[:middle], [sites[middle]], sites[middle + 1 :]]
    axes = len(sites[0])
    dims = [math.prod(site[axis] for site in group) for axis in range(axes) for group in groups]
    moved = permute(tensor.reshape(dims), [3 * axis + group for group in range(3) for axis in range(axes)])
    return moved.reshape([math.prod(math.prod(site) for site in group) for group in groups])


def _by_sites(gram: Array, sites: Sites, order: Sequence[int]) -> Array:
    """Rows and columns in the order of the sites, each with all its axes, instead of that of the axes."""
    axes = len(sites[0])
    dims = [site[axis] for axis in range(axes) for site in sites]
    place = [axis * len(sites) + k for k in order for axis in range(axes)]
    moved = regrouped(gram, dims * 2, [*place, *(len(dims) + axis for axis in place)])
    return moved.reshape(gram.shape)


def _by_axes(basis: Array, sites: Sites, order: Sequence[int]) -> Array:
    """The inverse, of the rows of a basis."""
    axes = len(sites[0])
    dims = [sites[k][axis] for k in order for axis in range(axes)]
    place = [order.index(k) * axes + axis for axis in range(axes) for k in range(len(sites))]
    return regrouped(basis, [*dims, basis.shape[1]], [*place, len(dims)]).reshape(basis.shape)


def _gram_of_rows(matrix: Array) -> Array:
    """``M M^H`` in double precision."""
    step = max(1, _block_of(matrix) // matrix.shape[0])
    blocks = (double(matrix[:, first : first + step]) for first in range(0, matrix.shape[1], step))
    return reduce(operator.add, (block @ adjoint(block) for block in blocks))


def _gram_of_columns(matrix: Array) -> Array:
    """``M^T conj(M)`` in double precision."""
    step = max(1, _block_of(matrix) // matrix.shape[1])
    blocks = (double(matrix[first : first + step]) for first in range(0, matrix.shape[0], step))
    return reduce(operator.add, (transposed(block) @ conj(block) for block in blocks))


def _block_of(matrix: Array) -> int:
    return _BLOCK if isinstance(matrix, np.ndarray) else _BLOCK_ON_DEVICE


def _eigen(gram: Array, bond: int) -> tuple[Array, Array]:
    """Eigenvalues, descending, and eigenvectors of a matrix that is positive but for rounding."""
    backend = backend_of(gram, "tensor")
    with naming(f"bond {bond}"):
        values, vectors = eigh(backend, gram)
    return backend.flip(values), backend.flip(vectors, axis=1)


def _roots(values: Array) -> np.ndarray:
    return np.sqrt(np.maximum(to_numpy(values), 0.0))
