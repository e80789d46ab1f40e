"""``mpo_decompose`` of a Gaussian float32 matrix against every peer, at the same ranks. *uncut* keeps full bonds and
gives the Schmidt basis of every bond; *cut* keeps a quarter of the parameters. Whether a peer's bonds are in their
Schmidt basis is measured: the Gram matrices of both sides of every bond must be diagonal. *products* are the
multiplications that an exact train cannot avoid: the Gram matrices of the long unfoldings in float64, and one
projection. A train in any exact gauge is cheaper, is timed apart, and is compared with nothing. Of a bfloat16 matrix,
on a GPU, ours gives bfloat16 cores; the peers get it in float32, and their cores are rounded after the clock has
stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from limits import measured_rates
from memory import matrix, peaks
from peers import as_mpo, contenders, is_in_schmidt_basis, qr_call
from records import Row, verdict
from side_by_side import medians, timings

import tnmpo

SUITE = "decompose"
SIZES = [(768, 3072), (3072, 768), (30000, 128)]
ORDERS = [3, 5]
DTYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}
SAME = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # Gram matrices in single precision, as quimb's, leave up to 5e-4
SETTLE = {"cpu": 0.2, "cuda": 0.0}  # seconds: the contenders bring three BLAS libraries, with threads of their own


def rows(quick: bool, *, device: str = "cpu", sizes: list[tuple[int, int]] | None = None) -> Iterator[Row]:
    for size in sizes or ([(48, 60)] if quick else SIZES):
        for dtype in DTYPES[device]:
            W = torch.from_numpy(matrix(*size)).to(device, dtype)
            for order in ORDERS:
                for cut in (False, True):
                    yield from compare(W, order, cut, quick=quick, device=device)


def compare(W: torch.Tensor, order: int, cut: bool, *, quick: bool, device: str) -> Iterator[Row]:
    """One matrix, one order: seconds and errors of all, the verdicts, and the peak memory of ours."""
    size = (W.shape[0], W.shape[1])
    shape = tnmpo.plan_shape(size, order)
    cap = cap_of(shape, 0.25) if cut else None
    name = f"{size[0]} x {size[1]}" + (" bfloat16" if W.dtype is torch.bfloat16 else "")
    case = f"{name}, {order} sites, " + (f"cut to {cap}" if cap else "uncut")
    calls = contenders(W, shape, cap)
    errors, bases, first = {}, {}, {}
    for contender, (call, cores) in calls.items():
        start = time.perf_counter()
        result = cores(call())
        first[contender] = time.perf_counter() - start
        mpo = as_mpo([core.to(W) if isinstance(core, torch.Tensor) else core for core in result], shape)
        errors[contender], bases[contender] = relative_error(W, mpo), is_in_schmidt_basis(mpo, SAME[W.dtype])
    best = min(errors.values())
    assert all(error <= 1.1 * best + SAME[W.dtype] for error in errors.values()), (case, errors)
    rounds, settle = (1 if quick else 5), (0.0 if quick else SETTLE[device])
    timed = timings(
        {contender: call for contender, (call, _) in calls.items()}, rounds, device=device, first=first, settle=settle
    )
    unavoidable = products(W, shape, rounds, device, settle)
    ours = min(timing.seconds for contender, timing in timed.items() if contender.startswith("tnmpo"))
    peers = {contender: timing.seconds for contender, timing in timed.items() if not contender.startswith("tnmpo")}
    for contender, timing in timed.items():
        note = f"Schmidt basis of every bond: {'yes' if bases[contender] else 'no'}"
        yield Row(
            SUITE, case, contender, timing.seconds, timing.rounds, timing.seconds / ours, "ours", errors[contender],
            limit(shape, device), note=note,
        )  # fmt: skip
    yield Row(SUITE, case, "products", unavoidable, rounds, unavoidable / ours, "ours")
    compared = [contender for contender in peers if cut or bases[contender]]
    yield peer_verdict(case, ours, {contender: peers[contender] for contender in compared}, errors)
    yield verdict(SUITE, case, "ours / products", ours / unavoidable, at_most=2)
    if not cut:
        seconds = medians({"QR": qr_call(W, shape)}, rounds, device=device, settle=settle)["QR"]
        yield Row(SUITE, f"{name}, {order} sites, any exact gauge", "QR chain, torch", seconds, rounds)
    if device == "cpu":
        yield from peaks(SUITE, case, size, order, cap, quick=quick)


def peer_verdict(case: str, ours: float, peers: dict[str, float], errors: dict[str, float]) -> Row:
    """Against the fastest peer whose error is no larger than ours; where there is none, against the most exact one."""
    worst = max(error for name, error in errors.items() if name.startswith("tnmpo"))
    most_exact = min(peers, key=errors.__getitem__)
    equal = {name: value for name, value in peers.items() if errors[name] <= 1.01 * worst + 1e-6}
    peer = min(equal or {most_exact: 0}, key=lambda name: peers[name])
    note = f"{peer}; error {errors[peer]:.2e}, ours {worst:.2e}"
    row = verdict(SUITE, case, "best peer / ours", peers[peer] / ours, at_least=5, note=note)
    least = errors[most_exact]
    return row if worst <= 1.01 * least + 1e-6 else replace(row, met=False, note=f"{note}; a peer has {least:.2e}")


def relative_error(W: torch.Tensor, mpo: tnmpo.MPO) -> float:
    dense = W.to(mpo.cores[0].device, torch.float32)
    rebuilt = tnmpo.MPO([core.float() for core in mpo.cores]).to_matrix()
    return float(torch.linalg.norm(dense - rebuilt) / torch.linalg.norm(dense))


def cap_of(shape: tnmpo.MPOShape, ratio: float) -> int:
    """The largest single cap at which the MPO keeps no more than that share of the matrix."""
    budget = ratio * np.prod(shape.matrix_shape)
    caps = range(1, max(shape.full_ranks) + 1)
    return max(cap for cap in caps if shape.n_parameters([min(cap, full) for full in shape.full_ranks]) <= budget)


def sides(W: torch.Tensor, shape: tnmpo.MPOShape) -> tuple[int, int]:
    """The height of the unfolding at the middle bond, and of that at the shorter end."""
    middle = min(max(shape.full_ranks), W.numel() // max(shape.full_ranks))
    return middle, min(shape.site_sizes[0], shape.site_sizes[-1])


def products(W: torch.Tensor, shape: tnmpo.MPOShape, rounds: int, device: str, settle: float) -> float:
    """Seconds of the Gram matrices of the middle unfolding and of the shorter end, and of the projection."""
    middle, small = sides(W, shape)
    dense = W.float()
    long, short = dense.reshape(middle, -1), dense.reshape(small, -1)

    def multiply() -> Any:
        wide = long.double()
        return wide @ wide.T, short.double() @ short.double().T, long.T @ long[:, :middle]

    return medians({"products": multiply}, rounds, device=device, settle=settle)["products"]


def limit(shape: tnmpo.MPOShape, device: str) -> float:
    """The same multiplications at the machine's rates; the matrix must be read and written once."""
    size, middle = int(np.prod(shape.matrix_shape)), max(shape.full_ranks)
    middle = min(middle, size // middle)
    small = min(shape.site_sizes[0], shape.site_sizes[-1])
    return measured_rates(device).seconds(
        gram=2 * size * (middle + small), single=2 * size * middle, moved=2 * 4 * size
    )


if __name__ == "__main__":
    from rich.console import Console
    from show import show

    torch.set_num_threads(2)
    wanted = [tuple(map(int, argument.split("x"))) for argument in sys.argv[1:]]
    show(Console(), SUITE, [row.to_dict() for row in rows(False, sizes=wanted or None)])
