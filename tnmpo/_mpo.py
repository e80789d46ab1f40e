"""The value MPO: a matrix as a train of four-way cores."""

from __future__ import annotations

import math
from typing import Any

from ._backend import Array, permute
from ._shapes import MPOShape
from ._train import Train, contracted, times


class MPO(Train):
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

    __slots__ = ()

    core_axes = ("rank", "row", "col", "rank")
    advice = "for a vector or a general tensor use TT, or reshape it first"

    @property
    def shape(self) -> MPOShape:
        """The row and column dimension of every site."""
        return MPOShape(*zip(*self.frame.site_shapes, strict=True))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(I, J)`` of the dense matrix."""
        return math.prod(core.shape[1] for core in self.cores), math.prod(core.shape[2] for core in self.cores)

    def to_matrix(self) -> Array:
        """The dense (I, J) matrix, on the cores' backend, device and dtype.

        Cost: ``tnmpo.contraction_plan(mpo.shape, mpo.ranks).rebuild_flops``.
        """
        shape = self.shape
        paired = contracted(self).reshape(tuple(d for pair in zip(shape.rows, shape.cols, strict=True) for d in pair))
        rows_first = permute(paired, (*range(0, 2 * self.order, 2), *range(1, 2 * self.order, 2)))
        return rows_first.reshape(self.matrix_shape)

    def _dense(self) -> Array:
        return self.to_matrix()

    @property
    def _dense_shape(self) -> tuple[int, ...]:
        return self.matrix_shape

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

    def _summary(self) -> tuple[str, list[str]]:
        rows, cols = self.matrix_shape
        return f"{rows} x {cols} matrix", [f"rows   {times(self.shape.rows)}", f"cols   {times(self.shape.cols)}"]
