"""Metrics that are no product over the sites: a cut bond by bond, and the system that a core solves.

The metric is one of whole rows and whole columns, which no single core sees. Of every bond it has two marginals, of the
sites left and of those right of it; in their product the bond has a spectrum and a best cut. That is exact where all
rows lie on one side and all columns on the other, and a good start elsewhere; alternating least squares then works in
the metric itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _chain
from ._backend import (
    Array,
    Backend,
    adjoint,
    backend_of,
    cast,
    conj,
    detach,
    double,
    dtype_name,
    frobenius_norm,
    parts_of,
    peak,
    permute,
    to_numpy,
    transposed,
)
from ._factor import thin_qr, thin_svd
from ._mpo import shape_of
from ._train import Frame, interleaved
from ._weighted import SiteShapes, absorb, on_site, projector, through
from ._weights import Metric, Roots, Weight, block_roots, from_right, on_middle, site_roots, square, times

_CG_STEPS = 12  # per core and sweep; the next sweep goes on where this one stopped
_ROUGH = 1e-6  # of a metric's largest value: below, the preconditioner takes it for that


class BlockCut:
    """Cuts of one train, every bond in the product of the metric's marginals of its two sides.

    Parameters
    ----------
    cores : the uncut train, three-way cores
    """

    def __init__(self, cores: Sequence[Array], frame: Frame[Any], weight: Weight) -> None:
        self.cores, self.sites = list(cores), frame.site_shapes
        shape = shape_of(frame)
        self.roots = [block_roots(weight, shape, bond, cores[0]) for bond in range(1, shape.order)]
        rights = _chain.right_parts(cores, cores[0])[1:-1]
        self.right_factors = [
            transposed(_factor(transposed(part), self.sites[bond:], roots))
            for bond, (part, (_, roots)) in enumerate(zip(rights, self.roots, strict=True), start=1)
        ]

    def spectra(self) -> list[np.ndarray]:
        """The Schmidt values of every bond of the uncut train."""
        spectra, left = [], _chain.left_part([], self.cores[0])
        for bond, (roots, _) in enumerate(self.roots, start=1):
            left = _chain.extended_part(left, self.cores[bond - 1])
            factor = _factor(left, self.sites[:bond], roots)
            spectra.append(to_numpy(thin_svd(factor @ self.right_factors[bond - 1])[1]))
        return spectra

    def cut(self, ranks: Sequence[int]) -> list[Array]:
        """The cores of ``ranks`` (with the boundary ones), in no gauge."""
        cores, left = list(self.cores), _chain.left_part([], self.cores[0])
        for bond, (roots, _) in enumerate(self.roots, start=1):
            #  ◌━◌━●━●━●      before the bond: the sites left of it are cut, ◌
            #  ◌━◌━◌━●━●      after: x went into the site left of it, y into the one right of it
            if ranks[bond] < cores[bond - 1].shape[2]:
                factor = _factor(_chain.extended_part(left, cores[bond - 1]), self.sites[:bond], roots)
                x, y, _ = projector(factor, self.right_factors[bond - 1], ranks[bond])
                cores[bond - 1 : bond + 1] = through(cores[bond - 1], x, y, cores[bond])
            left = _chain.extended_part(left, cores[bond - 1])
        return cores


def _factor(part: Array, sites: SiteShapes, roots: Roots) -> Array:
    """The triangular factor of the dense (entries, r) part of a train in a metric of its rows and columns."""
    rows, cols = roots
    order, rank = len(sites), part.shape[1]
    split = part.reshape((*(d for site in sites for d in site), rank))
    joint = permute(split, (*range(0, 2 * order, 2), *range(1, 2 * order, 2), 2 * order))
    size = int(np.prod([site[0] for site in sites]))
    joint = joint.reshape(1, size, -1)
    if rows is not None:
        joint = on_middle(rows, joint)
    joint = joint.reshape(size, -1, rank)
    if cols is not None:
        joint = on_middle(from_right(cols), joint)
    return thin_qr(joint.reshape(-1, rank))[1]


class WeightedProblem:
    """``min ||A (W - W') B||_F`` over one core at a time, for metrics ``R = A^2`` and ``C = B^2`` of any kind.

    With the other cores fixed, ``W' = embed(core)``, whose adjoint is ``project``, and the core solves
    ``project(R embed(core) C) = project(R W C)``, by conjugate gradients from where it is: the error never grows.

    Conjugate gradients take squares, so inside matrix and roots are brought around 1 by powers of two.
    """

    def __init__(self, matrix: Array, frame: Frame[Any], weight: Weight) -> None:
        self.frame = frame
        self.matrix, self.exponent = _around_one(double(matrix))
        pairs = [_around_one(root) for root in weight.roots(tuple(matrix.shape), matrix)]
        self.roots = (pairs[0][0], pairs[1][0])
        self.unit = self.exponent + pairs[0][1] + pairs[1][1]  # of an error, as a power of two
        self.metrics = (square(self.roots[0]), square(self.roots[1]))
        # the product of the metric's marginals stands in for it in the preconditioner, of which any multiple will do
        marginals, _ = site_roots(weight, shape_of(frame), matrix)
        self.site_roots = [(_around_one(row)[0], _around_one(col)[0]) for row, col in marginals]

    @property
    def norm(self) -> float:
        return self._measure(self.matrix)

    def error(self, cores: Sequence[Array]) -> float:
        return self._measure(self.matrix - self._matrix(_chain.contract(self._inside(cores))))

    def sweep(self, cores: Sequence[Array]) -> list[Array]:
        """Every core once on the way to the last site, and once on the way back."""
        cores, last = _chain.orthogonalize(self._inside(cores), 0), len(cores) - 1
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
        return _chain.spread(cores, self.exponent)

    def _inside(self, cores: Sequence[Array]) -> list[Array]:
        """A train of the given matrix as one of what ``matrix`` is."""
        cores, exponent = _chain.all_around_one(cores)
        return _chain.spread(cores, exponent - self.exponent)

    def _solved(self, cores: Sequence[Array], site: int) -> Array:
        core = cores[site]
        left = _chain.left_part(cores[:site], core)  # (entries left of the site, r)
        right = _chain.right_parts(cores[site + 1 :], core)[0]  # (r', entries right of it)
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
        return float(np.ldexp(frobenius_norm(times(rows, residual, cols)), self.unit))


def _around_one(metric: Metric) -> tuple[Any, int]:
    """``metric / 2**exponent``, its largest entry between 1/2 and 1, and the exponent; of a tuple, of each part."""
    if metric is None:
        return None, 0
    if isinstance(metric, tuple):
        parts, exponents = zip(*map(_around_one, metric), strict=True)
        return parts, sum(exponents)
    exponent = math.frexp(peak(metric))[1]
    return _chain.shifted(metric, -exponent), exponent


def _conjugate_gradients(
    start: Array, residual: Array, apply: Callable[[Array], Array], precondition: Callable[[Array], Array]
) -> Array:
    """Some steps towards the solution of a positive semidefinite system, each of which lowers its energy."""
    solution, direction, before = start, residual * 0, _dot(residual, residual) * 0 + 1
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
    return backend_of(a, "core").sum(parts_of(conj(a) * b)[0])


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
    fixed = detach(metric)
    values, vectors = backend.eigh((fixed + adjoint(fixed)) / 2)
    lifted = cast(_lifted(backend, parts_of(values)[0]), dtype_name(vectors))
    inverse = (vectors / lifted[None, :]) @ adjoint(vectors)
    # by hand, the derivative of an inverse is finite where values coincide; that of the vectors is not
    return inverse - inverse @ (metric - fixed) @ inverse


def _lifted(backend: Backend, values: Array) -> Array:
    largest = peak(values)
    return backend.clip(values, _ROUGH * largest, None) if largest > 0 else values * 0 + 1
