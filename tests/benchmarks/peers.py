"""Exact and cut trains of a matrix by ours, by the peers, and by a textbook's TT-SVD, behind one call each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tensorly
import torch
from tensorly.decomposition import tensor_train_matrix

import tnmpo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchTT: that its compiled part is not built
    import quimb.tensor as qtn
    import tntorch
    import torchtt

Calls = dict[str, tuple[Callable[[], Any], Callable[[Any], list[Any]]]]


def contenders(W: torch.Tensor, shape: tnmpo.MPOShape, cap: int | None) -> Calls:
    """Each call, and how to read the cores of its result; on a GPU those that run there.

    tntorch's default, "svd", makes the full square factor of every long unfolding: 142 s for 768 x 3072, so it is left
    out. No peer takes 16 bits: they get the matrix in float32.
    """
    dense = W.float()
    tensor, sites = (*shape.rows, *shape.cols), list(zip(shape.rows, shape.cols, strict=True))
    ranks = [min(cap or full, full) for full in shape.full_ranks]
    calls: Calls = {
        "tnmpo, torch": (lambda: tnmpo.mpo_decompose(W, shape, cap), lambda mpo: mpo.cores),
        "TensorLy, torch": (lambda: _tensorly("pytorch", dense.reshape(tensor), ranks), lambda mpo: mpo.factors),
        "torchTT": (
            lambda: torchtt.TT(dense.reshape(tensor), shape=sites, eps=1e-7, rmax=ranks),
            lambda tt: tt.cores,
        ),
        "SVD chain, torch": (lambda: svd_chain(_site_tensor(dense, shape), ranks), lambda cores: cores),
        "tntorch, eig": (_tntorch(dense, shape, ranks, "eig"), lambda tt: tt.cores),
        "quimb, torch, eig": (_quimb(dense, shape, cap, "svd:eig"), _cores_of_quimb),
    }
    if W.device.type == "cpu":
        host = dense.numpy()
        calls = {"tnmpo, numpy": (lambda: tnmpo.mpo_decompose(host, shape, cap), lambda mpo: mpo.cores), **calls}
        calls["TensorLy, numpy"] = (lambda: _tensorly("numpy", host.reshape(tensor), ranks), lambda mpo: mpo.factors)
        calls["quimb, numpy, svd"] = (_quimb(host, shape, cap, "svd"), _cores_of_quimb)
    return calls


def svd_chain(tensor: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Oseledets' TT-SVD (SIAM J. Sci. Comput. 33, 2011, algorithm 1), from left to right."""
    sizes, cores, rest = tensor.shape, [], tensor
    for k in range(len(sizes) - 1):
        u, s, vh = torch.linalg.svd(rest.reshape(ranks[k] * sizes[k], -1), full_matrices=False)
        r = ranks[k + 1]
        cores.append(u[:, :r].reshape(ranks[k], sizes[k], r))
        rest = s[:r, None] * vh[:r]
    return [*cores, rest.reshape(ranks[-2], sizes[-1], 1)]


def qr_chain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """An exact train in whatever gauge QR leaves it in; no bond is in its Schmidt basis."""
    sizes, cores, rest, left = tensor.shape, [], tensor, 1
    for k in range(len(sizes) - 1):
        q, rest = torch.linalg.qr(rest.reshape(left * sizes[k], -1))
        cores.append(q.reshape(left, sizes[k], -1))
        left = q.shape[1]
    return [*cores, rest.reshape(left, sizes[-1], 1)]


def qr_call(W: torch.Tensor, shape: tnmpo.MPOShape) -> Callable[[], list[torch.Tensor]]:
    dense = W.float()
    return lambda: qr_chain(_site_tensor(dense, shape))


def as_mpo(cores: Sequence[Any], shape: tnmpo.MPOShape) -> tnmpo.MPO:
    """Cores of any peer, with three axes or four, as an MPO of torch tensors."""
    tensors = [torch.as_tensor(core) for core in cores]
    return tnmpo.MPO(
        [
            core.reshape(core.shape[0], i, j, core.shape[-1])
            for core, i, j in zip(tensors, shape.rows, shape.cols, strict=True)
        ]
    )


def is_in_schmidt_basis(mpo: tnmpo.MPO, tolerance: float = 1e-3) -> bool:
    """Whether the Gram matrices of both sides of every bond are diagonal, up to a share of the largest entry."""
    cores = [core.double().reshape(core.shape[0], -1, core.shape[3]) for core in mpo.cores]
    for side in (cores, [core.permute(2, 1, 0) for core in reversed(cores)]):
        gram = torch.ones(1, 1, dtype=torch.float64, device=side[0].device)
        for core in side[:-1]:
            grown = torch.tensordot(gram, core, dims=([1], [0]))  # (r, s, r')
            gram = torch.tensordot(core, grown, dims=([0, 1], [0, 1]))
            if (gram - gram.diag().diag()).abs().max() > tolerance * gram.abs().max():
                return False
    return True


def _site_tensor(matrix: Any, shape: tnmpo.MPOShape) -> Any:
    """The matrix with one axis a site, of size i_k j_k; a copy, as every train of a matrix needs it."""
    n = shape.order
    axes = [axis for k in range(n) for axis in (k, n + k)]
    tensor = matrix.reshape(*shape.rows, *shape.cols)
    tensor = tensor.permute(axes) if isinstance(tensor, torch.Tensor) else tensor.transpose(axes)
    return tensor.reshape(shape.site_sizes)


def _tensorly(backend: str, tensor: Any, ranks: Sequence[int]) -> Any:
    before = tensorly.get_backend()
    tensorly.set_backend(backend)
    try:
        return tensor_train_matrix(tensor, rank=list(ranks))
    finally:
        tensorly.set_backend(before)


def _tntorch(
    dense: torch.Tensor, shape: tnmpo.MPOShape, ranks: Sequence[int], algorithm: str
) -> Callable[[], tntorch.Tensor]:
    return lambda: tntorch.Tensor(_site_tensor(dense, shape), ranks_tt=list(ranks[1:-1]), algorithm=algorithm)


def _quimb(matrix: Any, shape: tnmpo.MPOShape, cap: int | None, method: str) -> Callable[[], Any]:
    """Its MPO takes square sites alone, its MPS any; by default it would take QR where nothing is cut."""
    return lambda: qtn.MatrixProductState.from_dense(
        _site_tensor(matrix, shape), dims=shape.site_sizes, max_bond=cap, cutoff=0.0, method=method
    )


def _cores_of_quimb(mps: Any) -> list[Any]:
    mps.permute_arrays("lpr")
    first, *middle, last = mps.arrays
    return [first[None], *middle, last[..., None]]
