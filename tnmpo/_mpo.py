"""The value MPO: validation, dense and TensorLy conversions, repr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from . import _chain
from ._backend import Array, all_finite, backend_of, cast, check_dtype, dtype_name
from ._bounds import Truncation
from ._shapes import MPOShape, n_parameters, shown


class MPO:
    """A matrix as a matrix product operator: a train of four-way cores.

    ``W[i1..in, j1..jn] = T1[i1,j1] T2[i2,j2] .. Tn[in,jn]``, each ``Tk[ik,jk]`` an
    ``r_{k-1} x r_k`` matrix.

    Parameters
    ----------
    cores : sequence of (r_{k-1}, i_k, j_k, r_k) arrays
        Of one backend and dtype, ``r_0 = r_n = 1``. They are not copied.
    center : int, optional
        The site around which the cores are canonical, where that is known. It is taken on trust;
        ``tnmpo.is_canonical`` checks it, ``tnmpo.canonicalize`` makes it so.
    truncation : Truncation, optional
        The record of the cut that made these cores.

    Raises
    ------
    ValueError, TypeError
        If the cores do not form a train.

    Examples
    --------
    >>> import numpy as np
    >>> mpo = MPO([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))])
    >>> mpo.matrix_shape, mpo.ranks, mpo.n_parameters
    ((10, 6), (1, 4, 1), 64)
    >>> mpo.to_matrix().shape
    (10, 6)
    """

    __slots__ = ("center", "cores", "truncation")

    cores: tuple[Array, ...]
    center: int | None
    truncation: Truncation | None

    def __init__(
        self, cores: Sequence[Array], *, center: int | None = None, truncation: Truncation | None = None
    ) -> None:
        self.cores = _check_train(cores)
        self.center = None if center is None else check_center(center, len(self.cores))
        self.truncation = truncation

    @property
    def shape(self) -> MPOShape:
        """The row and column dimension of every site."""
        return MPOShape(tuple(core.shape[1] for core in self.cores), tuple(core.shape[2] for core in self.cores))

    @property
    def order(self) -> int:
        """The number of sites."""
        return len(self.cores)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(I, J)`` of the dense matrix."""
        return math.prod(core.shape[1] for core in self.cores), math.prod(core.shape[2] for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The bond dimensions ``(1, r_1, .., r_{n-1}, 1)``."""
        return (1, *(int(core.shape[3]) for core in self.cores))

    @property
    def n_parameters(self) -> int:
        """The number of entries of all cores."""
        return n_parameters(self.shape.site_sizes, self.ranks)

    def to_matrix(self) -> Array:
        """The dense (I, J) matrix, on the cores' backend, device and dtype.

        Cost: ``tnmpo.contraction_plan(mpo.shape, mpo.ranks).rebuild_flops``.
        """
        backend = backend_of(self.cores[0], "cores")
        flat = _chain.contract(three_way(self.cores))
        shape = self.shape
        paired = flat.reshape(tuple(d for pair in zip(shape.rows, shape.cols, strict=True) for d in pair))
        rows_first = backend.transpose(paired, (*range(0, 2 * self.order, 2), *range(1, 2 * self.order, 2)))
        return rows_first.reshape(self.matrix_shape)

    def to_tensorly(self) -> Any:
        """The same cores as a ``tensorly.tt_matrix.TTMatrix``; nothing is copied."""
        from tensorly.tt_matrix import TTMatrix

        return TTMatrix(list(self.cores))

    @classmethod
    def from_tensorly(cls, matrix: Any) -> MPO:
        """An MPO on the cores of a ``TTMatrix`` (or any list of four-way factors); nothing is copied.

        Examples
        --------
        >>> import numpy as np
        >>> mpo = MPO([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))])
        >>> MPO.from_tensorly(mpo.to_tensorly()).cores[0] is mpo.cores[0]
        True
        """
        return cls(getattr(matrix, "factors", matrix))

    def __repr__(self) -> str:
        rows, cols = self.matrix_shape
        backend = backend_of(self.cores[0], "cores").backend_name
        share = self.n_parameters / (rows * cols)
        gauge = "no known gauge" if self.center is None else f"center {self.center}"
        lines = [
            f"MPO of a {rows} x {cols} matrix ({backend}, {dtype_name(self.cores[0])})",
            f"  rows   {_times(self.shape.rows)}",
            f"  cols   {_times(self.shape.cols)}",
            f"  bonds  {'-'.join(map(str, self.ranks))}, {gauge}",
            f"  {self.n_parameters:,} parameters, {share:.3g} of dense",
        ]
        if self.truncation is not None:
            lines.append(f"  relative error {self.truncation.relative_error:.3g}")
        return "\n".join(lines)


def three_way(cores: Sequence[Array]) -> list[Array]:
    """The cores with row and column index merged into one site index."""
    return [core.reshape(core.shape[0], -1, core.shape[3]) for core in cores]


def four_way(cores: Sequence[Array], shape: MPOShape, dtype: str) -> list[Array]:
    """The cores of a train over the sites of ``shape``, with row and column index apart, in ``dtype``.

    Raises
    ------
    ValueError
        If an entry does not fit ``dtype``: the center carries the norm, and float16 ends at 65504.
    """
    apart = [
        cast(core.reshape(core.shape[0], i, j, core.shape[2]), dtype)
        for core, i, j in zip(cores, shape.rows, shape.cols, strict=True)
    ]
    if dtype == "float16" and not all(map(all_finite, apart)):
        raise ValueError("MPO: got a matrix whose norm overflows float16; scale it down or convert it to bfloat16")
    return apart


def check_mpo(mpo: Any, argument: str = "mpo") -> MPO:
    """``mpo`` itself, or a TypeError that says what to pass."""
    if not isinstance(mpo, MPO):
        raise TypeError(
            f"{argument}: got {type(mpo).__name__}, expected a tnmpo.MPO; tnmpo.mpo_decompose makes one from a matrix"
        )
    for site, core in enumerate(mpo.cores):
        if not all_finite(core):
            raise ValueError(f"{argument}: got NaN or Inf in core {site}, expected finite numbers")
    return mpo


def check_center(center: Any, order: int) -> int:
    """``center`` as a site index; None is ``order // 2``."""
    if center is None:
        return order // 2
    if isinstance(center, bool) or not isinstance(center, Integral):
        raise TypeError(f"center: got {shown(center)}, expected a site index from 0 to {order - 1}")
    site = int(center)
    if not 0 <= site < order:
        raise ValueError(f"center: got {site}, expected a site index from 0 to {order - 1}")
    return site


def _times(dimensions: Sequence[int]) -> str:
    return " x ".join(map(str, dimensions))


def _check_train(cores: Any) -> tuple[Array, ...]:
    if isinstance(cores, str) or not hasattr(cores, "__len__") or not hasattr(cores, "__iter__"):
        raise TypeError(f"MPO: got {type(cores).__name__} for cores, expected a sequence of four-way arrays")
    if len(cores) == 0:
        raise ValueError("MPO: got no cores, expected at least one")
    cores = tuple(cores)
    first_backend = backend_of(cores[0], "MPO: core 0").backend_name
    check_dtype(cores[0], "MPO: core 0")
    for site, core in enumerate(cores):
        if backend_of(core, f"MPO: core {site}").backend_name != first_backend or core.dtype != cores[0].dtype:
            raise TypeError(
                f"MPO: core {site} is {type(core).__name__} {dtype_name(core)}, core 0 is "
                f"{type(cores[0]).__name__} {dtype_name(cores[0])}; convert them to one backend and dtype"
            )
        if core.ndim != 4:
            raise ValueError(
                f"MPO: core {site} has {core.ndim} axes, expected 4 (rank, row, col, rank); reshape it first"
            )
        if core.device != cores[0].device:
            raise ValueError(
                f"MPO: core {site} is on {core.device}, core 0 on {cores[0].device}; move them to one device"
            )
        if 0 in core.shape:
            raise ValueError(f"MPO: core {site} has shape {tuple(core.shape)}, expected no empty axis")
        wanted = cores[site - 1].shape[3] if site else 1
        if core.shape[0] != wanted:
            raise ValueError(
                f"MPO: core {site} has left bond {core.shape[0]}, expected {wanted}"
                + (f", the right bond of core {site - 1}" if site else " at the boundary")
            )
    if cores[-1].shape[3] != 1:
        raise ValueError(f"MPO: core {len(cores) - 1} has right bond {cores[-1].shape[3]}, expected 1 at the boundary")
    return cores
