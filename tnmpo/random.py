"""Random trains: of given ranks and norm, or of given Schmidt spectra on every bond.

The numbers depend on the seed alone: they are drawn in double precision by numpy and then put on the backend.

>>> from tnmpo import random
>>> random.mpo(((2, 3), (3, 2)), rank=4, seed=0).ranks
(1, 4, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

from . import _chain
from ._backend import array_of
from ._bounds import l2_norm
from ._mpo import MPO, frame_of
from ._ranks import choose_ranks
from ._shapes import as_shape, dimensions, full_ranks, shown
from ._train import AnyTrain, Frame
from ._tt import TT

__all__ = ["mpo", "tt"]

Spectra = float | Callable[[np.ndarray], Any] | Sequence[Any]

_SETTLED = 1e-13  # of the norm: how far a Schmidt value may be from the one asked for
_SWEEPS = 2000


def mpo(
    shape: Any,
    rank: Any = None,
    *,
    seed: int | np.random.Generator,
    spectra: Spectra | None = None,
    norm: float | None = 1.0,
    dtype: str = "float64",
    backend: str = "numpy",
) -> MPO:
    """A random MPO of given ranks and Frobenius norm, or of given Schmidt spectra.

    Parameters
    ----------
    shape : (rows, cols) or MPOShape
    rank : int, tuple, float or policy, optional
        As for ``tnmpo.mpo_decompose``; by default every bond is full.
    seed : int or numpy Generator
        A Generator is advanced. There is no global state.
    spectra : float, function or sequence of arrays, optional
        What the Schmidt values of the bonds are, up to a factor:

        - a float q in (0, 1]: ``q**k``, k = 0, 1, ..;
        - a function of the array k = 0 .. r - 1, such as ``lambda k: 1 / (1 + k)``;
        - one array a bond, positive and descending; they give the ranks too.

        Without them the cores are Gaussian, and the distribution is the same in every orthogonal basis of a site.
    norm : float or None
        The Frobenius norm, exact to rounding. None leaves it as it comes: Gaussian cores make entries of
        variance 1, arrays of ``spectra`` are taken as they are.
    dtype : str
    backend : {"numpy", "torch", "jax", "cupy", "tensorflow"}

    Returns
    -------
    MPO
        In no gauge; with ``spectra`` in the Schmidt basis of every bond with center 0.

    Raises
    ------
    ValueError, TypeError
        If an argument is none of these, the ranks do not fit the shape, or no train with such spectra is found.

    Notes
    -----
    Only neighbouring spectra restrict each other: a train has them if and only if at every site there is a core with
    the one on its left and the other on its right unfolding (Kraemer, SIAM J. Matrix Anal. Appl. 40, 2019). Such a core
    is found as in operator scaling: the singular values of both unfoldings of a Gaussian core are replaced in turn
    until they stay, to 1e-13 of the norm. At a site of size d this needs ``sum_{i<=m} s_i^2 <= sum_{j<=md} t_j^2`` for
    all m, and the same from right to left; what breaks it is refused at once, other impossible pairs never settle.
    Cost: O(d r^3) per site and sweep, with some ten to some hundred sweeps.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> W = mpo(((4, 4), (4, 4)), rank=3, norm=10.0, seed=0)
    >>> W.ranks, round(float(np.linalg.norm(W.to_matrix())), 12)
    ((1, 3, 1), 10.0)
    >>> steep = mpo(((2, 2, 2), (2, 2, 2)), rank=3, spectra=0.1, norm=1.0, seed=0)
    >>> [(s / s[0]).round(10).tolist() for s in tnmpo.bond_spectra(steep)]
    [[1.0, 0.1, 0.01], [1.0, 0.1, 0.01]]
    """
    shape = as_shape(shape)
    frame = frame_of(shape)
    return _random(frame, rank, seed, spectra, norm, dtype, backend)


def tt(
    shape: Sequence[int],
    rank: Any = None,
    *,
    seed: int | np.random.Generator,
    spectra: Spectra | None = None,
    norm: float | None = 1.0,
    dtype: str = "float64",
    backend: str = "numpy",
) -> TT:
    """A random tensor train of given ranks and Frobenius norm, or of given Schmidt spectra.

    Parameters
    ----------
    shape : sequence of int
        The dimension of every site.
    rank, seed, spectra, norm, dtype, backend
        As for ``tnmpo.random.mpo``.

    Returns
    -------
    TT

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> flat = tt((2, 2, 2, 2), spectra=1.0, seed=0)  # maximally entangled at every bond
    >>> [round(float(np.exp(entropy)), 10) for entropy in tnmpo.entanglement_entropy(flat)]
    [2.0, 4.0, 2.0]
    """
    frame = Frame(TT, tuple((size,) for size in dimensions(shape, "shape")))
    return _random(frame, rank, seed, spectra, norm, dtype, backend)


def _random(
    frame: Frame[AnyTrain], rank: Any, seed: Any, spectra: Any, norm: Any, dtype: str, backend: str
) -> AnyTrain:
    generator = _generator(seed)
    array_of(np.ones(1), backend, dtype)  # refuses what is unknown
    sizes = frame.site_sizes

    def gaussian(*size: int) -> np.ndarray:
        real = generator.normal(size=size)
        return (real + 1j * generator.normal(size=size)) / math.sqrt(2) if dtype.startswith("complex") else real

    if spectra is None:
        norm = _norm(norm, dtype)
        cores = _gaussian_cores(_ranks(rank, sizes), sizes, norm, gaussian)
    else:
        values, own = _spectra(spectra, rank, sizes, norm)
        cores = _cores_of_spectra([value / l2_norm(value) for value in values], sizes, gaussian)
        cores[0] = _norm(own if norm is None else norm, dtype) * cores[0]
    arrays = [array_of(core, backend, dtype) for core in cores]
    return frame.build(arrays, dtype, center=None if spectra is None else 0)


def _ranks(rank: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    full = full_ranks(sizes)
    return full if rank is None else choose_ranks(rank, [np.broadcast_to(1.0, most) for most in full[1:-1]], sizes)


def _gaussian_cores(ranks: Sequence[int], sizes: Sequence[int], norm: float | None, gaussian: Any) -> list[np.ndarray]:
    cores = [
        gaussian(left, d, right) / math.sqrt(left) for d, (left, right) in zip(sizes, pairwise(ranks), strict=True)
    ]
    if norm is None:
        return cores
    factor = (norm / l2_norm(_chain.orthogonalize(cores, 0)[0])) ** (1 / len(cores))
    return [factor * core for core in cores]


def _cores_of_spectra(values: Sequence[np.ndarray], sizes: Sequence[int], gaussian: Any) -> list[np.ndarray]:
    """Right-canonical cores of norm 1 with those normalised spectra, the boundary ones among them."""
    pairs = list(pairwise(values))
    for site, (size, (left, right)) in enumerate(zip(sizes, pairs, strict=True)):
        _check_pair(left, right, size, (site, site + 1))
        _check_pair(right, left, size, (site + 1, site))
    return [
        _scaled(gaussian(len(left), size, len(right)), left, right, site)
        for site, (size, (left, right)) in enumerate(zip(sizes, pairs, strict=True))
    ]


def _scaled(core: np.ndarray, left: np.ndarray, right: np.ndarray, site: int) -> np.ndarray:
    """A right isometry such that ``left * isometry`` has the spectra ``left`` and ``right``."""
    shape = core.shape
    for _ in range(_SWEEPS):
        #  ━s━●━t━      the singular values of the right unfolding become t, then those of the left one s
        u, _, _ = np.linalg.svd(core.reshape(-1, shape[2]), full_matrices=False)
        _, spectrum, vh = np.linalg.svd((u * right).reshape(shape[0], -1), full_matrices=False)
        core = left[:, None] * vh
        off = np.max(np.abs(spectrum - left))
        if off < _SETTLED:
            # turned into the Schmidt basis of its right bond, so that the next core finds t on its left
            _, _, turn = np.linalg.svd(core.reshape(-1, shape[2]), full_matrices=False)
            return vh.reshape(shape) @ turn.conj().T
    raise ValueError(
        f"spectra: got some for bonds {site} and {site + 1} that do not settle in {_SWEEPS} sweeps, off by {off:.1g}"
        f" of the norm, expected some that a site of size {shape[1]} allows; change a rank, or make them less flat"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def _generator(seed: Any) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise TypeError(f"seed: got {shown(seed)}, expected an int >= 0 or a numpy Generator")
    return np.random.default_rng(int(seed))


def _norm(norm: Any, dtype: str) -> float | None:
    if norm is None:
        return None
    if isinstance(norm, bool) or not isinstance(norm, Real):
        raise TypeError(f"norm: got {shown(norm)}, expected a number > 0, or None")
    range_ = np.finfo("float32" if dtype == "bfloat16" else dtype)
    if not float(range_.tiny) <= float(norm) <= float(range_.max) / 2:
        raise ValueError(f"norm: got {norm}, expected a number > 0 within the range of {dtype}")
    return float(norm)


def _spectra(spectra: Any, rank: Any, sizes: Sequence[int], norm: float | None) -> tuple[list[np.ndarray], float]:
    """The spectra as they came, the boundary ones among them, and their norm."""
    if callable(spectra) or isinstance(spectra, Real):
        if norm is None:
            raise TypeError("norm: got None beside a decay, expected a number; only arrays have a norm of their own")
        decay = spectra if callable(spectra) else _geometric(spectra)
        values = [_checked(decay(np.arange(r, dtype=float)), r) for r in _ranks(rank, sizes)[1:-1]]
    else:
        values = [_checked(value) for value in _one_a_bond(spectra, rank, len(sizes) - 1)]
    norms = [l2_norm(value) for value in values] or [1.0]
    if norm is None and max(norms) - min(norms) > 1e-10 * max(norms):
        raise ValueError(
            f"spectra: got norms from {min(norms):.6g} to {max(norms):.6g}, expected the same on all bonds; pass a norm"
        )
    return [np.ones(1), *values, np.ones(1)], norms[0]


def _one_a_bond(spectra: Any, rank: Any, bonds: int) -> Sequence[Any]:
    if rank is not None:
        raise TypeError(f"rank: got {shown(rank)} beside arrays of spectra, whose lengths are the ranks; leave it out")
    if isinstance(spectra, str) or not hasattr(spectra, "__len__") or len(spectra) != bonds:
        raise ValueError(
            f"spectra: got {shown(spectra)}, expected a number, a function or one array for each of {bonds} bonds"
        )
    return spectra


def _geometric(ratio: Any) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(ratio, bool) or not 0 < ratio <= 1:
        raise ValueError(f"spectra: got the decay {shown(ratio)}, expected a number in (0, 1]")
    return lambda k: float(ratio) ** k


def _checked(values: Any, length: int | None = None) -> np.ndarray:
    spectrum = np.asarray(values, dtype=float)
    sound = spectrum.ndim == 1 and len(spectrum) > 0 and np.isfinite(spectrum).all() and (spectrum > 0).all()
    if not sound or (np.diff(spectrum) > 0).any() or length not in (None, len(spectrum)):
        number = "" if length is None else f"{length} "
        raise ValueError(
            f"spectra: got {shown(values)}, expected {number}positive descending numbers; for zeros lower the rank"
        )
    return spectrum


def _check_pair(values: np.ndarray, neighbour: np.ndarray, size: int, bonds: tuple[int, int]) -> None:
    """The first m directions of a bond reach ``m * size`` of the next one, which must hold as much of the norm."""
    held = np.cumsum(neighbour**2)
    for number, weight in enumerate(np.cumsum(values**2), start=1):
        reached = min(number * size, len(neighbour))
        if weight > held[reached - 1] + 1e-12 or (number == len(values) and reached < len(neighbour)):
            raise ValueError(
                f"spectra: got {weight:.6g} of the squared norm in the first {number} of bond {bonds[0]}, expected no "
                f"more than {held[reached - 1]:.6g}, that of the first {reached} of bond {bonds[1]}, for a site of "
                f"size {size}; make them more alike"
            )
