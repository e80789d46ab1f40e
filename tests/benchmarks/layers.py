"""``MPOLinear`` of a 768 x 3072 weight against ``nn.Linear`` and tensorly-torch's ``FactorizedLinear`` with the same
cores, in both its modes. *cap 64* is interleaved with five sites; *low rank* keeps a quarter of the parameters, and is
also compared with two ``nn.Linear``. Forward in evaluation, without gradients; forward and backward in training, with
the gradients of the input and of all parameters. On a GPU both in float32 and with everything in bfloat16, and forward
also replayed from a CUDA graph, which starts no product from Python and in which the cores are contracted every time;
*low rank of 8s* has a bond that 8 divides, which is what the tensor cores of a GPU are made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import tensorly
import torch
from limits import measured_rates
from records import Row, geometric_mean, verdict
from side_by_side import timings
from tnmpo.integrations.torch import MPOLinear
from torch import Tensor, nn

import tnmpo

before = tensorly.get_backend()
import tltorch  # noqa: E402

tensorly.set_backend(before)  # which tltorch's import sets for the whole process

SUITE = "layers"
SIZE = (768, 3072)
TOKENS = [1, 16, 512, 4096]
DTYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}
SAME = {torch.float32: (1e-3, 1e-4), torch.bfloat16: (0.05, 0.02)}  # relative, and of the largest entry
PEERS = ("tensorly-torch, factorized", "tensorly-torch, reconstructed")
GRAPH = ", CUDA graph"


def rows(quick: bool, *, device: str = "cpu") -> Iterator[Row]:
    with tensorly.backend_context("pytorch"):  # which tensorly-torch needs at every call
        yield from _rows(quick, device)


def _rows(quick: bool, device: str) -> Iterator[Row]:
    size, tokens = ((24, 48), [1, 8]) if quick else (SIZE, TOKENS)
    for dtype in DTYPES[device]:
        suffix = " bfloat16" if dtype is torch.bfloat16 else ""
        ratios: list[float] = []
        kinds = {"cap 64": interleaved, "low rank": low_rank}
        if device == "cuda":
            kinds["low rank of 8s"] = partial(low_rank, step=8)
        for name, make in kinds.items():
            contenders = make(size, device, dtype)
            for count in tokens:
                yield from forward(name + suffix, contenders, count, ratios, quick=quick, device=device)
            yield from backward(name + suffix, contenders, tokens[-1], quick=quick, device=device)
        case, what = f"all forward passes{suffix}", "best mode of tensorly-torch / ours"
        yield verdict(SUITE, case, what, geometric_mean(ratios), at_least=3)


def interleaved(size: tuple[int, int], device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    shape = tnmpo.plan_shape(size)
    return models(shape, [min(64, full) for full in shape.full_ranks], device, dtype)


def low_rank(size: tuple[int, int], device: str, dtype: torch.dtype, *, step: int = 1) -> dict[str, nn.Module]:
    """``step`` divides the bond."""
    shape = tnmpo.MPOShape.low_rank(size)
    bond = size[0] * size[1] // (4 * sum(size)) // step * step
    contenders = models(shape, (1, bond, 1), device, dtype)
    left, right = contenders["tnmpo"].cores
    pair = nn.Sequential(nn.Linear(size[1], bond, bias=False), nn.Linear(bond, size[0])).to(device, dtype)
    with torch.no_grad():
        pair[0].weight.copy_(right[:, 0, :, 0])
        pair[1].weight.copy_(left[0, :, 0])
        pair[1].bias.copy_(contenders["nn.Linear"].bias)
    return {**contenders, "two nn.Linear": pair}


def models(shape: tnmpo.MPOShape, ranks: Any, device: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Ours, the dense layer with the same weight, and tensorly-torch's two modes with the same cores."""
    generator = torch.Generator().manual_seed(0)
    sites = list(zip(ranks[:-1], shape.rows, shape.cols, ranks[1:], strict=True))
    # variances that give the dense weight unit rows, as a trained one about has
    cores = [torch.randn(site, generator=generator) / (site[0] * site[2]) ** 0.5 for site in sites]
    layer = MPOLinear(tnmpo.MPO(cores), torch.randn(shape.matrix_shape[0], generator=generator))
    layer = layer.to(device, dtype)
    contenders: dict[str, nn.Module] = {"nn.Linear": layer.to_linear(), "tnmpo": layer}
    for mode in ("factorized", "reconstructed"):
        factors = [nn.Parameter(core.detach().clone()) for core in layer.cores]
        weight = tltorch.BlockTT(factors, tensorized_shape=(shape.rows, shape.cols), rank=tuple(ranks))
        peer = tltorch.FactorizedLinear(
            shape.cols, shape.rows, factorization=weight, implementation=mode, device=device, dtype=dtype
        )
        with torch.no_grad():
            peer.bias.copy_(layer.bias)
        contenders[f"tensorly-torch, {mode}"] = peer
    return contenders


def forward(
    name: str, contenders: dict[str, nn.Module], tokens: int, ratios: list[float], *, quick: bool, device: str
) -> Iterator[Row]:
    x = inputs(contenders, tokens, device)
    calls = {key: without_gradients(module.eval(), x) for key, module in contenders.items()}
    if device == "cuda":
        calls |= {f"{key}{GRAPH}": graphed(calls[key]) for key in ("nn.Linear", "tnmpo")}
    assert_equal({key: [call()] for key, call in calls.items()})
    case = f"{name}, forward, {tokens} tokens"
    seconds = yield from timed(case, calls, limit(contenders, tokens, device), quick=quick, device=device)
    share = seconds["tnmpo"] / seconds["nn.Linear"]
    is_low_rank = "two nn.Linear" in contenders
    if is_low_rank and tokens >= 512:
        yield verdict(SUITE, case, "dense / ours", 1 / share, at_least=2)
        if device == "cuda":
            share = seconds[f"tnmpo{GRAPH}"] / seconds[f"nn.Linear{GRAPH}"]
            yield verdict(SUITE, case, "dense / ours, both in CUDA graphs", 1 / share, at_least=2)
    elif not is_low_rank and tokens >= 16:
        yield verdict(SUITE, case, "ours / dense", share, at_most=1.10 if tokens < 512 else 1.03)
    peer = min(seconds[key] for key in PEERS) / seconds["tnmpo"]
    ratios.append(peer)
    yield verdict(SUITE, case, "best mode of tensorly-torch / ours", peer, at_least=1)


def backward(name: str, contenders: dict[str, nn.Module], tokens: int, *, quick: bool, device: str) -> Iterator[Row]:
    x = inputs(contenders, tokens, device).requires_grad_()
    calls = {key: with_gradients(module.train(), x) for key, module in contenders.items()}
    assert_equal({key: call() for key, call in calls.items()})
    case = f"{name}, forward and backward, {tokens} tokens"
    seconds = yield from timed(case, calls, 3 * limit(contenders, tokens, device), quick=quick, device=device)
    at_most = 0.5 if "two nn.Linear" in contenders else 1.10
    yield verdict(SUITE, case, "ours / dense", seconds["tnmpo"] / seconds["nn.Linear"], at_most=at_most)


def timed(
    case: str, calls: dict[str, Callable[[], Any]], bound: float, *, quick: bool, device: str
) -> Iterator[Row]:  # and returns the seconds
    found = timings(calls, 1 if quick else 7, device=device)
    dense = found["nn.Linear"].seconds
    for key, timing in found.items():
        ratio = timing.seconds / dense
        yield Row(SUITE, case, key, timing.seconds, timing.rounds, ratio, "nn.Linear", limit=bound)
    return {key: timing.seconds for key, timing in found.items()}


def inputs(contenders: dict[str, nn.Module], tokens: int, device: str) -> Tensor:
    weight = contenders["nn.Linear"].weight
    return torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(device, weight.dtype)


def without_gradients(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return module(x)

    return call


def graphed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call captured once, to be replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # what libraries prepare at a first call is not captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


def with_gradients(module: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    """The answer and the input's gradient; those of the parameters are computed too."""

    def call() -> list[Tensor]:
        module.zero_grad()
        x.grad = None
        y = module(x)
        y.backward(y.detach())
        return [y.detach(), x.grad]

    return call


def assert_equal(results: dict[str, list[Tensor]]) -> None:
    for key, tensors in results.items():
        for ours, dense in zip(tensors, results["nn.Linear"], strict=True):
            relative, absolute = SAME[dense.dtype]
            assert torch.allclose(ours, dense, rtol=relative, atol=absolute * float(dense.abs().max())), key


def limit(contenders: dict[str, nn.Module], tokens: int, device: str) -> float:
    """One pass over the smaller of the two forms: dense, or the two factors."""
    weights = [contenders["nn.Linear"].weight.numel()]
    if "two nn.Linear" in contenders:
        weights.append(sum(core.numel() for core in contenders["tnmpo"].cores))
    weight, size = contenders["nn.Linear"].weight, min(weights)
    kind = "half" if weight.dtype is torch.bfloat16 else "single"
    moved = weight.element_size() * (size + tokens * sum(weight.shape))
    return measured_rates(device).seconds(**{kind: 2 * tokens * size}, moved=moved)
