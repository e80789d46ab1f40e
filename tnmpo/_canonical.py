"""canonicalize, is_canonical: the gauge of an MPO."""

from __future__ import annotations

from numbers import Real

from . import _chain
from ._backend import backend_of, dtype_name, working
from ._mpo import MPO, check_center, check_mpo, four_way, three_way

_EPSILON = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1.2e-7, "complex64": 1.2e-7}


def canonicalize(mpo: MPO, center: int | None = None) -> MPO:
    """The same matrix in mixed-canonical form: isometries on both sides of the center.

    Parameters
    ----------
    mpo : MPO
    center : int, optional
        The orthogonality center, by default ``order // 2``.

    Returns
    -------
    MPO
        With ``center`` set and the record of an earlier cut kept. Bonds that are larger than
        they can need to be shrink to their full bond.

    Raises
    ------
    ValueError, TypeError
        If ``mpo`` is no MPO or holds NaN, or ``center`` is no site.

    Notes
    -----
    Gauge fixing by QR from both ends (Schollwoeck, Ann. Phys. 326, 2011, section 4.4): the bases of the bonds
    are orthonormal but not the Schmidt bases. Cost: O(sum_k d_k r^3).

    Examples
    --------
    >>> import numpy as np
    >>> mpo = MPO([np.ones((1, 2, 2, 3)), np.ones((3, 2, 2, 1))])
    >>> moved = canonicalize(mpo, center=0)
    >>> is_canonical(moved), np.allclose(moved.to_matrix(), mpo.to_matrix())
    (True, True)
    """
    mpo = check_mpo(mpo)
    center = check_center(center, mpo.order)
    backend = backend_of(mpo.cores[0], "mpo")
    cores = [working(core) for core in three_way(mpo.cores)]
    if any(rank > full for rank, full in zip(mpo.ranks, mpo.shape.full_ranks, strict=True)):
        for end in (0, mpo.order - 1):  # a sweep shrinks a bond to what lies on one side of it
            cores = _chain.orthogonalize(backend, cores, end)
    cores = _chain.orthogonalize(backend, cores, center)
    return MPO(four_way(cores, mpo.shape, dtype_name(mpo.cores[0])), center=center, truncation=mpo.truncation)


def is_canonical(mpo: MPO, center: int | None = None, *, tolerance: float | None = None) -> bool:
    """Whether all cores left of the center are left isometries and all right of it right ones.

    Parameters
    ----------
    mpo : MPO
    center : int, optional
        By default ``mpo.center``, and False where that is None.
    tolerance : float, optional
        Largest deviation of an entry of a Gram matrix from the identity; by default 1000 times
        the resolution of the dtype.

    Examples
    --------
    >>> import numpy as np
    >>> is_canonical(MPO([np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1))]), center=0)
    False
    """
    mpo = check_mpo(mpo)
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not tolerance >= 0):
        raise ValueError(f"tolerance: got {tolerance!r}, expected a number >= 0; None is the dtype's own")
    center = mpo.center if center is None else check_center(center, mpo.order)
    if center is None:
        return False
    backend = backend_of(mpo.cores[0], "mpo")
    if tolerance is None:
        tolerance = 1e3 * _EPSILON.get(dtype_name(mpo.cores[0]), 2.2e-16)
    cores = [working(core) for core in three_way(mpo.cores)]
    left = [core.reshape(-1, core.shape[2]) for core in cores[:center]]
    right = [core.reshape(-1, core.shape[2]) for core in _chain.mirror(cores[center + 1 :])]
    return all(_chain.is_isometry(backend, unfolding, tolerance) for unfolding in left + right)
