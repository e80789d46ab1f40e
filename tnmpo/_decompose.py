"""mpo_decompose: from a dense matrix to an MPO."""

from __future__ import annotations

from typing import Any

from . import _chain, _weighted
from ._backend import Array, Backend, backend_of, check_norm, check_values, dtype_name, working
from ._mpo import MPO, check_center, four_way
from ._shapes import MPOShape, as_shape
from ._truncate import cut_canonical, cut_weighted
from ._weights import Weight


def mpo_decompose(
    W: Array,
    shape: Any = None,
    rank: Any = None,
    *,
    weight: Weight | None = None,
    center: int | None = None,
) -> MPO:
    """Write a matrix as a matrix product operator.

    Parameters
    ----------
    W : (I, J) numpy array or torch tensor
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    shape : (rows, cols) or MPOShape, optional
        The factors of I and of J, one pair a site; by default ``plan_shape(W.shape, order=5)``.
    rank : optional
        What to cut; None keeps every bond in full.

        - int: a cap on every bond (above the full bond it has no effect);
        - tuple: the inner bond dimensions, with or without the boundary ones, exactly;
        - float f: at most ``f * I * J`` parameters; ``'same'`` is 1.0, which cuts an interleaved MPO,
          whose full size is above that of the matrix;
        - a policy: ``MaxRank``, ``Tolerance``, ``ParameterBudget``, ``EntropyFraction``.
    weight : Weight, optional
        The norm to cut in, for low-rank shapes, where the optimum is exact.
    center : int, optional
        The orthogonality center, by default ``order // 2``.

    Returns
    -------
    MPO
        On the backend, device and dtype of ``W``, in the (unweighted) Schmidt basis of every
        bond. ``truncation`` is the record of the cut: exact error, bounds, untruncated spectra; None where
        no rank was asked.

    Raises
    ------
    ValueError, TypeError
        If ``W`` is no finite floating matrix, the shape does not multiply to its dimensions, or
        the rank cannot be met. The message names the argument, what came and what to do.

    Notes
    -----
    The matrix shrinks from both ends to the center, each long unfolding through its short side (a
    Gram matrix in double precision for single precision input, a QR else), then the exact train is cut. A cut is
    within ``sqrt(n - 1)`` of the best MPO of its ranks (Oseledets, SIAM J. Sci. Comput. 33, 2011, corollary 2.4). The
    form is that of Liu et al. (ACL 2021, arXiv:2106.02205). Cost: O(I J sum_k d_k) with the small sites first.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).normal(size=(24, 36))
    >>> mpo = mpo_decompose(W, shape=((2, 3, 4), (4, 3, 3)))
    >>> mpo.ranks, np.allclose(mpo.to_matrix(), W)
    ((1, 8, 12, 1), True)
    >>> cut = mpo_decompose(W, shape=((2, 3, 4), (4, 3, 3)), rank=(6, 5))
    >>> bool(np.isclose(cut.truncation.error, np.linalg.norm(W - cut.to_matrix())))
    True
    """
    backend = backend_of(W, "W")
    if W.ndim != 2:
        raise ValueError(f"W: got {W.ndim} axes, expected a matrix; reshape it to two")
    check_values(W, "W")
    check_norm(W, "W")
    shape = as_shape(shape, tuple(W.shape))
    center = check_center(center, shape.order)
    if weight is not None:
        _weighted.check(weight, shape)
        if rank is not None:
            return cut_weighted(backend, _weighted.of_matrix(backend, W, weight), shape, rank, center, W, weight)
        weight.roots(shape.matrix_shape, W)  # nothing is cut, so the norm has no effect; a wrong one is refused
    tensor = _interleaved(backend, working(W), shape)
    cores, spectra = _chain.decompose(backend, tensor, shape.site_sizes, center)
    if rank is not None:
        return cut_canonical(backend, cores, spectra, shape, rank, center, W)
    return MPO(four_way(cores, shape, dtype_name(W)), center=center)


def _interleaved(backend: Backend, matrix: Array, shape: MPOShape) -> Array:
    """The entries in the order i1 j1 i2 j2 .. of the sites."""
    order = shape.order
    tensor = matrix.reshape(*shape.rows, *shape.cols)
    return backend.transpose(tensor, [axis for k in range(order) for axis in (k, order + k)])
