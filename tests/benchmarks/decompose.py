"""mpo_decompose against TensorLy and torchTT: seconds, ratios, errors.

python tests/benchmarks/decompose.py            all cases, some minutes
python tests/benchmarks/decompose.py 768x3072   one size

Every contender gets the same float32 matrix, the same ranks and the same threads; each result is rebuilt and its error
compared before any time is taken. ``products`` are the multiplications that an exact train in the Schmidt basis of
every bond cannot avoid in this order: Gram matrices of the long unfoldings in double precision, and the projection.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import tensorly
import torch
from side_by_side import medians
from tensorly.decomposition import tensor_train_matrix

import tnmpo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that its compiled part is not built
    import torchtt

SIZES = [(768, 3072), (3072, 768), (30000, 128), (4096, 11008)]


def cap_of(shape, ratio):
    """The largest single cap at which the MPO keeps no more than that share of the matrix."""
    budget = ratio * np.prod(shape.matrix_shape)
    caps = range(1, max(shape.full_ranks) + 1)
    return max(cap for cap in caps if shape.n_parameters([min(cap, full) for full in shape.full_ranks]) <= budget)


def contenders(W, shape, cap):
    """Calls, and how to rebuild their results."""
    dense, tensor = torch.from_numpy(W), (*shape.rows, *shape.cols)
    ranks = [full if cap is None else min(cap, full) for full in shape.full_ranks]
    sites = list(zip(shape.rows, shape.cols, strict=True))

    def of_tensorly(backend, matrix):
        tensorly.set_backend(backend)
        try:
            return tensor_train_matrix(matrix.reshape(tensor), rank=ranks)
        finally:
            tensorly.set_backend("numpy")

    def rebuilt(cores):
        return tnmpo.MPO([torch.as_tensor(core) for core in cores]).to_matrix()

    return {
        "tnmpo, numpy": (lambda: tnmpo.mpo_decompose(W, shape, cap), lambda mpo: rebuilt(mpo.cores)),
        "tnmpo, torch": (lambda: tnmpo.mpo_decompose(dense, shape, cap), lambda mpo: rebuilt(mpo.cores)),
        "TensorLy, numpy": (lambda: of_tensorly("numpy", W), lambda ttm: rebuilt(ttm.factors)),
        "TensorLy, torch": (lambda: of_tensorly("pytorch", dense), lambda ttm: rebuilt(ttm.factors)),
        "torchTT": (
            lambda: torchtt.TT(dense.reshape(tensor), shape=sites, eps=1e-7, rmax=ranks),
            lambda tt: rebuilt(tt.cores),
        ),
    }


def compare(size, order, cap):
    W = np.random.default_rng(0).standard_normal(size, dtype="float32")
    shape = tnmpo.plan_shape(size, order)
    cap = cap_of(shape, 0.25) if cap else None
    calls = contenders(W, shape, cap)
    norm, errors = np.linalg.norm(W), {}
    for name, (call, rebuild) in calls.items():
        errors[name] = float(torch.linalg.norm(torch.from_numpy(W) - rebuild(call()))) / norm
    best = min(errors.values())
    assert all(error <= 1.1 * best + 1e-5 for error in errors.values()), errors
    seconds = medians({name: call for name, (call, _) in calls.items()}, rounds=3)
    seconds["products"] = products(W, shape)
    ours = min(seconds[name] for name in seconds if name.startswith("tnmpo"))
    theirs = min(seconds[name] for name in seconds if name[:5] in ("Tenso", "torch"))
    print(f"{size[0]} x {size[1]}, {order} sites, " + ("uncut" if cap is None else f"cap {cap}"))
    for name, value in seconds.items():
        error = f"{errors[name]:.2e}" if name in errors else ""
        print(f"    {name:16} {value:8.3f} s   {value / ours:7.2f} x   {error}")
    print(
        f"    the best peer takes {theirs / ours:.1f} times as long; ours is {ours / seconds['products']:.1f} products"
    )


def products(W, shape):
    """Seconds of the Gram matrix and of the projection of the first split from the shorter side."""
    small = min(shape.site_sizes[0], shape.site_sizes[-1])
    middle = min(max(shape.full_ranks), int(np.prod(W.shape)) // max(shape.full_ranks))
    long = torch.from_numpy(W).reshape(middle, -1)
    short = torch.from_numpy(W).reshape(small, -1)

    def multiply():
        wide = long.double()
        return wide @ wide.T, short.double() @ short.double().T, long.T @ long[:, :middle]

    return medians({"products": multiply}, rounds=3)["products"]


if __name__ == "__main__":
    torch.set_num_threads(2)
    wanted = [tuple(map(int, argument.split("x"))) for argument in sys.argv[1:]] or SIZES
    for size in wanted:
        for order in (3, 5):
            for cap in (False, True):
                compare(size, order, cap)
