"""Every converter against the installed peer: the same numbers there, the same memory, the same cores back."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import quimb.tensor as qtn
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import array_of, backend_of, dense_of, dtype_of, mpos, numpy_of, rounding, tts

from tnmpo import MPO, TT, canonicalize, io, is_canonical, mpo_decompose

# The import of tltorch sets TensorLy's global backend, and torchTT warns where its compiled part is not built.
BEFORE = tensorly.get_backend()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tltorch
    import torchtt  # noqa: F401
tensorly.set_backend(BEFORE)

TRAINS = st.one_of(mpos(), tts())
TENSORLY_NAME = {"numpy": "numpy", "torch": "pytorch", "jax": "jax"}
SHAPES = [[(1, 2, 3, 4), (4, 5, 2, 1)], [(1, 4, 3), (3, 2, 2), (2, 3, 1)], [(1, 2, 3, 1)], [(1, 5, 1)]]


def train_of(shapes, backend="numpy", dtype="float64"):
    generator = np.random.default_rng(0)
    cores = [generator.normal(size=shape) + 1j * generator.normal(size=shape) for shape in shapes]
    cores = [core if dtype.startswith("complex") else core.real for core in cores]
    return (MPO if len(shapes[0]) == 4 else TT)([array_of(core, backend, dtype) for core in cores])


def dense(train):
    """The matrix or the tensor, by numpy alone."""
    if isinstance(train, MPO):
        return dense_of(train.cores)
    full = dense_of([numpy_of(core)[:, :, None] for core in train.cores])
    return full.reshape(train.shape)


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    assert actual.ranks == expected.ranks
    for core, wanted in zip(actual.cores, expected.cores, strict=True):
        assert backend_of(core) == backend_of(wanted)
        assert dtype_of(core) == dtype_of(wanted)
        assert np.array_equal(numpy_of(core), numpy_of(wanted))


def assert_close(actual, train):
    wanted = dense(train)
    assert numpy_of(actual).shape == wanted.shape
    assert np.max(np.abs(numpy_of(actual) - wanted)) <= rounding(train)


def plain(array):
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def shares(array, core):
    return np.shares_memory(plain(array), plain(core))


# ---------------------------------------------------------------------------------------------------------------------
# TensorLy
# ---------------------------------------------------------------------------------------------------------------------


@given(TRAINS)
def test_tensorly_holds_the_same_arrays(train):
    theirs = train.to_tensorly()
    assert all(factor is core for factor, core in zip(theirs.factors, train.cores, strict=True))
    assert tuple(theirs.rank) == train.ranks
    back = type(train).from_tensorly(theirs)
    assert all(one is other for one, other in zip(back.cores, train.cores, strict=True))
    with tensorly.backend_context(TENSORLY_NAME[backend_of(train.cores[0])], local_threadsafe=True):
        assert_close(theirs.to_matrix() if isinstance(train, MPO) else theirs.to_tensor(), train)


# ---------------------------------------------------------------------------------------------------------------------
# quimb
# ---------------------------------------------------------------------------------------------------------------------


def quimb_dense(network):
    if isinstance(network, qtn.MatrixProductOperator):
        return network.to_dense()
    return network.to_dense(*[[network.site_ind(site)] for site in range(network.L)])


@given(TRAINS)
def test_quimb_sees_the_same_and_gives_it_back(train):
    network = io.to_quimb(train)
    assert network.num_tensors == network.L == train.order
    assert tuple(network.bond_sizes()) == train.ranks[1:-1]
    assert_close(quimb_dense(network), train)
    assert_same(io.from_quimb(network), train)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_quimb_shares_the_memory_both_ways(shapes, backend):
    train = train_of(shapes, backend)
    network = io.to_quimb(train)
    assert all(shares(network[site].data, core) for site, core in enumerate(train.cores))
    back = io.from_quimb(network)
    assert all(shares(one, other) for one, other in zip(back.cores, train.cores, strict=True))


@given(st.sampled_from(SHAPES[:2]), st.permutations("lrud"), st.data())
def test_any_order_and_any_names_of_quimbs_indices_are_read(shapes, letters, data):
    train = train_of(shapes, dtype="complex128")
    network = io.to_quimb(train)
    operator = isinstance(train, MPO)
    layout = "".join(letters) if operator else "".join(letters).replace("u", "p").replace("d", "")
    network.permute_arrays(layout)
    network.reindex_({network.bond(0, 1): "my bond"})
    if operator:
        network.upper_ind_id, network.lower_ind_id = "row{}", "column{}"
    else:
        network.site_ind_id = "axis{}"
    network.site_tag_id = "place{}"
    inds, arrays = [tensor.inds for tensor in network], [tensor.data.copy() for tensor in network]
    assert_same(io.from_quimb(network), train)
    # and it was not changed
    assert [tensor.inds for tensor in network] == inds
    assert all(np.array_equal(tensor.data, array) for tensor, array in zip(network, arrays, strict=True))


def test_a_product_state_of_quimbs_without_bonds_gets_bonds_of_one():
    state = qtn.MPS_computational_state("010")
    for site in (0, 1):
        state.isel_({state.bond(site, site + 1): 0})
    tt = io.from_quimb(state)
    assert tt.ranks == (1, 1, 1, 1)
    assert tt.to_tensor()[0, 1, 0] == 1
    assert np.sum(np.abs(tt.to_tensor())) == 1


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("exponent", [2.0, np.float64(-3.0)])
def test_quimbs_exponent_goes_into_the_cores(dtype, exponent):
    train = train_of(SHAPES[0], dtype=dtype)
    network = io.to_quimb(train)
    network.exponent = exponent
    back = io.from_quimb(network)
    assert dtype_of(back.cores[0]) == dtype
    assert np.allclose(back.to_matrix(), train.to_matrix() * 10.0**exponent, rtol=1e-5)
    assert network.exponent == exponent
    assert_same(io.from_quimb(io.to_quimb(train)), train)  # the memory that is shared was not scaled


# ---------------------------------------------------------------------------------------------------------------------
# torchTT
# ---------------------------------------------------------------------------------------------------------------------


@given(TRAINS)
def test_torchtt_sees_the_same_and_gives_it_back(train):
    theirs = io.to_torchtt(train)
    assert tuple(theirs.R) == train.ranks
    assert theirs.is_ttm == isinstance(train, MPO)
    if isinstance(train, MPO):
        assert (tuple(theirs.M), tuple(theirs.N)) == (train.shape.rows, train.shape.cols)
    assert_close(theirs.full().reshape(dense(train).shape), train)
    back = io.from_torchtt(theirs)
    assert_same(back, type(train)([torch.tensor(plain(core)) for core in train.cores]))
    assert all(one is other for one, other in zip(back.cores, theirs.cores, strict=True))


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_torchtt_shares_the_memory(shapes, backend):
    train = train_of(shapes, backend)
    theirs = io.to_torchtt(train)
    assert all(shares(one, other) for one, other in zip(theirs.cores, train.cores, strict=True))
    assert backend == "numpy" or all(one is other for one, other in zip(theirs.cores, train.cores, strict=True))


def test_what_torch_cannot_hold_is_copied():
    core = np.arange(6.0).reshape(1, 2, 3, 1)
    read_only = core.copy()
    read_only.flags.writeable = False
    for odd in (read_only, core.astype(">f8"), core[:, ::-1]):
        theirs = io.to_torchtt(MPO([odd]))
        assert np.array_equal(theirs.cores[0].numpy(), odd)
        theirs.cores[0].zero_()
        assert odd.any()
    assert io.to_torchtt(MPO([jax.numpy.ones((1, 2, 3, 1), "bfloat16")])).cores[0].dtype == torch.bfloat16


# ---------------------------------------------------------------------------------------------------------------------
# TensorLy-Torch
# ---------------------------------------------------------------------------------------------------------------------


@given(TRAINS)
def test_tensorly_torch_sees_the_same_and_gives_it_back(train):
    theirs = io.to_tensorly_torch(train)
    assert tuple(theirs.rank) == train.ranks
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        assert_close(theirs.to_matrix() if isinstance(train, MPO) else theirs.to_tensor(), train)
    assert_same(io.from_tensorly_torch(theirs), type(train)([torch.tensor(plain(core)) for core in train.cores]))


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_tensorly_torch_trains_the_memory_of_the_cores(shapes, backend, dtype):
    train = train_of(shapes, backend, dtype)
    theirs = io.to_tensorly_torch(train)
    assert len(list(theirs.parameters())) == train.order
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert not any(numpy_of(core).any() for core in train.cores)


def test_tensorly_torch_keeps_what_autograd_traces():
    leaves = [torch.ones(1, 2, 3, 4, requires_grad=True), torch.ones(4, 5, 2, 1, requires_grad=True)]
    theirs = io.to_tensorly_torch(MPO([2 * leaf for leaf in leaves]))
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        theirs.to_matrix().sum().backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_a_layer_of_tensorly_torch_can_be_read():
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        layer = tltorch.FactorizedLinear((2, 5), (3, 2), rank=4, factorization="blocktt")
        matrix = layer.weight.to_matrix()
    assert_close(matrix, io.from_tensorly_torch(layer.weight))


# ---------------------------------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------------------------------

CONVERTERS = [
    (io.to_quimb, io.from_quimb),
    (io.to_torchtt, io.from_torchtt),
    (io.to_tensorly_torch, io.from_tensorly_torch),
]


@pytest.mark.parametrize(("there", "back"), CONVERTERS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_gradients_of_torch_pass_both_ways(there, back, shapes):
    leaves = [core.requires_grad_() for core in train_of(shapes, "torch").cores]
    train = (MPO if len(shapes[0]) == 4 else TT)([1.0 * leaf for leaf in leaves])
    returned = back(there(train))
    sum((core**2).sum() for core in returned.cores).backward()
    assert all(torch.allclose(leaf.grad, 2 * leaf) for leaf in leaves)


def test_gradients_of_jax_pass_through_quimb():
    cores = train_of(SHAPES[0], "jax").cores
    gradient = jax.grad(lambda cores: (io.from_quimb(io.to_quimb(MPO(cores))).to_matrix() ** 2).sum())(list(cores))
    wanted = jax.grad(lambda cores: (MPO(cores).to_matrix() ** 2).sum())(list(cores))
    assert all(np.allclose(one, other) for one, other in zip(gradient, wanted, strict=True))


@pytest.mark.parametrize(("there", "back"), CONVERTERS)
@settings(max_examples=10)
@given(mpos(backends=("numpy",), dtypes=("float64", "complex128")), st.data())
def test_a_gauge_survives_though_no_peer_tells_of_it(there, back, mpo, data):
    center = data.draw(st.integers(0, mpo.order - 1))
    returned = back(there(canonicalize(mpo, center)))
    assert returned.center is None
    assert is_canonical(returned, center)


def test_from_one_peer_to_the_next():
    mpo = mpo_decompose(np.random.default_rng(0).normal(size=(24, 36)), ((2, 3, 4), (3, 3, 4)))
    for there, back in CONVERTERS:
        mpo = back(there(mpo))
    assert isinstance(mpo.cores[0], torch.Tensor)
    assert np.allclose(numpy_of(mpo.to_matrix()), np.random.default_rng(0).normal(size=(24, 36)), atol=1e-13)


def test_tensorlys_global_backend_stays_as_it_is():
    code = """if True:
        import numpy as np, tensorly, torch, tnmpo
        from tnmpo import io
        mpo = tnmpo.MPO([np.ones((1, 2, 3, 1))])
        import warnings
        warnings.simplefilter("ignore")
        io.from_quimb(io.to_quimb(mpo)), io.from_torchtt(io.to_torchtt(mpo)), mpo.to_tensorly()
        try:
            io.to_tensorly_torch(mpo)
        except ImportError as error:
            print(tensorly.get_backend(), error)
    """
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert run.stdout.startswith("numpy to_tensorly_torch: got no imported tltorch, expected one; import it first")
