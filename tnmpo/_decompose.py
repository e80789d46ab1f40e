"""mpo_decompose, tt_decompose: from a dense array to a train."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import _chain, _gram, _weighted
from ._backend import Array, backend_of, check_matrix, check_norm, double, dtype_name, working
from ._factor import naming
from ._mpo import MPO, frame_of
from ._shapes import as_shape
from ._train import AnyTrain, Frame, check_center, interleaved
from ._truncate import cut_canonical, cut_dense, cut_low_rank, cut_weighted
from ._tt import TT
from ._weights import Weight, check_weight, site_roots


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
    W : (I, J) array of numpy, torch or jax
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    shape : (rows, cols) or MPOShape, optional
        The factors of I and of J, one pair a site; by default ``plan_shape(W.shape, order=5)``.
    rank : optional
        What to cut; None keeps every bond in full.

        - int: a cap on every bond (above the full bond it has no effect);
        - tuple: the inner bond dimensions, with or without the boundary ones, exactly;
        - float f: at most ``f * I * J`` parameters; ``'same'`` is 1.0, which cuts an interleaved MPO,
          whose full size is above that of the matrix;
        - a policy: ``MaxRank``, ``Tolerance``, ``ParameterBudget``, ``EntropyFraction``, the words of other libraries
          (``ITensorCutoff``, ``QuimbCutoff``, ``TeNPyCutoff``), or two of all these joined by ``&``.
    weight : Weight, optional
        The norm to cut in. Exactly optimal for low-rank shapes. Where the metric is a product over the sites (given so,
        or the whole row and column index on one site each) the sweep and its guarantees are those of the plain norm.
        Else ALS refines the better of two starts, and ``Tolerance`` is kept by measuring. Never worse, in the
        weighted norm, than the plain cut to the same ranks.
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

    In a metric that is no product over the sites every step multiplies the matrix by the metrics, some hundred times
    for a cut, O(I J (I + J)) each: of (768, 3072), five sites and a metric of the columns it takes two minutes on one
    CPU core. A ``Tolerance`` takes several cuts: about 5 to find where the spectra choose enough, then at most 6 a bond
    to lower single bonds, until none can be by one (or these are used up).

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
    check_matrix(W)
    shape = as_shape(shape, tuple(W.shape))
    center = check_center(center, shape.order)
    frame = frame_of(shape)
    if weight is not None:
        check_weight(weight)
    with naming("W"):
        if weight is not None and rank is None:
            site_roots(weight, shape, W)  # nothing is cut, so the norm has no effect; a wrong one is refused
        if weight is None or rank is None:
            return _decomposed(working(W), frame, rank, center, W)
        if shape.is_low_rank:
            return cut_low_rank(partial(_weighted.of_matrix, W), frame, rank, center, W, weight)
        cores, _ = _chain.decompose(interleaved(double(W), frame), shape.site_sizes, center)
        return cut_weighted(cores, frame, rank, center, W, weight)


def tt_decompose(tensor: Array, rank: Any = None, *, center: int | None = None) -> TT:
    """Write a tensor as a tensor train.

    Parameters
    ----------
    tensor : array of any number of axes, at least one
        Real or complex, any floating dtype; 16-bit ones are decomposed in float32.
    rank : optional
        As for ``tnmpo.mpo_decompose``; a float is the fraction of the entries of ``tensor``.
    center : int, optional
        The orthogonality center, by default ``order // 2``.

    Returns
    -------
    TT
        One site an axis, in the Schmidt basis of every bond; ``truncation`` as for ``tnmpo.mpo_decompose``.

    Raises
    ------
    ValueError, TypeError
        If ``tensor`` is no finite floating array with an axis, or the rank cannot be met.

    Notes
    -----
    The TT-SVD of Oseledets (SIAM J. Sci. Comput. 33, 2011, algorithm 1), from both ends to the center.
    Cost: O(N sum_k r_k) for N entries and full bonds r_k.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> i, j, k = np.indices((4, 5, 6))
    >>> tt = tt_decompose(1.0 * i + j + k, rank=tnmpo.Tolerance(1e-12))  # a sum of one-site functions
    >>> tt.ranks, np.allclose(tt.to_tensor(), i + j + k)
    ((1, 2, 2, 1), True)
    """
    backend_of(tensor, "tensor")
    if len(tensor.shape) == 0:
        raise ValueError("tensor: got a scalar, expected at least one axis; reshape it to (1,)")
    check_norm(tensor, "tensor")
    center = check_center(center, len(tensor.shape))
    frame = Frame(TT, tuple((int(d),) for d in tensor.shape))
    with naming("tensor"):
        return _decomposed(working(tensor), frame, rank, center, tensor)


def _decomposed(tensor: Array, frame: Frame[AnyTrain], rank: Any, center: int, source: Array) -> AnyTrain:
    if len(frame.site_shapes) > 1 and _gram.serves(tensor):
        return cut_dense(tensor, frame, rank, center, source)
    tensor = interleaved(tensor, frame)
    cores, spectra = _chain.decompose(tensor, frame.site_sizes, center)
    if rank is not None:
        return cut_canonical(cores, spectra, frame, rank, center, source)
    return frame.build(cores, dtype_name(source), center=center)
