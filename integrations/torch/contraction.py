"""Cores to a weight, a gradient of the weight to gradients of the cores, cores applied to vectors.

Segments of the train are (r, I, J, r') tensors, rows before columns, and neighbours are merged in pairs: no tensor
of many short axes is ever permuted as a whole, which would take longer than the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import tnmpo

Shapes = tuple[tuple[int, ...], ...]  # the (r, i, j, r') of every core
Tree = Any  # a site, or the pair of trees whose segments are merged

# FLOPs in the time that one number is moved, and one product started, by the bytes of a number: fitted on an H100 to
# the seconds of two of the four sizes in tests/benchmarks/cost_model.py, of calls one by one, in no CUDA graph
_ON_ACCELERATOR = {
    2: {"move": 400, "call": 18_000_000_000},
    4: {"move": 100, "call": 1_600_000_000},
    8: {"move": 200, "call": 1_600_000_000},
}


def constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of integers, with its answers remembered; compilers call it instead of tracing it.

    ``torch.compiler.assume_constant_result`` is the public name of the mark, but imports the compiler: seconds for all.
    """
    remembered = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def call(*integers: Any) -> Any:
        return remembered(*integers)

    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call


def shapes_of(cores: Sequence[Tensor]) -> Shapes:
    """The (r, i, j, r') of every core."""
    shapes = tuple([core.shape for core in cores])
    if not torch.compiler.is_compiling() and type(shapes[0][3]) is not int:  # a tracer's tensors or symbols
        return tuple([tuple(map(int, shape)) for shape in shapes])
    return shapes


def mpo_shape(shapes: Shapes) -> tnmpo.MPOShape:
    """The row and column dimension of every site."""
    return tnmpo.MPOShape(tuple(shape[1] for shape in shapes), tuple(shape[2] for shape in shapes))


def is_autocast_on(device: str) -> bool:
    """Whether autocast is active on this type of device; the meta device has none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def full_precision(device: str) -> AbstractContextManager[Any]:
    """Without autocast; where there is none anyway, without a trace in exported graphs."""
    return torch.autocast(device, enabled=False) if is_autocast_on(device) else nullcontext()


def contract(cores: Sequence[Tensor], weight_shape: tuple[int, int]) -> Tensor:
    """The dense (I, J) weight of the cores, without padding, in their precision; gradients flow.

    Cost: ``tnmpo.contraction_plan(shape, ranks).rebuild_flops``.
    """
    with full_precision(cores[0].device.type):  # a weight is rounded once, after the contraction
        whole = _segment(cores, merge_tree(shapes_of(cores)), {})
    return whole[0, : weight_shape[0], : weight_shape[1], 0].contiguous()


def core_gradients(cores: Sequence[Tensor], of_weight: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the wanted cores, given that of the weight; they can be differentiated again.

    The segments are contracted anew rather than kept since the forward, all but the whole, which no gradient needs.
    """
    shapes = shapes_of(cores)
    tree = merge_tree(shapes)
    segments: dict[Tree, Tensor] = {}
    for part in tree if isinstance(tree, tuple) else ():
        _segment(cores, part, segments)
    rows, cols = (math.prod(shape[axis] for shape in shapes) for axis in (1, 2))
    if of_weight.shape != (rows, cols):  # to pad with nothing is to copy
        of_weight = F.pad(of_weight, (0, cols - of_weight.shape[1], 0, rows - of_weight.shape[0]))
    gradients: list[Tensor | None] = [None] * len(cores)
    _descend(tree, of_weight[None, :, :, None], segments, wanted, gradients)
    return gradients


def _segment(cores: Sequence[Tensor], tree: Tree, segments: dict[Tree, Tensor]) -> Tensor:
    """The contraction of a tree; ``segments`` takes it and all that it was merged from."""
    if not isinstance(tree, tuple):
        segment = cores[tree]
    else:
        left, right = (_segment(cores, part, segments) for part in tree)
        (bond, rows, cols, inner), (_, more_rows, more_cols, last) = left.shape, right.shape
        product = left.reshape(-1, inner) @ right.reshape(inner, -1)
        apart = product.reshape(bond, rows, cols, more_rows, more_cols, last)
        segment = apart.permute(0, 1, 3, 2, 4, 5).reshape(bond, rows * more_rows, cols * more_cols, last)
    segments[tree] = segment
    return segment


def _descend(
    tree: Tree, gradient: Tensor, segments: dict[Tree, Tensor], wanted: Sequence[bool], gradients: list[Tensor | None]
) -> None:
    """Carry the gradient of a segment down to the cores, into no branch where none is wanted."""
    if not isinstance(tree, tuple):
        gradients[tree] = gradient
        return
    left, right = (segments[part] for part in tree)
    (bond, rows, cols, inner), (_, more_rows, more_cols, last) = left.shape, right.shape
    apart = gradient.reshape(bond, rows, more_rows, cols, more_cols, last).permute(0, 1, 3, 2, 4, 5)
    product = apart.reshape(bond * rows * cols, more_rows * more_cols * last)
    if any(wanted[site] for site in _sites(tree[0])):
        of_left = product @ right.reshape(inner, -1).mH
        _descend(tree[0], of_left.reshape(left.shape), segments, wanted, gradients)
    if any(wanted[site] for site in _sites(tree[1])):
        of_right = left.reshape(-1, inner).mH @ product
        _descend(tree[1], of_right.reshape(right.shape), segments, wanted, gradients)


def _sites(tree: Tree) -> list[int]:
    return [*_sites(tree[0]), *_sites(tree[1])] if isinstance(tree, tuple) else [tree]


@constant
def merge_tree(shapes: Shapes) -> Tree:
    """The cheapest order in which neighbours are merged, as nested pairs of sites."""
    best: dict[tuple[int, int], tuple[int, Tree]] = {(site, site): (0, site) for site in range(len(shapes))}
    size = {site: shape[1] * shape[2] for site, shape in enumerate(shapes)}
    for length in range(1, len(shapes)):
        for first in range(len(shapes) - length):
            last = first + length
            entries = shapes[first][0] * math.prod(size[k] for k in range(first, last + 1)) * shapes[last][3]
            ways = []
            for cut in range(first, last):
                one, other = best[first, cut], best[cut + 1, last]
                ways.append((one[0] + other[0] + 2 * entries * shapes[cut][3], (one[1], other[1])))
            best[first, last] = min(ways, key=lambda way: way[0])
    return best[0, len(shapes) - 1][1]


def faster_execution(cores: Sequence[Tensor], batch: int, *, amortised: bool, training: bool = False) -> str:
    """The execution that takes less time for ``batch`` vectors; an amortised contraction counts for nothing.

    On an accelerator the start of every product counts too, but not
    - of a low-rank layer: its two products may take longer to start than the one with the dense weight takes, but that
      weight is the memory it was to save;
    - in training: a weight serves all uses of a step, while core after core has its own products in every backward too,
      and keeps what each of them made.
    """
    shapes = shapes_of(cores)
    starts = not (training or is_low_rank(shapes))
    return _faster(shapes, batch, amortised, _size_on_accelerator(cores[0]) if starts else 0)


def overheads(core: Tensor) -> dict[str, int]:
    """What ``ContractionPlan.cost`` is to count besides FLOPs, where it is not that of a CPU."""
    return _ON_ACCELERATOR.get(_size_on_accelerator(core), {})


def _size_on_accelerator(core: Tensor) -> int:
    """The bytes of a number there, as in the table (8 bits count as 16, 128 as 64); 0 on a CPU, and of no values."""
    return 0 if core.is_cpu or core.is_meta else min(max(core.element_size(), 2), 8)


@constant
def _faster(shapes: Shapes, batch: int, amortised: bool, itemsize: int) -> str:
    """The numbers have ``itemsize`` bytes on an accelerator; 0 is a CPU."""
    plan = tnmpo.contraction_plan(mpo_shape(shapes), (1, *(shape[3] for shape in shapes)), batch)
    return plan.faster(rebuild=not amortised, **_ON_ACCELERATOR.get(itemsize, {}))


@constant
def is_low_rank(shapes: Shapes) -> bool:
    """Whether these are the cores of ``U V`` or ``U M V``."""
    return mpo_shape(shapes).is_low_rank


def apply_cores(vectors: Tensor, cores: Sequence[Tensor], batch: int) -> Tensor:
    """``vectors @ W.T``, (b, J) to (b, I) with padding, core after core in the order that is best for ``batch``."""
    shapes = shapes_of(cores)
    steps, order = _apply_steps(shapes, batch)
    operands = [vectors.reshape(-1, *[shape[2] for shape in shapes]), *cores]
    for first, second, axes, other_axes, free in steps:
        one, other = operands[first].permute(axes), operands[second].permute(other_axes)  # (free, shared) and back
        kept, more = one.shape[:free], other.shape[len(axes) - free :]
        width = math.prod(one.shape[free:])
        product = one.reshape(-1, width) @ other.reshape(width, -1)  # tensordot refuses what autocast makes of it
        operands = [operand for k, operand in enumerate(operands) if k not in (first, second)]
        operands.append(product.reshape(*kept, *more))
    return operands[0].permute(order).reshape(-1, math.prod([shape[1] for shape in shapes]))


@constant
def _apply_steps(shapes: Shapes, batch: int) -> Any:
    """Which two operands meet, with their axes in which order, step by step; and the order of the result's axes.

    The last number of a step counts the axes of its first operand that stay.
    """
    plan = tnmpo.contraction_plan(mpo_shape(shapes), (1, *(shape[3] for shape in shapes)), batch)
    inputs, output = plan.equation.split("->")
    terms, steps = inputs.split(","), []
    for pair in plan.path:
        first, second = sorted(pair, key=lambda place: output[0] not in terms[place])  # the vectors lead
        one, other = terms[first], terms[second]
        shared = [symbol for symbol in one if symbol in other]
        kept, more = ([symbol for symbol in term if symbol not in shared] for term in (one, other))
        axes = tuple(one.index(symbol) for symbol in (*kept, *shared))
        other_axes = tuple(other.index(symbol) for symbol in (*shared, *more))
        steps.append((first, second, axes, other_axes, len(kept)))
        terms = [term for place, term in enumerate(terms) if place not in pair]
        terms.append("".join([*kept, *more]))
    return tuple(steps), tuple(terms[0].index(symbol) for symbol in output)
