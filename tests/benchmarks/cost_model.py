"""Does ``MPOLinear`` choose its execution well? Every execution is timed in evaluation over a grid of shapes, caps and
batch sizes (two sites: low rank); *cached* has the dense weight at hand, *rebuilt* contracts the cores at every call
(``cache=False``). The cells are in ``tests/benchmarks/cost_model.json`` and, on a GPU in float32 and bfloat16, in
``cost_model_cuda.json``, for the model to be fitted to. On a GPU a low-rank layer of fewer FLOPs than dense keeps no
dense weight, which would often be faster: the memory is what it is for, and the cells of *cached* that are wrong there
are these.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from limits import measured_rates
from machine import describe
from records import Row, verdict
from side_by_side import timings
from tnmpo.integrations.torch import MPOLinear

import tnmpo

SUITE = "cost-model"
CELLS = {"cpu": Path(__file__).with_name("cost_model.json"), "cuda": Path(__file__).with_name("cost_model_cuda.json")}
DTYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # relative, and of the largest entry
SHAPES = [(768, 768), (3072, 768), (768, 3072), (384, 1536)]
ORDERS = [2, 3, 5]  # 2 is the low-rank shape
CAPS = [8, 16, 32, 64, 128, None]  # None: full rank
TOKENS = [1, 16, 128, 512, 4096]
TOLERANCE = 1.15  # of the best execution's seconds: a choice within it counts as right


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    """The share of cells in which the layer's choice is within 15 % of the best, and the cells as a file."""
    grid = layers([(48, 96)], [2, 3], [4, None], device) if quick else layers(SHAPES, ORDERS, CAPS, device)
    found = [cell(layer, tokens, device) for layer in grid for tokens in ([1, 16] if quick else TOKENS)]
    if not quick:
        write(CELLS[device], found, device)
    for dtype in DTYPES[device]:
        for mode in ("cached", "rebuilt"):
            yield judged(mode, [entry for entry in found if entry["dtype"] == str(dtype)])


def judged(mode: str, cells: list[dict[str, Any]]) -> Row:
    ratios = [regret(entry, mode) for entry in cells]
    right = sum(ratio <= TOLERANCE for ratio in ratios) / len(ratios)
    worst = max(zip(ratios, cells, strict=True), key=lambda pair: pair[0])
    case = f"weight {mode}" + (" bfloat16" if "bfloat16" in cells[0]["dtype"] else "")
    note = f"{len(ratios)} cells; worst {worst[0]:.2f} x at {named(worst[1])}"
    return verdict(SUITE, case, "choice within 15 % of the best", 100 * right, at_least=95, unit="%", note=note)


def layers(
    shapes: list[tuple[int, int]], orders: list[int], caps: list[int | None], device: str
) -> Iterator[MPOLinear]:
    """Random layers of every different bond dimensions in the grid."""
    for size in shapes:
        for order in orders:
            shape = tnmpo.MPOShape.low_rank(size) if order == 2 else tnmpo.plan_shape(size, order)
            seen = set()
            for cap in caps:
                ranks = tuple(min(cap or full, full) for full in shape.full_ranks)
                if ranks not in seen:
                    seen.add(ranks)
                    yield from (random_layer(shape, ranks, device).to(dtype) for dtype in DTYPES[device])


def random_layer(shape: tnmpo.MPOShape, ranks: tuple[int, ...], device: str) -> MPOLinear:
    generator = torch.Generator().manual_seed(0)
    sites = zip(ranks[:-1], shape.rows, shape.cols, ranks[1:], strict=True)
    cores = [torch.randn(site, generator=generator) / site[0] ** 0.5 for site in sites]
    return MPOLinear(tnmpo.MPO(cores)).eval().to(device)


@torch.no_grad()
def cell(layer: MPOLinear, tokens: int, device: str) -> dict[str, Any]:
    """Seconds of every execution of that layer at that batch size, answers compared before."""
    dtype = layer.cores[0].dtype
    x = torch.randn(tokens, layer.in_features, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    # a layer each: what one call leaves in the cache is not the next one's
    ways = {"dense": ("dense", True), "rebuild": ("dense", False), "factored": ("factored", False)}
    calls = {
        name: partial(executed, copy.deepcopy(layer), x, execution, cache=cache)
        for name, (execution, cache) in ways.items()
    }
    answer = torch.nn.functional.linear(x, layer.weight, layer.bias)
    for call in calls.values():
        assert torch.allclose(call(), answer, rtol=SAME[dtype], atol=SAME[dtype] * float(answer.abs().max()))
    plan = tnmpo.contraction_plan(layer.shape, layer.ranks, tokens)
    # the least of the rounds: what else the machine does only adds
    seconds = {name: timing.least for name, timing in timings(calls, rounds=3, device=device).items()}
    return {
        "rows": layer.shape.rows,
        "cols": layer.shape.cols,
        "ranks": layer.ranks,
        "tokens": tokens,
        "dtype": str(dtype),
        "rebuild_flops": plan.rebuild_flops,
        "dense_flops": plan.dense_flops,
        "factored_flops": plan.factored_flops,
        "choice": {"cached": choice(layer, x, cache=True), "rebuilt": choice(layer, x, cache=False)},
        "seconds": {name: float(f"{value:.4g}") for name, value in seconds.items()},
    }


def executed(layer: MPOLinear, x: torch.Tensor, execution: str, *, cache: bool) -> torch.Tensor:
    layer.execution, layer.cache = execution, cache
    return layer(x)


def choice(layer: MPOLinear, x: torch.Tensor, *, cache: bool) -> str:
    """What the layer does by itself: only the dense execution contracts its cores."""
    layer.refresh()
    before = layer.reconstructions
    executed(layer, x, "auto", cache=cache)
    return "dense" if layer.reconstructions > before else "factored"


def regret(entry: dict[str, Any], mode: str) -> float:
    """Seconds of the chosen execution over those of the best one."""
    seconds = entry["seconds"]
    ways = {"dense": seconds["dense" if mode == "cached" else "rebuild"], "factored": seconds["factored"]}
    return ways[entry["choice"][mode]] / min(ways.values())


def named(entry: dict[str, Any]) -> str:
    ranks = "-".join(map(str, entry["ranks"]))
    sides = (" x ".join(map(str, entry[side])) for side in ("rows", "cols"))
    return f"{' | '.join(sides)}, bonds {ranks}, {entry['tokens']} tokens"


def write(path: Path, found: list[dict[str, Any]], device: str) -> None:
    """One cell a line, small enough to be kept."""
    name = describe(device, 0, "")["device"]
    head = json.dumps({"device": name, "threads": torch.get_num_threads(), "rates": measured_rates(device).to_dict()})
    lines = ",\n".join(json.dumps(entry) for entry in found)
    path.write_text(f'{{"machine": {head}, "cells": [\n{lines}\n]}}\n')
