"""MPOLinear layers of every kind, their oracle in numpy, and one of two processes that train a layer together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tnmpo.integrations.torch import MPOLinear
from torch import nn

# torch says so on the first compilation of a process
FIRST_COMPILATION = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
# (out, in), shape
CASES = {
    "interleaved": ((8, 12), ((2, 2, 2), (3, 2, 2))),
    "four sites": ((16, 6), ((2, 2, 2, 2), (1, 3, 2, 1))),
    "low-rank": ((5, 6), ((5, 1), (1, 6))),
    "bond core": ((5, 6), ((5, 1), (1, 6))),
    "padded": ((7, 11), ((2, 2, 2), (3, 2, 2))),
    "one site": ((3, 4), ((3,), (4,))),
}
EXECUTIONS = ["auto", "dense", "factored"]


def build(case="interleaved", rank=3, dtype=torch.float64, **options):
    (rows, cols), shape = CASES[case]
    torch.manual_seed(0)
    layer = MPOLinear.from_linear(nn.Linear(cols, rows, dtype=dtype), shape, rank, **options)
    if case == "bond core":
        layer.insert_bond_core_()
    with torch.no_grad():
        for core in layer.cores:
            core.add_(0.3 * torch.randn_like(core))  # as after training: in no gauge, no identity
    return layer


def vectors(layer, count=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, layer.in_features, dtype=torch.float64, generator=generator).to(layer.cores[0].dtype)


def oracle(layer, x):
    """The layer by one einsum of numpy, from nothing but its cores."""
    order, operands = len(layer.cores), []
    for site, core in enumerate(layer.cores):
        operands += [core.detach().double().numpy(), [3 * site, 3 * site + 1, 3 * site + 2, 3 * site + 3]]
    rows, cols = [3 * site + 1 for site in range(order)], [3 * site + 2 for site in range(order)]
    dense = np.einsum(*operands, [0, *rows, *cols, 3 * order])[0, ..., 0]
    weight = dense.reshape(np.prod(dense.shape[:order]), -1)[: layer.out_features, : layer.in_features]
    return x.detach().double().numpy() @ weight.T + layer.bias.detach().double().numpy()


def assert_fresh(layer, x=None):
    """The layer agrees with the oracle, with and without gradients."""
    x = vectors(layer) if x is None else x
    assert_is_oracle(layer(x), layer, x)
    with torch.no_grad():
        assert_is_oracle(layer(x), layer, x)


def assert_is_oracle(y, layer, x, tolerance=None):
    """Up to rounding, which is that of the largest entry."""
    expected = oracle(layer, x)
    tolerance = tolerance or (1e-10 if x.dtype == torch.float64 else 1e-4)
    np.testing.assert_allclose(
        y.detach().double().numpy(), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max())
    )


def replica(rank, address, answers):
    """One of two processes: begins with other cores than the first, trains on its half of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        state = trained_replica(rank)  # what holds the group is gone before it: torch aborts in some orders
        dist.barrier()
    finally:
        dist.destroy_process_group()
    answers.put((rank, state))


def trained_replica(rank):
    layer = build(execution="dense")
    for site in layer.central:
        layer.cores[site].requires_grad_(False)
    with torch.no_grad():
        for core in layer.cores:
            core.add_(rank)
    layer(vectors(layer))  # cached before the first process sends its cores
    model = nn.parallel.DistributedDataParallel(layer)
    assert_fresh(layer)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.05, fused=True)
    for step in range(3):
        x = vectors(layer, 8, seed=step).chunk(2)[rank]
        with model.no_sync():
            model(x[:2]).square().mean().backward()
        model(x[2:]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert_fresh(layer)
    return {name: value.numpy().copy() for name, value in layer.state_dict().items()}
