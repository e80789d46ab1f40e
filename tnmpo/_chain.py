"""Sweeps over a train of three-way cores. Knows neither TT nor MPO.

A core has shape (left bond, site, right bond); the first left and the last right bond are 1.
In the drawings a core is

    ▶  a left isometry:   its (left*site, right) unfolding has orthonormal columns
    ◀  a right isometry:  its (left, site*right) unfolding has orthonormal rows
    ○  the orthogonality center: neither, it carries the norm
    ●  anything

Every step is written once, moving right; ``mirror`` turns it into the step that moves left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._backend import (
    Array,
    adjoint,
    backend_of,
    cast,
    conj,
    dtype_name,
    frobenius_norm,
    like,
    parts_of,
    peak,
    permute,
    to_numpy,
    transposed,
)
from ._bounds import l2_norm
from ._contract import merge_order
from ._factor import naming, thin_qr, thin_svd

Cores = list[Array]
Scaled = tuple[Array, int]  # a tensor and the power of two it is to be multiplied by

_NEAR_ONE = 32  # binary digits, of which single precision has 126 on either side


def mirror(cores: Sequence[Array]) -> Cores:
    """The train read from its other end."""
    return [permute(core, (2, 1, 0)) for core in cores[::-1]]


def contract(cores: Sequence[Array], *, look: bool = True) -> Array:
    """The dense tensor of a train, flattened: entries in the order of the sites.

    Cost: that of the best order of merging neighbours (``_contract.merge_order``). Where products of some of the cores
    may leave the range of the dtype, each is brought around 1, unless values are not to be looked at.
    """
    exponent = 0
    at_any_scale = look and not _contracts_in_range(cores)
    if at_any_scale:
        cores, exponent = all_around_one(cores)
    sizes = [core.shape[1] for core in cores]
    ranks = [1, *(core.shape[2] for core in cores)]
    segments = dict(enumerate(cores))
    for first, second in merge_order(sizes, ranks):
        left, right = segments[first], segments.pop(second)  # (r, a, k), (k, b, r')
        product = left.reshape(-1, left.shape[2]) @ right.reshape(right.shape[0], -1)
        if at_any_scale:
            product, of_product = around_one(product)
            exponent += of_product
        segments[first] = product.reshape(left.shape[0], -1, right.shape[2])
    return shifted(segments[0].reshape(-1), exponent)


def _contracts_in_range(cores: Sequence[Array]) -> bool:
    """Whether no product of neighbours, in whatever order, comes near the ends of the range of the dtype."""
    exponents = [math.frexp(peak(core))[1] for core in cores]
    growth = sum(math.log2(core.shape[2]) for core in cores)
    limit = _largest_step(cores[0]) // 2
    above, below = (sum(max(0, sign * exponent) for exponent in exponents) for sign in (1, -1))
    return above + growth < limit and below < limit


def left_part(cores: Sequence[Array], where: Array) -> Array:
    """The dense part of a chain up to a site, (entries, r); 1 where there is none."""
    part = where[:1, :1, 0] * 0 + 1
    for core in cores:
        part = extended_part(part, core)
    return part


def extended_part(part: Array, core: Array) -> Array:
    """A dense left part, (entries, r), and one core more."""
    return (part @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])


def right_parts(cores: Sequence[Array], where: Array) -> list[Array]:
    """The dense part of a chain from site k on, (r_k, entries), for k = 0 .. n; the last one is 1, as ``where`` is."""
    parts = [where[:1, :1, 0] * 0 + 1]
    for core in cores[::-1]:
        parts.append((core.reshape(-1, core.shape[2]) @ parts[-1]).reshape(core.shape[0], -1))
    return parts[::-1]


def decompose(tensor: Array, sizes: Sequence[int], center: int) -> tuple[Cores, list[Array]]:
    """The exact train of a dense tensor, from both ends to the center, and its Schmidt spectra.

    Parameters
    ----------
    tensor : array of prod(sizes) entries
    sizes : the site sizes
    center : index of the site that becomes the orthogonality center

    Returns
    -------
    cores : list of (r_{k-1}, d_k, r_k) arrays in the Schmidt basis of every bond
    spectra : list of (r_k,) real arrays, descending

    Notes
    -----
    Nothing is cut, so every residual has the spectra of the whole tensor. Cost: O(N sum_k d_k)
    for N entries and the small sites first; see ``thin_svd`` for how long unfoldings avoid an SVD.
    """
    order = len(sizes)
    left: list[Array] = []
    right: list[Array] = []  # from the last site inwards, mirrored
    left_spectra: list[Array] = []
    right_spectra: list[Array] = []
    rest = tensor.reshape(1, -1) if order > 1 else _copy(tensor)
    left_rank = right_rank = 1
    while len(left) + len(right) < order - 1:
        first, last = len(left), order - 1 - len(right)
        from_left = first < center and (last == center or left_rank * sizes[first] <= right_rank * sizes[last])
        if from_left:
            #  ▶━▶━[●●●●]━◀      the dense rest shrinks from the left ...
            with naming(f"bond {first + 1}"):
                basis, spectrum, rest = thin_svd(rest.reshape(left_rank * sizes[first], -1))
            left.append(basis.reshape(left_rank, sizes[first], -1))
            left_spectra.append(spectrum)
            left_rank = basis.shape[1]
        else:
            #  ▶━▶━▶━[●●●]━◀     ... and from the right, the same step on its transpose
            turned = transposed(rest.reshape(-1, sizes[last] * right_rank))
            with naming(f"bond {last}"):
                basis, spectrum, turned = thin_svd(turned)
            right.append(transposed(basis).reshape(-1, sizes[last], right_rank))
            right_spectra.append(spectrum)
            right_rank = basis.shape[1]
            rest = transposed(turned)
    cores = [*left, rest.reshape(left_rank, sizes[center], right_rank), *right[::-1]]
    return cores, left_spectra + right_spectra[::-1]


def orthogonalize(cores: Sequence[Array], center: int) -> Cores:
    """The same train with the orthogonality center at ``center``, by QR from both ends.

    Raises
    ------
    ValueError
        If the norm, which the center carries, is beyond the range of the dtype.
    """
    cores, exponent = scaled_orthogonalize(cores, center)
    return _with_center_shifted(cores, center, exponent)


def scaled_orthogonalize(cores: Sequence[Array], center: int) -> tuple[Cores, int]:
    """The same with the center around 1, and the power of two that is missing in it."""
    if len(cores) == 1:
        core, exponent = around_one(cores[0])
        return [_copy(core)], exponent
    cores, exponent = all_around_one(cores)
    cores, from_left = _qr_right(cores, center)
    cores, from_right = _qr_right(mirror(cores), len(cores) - 1 - center)
    return mirror(cores), exponent + from_left + from_right


def schmidt(cores: Sequence[Array], center: int) -> tuple[Cores, list[Array]]:
    """The same train in the Schmidt basis of every bond, and the spectra of its bonds.

    Raises
    ------
    ValueError
        If the norm is beyond the range of the dtype.
    """
    cores, spectra, exponent = _scaled_schmidt(cores)
    cores = _with_center_shifted(_center_from_right(cores, center), center, exponent)
    return cores, [shifted(spectrum, exponent) for spectrum in spectra]


def spectra_around_one(cores: Sequence[Array]) -> list[Array]:
    """The spectra of the bonds up to a factor, the same for all: those of a train of any norm."""
    return _scaled_schmidt(cores)[1]


def _scaled_schmidt(cores: Sequence[Array]) -> tuple[Cores, list[Array], int]:
    """Left isometries in Schmidt bases up to the last site, the spectra, and the power of two missing in both."""
    cores, exponent = scaled_orthogonalize(cores, 0)
    cores, spectra, _ = _svd_right(cores)
    return cores, spectra, exponent


def _with_center_shifted(cores: Cores, center: int, exponent: int) -> Cores:
    """The train times ``2**exponent``, which the center takes, or an error where its norm is then out of range."""
    if exponent == 0:
        return cores
    core = cores[center]
    size = frobenius_norm(core)
    too_large = math.frexp(size)[1] + exponent > np.finfo(dtype_name(core)).maxexp
    moved = core if too_large else shifted(core, exponent)
    if too_large or (size > 0 and peak(moved) == 0):
        decade = math.log10(size) + exponent * math.log10(2)
        raise ValueError(
            f"train: got a norm of about 1e{decade:+.0f}, which {'overflows' if too_large else 'underflows'} "
            f"{dtype_name(core)}; scale its cores {'down' if too_large else 'up'} first"
        )
    return [*cores[:center], moved, *cores[center + 1 :]]


def cut(cores: Sequence[Array], center: int, ranks: Sequence[int]) -> tuple[Cores, float]:
    """Cut a train to ``ranks`` (with the boundary ones), keeping it canonical.

    Parameters
    ----------
    cores : canonical around ``center``

    Returns
    -------
    cores : in the Schmidt basis of every bond of the result, center at ``center``
    error : float
        The Frobenius distance to the input, exact: the discarded parts of the successive residuals are orthogonal.
    """
    cores, exponent = all_around_one(cores)  # of which only the center is not already
    # The right of the center is isometric already, so only the left is turned before the sweep.
    turned, of_turned = _qr_right(mirror(cores[: center + 1]), center)
    exponent += of_turned
    cores, _, discarded = _svd_right(mirror(turned) + cores[center + 1 :], ranks)
    # Each cut turns the Schmidt bases of the bonds before it: one sweep back and one to the center.
    cores = _center_from_right(cores, 0)
    cores, _, _ = _svd_right(cores, stop=center)
    cores[center] = shifted(cores[center], exponent)
    return cores, math.ldexp(l2_norm(np.array(discarded)), exponent)


def _center_from_right(cores: Cores, center: int) -> Cores:
    """Move the center from the last site to ``center`` through Schmidt bases."""
    bonds = range(len(cores) - 1, 0, -1)
    moved, _, _ = _svd_right(mirror(cores), stop=len(cores) - 1 - center, bonds=bonds)
    return mirror(moved)


def move_center(cores: Cores, start: int, stop: int) -> Cores:
    """Move the center from one site to another through Schmidt bases."""
    if start > stop:
        order = len(cores)
        return mirror(move_center(mirror(cores), order - 1 - start, order - 1 - stop))
    bonds = range(start + 1, stop + 1)
    moved, _, _ = _svd_right(cores[start:], stop=stop - start, bonds=bonds)
    return [*cores[:start], *moved]


def orthogonalize_pair(core: Array, following: Array) -> Cores:
    """Move the center from a core to the one right of it."""
    (isometry, moved), exponent = _qr_right([core, following], 1)
    return [isometry, shifted(moved, exponent)]


def norm(cores: Sequence[Array]) -> float:
    """The Frobenius norm of a train; nothing is squared but the entries of one core, brought around 1."""
    mantissa, exponent = scaled_norm(cores)
    return float(np.ldexp(float(to_numpy(mantissa)), exponent))


def scaled_norm(cores: Sequence[Array]) -> Scaled:
    """The Frobenius norm, with a derivative, as a scalar and the power of two that is missing in it."""
    rest, exponent = around_one(cores[0])
    for core in cores[1:]:
        #  ▶━▶━●━●━●      the norm is that of what is right of the isometries
        _, r = thin_qr(rest.reshape(-1, rest.shape[2]))
        core, of_core = around_one(core)
        rest, of_rest = around_one(carry(r, core))
        exponent += of_core + of_rest
    backend = backend_of(rest, "cores")
    squares = backend.sum(parts_of(rest * conj(rest))[0])
    return (backend.sqrt(squares) if peak(squares) > 0 else squares), exponent


def inner(one: Sequence[Array], other: Sequence[Array]) -> Scaled:
    """``sum conj(one) * other``, as a scalar and the power of two that is missing in it.

    Cost: O(sum_k d_k r s (r + s)).
    """
    exponent, overlap = 0, None
    for bra, ket in zip(one, other, strict=True):
        #  ┌●━●━●━        overlap: all sites so far summed over, open to one bond (r) of each train
        #  └●━●━●━
        bra, of_bra = around_one(bra)
        ket, of_ket = around_one(ket)
        left, size, right = ket.shape
        pushed = ket if overlap is None else (overlap @ ket.reshape(left, -1)).reshape(-1, size, right)  # (r, d, s')
        overlap = adjoint(bra.reshape(-1, bra.shape[2])) @ pushed.reshape(-1, right)  # (r', s')
        overlap, of_overlap = around_one(overlap)
        exponent += of_bra + of_ket + of_overlap
    assert overlap is not None  # no train is without a core
    return overlap[0, 0], exponent


def hadamard(one: Sequence[Array], other: Sequence[Array]) -> Cores:
    """The train of the entrywise product: every bond is the product of two."""
    one, other, exponent = _pair_around_one(one, other)
    products = []
    for a, b in zip(one, other, strict=True):
        product = a[:, None, :, :, None] * b[None, :, :, None, :]  # (r, s, d, r', s')
        products.append(product.reshape(a.shape[0] * b.shape[0], a.shape[1], -1))
    return spread(products, exponent)


def compose(one: Sequence[Array], other: Sequence[Array]) -> Cores:
    """The train of a matrix product, of four-way cores: every bond is the product of two."""
    one, other, exponent = _pair_around_one(one, other)
    products = []
    for a, b in zip(one, other, strict=True):
        r, i, j, r_next = a.shape
        s, _, k, s_next = b.shape
        left = permute(a, (0, 1, 3, 2)).reshape(-1, j)  # (r i r', j)
        right = permute(b, (1, 0, 2, 3)).reshape(j, -1)  # (j, s k s')
        product = permute((left @ right).reshape(r, i, r_next, s, k, s_next), (0, 3, 1, 4, 2, 5))
        products.append(product.reshape(r * s, i, k, r_next * s_next))
    return spread(products, exponent)


def add(one: Sequence[Array], other: Sequence[Array]) -> Cores:
    """The train of a sum: both trains side by side, the bonds are the direct sums."""
    if len(one) == 1:
        return [one[0] + other[0]]
    backend = backend_of(one[0], "cores")
    first = backend.concatenate([one[0], other[0]], axis=2)
    last = backend.concatenate([one[-1], other[-1]], axis=0)
    middle = []
    for a, b in zip(one[1:-1], other[1:-1], strict=True):
        above = backend.concatenate([a, _zeros((a.shape[0], a.shape[1], b.shape[2]), a)], axis=2)
        below = backend.concatenate([_zeros((b.shape[0], b.shape[1], a.shape[2]), b), b], axis=2)
        middle.append(backend.concatenate([above, below], axis=0))
    return [first, *middle, last]


def distance(one: Sequence[Array], other: Sequence[Array]) -> float:
    """The Frobenius norm of the difference of two trains, exact to the resolution of their norms."""
    return norm(add(one, [-other[0], *other[1:]]))


# ---------------------------------------------------------------------------------------------------------------------
# Scales: the norms of cores may differ by more than a dtype's range, though their product fits
# ---------------------------------------------------------------------------------------------------------------------


def around_one(tensor: Array, near: int = _NEAR_ONE) -> Scaled:
    """``tensor / 2**exponent``, exactly, and the exponent.

    It is 0 for a tensor that is within ``2**near`` of 1; by default the product of three such tensors is in range.
    """
    exponent = math.frexp(peak(tensor))[1]
    return (shifted(tensor, -exponent), exponent) if abs(exponent) > near else (tensor, 0)


def shifted(tensor: Array, exponent: int) -> Array:
    """``tensor * 2**exponent``, in steps that are in range themselves."""
    limit = _largest_step(tensor)
    while exponent:
        step = max(-limit, min(limit, exponent))
        tensor, exponent = tensor * 2.0**step, exponent - step
    return tensor


def _largest_step(tensor: Array) -> int:
    """Two to this power and to its negative are normal numbers of the dtype."""
    return 1022 if dtype_name(tensor) in ("float64", "complex128") else 126


def spread(cores: Sequence[Array], exponent: int) -> Cores:
    """The train times ``2**exponent``, of which every core takes an equal share."""
    share, rest = divmod(exponent, len(cores))
    return [shifted(core, share + (k < rest)) for k, core in enumerate(cores)]


def all_around_one(cores: Sequence[Array], near: int = _NEAR_ONE) -> tuple[Cores, int]:
    """Every core ``around_one``, and the sum of the exponents."""
    pairs = [around_one(core, near) for core in cores]
    return [core for core, _ in pairs], sum(exponent for _, exponent in pairs)


def _pair_around_one(one: Sequence[Array], other: Sequence[Array]) -> tuple[Cores, Cores, int]:
    one, of_one = all_around_one(one)
    other, of_other = all_around_one(other)
    return one, other, of_one + of_other


def _zeros(shape: tuple[int, ...], where: Array) -> Array:
    return cast(like(np.zeros(shape), where), dtype_name(where))


def _copy(tensor: Array) -> Array:
    """The same values in memory of their own, in native byte order: what is returned is not what came in."""
    return tensor * 1


def _qr_right(cores: Sequence[Array], stop: int) -> tuple[Cores, int]:
    """Make every core left of ``stop`` a left isometry; what is carried stays around 1 but for a power of two."""
    cores, exponent = list(cores), 0
    for k in range(stop):
        #  ▶━▶━●━●━●      before: site k is anything
        #  ▶━▶━▶━●━●      after: what is left of it went into site k + 1
        left, size, right = cores[k].shape
        q, r = thin_qr(cores[k].reshape(left * size, right))  # (left*size, new), (new, right)
        cores[k] = q.reshape(left, size, -1)
        cores[k + 1], of_carried = around_one(carry(r, cores[k + 1]))
        exponent += of_carried
    return cores, exponent


def _svd_right(
    cores: Sequence[Array],
    ranks: Sequence[int] | None = None,
    stop: int | None = None,
    bonds: Sequence[int] | None = None,
) -> tuple[Cores, list[Array], list[float]]:
    """Move the center from site 0 to ``stop`` (the last) by SVDs, cutting to ``ranks`` on the way.

    Returns the cores, the spectrum of each bond before it was cut, and the norm cut off at each. ``bonds`` are their
    numbers for an error, by default 1, 2, ..
    """
    cores = list(cores)
    bonds = range(1, len(cores)) if bonds is None else bonds
    spectra, discarded = [], []
    for k in range(len(cores) - 1 if stop is None else stop):
        #  ▶━▶━○━◀━◀      before bond k: center at site k, all others isometries
        #  ▶━▶━▶━○━◀      after: bond k in its Schmidt basis and cut, center moved right
        left, size, right = cores[k].shape
        rank = None if ranks is None else ranks[k + 1]
        with naming(f"bond {bonds[k]}"):
            basis, spectrum, rest = thin_svd(cores[k].reshape(left * size, right), rank)
        spectra.append(spectrum)
        discarded.append(l2_norm(to_numpy(spectrum[basis.shape[1] :])))
        cores[k] = basis.reshape(left, size, -1)
        cores[k + 1] = carry(rest, cores[k + 1])
    return cores, spectra, discarded


def carry(matrix: Array, core: Array) -> Array:
    """Absorb a matrix into the left bond of a core."""
    left, size, right = core.shape
    return (matrix @ core.reshape(left, size * right)).reshape(-1, size, right)


def is_isometry(matrix: Array, tolerance: float) -> bool:
    """Whether ``matrix^H matrix`` is the identity up to ``tolerance`` in every entry."""
    gram = to_numpy(adjoint(matrix) @ matrix)
    return bool(np.max(np.abs(gram - np.eye(gram.shape[0]))) <= tolerance)
