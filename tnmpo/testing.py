"""Hypothesis strategies and dense oracles, for tests of what is built on tnmpo.

The strategies draw what breaks code: units and primes among the dimensions, order 1, bonds of 1 and bonds larger than
they can need to be, matrices of low rank, of steep spectra, sparse and zero, real and complex, at the ends of the
scale. The oracles are plain numpy on the dense array and use none of the library's sweeps.

Needs ``pip install tnmpo[testing]``. torch, jax and the others are imported where arrays of theirs are asked for.

>>> from hypothesis import given
>>> import numpy as np, tnmpo
>>> from tnmpo import testing
>>> @given(testing.mpos(max_order=3, dtypes=["float64"]))
... def test_canonicalize_keeps_the_matrix(mpo):
...     kept = testing.dense_of(tnmpo.canonicalize(mpo).cores)
...     assert np.allclose(kept, testing.dense_of(mpo.cores), atol=testing.rounding(mpo))
>>> test_canonicalize_keeps_the_matrix()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from importlib.util import find_spec
from typing import Any

import numpy as np
from hypothesis import strategies as st

from . import _backend
from ._mpo import MPO
from ._shapes import MPOShape
from ._train import Train
from ._tt import TT
from ._weights import Weight

__all__ = [
    "BACKENDS",
    "DTYPES",
    "SLACK",
    "array_of",
    "arrays",
    "backend_of",
    "dense_of",
    "dense_root",
    "dense_spectra",
    "dtype_of",
    "feasible",
    "metrics",
    "mpos",
    "norm",
    "numpy_of",
    "ranks",
    "rounding",
    "shapes",
    "tts",
    "unfolding",
    "values",
    "weighted",
    "weights",
]

_PACKAGES = ("numpy", "torch", "jax", "cupy", "tensorflow")
#: The backends that are installed, by the names of their packages.
BACKENDS = tuple(name for name in _PACKAGES if find_spec(name))
#: What is decomposed in its own precision; 16-bit ones go through float32.
DTYPES = ("float32", "float64", "complex64", "complex128")
#: The rounding to allow, relative to the norm: sweeps of up to six sites and eight factorisations cost some units in
#: the last place each.
SLACK = {"float32": 1e-5, "complex64": 1e-5, "float64": 2e-14, "complex128": 2e-14}

_DIMENSIONS = (1, 2, 3, 4, 5, 7, 11)
_KINDS = ("gaussian", "gaussian", "low rank", "steep", "constant", "sparse", "zero")


def backend_of(tensor: Any) -> str:
    """The package that an array belongs to.

    Raises
    ------
    TypeError
        If it is none of those that tnmpo computes on.

    Examples
    --------
    >>> backend_of(np.ones(2))
    'numpy'
    """
    packages = {cls.__module__.partition(".")[0].removesuffix("lib") for cls in type(tensor).__mro__}
    for name in _PACKAGES:
        if name in packages:
            return name
    raise TypeError(f"tensor: got {type(tensor).__name__}, expected an array of {', '.join(_PACKAGES)}")


def dtype_of(tensor: Any) -> str:
    """The name of a dtype, the same on every backend.

    Examples
    --------
    >>> dtype_of(np.ones(2))
    'float64'
    """
    return getattr(tensor.dtype, "name", None) or str(tensor.dtype).rpartition(".")[2]


def numpy_of(tensor: Any) -> np.ndarray:
    """The numbers of an array of any backend, in double precision, real or complex.

    Examples
    --------
    >>> numpy_of(np.ones(2, dtype="float16"))
    array([1., 1.])
    """
    if hasattr(tensor, "detach"):  # torch
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        tensor = tensor.float() if dtype_of(tensor) == "bfloat16" else tensor
    elif backend_of(tensor) == "cupy":
        tensor = tensor.get()
    array = np.asarray(tensor)
    return array.astype(complex if np.iscomplexobj(array) else float)


def array_of(values: np.ndarray, backend: str, dtype: str) -> Any:
    """The numbers as an array of that backend and dtype.

    Raises
    ------
    ValueError
        If the backend or the dtype is unknown, or jax's 64-bit types are asked for and switched off.

    Examples
    --------
    >>> array_of(np.ones(2), "numpy", "float32").dtype
    dtype('float32')
    """
    return _backend.array_of(values, backend, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Oracles
# ---------------------------------------------------------------------------------------------------------------------


def norm(values: np.ndarray) -> float:
    """The Frobenius norm, at any scale.

    Examples
    --------
    >>> norm(np.array([3e300, 4e300]))
    5e+300
    """
    values = np.abs(values)
    largest = float(np.max(values, initial=0.0))
    return largest * float(np.linalg.norm(values / largest)) if largest else 0.0


def dense_of(cores: Sequence[Any]) -> np.ndarray:
    """The matrix of a train of four-way cores, or the tensor of three-way ones, by contracting from the left.

    Examples
    --------
    >>> dense_of([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))]).shape
    (10, 6)
    """
    if cores[0].ndim == 3:
        tensor = np.ones((1, 1))
        for core in map(numpy_of, cores):
            tensor = np.einsum("Ia,aib->Iib", tensor, core).reshape(-1, core.shape[2])
        return tensor.reshape([core.shape[1] for core in cores])
    total = np.ones((1, 1, 1))
    for core in map(numpy_of, cores):
        rows, cols = total.shape[0] * core.shape[1], total.shape[1] * core.shape[2]
        total = np.einsum("IJa,aijb->IiJjb", total, core).reshape(rows, cols, core.shape[3])
    return total[:, :, 0]


def rounding(train: Train) -> float:
    """The rounding to allow in what is made of a train: ``SLACK`` times the product of the norms of its cores.

    The entries of a train in no gauge may cancel, so the norm of the train itself would be too little.

    Examples
    --------
    >>> rounding(MPO([np.full((1, 1, 1, 1), 3.0)])) == 3 * SLACK["float64"]
    True
    """
    return SLACK[dtype_of(train.cores[0])] * math.prod(norm(numpy_of(core)) for core in train.cores)


def unfolding(dense: np.ndarray, shape: MPOShape | Sequence[int], bond: int) -> np.ndarray:
    """The dense array with the sites before ``bond`` as rows and those after it as columns.

    Parameters
    ----------
    dense : (I, J) array for an ``MPOShape``, or (d_1, .., d_n) array for the dimensions of a TT
    shape : MPOShape or tuple of int
    bond : int
        From 1 to n - 1.

    Raises
    ------
    ValueError
        If there is no such bond.

    Examples
    --------
    >>> unfolding(np.ones((6, 6)), MPOShape((2, 3), (3, 2)), bond=1).shape
    (6, 6)
    """
    order = shape.order if isinstance(shape, MPOShape) else len(shape)
    if not 1 <= bond < order:
        raise ValueError(f"bond: got {bond}, expected one from 1 to {order - 1}")
    if not isinstance(shape, MPOShape):
        return dense.reshape(math.prod(shape[:bond]), -1)
    tensor = dense.reshape(*shape.rows, *shape.cols)
    tensor = tensor.transpose([axis for k in range(order) for axis in (k, order + k)])
    return tensor.reshape(math.prod(shape.site_sizes[:bond]), -1)


def dense_spectra(dense: np.ndarray, shape: MPOShape | Sequence[int]) -> list[np.ndarray]:
    """The Schmidt values of every inner bond: the singular values of its unfolding.

    Examples
    --------
    >>> dense_spectra(np.eye(4), MPOShape((2, 2), (2, 2)))[0].round(12).tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    order = shape.order if isinstance(shape, MPOShape) else len(shape)
    return [np.linalg.svd(unfolding(dense, shape, bond), compute_uv=False) for bond in range(1, order)]


def dense_root(metric: Any, size: int) -> np.ndarray:
    """The Hermitian square root of one side of a ``Weight``, dense; None is the identity, a tuple a Kronecker product.

    Examples
    --------
    >>> dense_root(np.array([4.0, 9.0]), 2).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    if metric is None:
        return np.eye(size)
    if isinstance(metric, tuple):
        return reduce(np.kron, [dense_root(part, part.shape[0]) for part in metric])
    values = numpy_of(metric)
    if values.ndim == 1:
        return np.diag(np.sqrt(values))
    eigenvalues, vectors = np.linalg.eigh(values)
    # what is below the resolution of the metric is zero: its root would be a visible 1e-8
    eigenvalues[eigenvalues <= size * 2.2e-16 * np.max(np.abs(eigenvalues))] = 0
    return (vectors * np.sqrt(eigenvalues)) @ vectors.conj().T


def weighted(dense: np.ndarray, weight: Weight) -> np.ndarray:
    """``R^(1/2) dense C^(1/2)``, whose Frobenius norm is the weighted norm of ``dense``.

    Examples
    --------
    >>> weighted(np.ones((1, 2)), Weight(cols=np.array([4.0, 9.0]))).tolist()
    [[2.0, 3.0]]
    """
    return dense_root(weight.rows, dense.shape[0]) @ dense @ dense_root(weight.cols, dense.shape[1])


def feasible(ranks: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether generic cores of these ranks, the boundary ones among them, have no superfluous direction.

    Examples
    --------
    >>> feasible((1, 4, 1), (4, 9)), feasible((1, 5, 1), (4, 9))
    (True, False)
    """
    return all(
        right <= left * size and left <= size * right
        for left, size, right in zip(ranks, sizes, ranks[1:], strict=False)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Strategies
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn, min_order: int = 1, max_order: int = 6, max_size: int = 1500) -> MPOShape:
    """MPO shapes with units and primes among the dimensions, of matrices with at most ``max_size`` entries."""
    order = draw(st.integers(min_order, max_order))
    sites = draw(_dimensions(2 * order, max_size))
    return MPOShape(tuple(sites[:order]), tuple(sites[order:]))


@st.composite
def _dimensions(draw: st.DrawFn, number: int, max_size: int) -> list[int]:
    sites, size = [], 1
    for _ in range(number):
        dimension = draw(st.sampled_from([d for d in _DIMENSIONS if d * size <= max_size]))
        sites.append(dimension)
        size *= dimension
    return draw(st.permutations(sites))


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, ...], dtype: str = "float64", scales: bool = True) -> np.ndarray:
    """Double precision numbers for an array of that dtype, of two axes or more.

    They are Gaussian, of low rank, of a steep spectrum, constant, sparse or all zero, and with ``scales`` up to 1e150
    or down to 1e-150 (1e18 in single precision).
    """
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def gaussian(*size: int) -> np.ndarray:
        real = rng.normal(size=size)
        return real + 1j * rng.normal(size=size) if dtype.startswith("complex") else real

    kind = draw(st.sampled_from(_KINDS))
    if kind == "low rank":
        rank = draw(st.integers(1, 3))
        dense = (gaussian(shape[0], rank) @ gaussian(rank, math.prod(shape[1:]))).reshape(shape)
    elif kind == "steep":
        dense = gaussian(*shape) * np.logspace(0, -8, shape[-1])
    elif kind == "constant":
        dense = np.full(shape, 1.0) + 0 * gaussian(1)
    elif kind == "sparse":
        dense = gaussian(*shape) * (rng.random(shape) < 0.1)
    else:
        dense = gaussian(*shape) * (kind != "zero")
    if scales:
        decades = 18 if dtype in ("float32", "complex64") else 150
        dense = dense * 10.0 ** draw(st.sampled_from([0, 0, -decades, decades, -5, 3]))
    return dense


@st.composite
def arrays(
    draw: st.DrawFn,
    shape: tuple[int, ...],
    *,
    dtypes: Sequence[str] = DTYPES,
    backends: Sequence[str] = ("numpy",),
    scales: bool = True,
) -> Any:
    """Matrices and tensors of that shape, as ``values`` makes them, on one of the backends."""
    dtype = draw(st.sampled_from(dtypes))
    return array_of(draw(values(shape, dtype, scales)), draw(st.sampled_from(backends)), dtype)


@st.composite
def ranks(draw: st.DrawFn, shape: MPOShape | Sequence[int]) -> tuple[int, ...]:
    """Inner ranks that a train of this shape (an ``MPOShape``, or the dimensions of a TT) can have."""
    sizes = shape.site_sizes if isinstance(shape, MPOShape) else tuple(shape)
    total, left, full = math.prod(sizes), 1, []
    for size in sizes[:-1]:
        left *= size
        full.append(min(left, total // left))
    ranks = [1, *(draw(st.integers(1, most)) for most in full), 1]
    for k, size in enumerate(sizes):
        ranks[k + 1] = min(ranks[k + 1], ranks[k] * size)
    for k in range(len(sizes) - 1, -1, -1):
        ranks[k] = min(ranks[k], sizes[k] * ranks[k + 1])
    return tuple(ranks[1:-1])


@st.composite
def mpos(
    draw: st.DrawFn,
    *,
    shapes: st.SearchStrategy[MPOShape] | None = None,
    min_order: int = 1,
    max_order: int = 6,
    max_rank: int = 6,
    dtypes: Sequence[str] = DTYPES,
    backends: Sequence[str] = ("numpy",),
) -> MPO:
    """MPOs of random cores in no gauge, their bonds at times larger than they can need to be.

    ``shapes`` draws the shape, by default with 1 to 6 sites.
    """
    shape = draw(_shapes(min_order, max_order, 600) if shapes is None else shapes)
    sites = zip(shape.rows, shape.cols, strict=True)
    return MPO(draw(_cores(list(sites), max_rank, dtypes, backends)))


@st.composite
def tts(
    draw: st.DrawFn,
    *,
    shapes: st.SearchStrategy[Sequence[int]] | None = None,
    min_order: int = 1,
    max_order: int = 6,
    max_rank: int = 6,
    dtypes: Sequence[str] = DTYPES,
    backends: Sequence[str] = ("numpy",),
) -> TT:
    """The same for tensor trains; ``shapes`` draws the dimensions."""
    if shapes is None:
        shapes = st.integers(min_order, max_order).flatmap(lambda order: _dimensions(order, 600))
    return TT(draw(_cores([(size,) for size in draw(shapes)], max_rank, dtypes, backends)))


@st.composite
def _cores(
    draw: st.DrawFn, sites: Sequence[tuple[int, ...]], max_rank: int, dtypes: Sequence[str], backends: Sequence[str]
) -> list[Any]:
    backend, dtype = draw(st.sampled_from(backends)), draw(st.sampled_from(dtypes))
    ranks = [1, *(draw(st.integers(1, max_rank)) for _ in sites[1:]), 1]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = 10.0 ** draw(st.sampled_from([0, 0, -4, 4]))
    cores = [scale * rng.normal(size=(ranks[k], *site, ranks[k + 1])) for k, site in enumerate(sites)]
    if dtype.startswith("complex"):
        cores = [core * np.exp(2j * np.pi * rng.random(core.shape)) for core in cores]
    return [array_of(core, backend, dtype) for core in cores]


@st.composite
def metrics(draw: st.DrawFn, size: int, backend: str = "numpy", complex_: bool = False) -> Any:
    """One side of a ``Weight``: a vector or a matrix, singular or not, zero, or None."""
    kind = draw(st.sampled_from(["none", "vector", "vector with zeros", "matrix", "singular matrix", "zero"]))
    if kind == "none":
        return None
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = 10.0 ** draw(st.sampled_from([0, 0, -6, 6]))
    if kind.startswith("vector"):
        metric = rng.exponential(size=size) * (rng.random(size) < (0.6 if "zeros" in kind else 2))
    elif kind == "zero":
        metric = np.zeros((size, size))
    else:
        samples = rng.normal(size=(size, max(1, size // 2) if "singular" in kind else 2 * size))
        if complex_:
            samples = samples + 1j * rng.normal(size=samples.shape)
        metric = samples @ samples.conj().T / samples.shape[1]
    return array_of(scale * metric, backend, str(metric.dtype))


@st.composite
def weights(
    draw: st.DrawFn, matrix_shape: tuple[int, int], *, backend: str = "numpy", complex_: bool = False
) -> Weight:
    """Norms for matrices of that shape; ``complex_`` ones only for complex matrices."""
    rows, cols = (draw(metrics(size, backend, complex_)) for size in matrix_shape)
    return Weight(rows=rows, cols=cols)


_shapes = shapes  # the argument of that name hides it
