"""canonicalize, is_canonical: the gauge of a train."""

from __future__ import annotations

from numbers import Real

from . import _chain
from ._backend import dtype_name, is_half, resolution
from ._shapes import full_ranks
from ._train import AnyTrain, Train, chain_of, check_center, check_train


def canonicalize(train: AnyTrain, center: int | None = None) -> AnyTrain:
    """The same array in mixed-canonical form: isometries on both sides of the center.

    Parameters
    ----------
    train : MPO or TT
    center : int, optional
        The orthogonality center, by default ``order // 2``. The last site gives the left-canonical form, site 0 the
        right-canonical one.

    Returns
    -------
    MPO or TT, as it came
        With ``center`` set and the record of an earlier cut kept. Bonds that are larger than
        they can need to be shrink to their full bond.

    Raises
    ------
    ValueError, TypeError
        If ``train`` is none or holds NaN, ``center`` is no site, or the norm is beyond the dtype.

    Notes
    -----
    Gauge fixing by QR from both ends (Schollwoeck, Ann. Phys. 326, 2011, section 4.4): the bases of the bonds
    are orthonormal but not the Schmidt bases. Cost: O(sum_k d_k r^3).

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> tt = tnmpo.TT([np.ones((1, 2, 3)), np.ones((3, 2, 1))])
    >>> moved = canonicalize(tt, center=0)
    >>> is_canonical(moved), np.allclose(moved.to_tensor(), tt.to_tensor())
    (True, True)
    """
    train = check_train(train)
    center = check_center(center, train.order)
    cores = chain_of(train)
    if any(rank > full for rank, full in zip(train.ranks, full_ranks(train.frame.site_sizes), strict=True)):
        for end in (0, train.order - 1):  # a sweep shrinks a bond to what lies on one side of it
            cores = _chain.orthogonalize(cores, end)
    cores = _chain.orthogonalize(cores, center)
    return train.frame.build(cores, dtype_name(train.cores[0]), center=center, truncation=train.truncation)


def is_canonical(train: Train, center: int | None = None, *, tolerance: float | None = None) -> bool:
    """Whether all cores left of the center are left isometries and all right of it right ones.

    Parameters
    ----------
    train : MPO or TT
    center : int, optional
        By default ``train.center``, and False where that is None.
    tolerance : float, optional
        Largest deviation of an entry of a Gram matrix from the identity; by default 1000 times the resolution of the
        dtype, 10 times of a 16-bit one (rounding the entries of an isometry moves its Gram matrix by one).

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> is_canonical(tnmpo.MPO([np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1))]), center=0)
    False
    """
    train = check_train(train)
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not tolerance >= 0):
        raise ValueError(f"tolerance: got {tolerance!r}, expected a number >= 0; None is the dtype's own")
    center = train.center if center is None else check_center(center, train.order)
    if center is None:
        return False
    if tolerance is None:
        tolerance = (10 if is_half(train.cores[0]) else 1e3) * resolution(train.cores[0])
    cores = chain_of(train)
    left = [core.reshape(-1, core.shape[2]) for core in cores[:center]]
    right = [core.reshape(-1, core.shape[2]) for core in _chain.mirror(cores[center + 1 :])]
    return all(_chain.is_isometry(unfolding, tolerance) for unfolding in left + right)
