"""What the tests draw - shapes, matrices, MPOs, weights - and the dense oracles they are held against.

The oracles use plain numpy on the dense matrix and none of the library's own code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tnmpo import MPO, MPOShape, Weight

BACKENDS = ("numpy", "torch")
DTYPES = ("float32", "float64", "complex64", "complex128")
# Sweeps of up to six sites and eight factorisations: each costs a few units in the last place.
SLACK = {"float32": 1e-5, "complex64": 1e-5, "float64": 2e-14, "complex128": 2e-14}
HALF_SLACK = {"float16": 5e-3, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Case:
    """A matrix of some backend, the shape to decompose it in, and the same numbers for the oracle."""

    W: Any = field(repr=False)
    shape: MPOShape
    backend: str
    dtype: str

    @property
    def dense(self) -> np.ndarray:
        return numpy_of(self.W)

    @property
    def slack(self) -> float:
        """The rounding that a result may have, in units of the matrix."""
        return SLACK[self.dtype] * norm(self.dense)


def numpy_of(tensor: Any) -> np.ndarray:
    """The tensor's numbers in double precision."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach()
        tensor = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).cpu().numpy()
    return np.asarray(tensor, dtype=complex if np.iscomplexobj(tensor) else float)


def array_of(values: np.ndarray, backend: str, dtype: str) -> Any:
    """The numbers as an array of that backend and dtype."""
    if backend == "torch":
        return torch.tensor(values).to(getattr(torch, dtype))
    return values.astype(dtype)


def backend_of(tensor: Any) -> str:
    return "torch" if isinstance(tensor, torch.Tensor) else "numpy"


def dtype_of(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------------------
# Oracles
# ---------------------------------------------------------------------------------------------------------------------


def norm(values: np.ndarray) -> float:
    """The Frobenius norm, at any scale."""
    values = np.abs(values)
    largest = float(np.max(values, initial=0.0))
    return largest * float(np.linalg.norm(values / largest)) if largest else 0.0


def dense_of(cores: Any) -> np.ndarray:
    """The matrix of a train of four-way cores, by contracting from the left."""
    total = np.ones((1, 1, 1))
    for core in map(numpy_of, cores):
        rows, cols = total.shape[0] * core.shape[1], total.shape[1] * core.shape[2]
        total = np.einsum("IJa,aijb->IiJjb", total, core).reshape(rows, cols, core.shape[3])
    return total[:, :, 0]


def unfolding(dense: np.ndarray, shape: MPOShape, bond: int) -> np.ndarray:
    """The dense matrix with the sites before ``bond`` as rows and those after it as columns."""
    order = shape.order
    tensor = dense.reshape(*shape.rows, *shape.cols)
    tensor = tensor.transpose([axis for k in range(order) for axis in (k, order + k)])
    return tensor.reshape(math.prod(shape.site_sizes[:bond]), -1)


def dense_spectra(dense: np.ndarray, shape: MPOShape) -> list[np.ndarray]:
    """The singular values of every inner bond's unfolding."""
    return [np.linalg.svd(unfolding(dense, shape, bond), compute_uv=False) for bond in range(1, shape.order)]


def dense_root(metric: Any, size: int) -> np.ndarray:
    """The Hermitian square root of a metric, dense."""
    if metric is None:
        return np.eye(size)
    values = numpy_of(metric)
    if values.ndim == 1:
        return np.diag(np.sqrt(values))
    eigenvalues, vectors = np.linalg.eigh(values)
    # what is below the resolution of the metric is zero: its root would be a visible 1e-8
    eigenvalues[eigenvalues <= size * 2.2e-16 * np.max(np.abs(eigenvalues))] = 0
    return (vectors * np.sqrt(eigenvalues)) @ vectors.conj().T


def weighted(dense: np.ndarray, weight: Weight) -> np.ndarray:
    """``R^(1/2) dense C^(1/2)``, whose Frobenius norm is the weighted norm."""
    return dense_root(weight.rows, dense.shape[0]) @ dense @ dense_root(weight.cols, dense.shape[1])


def feasible(ranks: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether generic cores of these ranks have no superfluous direction."""
    return all(
        right <= left * size and left <= size * right
        for left, size, right in zip(ranks, sizes, ranks[1:], strict=False)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Strategies
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn, min_order: int = 1, max_order: int = 6, max_size: int = 1500) -> MPOShape:
    """Site dimensions with units and primes among them, of a matrix with at most ``max_size`` entries."""
    order = draw(st.integers(min_order, max_order))
    sites, size = [], 1
    for _ in range(2 * order):
        dimension = draw(st.sampled_from([d for d in (1, 2, 3, 4, 5, 7, 11) if d * size <= max_size]))
        sites.append(dimension)
        size *= dimension
    sites = draw(st.permutations(sites))
    return MPOShape(tuple(sites[:order]), tuple(sites[order:]))


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, int], dtype: str, scales: bool = True) -> np.ndarray:
    """The entries: Gaussian, of low rank, of a steep spectrum, constant, sparse or all zero, at any scale."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))

    def gaussian(*size: int) -> np.ndarray:
        real = rng.normal(size=size)
        return real + 1j * rng.normal(size=size) if dtype.startswith("complex") else real

    rows, cols = shape
    kind = draw(st.sampled_from(["gaussian", "gaussian", "low rank", "steep", "constant", "sparse", "zero"]))
    if kind == "low rank":
        rank = draw(st.integers(1, 3))
        dense = gaussian(rows, rank) @ gaussian(rank, cols)
    elif kind == "steep":
        dense = gaussian(rows, cols) * np.logspace(0, -8, cols)
    elif kind == "constant":
        dense = np.full(shape, 1.0) + 0 * gaussian(1, 1)
    elif kind == "sparse":
        dense = gaussian(rows, cols) * (rng.random(shape) < 0.1)
    else:
        dense = gaussian(rows, cols) * (kind != "zero")
    if scales:
        decades = 18 if dtype in ("float32", "complex64") else 150
        dense = dense * 10.0 ** draw(st.sampled_from([0, 0, -decades, decades, -5, 3]))
    return dense


@st.composite
def cases(
    draw: st.DrawFn,
    min_order: int = 1,
    max_order: int = 6,
    dtypes: tuple[str, ...] = DTYPES,
    backends: tuple[str, ...] = BACKENDS,
    scales: bool = True,
) -> Case:
    """A matrix with a shape to decompose it in."""
    shape = draw(shapes(min_order, max_order))
    backend, dtype = draw(st.sampled_from(backends)), draw(st.sampled_from(dtypes))
    return Case(array_of(draw(values(shape.matrix_shape, dtype, scales)), backend, dtype), shape, backend, dtype)


@st.composite
def exact_ranks(draw: st.DrawFn, shape: MPOShape) -> tuple[int, ...]:
    """Inner ranks that a train of this shape can have."""
    ranks = [1, *(draw(st.integers(1, full)) for full in shape.full_ranks[1:-1]), 1]
    for k, size in enumerate(shape.site_sizes):
        ranks[k + 1] = min(ranks[k + 1], ranks[k] * size)
    for k in range(shape.order - 1, -1, -1):
        ranks[k] = min(ranks[k], shape.site_sizes[k] * ranks[k + 1])
    return tuple(ranks[1:-1])


@st.composite
def mpos(draw: st.DrawFn, min_order: int = 1, max_order: int = 6, dtypes: tuple[str, ...] = DTYPES) -> MPO:
    """Random cores in no gauge, their bonds at times larger than they can need to be."""
    shape = draw(shapes(min_order, max_order, max_size=600))
    backend, dtype = draw(st.sampled_from(BACKENDS)), draw(st.sampled_from(dtypes))
    ranks = [1, *(draw(st.integers(1, 6)) for _ in range(shape.order - 1)), 1]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = 10.0 ** draw(st.sampled_from([0, 0, -4, 4]))
    cores = [
        scale * rng.normal(size=(ranks[k], shape.rows[k], shape.cols[k], ranks[k + 1])) for k in range(shape.order)
    ]
    if dtype.startswith("complex"):
        cores = [core * np.exp(2j * np.pi * rng.random(core.shape)) for core in cores]
    return MPO([array_of(core, backend, dtype) for core in cores])


@st.composite
def metrics(draw: st.DrawFn, size: int, backend: str, complex_: bool = False) -> Any:
    """A positive semidefinite metric, a vector or a matrix, singular or not, or none at all."""
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


@dataclass(frozen=True)
class WeightedCase(Case):
    weight: Weight


@st.composite
def weighted_cases(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> WeightedCase:
    """A matrix of low-rank shape, of two or three sites, and a norm to cut it in."""
    matrix_shape = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    backend, dtype = draw(st.sampled_from(BACKENDS)), draw(st.sampled_from(dtypes))
    W = array_of(draw(values(matrix_shape, dtype, scales=False)), backend, dtype)
    kind = draw(st.sampled_from(BACKENDS))  # a metric may come from another library than the matrix
    rows, cols = (draw(metrics(size, kind, dtype.startswith("complex"))) for size in matrix_shape)
    shape = MPOShape.low_rank(matrix_shape, bond_core=draw(st.booleans()))
    return WeightedCase(W, shape, backend, dtype, Weight(rows=rows, cols=cols))
