"""The value MPO: a matrix as a train of four-way cores."""

from __future__ import annotations

import math
from typing import Any, overload

import opt_einsum

from . import _chain
from ._backend import Array, backend_of, cast, check_dtype, dtype_name, permute, working
from ._contract import contraction_plan
from ._shapes import MPOShape
from ._train import Frame, Train, check_same_place, contracted, regrouped, times
from ._tt import TT


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
        return shape_of(self.frame)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(I, J)`` of the dense matrix."""
        return math.prod(core.shape[1] for core in self.cores), math.prod(core.shape[2] for core in self.cores)

    def to_matrix(self) -> Array:
        """The dense (I, J) matrix, on the cores' backend, device and dtype.

        Cores may differ in scale by more than the dtype holds, except while torch compiles and for cores with gradients
        on an accelerator: there no values are looked at.
        Cost: ``tnmpo.contraction_plan(mpo.shape, mpo.ranks).rebuild_flops``.
        """
        shape = self.shape
        pairs = [dimension for site in zip(shape.rows, shape.cols, strict=True) for dimension in site]
        rows_first = (*range(0, 2 * self.order, 2), *range(1, 2 * self.order, 2))
        return regrouped(contracted(self), pairs, rows_first).reshape(self.matrix_shape)

    @property
    def T(self) -> MPO:
        """The transpose, in the same gauge; it shares its cores where the backend permutes axes without a copy."""
        return MPO([permute(core, (0, 2, 1, 3)) for core in self.cores], center=self.center)

    @property
    def H(self) -> MPO:
        """The conjugate transpose, in the same gauge."""
        return self.T.conj()

    @overload
    def __matmul__(self, other: MPO) -> MPO: ...
    @overload
    def __matmul__(self, other: TT) -> TT: ...
    @overload
    def __matmul__(self, other: Array) -> Array: ...
    def __matmul__(self, other: Any) -> Any:
        """The matrix product with an MPO, with a TT as a vector, or with an array as ``numpy.matmul`` has it.

        Of trains every bond is the product of two; the sites must match. An array is (J,) or (.., J, k) and gives (I,)
        or (.., I, k), by the faster execution of ``tnmpo.contraction_plan``.
        """
        if isinstance(other, MPO):
            return _composed(self, other, (self.shape.cols, other.shape.rows))
        if isinstance(other, TT):
            column = MPO([core[:, :, None, :] for core in other.cores])
            product = _composed(self, column, (self.shape.cols, other.shape))
            return TT([core[:, :, 0, :] for core in product.cores])
        return _times_array(self, other)

    @overload
    def __rmatmul__(self, other: TT) -> TT: ...
    @overload
    def __rmatmul__(self, other: Array) -> Array: ...
    def __rmatmul__(self, other: Any) -> Any:
        """The product with a TT or an array on the left: (I,) or (.., k, I) gives (J,) or (.., k, J)."""
        if isinstance(other, TT):
            return self.T @ other
        if not hasattr(other, "shape"):
            return NotImplemented
        turned = other if len(other.shape) < 2 else _swapped(other)
        product = _times_array(self.T, turned)
        return product if len(other.shape) < 2 else _swapped(product)

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


def frame_of(shape: MPOShape) -> Frame[MPO]:
    """The frame of MPOs of a shape."""
    return Frame(MPO, tuple(zip(shape.rows, shape.cols, strict=True)))


def shape_of(frame: Frame[Any]) -> MPOShape:
    """The shape that a frame of MPOs has."""
    return MPOShape(*zip(*frame.site_shapes, strict=True))


def _composed(one: MPO, other: MPO, meeting: tuple[tuple[int, ...], tuple[int, ...]]) -> MPO:
    """The product of two MPOs whose sites meet in the dimensions ``meeting``."""
    check_same_place(one.cores[0], other.cores[0])
    if meeting[0] != meeting[1]:
        raise ValueError(
            f"other: got sites of dimensions {meeting[1]}, expected {meeting[0]}, the columns of the first; "
            "decompose both in matching shapes"
        )
    cores = _chain.compose([working(core) for core in one.cores], [working(core) for core in other.cores])
    frame = frame_of(MPOShape(one.shape.rows, other.shape.cols))
    merged = [core.reshape((core.shape[0], -1, core.shape[3])) for core in cores]
    return frame.build(merged, dtype_name(one.cores[0]))


def _times_array(mpo: MPO, x: Array) -> Array:
    """``mpo @ x`` for ``x`` of shape (J,) or (.., J, k)."""
    if not hasattr(x, "shape"):
        return NotImplemented
    backend_of(x, "other")
    check_dtype(x, "other")
    check_same_place(mpo.cores[0], x)
    rows, cols = mpo.matrix_shape
    axis = 0 if len(x.shape) == 1 else len(x.shape) - 2
    if len(x.shape) == 0 or x.shape[axis] != cols:
        raise ValueError(
            f"other: got shape {tuple(x.shape)}, expected {cols} entries on the axis that is summed over; "
            f"the matrix is {rows} x {cols}, for batches of rows use x @ mpo.T"
        )
    cores, exponent = _chain.all_around_one([working(core) for core in mpo.cores])
    vectors = working(x) if len(x.shape) == 1 else _swapped(working(x))
    lead = tuple(vectors.shape[:-1])
    batch = math.prod(lead)
    near = MPO(cores)
    if contraction_plan(mpo.shape, mpo.ranks, max(batch, 1)).execution == "dense" or batch == 0:
        product = vectors @ permute(near.to_matrix(), (1, 0))
    else:
        product = factored(near, vectors.reshape((batch, cols))).reshape((*lead, rows))
    product = cast(_chain.shifted(product, exponent), dtype_name(x))
    return product if len(x.shape) == 1 else _swapped(product)


def factored(mpo: MPO, vectors: Array) -> Array:
    """``vectors @ mpo.T``, (batch, J) to (batch, I), core after core in the best order."""
    batch = int(vectors.shape[0])
    plan = contraction_plan(mpo.shape, mpo.ranks, batch)
    tokens = vectors.reshape((batch, *mpo.shape.cols))
    return opt_einsum.contract(plan.equation, tokens, *mpo.cores, optimize=plan.path).reshape((batch, -1))


def _swapped(array: Array) -> Array:
    """The last two axes exchanged."""
    axes = len(array.shape)
    return permute(array, (*range(axes - 2), axes - 1, axes - 2))
