"""The same cores as quimb, torchTT and TensorLy-Torch hold them, and back.

    here                 (left, row, col, right), (left, site, right), boundary bonds of 1
    torchTT, TensorLy    the same
    TensorLy-Torch       the same, in a module that registers them
    quimb                any order of named indices, by default (left, right, row, col); no boundary bonds

Only views are made, so the memory is shared, wherever the array is one that the peer can hold. Peers are imported when
they are asked for, TensorLy-Torch by whoever wants it: its import sets TensorLy's global backend.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from ._backend import Array, as_numpy, cast, dtype_name
from ._mpo import MPO
from ._train import Train, check_train
from ._tt import TT


def to_quimb(train: Train) -> Any:
    """The same train as a network of quimb's.

    Parameters
    ----------
    train : MPO or TT
        On any backend; quimb computes with all of them.

    Returns
    -------
    quimb.tensor.MatrixProductOperator or quimb.tensor.MatrixProductState
        Rows are the upper indices ``k0, k1, ..``, columns the lower ones ``b0, b1, ..``, sites of a TT ``k0, k1, ..``.
        The arrays are views of the cores (copies on jax, which has no views).

    Raises
    ------
    TypeError
        If ``train`` is none.
    ModuleNotFoundError
        If quimb is not installed.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.MPO([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))])
    >>> network = to_quimb(mpo)
    >>> [tensor.shape for tensor in network], bool(np.all(network.to_dense() == mpo.to_matrix()))
    ([(4, 2, 3), (4, 5, 2)], True)
    """
    check_train(train)
    qtn = peer("quimb.tensor", "quimb", "to_quimb")
    cores = list(train.cores)
    cores[0] = cores[0].reshape(cores[0].shape[1:])
    cores[-1] = cores[-1].reshape(cores[-1].shape[:-1])
    if isinstance(train, MPO):
        return qtn.MatrixProductOperator(cores, shape="ludr")
    return qtn.MatrixProductState(cores, shape="lpr")


def from_quimb(network: Any) -> Any:
    """An MPO or a TT on the arrays of a network of quimb's.

    Parameters
    ----------
    network : quimb.tensor.MatrixProductOperator or quimb.tensor.MatrixProductState
        With open boundaries and one tensor a site. Names and orders of its indices are free; it is not changed.

    Returns
    -------
    MPO or TT
        The cores are views of the arrays (copies on jax, and where the network carries an ``exponent``, which goes into
        them). A bond that is missing between neighbours becomes one of 1. No gauge is known.

    Raises
    ------
    TypeError
        If ``network`` is neither.
    ValueError
        If it is periodic, or a site has no tensor, several, or one with further indices.

    Examples
    --------
    >>> import quimb.tensor as qtn
    >>> from_quimb(qtn.MPO_identity(3)).to_matrix().trace().item()
    8.0
    >>> from_quimb(qtn.MPS_rand_state(4, bond_dim=3, dist="uniform")).ranks
    (1, 3, 3, 3, 1)
    """
    qtn = sys.modules.get("quimb.tensor")
    if qtn is None or not isinstance(network, qtn.MatrixProductOperator | qtn.MatrixProductState):
        raise TypeError(
            f"network: got {type(network).__name__}, expected a quimb.tensor.MatrixProductOperator or "
            "MatrixProductState; make one of it first"
        )
    _check_open_chain(network)
    network = network.copy()
    if network.exponent != 0:
        network.exponent = float(network.exponent)  # a scalar of numpy's would make float32 cores float64
        network.distribute_exponent()
    kind, layout = (MPO, "ludr") if isinstance(network, qtn.MatrixProductOperator) else (TT, "lpr")
    network.permute_arrays(layout)  # bonds that are missing are made here
    cores = [network[site].data for site in range(network.L)]
    cores[0] = cores[0].reshape((1, *cores[0].shape))
    cores[-1] = cores[-1].reshape((*cores[-1].shape, 1))
    return kind(cores)


def _check_open_chain(network: Any) -> None:
    """Refuse a network that is no train: another topology, or more than the indices of a train."""
    if network.cyclic:
        raise ValueError("network: got periodic boundaries, expected open ones; cut it open first")
    occupied = [network.tag_map.get(network.site_tag(site), ()) for site in range(network.L)]
    if network.num_tensors != network.L or not all(occupied):
        raise ValueError(
            f"network: got {network.num_tensors} tensors for {network.L} sites, expected one a site; "
            "contract those of a site, and fill empty sites, first"
        )
    for site in range(network.L):
        operator = hasattr(network, "upper_ind")
        own = (network.upper_ind(site), network.lower_ind(site)) if operator else (network.site_ind(site),)
        neighbours = [network[other] for other in (site - 1, site + 1) if 0 <= other < network.L]
        bonds = [tuple(network[site].bonds(neighbour)) for neighbour in neighbours]
        if set(network[site].inds) != {*own, *sum(bonds, ())} or max(map(len, bonds), default=0) > 1:
            raise ValueError(
                f"network: got site {site} with indices {network[site].inds}, expected its own and one bond to "
                "either neighbour; contract or fuse the others first"
            )


def to_torchtt(train: Train) -> Any:
    """The same train as a ``torchtt.TT``.

    Parameters
    ----------
    train : MPO or TT

    Returns
    -------
    torchtt.TT
        An operator, whose M are the rows and N the columns, or a tensor. torch tensors are taken as they are,
        numpy arrays share their memory where torch can hold it; those of jax are copied.

    Raises
    ------
    TypeError
        If ``train`` is none.
    ModuleNotFoundError
        If torchTT is not installed.

    Examples
    --------
    >>> import numpy as np, tnmpo, warnings
    >>> with warnings.catch_warnings():  # torchTT says so where its compiled part is not built
    ...     warnings.simplefilter("ignore")
    ...     import torchtt
    >>> operator = to_torchtt(tnmpo.MPO([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))]))
    >>> operator.M, operator.N, operator.R
    ([2, 5], [3, 2], [1, 4, 1])
    """
    check_train(train)
    torchtt = peer("torchtt", "torchTT", "to_torchtt")
    return torchtt.TT([_of_torch(core) for core in train.cores])


def from_torchtt(tensor: Any) -> Any:
    """An MPO or a TT on the cores of a ``torchtt.TT``; nothing is copied.

    Parameters
    ----------
    tensor : torchtt.TT
        An operator gives an MPO, a tensor a TT.

    Returns
    -------
    MPO or TT

    Raises
    ------
    TypeError
        If ``tensor`` is none.

    Examples
    --------
    >>> import numpy as np, tnmpo, warnings
    >>> with warnings.catch_warnings():  # torchTT says so where its compiled part is not built
    ...     warnings.simplefilter("ignore")
    ...     import torchtt
    >>> from_torchtt(torchtt.eye([2, 3, 4])).to_matrix().trace().item()
    24.0
    """
    torchtt = sys.modules.get("torchtt")
    if torchtt is None or not isinstance(tensor, torchtt.TT):
        raise TypeError(f"tensor: got {type(tensor).__name__}, expected a torchtt.TT; make one of it first")
    return (MPO if tensor.is_ttm else TT)(tensor.cores)


def to_tensorly_torch(train: Train) -> Any:
    """The same train as a factorised tensor of TensorLy-Torch, a ``torch.nn.Module``.

    Parameters
    ----------
    train : MPO or TT

    Returns
    -------
    tltorch.BlockTT or tltorch.TTTensor
        Their complex kinds for complex cores. The factors are parameters on the memory of the cores, so that training
        one changes the other; a core that is traced by autograd already stays what it is. numpy arrays share
        their memory where torch can hold it; those of jax are copied.

    Raises
    ------
    TypeError
        If ``train`` is none.
    ImportError
        If tltorch is not imported yet: its import sets TensorLy's global backend to ``'pytorch'``, under which it
        computes. Nothing here does that on its own.

    Examples
    --------
    >>> import tensorly, tltorch, torch, tnmpo
    >>> mpo = tnmpo.MPO([torch.ones(1, 2, 3, 4), torch.ones(4, 5, 2, 1)])
    >>> factorised = to_tensorly_torch(mpo)
    >>> factorised.tensorized_shape, factorised.rank, len(list(factorised.parameters()))
    (((2, 5), (3, 2)), (1, 4, 1), 2)
    >>> tensorly.set_backend("numpy")  # for whoever goes on with numpy
    """
    check_train(train)
    tltorch, torch = sys.modules.get("tltorch"), sys.modules.get("torch")
    if tltorch is None or torch is None:
        raise ImportError(
            "to_tensorly_torch: got no imported tltorch, expected one; import it first, which sets TensorLy's global "
            "backend to 'pytorch'"
        )
    cores = [_of_torch(core) for core in train.cores]
    factors = [core if core.requires_grad else torch.nn.Parameter(core) for core in cores]
    complex_ = "complex" in dtype_name(cores[0])
    if isinstance(train, MPO):
        kind = tltorch.ComplexBlockTT if complex_ else tltorch.BlockTT
        return kind(factors, tensorized_shape=(train.shape.rows, train.shape.cols), rank=train.ranks)
    kind = tltorch.ComplexTTTensor if complex_ else tltorch.TTTensor
    return kind(factors, shape=tuple(core.shape[1] for core in train.cores), rank=train.ranks)


def from_tensorly_torch(tensor: Any) -> Any:
    """An MPO or a TT on the factors of a factorised tensor of TensorLy-Torch; nothing is copied.

    Parameters
    ----------
    tensor : tltorch.BlockTT or tltorch.TTTensor
        A ``BlockTT`` of one matrix. Its parameters become the cores, so gradients reach them.

    Returns
    -------
    MPO or TT

    Raises
    ------
    TypeError
        If ``tensor`` is neither.
    ValueError
        If it is a ``BlockTT`` of a vector or of several matrices.

    Examples
    --------
    >>> import tensorly, tltorch
    >>> from_tensorly_torch(tltorch.BlockTT.new(((2, 5), (3, 2)), rank=4)).ranks
    (1, 4, 1)
    >>> tensorly.set_backend("numpy")  # for whoever goes on with numpy
    """
    tltorch = sys.modules.get("tltorch")
    if tltorch is None or not isinstance(tensor, tltorch.BlockTT | tltorch.TTTensor):
        raise TypeError(
            f"tensor: got {type(tensor).__name__}, expected a tltorch.BlockTT or a tltorch.TTTensor; "
            "make one of it first"
        )
    factors = [tensor.factors[site] for site in range(len(tensor.factors))]
    if isinstance(tensor, tltorch.TTTensor):
        return TT(factors)
    shape = tuple(tensor.tensorized_shape)
    if len(shape) != 2 or any(isinstance(side, int) for side in shape):
        raise ValueError(
            f"tensor: got a BlockTT of tensorized shape {shape}, expected two tuples, rows and columns; "
            "convert one matrix at a time"
        )
    return MPO(factors)


# ---------------------------------------------------------------------------------------------------------------------
# What the peers need
# ---------------------------------------------------------------------------------------------------------------------


def peer(module: str, package: str, caller: str) -> Any:
    """The module, or an error that names the package to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # it is there and lacks something itself
        raise ModuleNotFoundError(
            f"{caller}: got no module {root}, expected the package {package}; install it, e.g. pip install {package}",
            name=root,
        ) from None


def _of_torch(core: Array) -> Array:
    """``core`` as a torch tensor, on the memory of a numpy array where torch can hold it."""
    if hasattr(core, "permute"):
        return core
    array = as_numpy(core)
    # torch has no read-only memory, no foreign byte order and no negative strides
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    return cast(sys.modules["torch"].from_numpy(array), dtype_name(core))
