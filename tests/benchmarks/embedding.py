"""``MPOEmbedding`` on 16 x 64 random ids of tables of 30000 x 128 and 30522 x 384, and of 16 times as many rows at the
same bond dimensions, against ``nn.Embedding`` and tensorly-torch's ``FactorizedEmbedding`` with the same cores in two
modes: its lookup, and its factorised table reconstructed. *kept* is evaluation, without gradients, with the tables of
the train (or the dense table, where they take more than half of it) kept between calls; *not kept* contracts them at
every call; forward and backward is training, where nothing is kept. At 16 times the rows the dense table is neither
reconstructed nor shown where it takes more than 256 MB. *16x / 1x rows* compares lookups from the cores alone, not
with a dense table that is kept; a low-rank layer's left core has a row for every id, and so has its gradient.
On a GPU, where tensorly-torch's lookup does not run, its reconstruction is the only peer, up to 1 GB.

.venv/bin/python tests/benchmarks/embedding.py [--quick]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorly
import torch
from limits import measured_rates
from records import Row, geometric_mean, verdict
from side_by_side import timings
from tnmpo.integrations.torch import MPOEmbedding
from torch import Tensor, nn
from torch.nn import functional as F

import tnmpo

before = tensorly.get_backend()
import tltorch  # noqa: E402

tensorly.set_backend(before)  # which tltorch's import sets for the whole process

SUITE = "embedding"
SIZES = [(30000, 128), (30522, 384)]
BATCH = (16, 64)
PEERS = ("tensorly-torch, lookup", "tensorly-torch, reconstructed")
PEERS_OVER_OURS = "best mode of tensorly-torch / ours"
GROWTH = {2: (16, 1), 3: (2, 4, 2), 5: (2, 2, 1, 2, 2)}  # of every site's rows, at 16 times the vocabulary
DENSE_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
PATIENCE = 3.0  # seconds: what takes longer is called once


@dataclass(frozen=True)
class Case:
    """Random cores of one shape; ``table`` names the size of the vocabulary it stands for."""

    table: tuple[int, int]
    name: str
    shape: tnmpo.MPOShape
    ranks: tuple[int, ...]

    def grown(self) -> Case:
        rows = tuple(i * factor for i, factor in zip(self.shape.rows, GROWTH[self.shape.order], strict=True))
        shape = tnmpo.MPOShape(rows, self.shape.cols)
        return Case((16 * self.table[0], self.table[1]), self.name, shape, self.ranks)

    def __str__(self) -> str:
        return f"{self.table[0]} x {self.table[1]}, {self.name}"


def cases(quick: bool = False) -> list[Case]:
    """Two, three and five sites; capped bonds, and a quarter and half of the dense parameters."""
    found = []
    for size in [(60, 8)] if quick else SIZES:
        for order in (2, 3, 5):
            padded = tnmpo.padded_size(size[0], order), size[1]
            shape = tnmpo.MPOShape.low_rank(size) if order == 2 else tnmpo.plan_shape(padded, order)
            for kept in (0.25, 0.5) if order == 2 else (16, 64, 0.25, 0.5):
                cap = kept if kept > 1 else _cap(shape, kept)
                ranks = tuple(min(int(cap), full) for full in shape.full_ranks)
                share = f"cap {kept}" if kept > 1 else f"ratio {kept:g}"
                found.append(Case(size, f"{order} sites, {share}" if order > 2 else f"low rank, {share}", shape, ranks))
    return found


def _cap(shape: tnmpo.MPOShape, ratio: float) -> int:
    budget = ratio * math.prod(shape.matrix_shape)
    caps = range(1, max(shape.full_ranks) + 1)
    return max(cap for cap in caps if shape.n_parameters([min(cap, full) for full in shape.full_ranks]) <= budget)


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    with tensorly.backend_context("pytorch"):  # which tensorly-torch needs at every call
        yield from _rows(quick, device)


def run(quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    return [row.to_dict() for row in rows(quick, device=device)]


def _rows(quick: bool, device: str) -> Iterator[Row]:
    ahead: dict[str, list[float]] = {}
    for case in cases(quick):
        found, unlike = {}, set()
        for one in (case, case.grown()):
            models = contenders(one, device)
            ids = torch.randint(0, one.table[0], BATCH, generator=torch.Generator().manual_seed(1)).to(device)
            for what, compare in (("forward", forward), ("forward and backward", backward)):
                named = f"{one}, {what}"
                seconds = yield from timed(named, one, compare(models, ids), quick=quick, device=device)
                found[one, what] = seconds
                if models["tnmpo"].reconstructions:
                    unlike.add("tnmpo, kept")  # a dense table was kept: no lookup from the cores to compare
                peer = min(seconds[key] for key in PEERS if key in seconds)
                for key in (key for key in seconds if key.startswith("tnmpo")):
                    ratio = peer / seconds[key]
                    ahead.setdefault(f"{what}, {key}", []).append(ratio)
                    if key != "tnmpo, not kept":
                        yield verdict(SUITE, named, PEERS_OVER_OURS, ratio, at_least=3)
        for what in ("forward", "forward and backward"):
            small, large = found[case, what], found[case.grown(), what]
            for key in (key for key in small if key.startswith("tnmpo") and key not in unlike):
                yield verdict(SUITE, f"{case}, {what}, {key}", "16x / 1x rows", large[key] / small[key], at_most=1.5)
    for what, ratios in ahead.items():
        yield verdict(SUITE, f"all cases, {what}", PEERS_OVER_OURS, geometric_mean(ratios), at_least=3)


def contenders(case: Case, device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sites = zip(case.ranks[:-1], case.shape.rows, case.shape.cols, case.ranks[1:], strict=True)
    cores = [torch.randn(site, generator=generator) / site[0] ** 0.5 for site in sites]
    layer = MPOEmbedding(tnmpo.MPO(cores), num_embeddings=case.table[0]).to(device)
    peer = tltorch.FactorizedEmbedding(
        *case.shape.matrix_shape,
        auto_tensorize=False,
        tensorized_num_embeddings=case.shape.rows,
        tensorized_embedding_dim=case.shape.cols,
        rank=case.ranks,
        device=device,
    )
    with torch.no_grad():
        for factor, core in zip(peer.weight.factors, layer.cores, strict=True):
            factor.copy_(core)
    models = {"tnmpo": layer, PEERS[0]: peer}
    if device != "cpu":
        del models[PEERS[0]]
    if 4 * math.prod(case.table) <= DENSE_BYTES[device]:
        models |= {PEERS[1]: Reconstructed(peer), "nn.Embedding": layer.to_embedding()}
    return models


class Reconstructed(nn.Module):
    """tensorly-torch's table made dense, and looked up in."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.peer.weight.to_matrix())


def forward(models: dict[str, Any], ids: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    layer = models["tnmpo"]
    once = MPOEmbedding(layer.mpo, num_embeddings=layer.num_embeddings, cache=False)
    chosen = {"tnmpo, kept": layer, "tnmpo, not kept": once, **models}
    chosen.pop("tnmpo")

    def call(model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [model(ids)]

    calls = {key: partial(call, model.eval()) for key, model in chosen.items()}
    assert_equal({key: call() for key, call in calls.items()})
    return calls


def backward(models: dict[str, Any], ids: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    def call(model: nn.Module) -> list[Tensor]:
        model.zero_grad()
        vectors = model(ids)
        vectors.backward(vectors.detach())
        return [vectors.detach(), *(parameter.grad for parameter in model.parameters())]

    calls = {key: partial(call, model.train()) for key, model in models.items()}
    assert_equal({key: call() for key, call in calls.items()})
    return calls


def assert_equal(results: dict[str, list[Tensor]]) -> None:
    """Of all the rows, and of the factorised ones the gradients of every core."""
    ours = next(tensors for key, tensors in results.items() if key.startswith("tnmpo"))
    for key, tensors in results.items():
        for one, other in zip(ours[:1] if key.startswith("nn") else ours, tensors, strict=not key.startswith("nn")):
            assert torch.allclose(one, other.reshape(one.shape), rtol=1e-3, atol=1e-4 * float(one.abs().max())), key


def timed(
    named: str, case: Case, calls: dict[str, Callable[[], Any]], *, quick: bool, device: str
) -> Iterator[Row]:  # and returns the seconds
    found = timings(calls, 1 if quick else 5, device=device, patience=PATIENCE)
    peer = min((key for key in PEERS if key in found), key=lambda key: found[key].seconds)
    for key, timing in found.items():
        ratio = timing.seconds / found[peer].seconds
        yield Row(SUITE, named, key, timing.seconds, timing.rounds, ratio, peer, limit=limit(case, device))
    return {key: timing.seconds for key, timing in found.items()}


def limit(case: Case, device: str) -> float:
    """Writing the rows, and reading as much."""
    return measured_rates(device).seconds(moved=2 * 4 * math.prod(BATCH) * case.table[1])


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv[1:]):
        time = f"{1e3 * row.seconds:9.2f} ms {row.ratio:8.3f} of {row.against}" if row.seconds is not None else ""
        judged = f"{row.measured:9.2f} {row.goal} {'' if row.met else 'missed'}" if row.measured is not None else ""
        print(f"{row.case}: {row.contender}: {time}{judged} {row.note}", flush=True)
