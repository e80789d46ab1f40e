"""What is special to this suite: its cases, and jax drawn from a few shapes. The rest is ``tnmpo.testing``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tnmpo import MPO, TT, MPOShape, Weight, testing
from tnmpo.testing import (
    BACKENDS,
    DTYPES,
    SLACK,
    array_of,
    backend_of,
    dense_of,
    dense_root,
    dense_spectra,
    dtype_of,
    feasible,
    metrics,
    norm,
    numpy_of,
    rounding,
    shapes,
    unfolding,
    values,
    weighted,
)
from tnmpo.testing import ranks as exact_ranks

__all__ = [
    "BACKENDS",
    "DTYPES",
    "HALF_SLACK",
    "SLACK",
    "Case",
    "WeightedCase",
    "array_of",
    "backend_of",
    "backends",
    "cases",
    "dense_of",
    "dense_root",
    "dense_spectra",
    "dtype_of",
    "exact_ranks",
    "feasible",
    "metrics",
    "mpos",
    "norm",
    "numpy_of",
    "rounding",
    "shapes",
    "tts",
    "unfolding",
    "values",
    "weighted",
    "weighted_cases",
]

HALF_SLACK = {"float16": 5e-3, "bfloat16": 4e-2}
# jax compiles every operation anew for every shape: few and small ones, and drawn less often. A prime, a unit site, a
# low-rank shape and order 1 are among them.
JAX_SHAPES = (
    MPOShape((2, 1, 2, 2), (1, 1, 2, 1)),
    MPOShape((5, 1), (1, 3)),
    MPOShape((3,), (2,)),
)
JAX_MATRICES = ((5, 3), (3, 4))


def backends(names: tuple[str, ...] = BACKENDS) -> st.SearchStrategy[str]:
    """Each of them, jax less often but first: Hypothesis begins with the first of everything, so no law is without."""
    return st.sampled_from(["jax"] * ("jax" in names) + [name for name in names if name != "jax" for _ in range(4)])


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


def suited(backend: str, min_order: int, max_order: int, max_size: int = 1500) -> st.SearchStrategy[MPOShape]:
    """Shapes to draw on that backend."""
    if backend == "jax":
        return st.sampled_from([shape for shape in JAX_SHAPES if min_order <= shape.order <= max_order])
    return shapes(min_order, max_order, max_size)


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
    backend, dtype = draw(_backends(backends)), draw(st.sampled_from(dtypes))
    shape = draw(suited(backend, min_order, max_order))
    return Case(array_of(draw(values(shape.matrix_shape, dtype, scales)), backend, dtype), shape, backend, dtype)


@st.composite
def mpos(
    draw: st.DrawFn,
    min_order: int = 1,
    max_order: int = 6,
    dtypes: tuple[str, ...] = DTYPES,
    backends: tuple[str, ...] = BACKENDS,
) -> MPO:
    """Random cores in no gauge, their bonds at times larger than they can need to be."""
    backend = draw(_backends(backends))
    of_backend = suited(backend, min_order, max_order, max_size=600)
    max_rank = 3 if backend == "jax" else 6
    return draw(testing.mpos(shapes=of_backend, max_rank=max_rank, dtypes=dtypes, backends=(backend,)))


@st.composite
def tts(
    draw: st.DrawFn,
    min_order: int = 1,
    max_order: int = 6,
    dtypes: tuple[str, ...] = DTYPES,
    backends: tuple[str, ...] = BACKENDS,
) -> TT:
    """The same as trains of three-way cores."""
    mpo = draw(mpos(min_order, max_order, dtypes, backends))
    return TT([core.reshape((core.shape[0], -1, core.shape[-1])) for core in mpo.cores])


@dataclass(frozen=True)
class WeightedCase(Case):
    weight: Weight


@st.composite
def weighted_cases(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> WeightedCase:
    """A matrix of low-rank shape, of two or three sites, and a norm to cut it in."""
    backend, dtype = draw(_backends()), draw(st.sampled_from(dtypes))
    dimension = st.integers(1, 14)
    matrix_shape = draw(st.sampled_from(JAX_MATRICES) if backend == "jax" else st.tuples(dimension, dimension))
    W = array_of(draw(values(matrix_shape, dtype, scales=False)), backend, dtype)
    kind = draw(_backends())  # a metric may come from another library than the matrix
    weight = draw(testing.weights(matrix_shape, backend=kind, complex_=dtype.startswith("complex")))
    shape = MPOShape.low_rank(matrix_shape, bond_core=draw(st.booleans()))
    return WeightedCase(W, shape, backend, dtype, weight)


_backends = backends  # the argument of that name hides it
