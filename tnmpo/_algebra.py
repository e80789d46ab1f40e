"""inner, norm, trace, hadamard, kron, apply: the algebra of trains that has no operator sign.

``+ - * / @ .T .H .conj()`` are methods of the trains themselves. Nothing here forms a dense array.
"""

from __future__ import annotations

from typing import Any

from . import _chain
from ._backend import Array, backend_of, dtype_name, transposed, working
from ._mpo import MPO
from ._train import AnyTrain, Train, chain_of, check_alike, check_same_place, check_train
from ._truncate import truncate


def inner(one: Train, other: Train) -> Array:
    """The inner product ``<A, B> = sum conj(A) B``, for matrices ``tr(A^H B)``.

    Parameters
    ----------
    one, other : two MPOs or two TTs
        Of the same sites, backend, dtype and device.

    Returns
    -------
    scalar
        Of the backend and dtype of the trains (float32 for 16-bit ones). Derivatives flow through it.

    Raises
    ------
    ValueError, TypeError
        If one is no train, holds NaN, or the two do not fit.

    Notes
    -----
    One sweep over both trains (Schollwoeck, Ann. Phys. 326, 2011, section 4.2.1), whose powers of two are
    carried apart: it overflows only where the result does. It is exact to the resolution of ``||A|| ||B||``; for the
    distance of near trains take ``norm(A - B)``. Cost: O(sum_k d_k r s (r + s)) for bonds r and s.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> A = tnmpo.mpo_decompose(np.arange(16.0).reshape(4, 4), ((2, 2), (2, 2)))
    >>> B = tnmpo.mpo_decompose(np.eye(4), ((2, 2), (2, 2)))
    >>> round(float(inner(A, B)), 10)  # the trace of A
    30.0
    """
    one, other = check_train(one, "one"), check_train(other, "other")
    check_alike(one, other)
    return _chain.shifted(*_chain.inner(chain_of(one), chain_of(other)))


def norm(train: Train) -> Array:
    """The Frobenius norm ``||A||``.

    Parameters
    ----------
    train : MPO or TT

    Returns
    -------
    scalar
        Real, of the backend and precision of the train (float32 for 16-bit ones). Derivatives flow through it.

    Raises
    ------
    ValueError, TypeError
        If ``train`` is none or holds NaN.

    Notes
    -----
    By a QR sweep, which no cancellation harms: ``norm(A - B)`` is exact to the resolution of A and B, where
    ``sqrt(inner(A - B, A - B))`` loses half of the digits. Powers of two are carried apart: it overflows only where
    the result does. Cost: O(sum_k d_k r^3).

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> A = tnmpo.tt_decompose(np.array([[3e200, 0.0], [0.0, 4e200]]))
    >>> round(float(norm(A) / 1e200), 10)
    5.0
    """
    return _chain.shifted(*_chain.scaled_norm(chain_of(check_train(train))))


def trace(mpo: MPO) -> Array:
    """The trace of a square matrix.

    Parameters
    ----------
    mpo : MPO
        Whose sites are square, ``i_k = j_k`` each, or of a low-rank shape.

    Returns
    -------
    scalar
        Of the backend and dtype of the train (float32 for 16-bit ones). Derivatives flow through it.

    Raises
    ------
    ValueError, TypeError
        If ``mpo`` is none, holds NaN, is not square, or its rows and columns are not split in the same way.

    Notes
    -----
    Cost: O(sum_k i_k r^2) for square sites, O(I r^2) for a low-rank shape.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> round(float(trace(tnmpo.mpo_decompose(np.arange(16.0).reshape(4, 4), ((2, 2), (2, 2))))), 10)
    30.0
    """
    shape = check_train(mpo, "mpo", MPO).shape
    cores, exponent = _chain.all_around_one([working(core) for core in mpo.cores])
    if shape.rows == shape.cols:
        summed = [_diagonal(core).sum(1) for core in cores]  # (r, r')
        first, *others = summed
    elif shape.is_low_rank and shape.matrix_shape[0] == shape.matrix_shape[1]:
        # tr(U M V) = sum of (U M) * V^T: the last core has no row, the first no column
        first = cores[0][0, :, 0, :]
        others = [core[:, 0, 0, :] for core in cores[1:-1]]
        last = cores[-1][:, 0, :, 0]
    else:
        raise ValueError(
            f"mpo: got rows {shape.rows} and cols {shape.cols}, expected sites with i_k = j_k or a square low-rank "
            "shape; decompose it in one"
        )
    for matrix in others:
        first, of_first = _chain.around_one(first @ matrix)
        exponent += of_first
    total = first[0, 0] if shape.rows == shape.cols else backend_of(first, "mpo").sum(first * transposed(last))
    return _chain.shifted(total, exponent)


def hadamard(one: AnyTrain, other: AnyTrain) -> AnyTrain:
    """The entrywise (Hadamard, Schur) product ``A * B``.

    Parameters
    ----------
    one, other : two MPOs or two TTs
        Of the same sites, backend, dtype and device.

    Returns
    -------
    MPO or TT, as they came
        Every bond is the product of the two, in no known gauge; ``tnmpo.truncate`` takes off what is superfluous.

    Raises
    ------
    ValueError, TypeError
        If one is no train, holds NaN, or the two do not fit.

    Notes
    -----
    Oseledets (SIAM J. Sci. Comput. 33, 2011, section 4.2). Cost: O(sum_k d_k r^2 s^2) for bonds r and s.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> A = tnmpo.tt_decompose(np.arange(6.0).reshape(2, 3))
    >>> squares = hadamard(A, A)
    >>> squares.ranks, squares.to_tensor()[1].round(10).tolist()
    ((1, 4, 1), [9.0, 16.0, 25.0])
    """
    one, other = check_train(one, "one"), check_train(other, "other")
    check_alike(one, other)
    return one.frame.build(_chain.hadamard(chain_of(one), chain_of(other)), dtype_name(one.cores[0]))


def kron(one: AnyTrain, other: AnyTrain) -> AnyTrain:
    """The Kronecker product of two matrices, the outer product of two tensors.

    Parameters
    ----------
    one, other : two MPOs or two TTs
        Of one backend, dtype and device.

    Returns
    -------
    MPO or TT, as they came
        The sites of the first, then those of the second, with a bond of 1 between them; the cores are not copied.
        In no known gauge.

    Raises
    ------
    ValueError, TypeError
        If one is no train, holds NaN, or the two do not fit.

    Notes
    -----
    Costs nothing. Flattened, the outer product of two tensors is the Kronecker product of their vectors.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> A = tnmpo.mpo_decompose(np.arange(4.0).reshape(2, 2), ((2,), (2,)))
    >>> AA = kron(A, A)
    >>> AA.ranks, np.allclose(AA.to_matrix(), np.kron(A.to_matrix(), A.to_matrix()))
    ((1, 1, 1), True)
    """
    one, other = check_train(one, "one"), check_train(other, "other")
    if type(one) is not type(other):
        check_alike(one, other)
    check_same_place(one.cores[0], other.cores[0])
    return type(one)([*one.cores, *other.cores])


def apply(mpo: MPO, train: AnyTrain, rank: Any = None) -> AnyTrain:
    """Apply an MPO to a TT or to another MPO, ``mpo @ train``, and cut the product.

    Parameters
    ----------
    mpo : MPO
        Whose columns are the sites of ``train``, or the rows of it.
    train : TT or MPO
    rank : int, tuple, float or policy, optional
        As for ``tnmpo.truncate``; None keeps every bond, the product of two.

    Returns
    -------
    TT or MPO, as ``train`` came
        ``truncation`` records the distance to the exact product; None where no rank was asked.

    Raises
    ------
    ValueError, TypeError
        If one is no train, holds NaN, the sites do not meet, or the rank cannot be met.

    Notes
    -----
    The word is that of quimb and ITensor, for trains. Arrays are multiplied by ``mpo @ x``, batches of rows, as a
    linear layer has them, by ``x @ mpo.T``. Cost: O(sum_k i_k j_k r^2 s^2) for bonds r and s, and
    O(sum_k i_k (r s)^3) for the cut.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> A = tnmpo.mpo_decompose(np.arange(64.0).reshape(8, 8), ((2, 2, 2), (2, 2, 2)), rank=tnmpo.Tolerance(1e-12))
    >>> x = tnmpo.tt_decompose(np.arange(8.0).reshape(2, 2, 2), rank=tnmpo.Tolerance(1e-12))
    >>> y = apply(A, x, rank=tnmpo.Tolerance(1e-12))
    >>> (A @ x).ranks, y.ranks, np.allclose(y.to_tensor().ravel(), A.to_matrix() @ np.arange(8.0))
    ((1, 4, 4, 1), (1, 2, 2, 1), True)
    """
    mpo, train = check_train(mpo, "mpo", MPO), check_train(train)
    product: Any = mpo @ train
    return product if rank is None else truncate(product, rank)


def _diagonal(core: Array) -> Array:
    """The entries with equal row and column, (r, i, r')."""
    left, size, _, right = core.shape
    return core.reshape((left, size * size, right))[:, :: size + 1]
