"""als_fit: refine a train at fixed ranks by alternating least squares, plain or weighted.

TT-SVD is within sqrt(n - 1) of the best train of its ranks. Alternating least squares (ALS; Holtz, Rohwedder and
Schneider, SIAM J. Sci. Comput. 34, 2012) replaces one core at a time by the best one beside all others, so the error
never grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic

from . import _chain
from ._backend import (
    Array,
    adjoint,
    backend_of,
    check_values,
    double,
    dtype_name,
    frobenius_norm,
    is_half,
    permute,
)
from ._factor import thin_qr
from ._joint import WeightedProblem
from ._mpo import MPO
from ._shapes import clip_ranks, positive_int, shown
from ._train import AnyTrain, Train, chain_of, check_train, interleaved
from ._weights import Weight, check_weight


@dataclass(frozen=True)
class ALSFit(Generic[AnyTrain]):
    """A refined train and the way there.

    Attributes
    ----------
    train : MPO or TT
        The best one, of the ranks of the start, less what is superfluous in them.
    errors : tuple of float
        ``||target - train||`` of the start and after every sweep, in the norm of the fit and as rounded to the dtype of
        the train, never growing. The last is that of ``train``.
    norm : float
        ``||target||`` in that norm.
    converged : bool
        Whether the last sweep gained less than the tolerance.
    """

    train: AnyTrain
    errors: tuple[float, ...]
    norm: float
    converged: bool

    @property
    def relative_error(self) -> float:
        """The last error over the norm of the target; 0 for a zero target."""
        return self.errors[-1] / self.norm if self.norm > 0 else 0.0

    @property
    def excess(self) -> float:
        """How much larger the error of the start was, ``first / last - 1``: 0.01 is one percent."""
        return (
            self.errors[0] / self.errors[-1] - 1 if self.errors[-1] > 0 else (math.inf if self.errors[0] > 0 else 0.0)
        )

    def __str__(self) -> str:
        state = "converged" if self.converged else "not converged"
        return (
            f"relative error {self.relative_error:.6g} after {len(self.errors) - 1} sweeps ({state}); "
            f"the start was {self.excess:.3g} above it"
        )


def als_fit(
    target: Array | AnyTrain,
    initial: AnyTrain,
    *,
    weight: Weight | None = None,
    sweeps: int = 20,
    tolerance: float = 1e-4,
) -> ALSFit[AnyTrain]:
    """Refine a train of fixed ranks until it is as close to ``target`` as moving one core at a time can bring it.

    Parameters
    ----------
    target : array, or train of the same sites
        What to come close to: for an MPO a matrix, for a TT a tensor.
    initial : MPO or TT
        Where to start, e.g. the result of ``tnmpo.truncate``. Its ranks stay, but for what no train can need:
        a bond larger than ``d_k`` times the one beside it, as sums of trains have, shrinks to that.
    weight : Weight, optional
        The norm to fit in, for MPOs of any shape.
    sweeps : int
        At most so many, each from the first site to the last and back.
    tolerance : float
        Stop when a sweep lowers the error by less than this fraction.

    Returns
    -------
    ALSFit
        The train, canonical around the center of ``initial``, and the error before and after every sweep. In a 16-bit
        dtype ``initial`` itself where the rounding would undo what a sweep gains.

    Raises
    ------
    ValueError, TypeError
        If the target does not fit the sites of ``initial``, or is not on its backend.

    Notes
    -----
    In the plain norm the best core is a projection of the target and costs what applying it does: a sweep is about
    ``2 N r`` operations a site for a dense target of N entries, and O(r^3) for a train. In a weighted norm each core
    solves a linear system, by a dozen steps of conjugate gradients preconditioned with the product of the metric's
    marginals; every step multiplies by the metrics. Computed in double precision.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> W = np.random.default_rng(0).normal(size=(16, 16))
    >>> start = tnmpo.mpo_decompose(W, ((2, 4, 2), (2, 4, 2)), rank=3)
    >>> fit = als_fit(W, start)
    >>> fit.errors[-1] < start.truncation.error, fit.train.ranks
    (True, (1, 3, 3, 1))
    """
    initial = check_train(initial, "initial")
    sweeps = positive_int(sweeps, "sweeps")
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: got {shown(tolerance)}, expected a number from 0 to below 1")
    cores = _feasible([double(core) for core in chain_of(initial)])
    if weight is None:
        problem: Any = _plain_problem(target, initial)
    else:
        check_weight(weight)
        check_train(initial, "initial", MPO)
        matrix = target.to_matrix() if isinstance(_check_target(target, initial), Train) else target
        problem = WeightedProblem(matrix, initial.frame, weight)
    center = initial.order // 2 if initial.center is None else initial.center

    def finished(cores: Sequence[Array]) -> AnyTrain:
        return initial.frame.build(_chain.orthogonalize(cores, center), dtype_name(initial.cores[0]), center=center)

    def rounded(cores: Sequence[Array]) -> list[Array]:
        return [double(core) for core in chain_of(finished(cores))]

    cores, errors, converged = refine(problem, cores, sweeps, tolerance, rounded)
    train = initial if is_half(initial.cores[0]) and len(errors) == 1 else finished(cores)
    return ALSFit(train, errors, problem.norm, converged)


def _feasible(cores: Sequence[Array]) -> list[Array]:
    """The same train without superfluous bonds: a sweep shrinks each to what lies on one side of it."""
    ranks = [1, *(core.shape[2] for core in cores)]
    if clip_ranks([core.shape[1] for core in cores], ranks) == tuple(ranks):
        return list(cores)
    return _chain.orthogonalize(_chain.orthogonalize(cores, 0), len(cores) - 1)


def refine(
    problem: Any,
    cores: Sequence[Array],
    sweeps: int,
    tolerance: float,
    rounded: Callable[[Sequence[Array]], Sequence[Array]] = list,
) -> tuple[list[Array], tuple[float, ...], bool]:
    """Sweep until the error falls by less than the tolerance.

    The errors never grow. They are measured of the cores as ``rounded``, and of the start as it is.
    """
    best = list(cores)
    errors = [problem.error(best)]
    for _ in range(sweeps):
        if errors[-1] == 0:
            return best, tuple(errors), True
        following = problem.sweep(best)
        error = problem.error(rounded(following))
        if not error <= errors[-1]:  # by rounding only, NaN where that is beyond the range: nothing is left to gain
            return best, tuple(errors), True
        best = following
        errors.append(error)
        if error >= errors[-2] * (1 - tolerance):
            return best, tuple(errors), True
    return best, tuple(errors), False


# ---------------------------------------------------------------------------------------------------------------------
# The plain norm
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DenseTarget:
    """A dense target. What lies right of a bond is seen through the dense right part of the train."""

    tensor: Array  # flat, entries in the order of the sites
    mirrored: Array
    sizes: tuple[int, ...]

    @property
    def norm(self) -> float:
        return frobenius_norm(self.tensor)

    def error(self, cores: Sequence[Array]) -> float:
        return frobenius_norm(self.tensor - _chain.contract(cores))

    def sweep(self, cores: Sequence[Array]) -> list[Array]:
        there = self._half(_chain.orthogonalize(cores, 0), self.tensor)
        return _chain.mirror(self._half(_chain.mirror(there), self.mirrored))

    def _half(self, cores: Sequence[Array], tensor: Array) -> list[Array]:
        overlaps = [adjoint(part) for part in _chain.right_parts(cores, cores[-1])]
        rest = tensor.reshape(1, -1)

        def unfold(k: int, rest: Array) -> Array:
            return rest.reshape(rest.shape[0] * cores[k].shape[1], -1)

        return _half_sweep(cores, rest, unfold, overlaps)


@dataclass(frozen=True)
class _TrainTarget:
    """A target that is a train: seen through the overlaps of its bonds with those of the train that is fitted."""

    cores: tuple[Array, ...]

    @property
    def norm(self) -> float:
        return _chain.norm(self.cores)

    def error(self, cores: Sequence[Array]) -> float:
        return _chain.distance(self.cores, cores)

    def sweep(self, cores: Sequence[Array]) -> list[Array]:
        there = _half_of_train(self.cores, _chain.orthogonalize(cores, 0))
        return _chain.mirror(_half_of_train(_chain.mirror(self.cores), _chain.mirror(there)))


def _half_of_train(target: Sequence[Array], cores: Sequence[Array]) -> list[Array]:
    overlaps = [target[-1][0, :1, :] * 0 + 1]  # (1, 1), and further (target's bond, ours)
    for theirs, ours in zip(target[::-1], cores[::-1], strict=True):
        carried = theirs.reshape(-1, theirs.shape[2]) @ overlaps[-1]
        overlaps.append(carried.reshape(theirs.shape[0], -1) @ adjoint(ours.reshape(ours.shape[0], -1)))

    def unfold(k: int, rest: Array) -> Array:
        theirs = target[k]
        return (rest @ theirs.reshape(theirs.shape[0], -1)).reshape(-1, theirs.shape[2])

    return _half_sweep(cores, overlaps[0], unfold, overlaps[::-1])


def _half_sweep(
    cores: Sequence[Array], rest: Array, unfold: Callable[[int, Array], Array], overlaps: Sequence[Array]
) -> list[Array]:
    """Replace every core from the first to the last by the best one; the center moves along.

    ``rest`` is the target seen through the cores left of site k, ``overlaps[k]`` turns its right index into ours.
    """
    cores = list(cores)
    for k in range(len(cores)):
        #  ▶━▶━○━◀━◀      before site k: all others are isometries, so the best core is the projection of the target
        #  ▶━▶━▶━○━◀      after: site k is that projection's isometry, the target is seen through it
        left, size, right = cores[k].shape
        unfolded = unfold(k, rest)
        best = unfolded @ overlaps[k + 1]
        if k == len(cores) - 1:
            cores[k] = best.reshape(left, size, right)
            break
        q, _ = thin_qr(best)
        cores[k] = q.reshape(left, size, right)
        rest = adjoint(q) @ unfolded
    return cores


def _plain_problem(target: Array | Train, initial: Train) -> _DenseTarget | _TrainTarget:
    target = _check_target(target, initial)
    if isinstance(target, Train):
        # in one gauge, so that no core is out of range on its own
        return _TrainTarget(tuple(_chain.orthogonalize([double(core) for core in chain_of(target)], 0)))
    tensor = double(interleaved(target, initial.frame))
    sizes = initial.frame.site_sizes
    mirrored = permute(tensor.reshape(sizes), range(len(sizes))[::-1]).reshape(-1)
    return _DenseTarget(tensor.reshape(-1), mirrored, sizes)


def _check_target(target: Any, initial: Train) -> Any:
    """The target, if it is an array or a train that ``initial`` can come close to."""
    first = initial.cores[0]
    if isinstance(target, Train):
        check_train(target, "target", type(initial))
        if target.frame != initial.frame:
            raise ValueError(
                f"target: got sites {target.frame.site_shapes}, initial has {initial.frame.site_shapes}; "
                "both need the same"
            )
        given = target.cores[0]
    else:
        backend_of(target, "target")
        check_values(target, "target")
        wanted = tuple(initial._dense_shape)
        if tuple(target.shape) != wanted:
            raise ValueError(f"target: got shape {tuple(target.shape)}, expected {wanted}, that of initial")
        given = target
    if backend_of(given, "target").backend_name != backend_of(first, "initial").backend_name:
        raise TypeError(f"target: got {type(given).__name__}, initial has {type(first).__name__}; convert one of them")
    if "complex" in dtype_name(given) and "complex" not in dtype_name(first):
        raise TypeError(f"target: got {dtype_name(given)}, initial has {dtype_name(first)}; make initial complex")
    return target
