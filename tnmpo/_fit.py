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
    Backend,
    adjoint,
    backend_of,
    check_values,
    conj,
    double,
    dtype_name,
    peak,
    permute,
    to_numpy,
    transposed,
)
from ._bounds import l2_norm
from ._factor import thin_qr
from ._mpo import MPO
from ._shapes import MPOShape, positive_int, shown
from ._train import AnyTrain, Frame, Train, chain_of, check_train, interleaved
from ._weighted import absorb, on_site
from ._weights import Weight, check_weight, square, times

_CG_STEPS = 12  # per core and sweep; the next sweep goes on where this one stopped
_ROUGH = 1e-6  # of a metric's largest value: below, the preconditioner takes it for that


@dataclass(frozen=True)
class ALSFit(Generic[AnyTrain]):
    """A refined train and the way there.

    Attributes
    ----------
    train : MPO or TT
        The best one, of the ranks of the start.
    errors : tuple of float
        ``||target - train||`` of the start and after every sweep, in the norm of the fit, never growing.
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
        Where to start, e.g. the result of ``tnmpo.truncate``. Its ranks stay.
    weight : Weight, optional
        The norm to fit in, for MPOs of any shape.
    sweeps : int
        At most so many, each from the first site to the last and back.
    tolerance : float
        Stop when a sweep lowers the error by less than this fraction.

    Returns
    -------
    ALSFit
        The train, canonical around the center of ``initial``, and the error before and after every sweep.

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
    >>> bool(fit.errors[-1] < fit.errors[0] == start.truncation.error), fit.train.ranks
    (True, (1, 3, 3, 1))
    """
    initial = check_train(initial, "initial")
    sweeps = positive_int(sweeps, "sweeps")
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: got {shown(tolerance)}, expected a number from 0 to below 1")
    cores = [double(core) for core in chain_of(initial)]
    if weight is None:
        problem: Any = _plain_problem(target, initial)
    else:
        check_weight(weight)
        check_train(initial, "initial", MPO)
        matrix = target.to_matrix() if isinstance(_check_target(target, initial), Train) else target
        problem = WeightedProblem(matrix, initial.frame, weight)
    cores, errors, converged = refine(problem, cores, sweeps, tolerance)
    center = initial.order // 2 if initial.center is None else initial.center
    kind = dtype_name(initial.cores[0])
    train = initial.frame.build(_chain.orthogonalize(cores, center), kind, center=center)
    return ALSFit(train, errors, problem.norm, converged)


def refine(
    problem: Any, cores: Sequence[Array], sweeps: int, tolerance: float
) -> tuple[list[Array], tuple[float, ...], bool]:
    """Sweep until the error falls by less than the tolerance; the errors are exact and never grow."""
    best = list(cores)
    errors = [problem.error(best)]
    for _ in range(sweeps):
        if errors[-1] == 0:
            return best, tuple(errors), True
        following = problem.sweep(best)
        error = problem.error(following)
        if error > errors[-1]:  # by rounding only: nothing is left to gain
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
        return l2_norm(to_numpy(self.tensor))

    def error(self, cores: Sequence[Array]) -> float:
        return l2_norm(to_numpy(self.tensor - _chain.contract(cores)))

    def sweep(self, cores: Sequence[Array]) -> list[Array]:
        there = self._half(_chain.orthogonalize(cores, 0), self.tensor)
        return _chain.mirror(self._half(_chain.mirror(there), self.mirrored))

    def _half(self, cores: Sequence[Array], tensor: Array) -> list[Array]:
        overlaps = [adjoint(part) for part in right_parts(cores, cores[-1])]
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


def _left_part(cores: Sequence[Array], where: Array) -> Array:
    """The dense part of a chain up to a site, (entries, r); 1 where there is none."""
    part = where[:1, :1, 0] * 0 + 1
    for core in cores:
        part = (part @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    return part


def right_parts(cores: Sequence[Array], where: Array) -> list[Array]:
    """The dense part of a chain from site k on, (r_k, entries), for k = 0 .. n; the last one is 1, as ``where`` is."""
    parts = [where[:1, :1, 0] * 0 + 1]
    for core in cores[::-1]:
        parts.append((core.reshape(-1, core.shape[2]) @ parts[-1]).reshape(core.shape[0], -1))
    return parts[::-1]


def _plain_problem(target: Array | Train, initial: Train) -> _DenseTarget | _TrainTarget:
    target = _check_target(target, initial)
    if isinstance(target, Train):
        return _TrainTarget(tuple(double(core) for core in chain_of(target)))
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


# ---------------------------------------------------------------------------------------------------------------------
# A weighted norm
# ---------------------------------------------------------------------------------------------------------------------


class WeightedProblem:
    """``min ||A (W - W') B||_F`` over one core at a time, for metrics ``R = A^2`` and ``C = B^2`` of any kind.

    With the other cores fixed, ``W' = embed(core)``, whose adjoint is ``project``, and the core solves
    ``project(R embed(core) C) = project(R W C)``, by conjugate gradients from where it is: the error never grows.
    """

    def __init__(self, matrix: Array, frame: Frame[Any], weight: Weight) -> None:
        self.matrix, self.frame = double(matrix), frame
        self.roots = weight.roots(tuple(matrix.shape), matrix)
        self.metrics = (square(self.roots[0]), square(self.roots[1]))
        rows, cols = zip(*frame.site_shapes, strict=True)
        # the product of the metric's marginals stands in for it in the preconditioner
        self.site_roots, _ = weight.site_roots(MPOShape(rows, cols), matrix)

    @property
    def norm(self) -> float:
        return self._measure(self.matrix)

    def error(self, cores: Sequence[Array]) -> float:
        return self._measure(self.matrix - self._matrix(_chain.contract(cores)))

    def sweep(self, cores: Sequence[Array]) -> list[Array]:
        """Every core once on the way to the last site, and once on the way back."""
        cores, last = _chain.orthogonalize(cores, 0), len(cores) - 1
        for k in range(last):
            #  ▶━▶━○━◀━◀      before site k: it starts from what it is
            #  ▶━▶━▶━○━◀      after: it solves its system, its triangular factor moves on with the center
            cores[k] = self._solved(cores, k)
            cores[k : k + 2] = _chain.orthogonalize_pair(cores[k], cores[k + 1])
        for k in range(last, 0, -1):
            cores[k] = self._solved(cores, k)
            pair = _chain.orthogonalize_pair(*_chain.mirror(cores[k - 1 : k + 1]))
            cores[k - 1 : k + 1] = _chain.mirror(pair)
        cores[0] = self._solved(cores, 0)
        return cores

    def _solved(self, cores: Sequence[Array], site: int) -> Array:
        core = cores[site]
        left = _left_part(cores[:site], core)  # (entries left of the site, r)
        right = right_parts(cores[site + 1 :], core)[0]  # (r', entries right of it)
        precondition = self._preconditioner(cores, site)

        def embed(core: Array) -> Array:
            middle = left @ core.reshape(core.shape[0], -1)
            return self._matrix((middle.reshape(-1, core.shape[2]) @ right).reshape(-1))

        def project(matrix: Array) -> Array:
            tensor = interleaved(matrix, self.frame).reshape(-1, right.shape[1]) @ adjoint(right)
            return (adjoint(left) @ tensor.reshape(left.shape[0], -1)).reshape(core.shape)

        def apply(matrix: Array) -> Array:
            return project(times(self.metrics[0], matrix, self.metrics[1]))

        residual = apply(self.matrix - embed(core))
        return _conjugate_gradients(core, residual, lambda step: apply(embed(step)), precondition)

    def _preconditioner(self, cores: Sequence[Array], site: int) -> Callable[[Array], Array]:
        """The inverse of the system under the product metric: a factor for each index of the core."""
        shapes = self.frame.site_shapes
        weighted = absorb(cores, shapes, self.site_roots)
        one = cores[0][:, :1, 0] * 0 + 1
        left = _gram(weighted[:site], one)
        right = transposed(_gram(_chain.mirror(weighted[site + 1 :]), one))
        row_root, col_root = self.site_roots[site]
        inverses = _pseudo_inverse(square(row_root)), _pseudo_inverse(square(col_root))
        before, after = _pseudo_inverse(left), _pseudo_inverse(right)

        def precondition(gradient: Array) -> Array:
            turned = on_site(gradient, shapes[site], inverses)
            turned = before @ turned.reshape(gradient.shape[0], -1)
            return (turned.reshape(-1, gradient.shape[2]) @ after).reshape(gradient.shape)

        return precondition

    def _matrix(self, flat: Array) -> Array:
        order = len(self.frame.site_shapes)
        paired = flat.reshape(tuple(d for site in self.frame.site_shapes for d in site))
        return permute(paired, (*range(0, 2 * order, 2), *range(1, 2 * order, 2))).reshape(tuple(self.matrix.shape))

    def _measure(self, residual: Array) -> float:
        rows, cols = self.roots
        return l2_norm(to_numpy(times(rows, residual, cols)))


def _conjugate_gradients(
    start: Array, residual: Array, apply: Callable[[Array], Array], precondition: Callable[[Array], Array]
) -> Array:
    """Some steps towards the solution of a positive semidefinite system, each of which lowers its energy."""
    solution, direction, before = start, residual * 0, residual.sum() * 0 + 1
    first = None
    for _ in range(_CG_STEPS):
        turned = precondition(residual)
        energy = _dot(residual, turned)
        size = peak(energy.reshape(1))
        first = size if first is None else first
        if size <= 1e-20 * first:  # the error that is left to gain, squared
            break
        direction = turned + direction * (energy / before)
        image = apply(direction)
        curvature = _dot(direction, image)
        if peak(curvature.reshape(1)) == 0:  # a direction that the metric does not see
            break
        step = energy / curvature
        solution, residual, before = solution + step * direction, residual - step * image, energy
    return solution


def _dot(a: Array, b: Array) -> Array:
    product = (conj(a) * b).sum()
    return product.real if "complex" in dtype_name(product) else product


def _gram(weighted: Sequence[Array], one: Array) -> Array:
    """The inner products of what a chain spans at its right bond."""
    gram = one
    for core in weighted:
        left, size, right = core.shape
        carried = (gram @ core.reshape(left, size * right)).reshape(left * size, right)
        gram = adjoint(core.reshape(left * size, right)) @ carried
    return gram


def _pseudo_inverse(metric: Array | None) -> Array | None:
    """The inverse of a metric, its smallest values lifted: singular ones occur, and a preconditioner may be rough."""
    if metric is None:
        return None
    backend = backend_of(metric, "metric")
    if len(metric.shape) == 1:
        return 1 / _lifted(backend, metric)
    values, vectors = backend.eigh((metric + adjoint(metric)) / 2)
    return (vectors / _lifted(backend, values)[None, :]) @ adjoint(vectors)


def _lifted(backend: Backend, values: Array) -> Array:
    largest = peak(values)
    return backend.clip(values, _ROUGH * largest, None) if largest > 0 else values * 0 + 1
