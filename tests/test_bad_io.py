"""Bad calls of ``tnmpo.io``, in the manner of ``test_bad_input.py``."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
import quimb.tensor as qtn
import tensorly
import torch
from refusals import refused
from safetensors.numpy import save_file

from tnmpo import MPO, io

BEFORE = tensorly.get_backend()
import tltorch  # noqa: E402  sets TensorLy's global backend

tensorly.set_backend(BEFORE)

MPO_ = MPO([np.ones((1, 2, 3, 4)), np.ones((4, 5, 2, 1))])
NAN = MPO([np.full((1, 2, 2, 1), np.nan)])
HALF = MPO([torch.ones(1, 2, 2, 1, dtype=torch.bfloat16)])


def saved(train, name="a.npz"):
    io.save(name, train)
    return name


def foreign(name):
    if name.endswith(".npz"):
        np.savez(name, weight=np.ones(3))
    else:
        save_file({"weight": np.ones(3)}, name)
    return name


def an_array():
    with open("array.npz", "wb") as file:
        np.save(file, np.ones(3))
    return "array.npz"


def changed(**changes):
    """A file whose header differs from what was saved, in what its entry says."""
    with np.load(saved(MPO_)) as archive:
        arrays = dict(archive)
    header = str(arrays.pop("tnmpo"))
    for old, new in changes.values():
        assert old in header
        header = header.replace(old, new)
    np.savez("changed.npz", tnmpo=np.array(header), **arrays)
    return "changed.npz"


def narrow_jax(name):
    jax.config.update("jax_enable_x64", False)
    try:
        return io.load(name, "jax")
    finally:
        jax.config.update("jax_enable_x64", True)


def two_tensors_a_site():
    state = qtn.MPS_rand_state(3, 2, seed=0)
    return state.gate(np.eye(2), 1, contract=False)


def two_at_one_site_and_none_at_another():
    state = qtn.MPS_rand_state(3, 2, seed=0)
    state[2].retag_({"I2": "I1"})
    return state


def two_bonds():
    state = qtn.MPS_rand_state(3, 2, seed=0)
    for site in (0, 1):
        state[site].new_ind("again", size=2)
    return state


def with_an_index_of_its_own():
    state = qtn.MPS_rand_state(3, 2, seed=0)
    state[1].new_ind("extra", size=2)
    return state


def next_nearest():
    state = qtn.MPS_rand_state(3, 2, seed=0)
    for site in (0, 2):
        state[site].new_ind("far", size=2)
    return state


def of_one_site_missing():
    return qtn.MatrixProductOperator([np.ones((2, 2, 2)), np.ones((2, 2, 2))], sites=[0, 2], L=3)


BAD_CALLS = [
    # names of files
    (lambda: io.save(3, MPO_), TypeError, "path: got 3, expected the name of a file"),
    (lambda: io.load(None), TypeError, "path: got None, expected the name of a file"),
    (lambda: io.save("a.pt", MPO_), ValueError, "path: got 'a.pt', expected a name that ends in .npz or .safetensors"),
    (lambda: io.load("a"), ValueError, "path: got 'a', expected a name that ends in .npz or .safetensors"),
    (
        lambda: io.save("no/a.npz", MPO_),
        FileNotFoundError,
        "path: got 'no/a.npz', whose folder does not exist, expected",
    ),
    # what is saved
    (lambda: io.save("a.npz", np.ones(3)), TypeError, "trains: got ndarray, expected an MPO, a TT, or a mapping from"),
    (lambda: io.save("a.npz", [MPO_]), TypeError, "trains: got list, expected an MPO, a TT, or a mapping from names"),
    (lambda: io.save("a.npz", {}), ValueError, "trains: got no trains, expected at least one name with its MPO or TT"),
    (lambda: io.save("a.npz", {3: MPO_}), TypeError, "trains: got 3 for a name, expected a string"),
    (lambda: io.save("a.npz", {None: MPO_}), TypeError, "trains: got None for a name, expected a string"),
    (lambda: io.save("a.npz", {"q": [MPO_]}), TypeError, "trains: got list under 'q', expected an MPO or a TT"),
    # what is loaded
    (
        lambda: io.load(foreign("b.npz")),
        ValueError,
        "path: got 'b.npz', expected a file that tnmpo.io.save wrote; it is",
    ),
    (lambda: io.load(foreign("b.safetensors")), ValueError, "it is damaged or another program's (KeyError: 'tnmpo')"),
    (lambda: io.load(an_array()), ValueError, "path: got 'array.npz', expected a file that tnmpo.io.save wrote; it is"),
    (
        lambda: io.load(changed(a=('"version": 1', '"version": 2'))),
        ValueError,
        "format version 2, known up to 1: update",
    ),
    (
        lambda: io.load(changed(a=('"kind": "MPO"', '"kind": "PEPS"'))),
        ValueError,
        "another program's (KeyError: 'PEPS')",
    ),
    (lambda: io.load(changed(a=('"kind": "MPO"', '"kind": "TT"'))), ValueError, "TT: core 0 has 4 axes, expected 3"),
    (lambda: io.load(changed(a=('"order": 2', '"order": 3'))), ValueError, "another program's (KeyError: '0.core.2')"),
    (
        lambda: io.load(changed(a=('"order": 2', '"order": 1'))),
        ValueError,
        "core 0 has right bond 4, expected 1 at the",
    ),
    (lambda: io.load(changed(a=("float64", "float32"))), ValueError, "header tells of float32, a core is float64"),
    (lambda: io.load(changed(a=('"center": null', '"center": 7'))), ValueError, "center: got 7, expected a site index"),
    (lambda: io.load(changed(a=('"trains"', '"brains"'))), ValueError, "another program's (KeyError: 'trains')"),
    (lambda: io.load(changed(a=('"trains"', "trains"))), ValueError, "another program's (JSONDecodeError: "),
    # onto what it is loaded
    (lambda: io.load(saved(MPO_), "paddle"), ValueError, "backend: got 'paddle', expected one of cupy, jax, numpy,"),
    (lambda: io.load(saved(HALF)), ValueError, "dtype: got 'bfloat16' on numpy, which has none; use torch or jax"),
    (
        lambda: narrow_jax(saved(MPO_)),
        ValueError,
        "dtype: got 'float64' on jax with its 64-bit types off, expected one",
    ),
    # quimb
    (lambda: io.to_quimb(np.ones(3)), TypeError, "train: got ndarray, expected a tnmpo.MPO or a tnmpo.TT; tnmpo.mpo_"),
    (lambda: io.to_quimb(NAN), ValueError, "train: got NaN or Inf in core 0, expected finite numbers"),
    (lambda: io.from_quimb(MPO_), TypeError, "network: got MPO, expected a quimb.tensor.MatrixProductOperator or"),
    (lambda: io.from_quimb(qtn.MPO_rand(4, 3, cyclic=True)), ValueError, "network: got periodic boundaries, expected"),
    (
        lambda: io.from_quimb(two_tensors_a_site()),
        ValueError,
        "network: got 4 tensors for 3 sites, expected one a site",
    ),
    (
        lambda: io.from_quimb(of_one_site_missing()),
        ValueError,
        "network: got 2 tensors for 3 sites, expected one a site",
    ),
    (
        lambda: io.from_quimb(two_at_one_site_and_none_at_another()),
        ValueError,
        "network: got 3 tensors for 3 sites, expected one a site; contract those of a site",
    ),
    (lambda: io.from_quimb(two_bonds()), ValueError, "network: got site 0 with indices ("),
    (lambda: io.from_quimb(with_an_index_of_its_own()), ValueError, "network: got site 1 with indices ("),
    (lambda: io.from_quimb(next_nearest()), ValueError, "network: got site 0 with indices ("),
    # torchTT
    (lambda: io.to_torchtt([MPO_]), TypeError, "train: got list, expected a tnmpo.MPO or a tnmpo.TT"),
    (lambda: io.from_torchtt(MPO_), TypeError, "tensor: got MPO, expected a torchtt.TT; make one of it first"),
    # TensorLy-Torch
    (lambda: io.to_tensorly_torch(None), TypeError, "train: got NoneType, expected a tnmpo.MPO or a tnmpo.TT"),
    (
        lambda: io.from_tensorly_torch(MPO_),
        TypeError,
        "tensor: got MPO, expected a tltorch.BlockTT or a tltorch.TTTensor",
    ),
    (
        lambda: io.from_tensorly_torch(tltorch.BlockTT.new((3, (2, 2), (2, 3)), rank=2)),
        ValueError,
        "tensor: got a BlockTT of tensorized shape (3, (2, 2), (2, 3)), expected two tuples, rows and columns; convert",
    ),
]


@pytest.mark.parametrize(("call", "error", "fragment"), BAD_CALLS, ids=[fragment for *_, fragment in BAD_CALLS])
def test_a_bad_call_is_refused(call, error, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argument, rest = refused(call, error, fragment)
    assert argument.isidentifier()  # who
    assert "got" in rest  # what came
    assert "expected" in rest or ";" in rest  # what to do


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_a_file_that_is_not_there_is_named_by_the_system(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=name):
        io.load(name)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        io.load(name)
    with pytest.raises(OSError, match=name):
        io.save(name, MPO_)
    assert [path.name for path in tmp_path.iterdir()] == [name]


ABSENT = [
    (
        lambda: io.to_quimb(MPO_),
        "quimb.tensor",
        "to_quimb: got no module quimb, expected the package quimb; install it",
    ),
    (
        lambda: io.to_torchtt(MPO_),
        "torchtt",
        "to_torchtt: got no module torchtt, expected the package torchTT; install",
    ),
    (
        lambda: io.save("a.safetensors", MPO_),
        "safetensors.numpy",
        "save: got no module safetensors, expected the package",
    ),
    (
        lambda: io.load("a.safetensors"),
        "safetensors",
        "load: got no module safetensors, expected the package safetensors",
    ),
]


@pytest.mark.parametrize(("call", "module", "message"), ABSENT, ids=[module for _, module, _ in ABSENT])
def test_a_package_that_is_not_installed_is_named(call, module, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io.save("a.safetensors", MPO_)
    monkeypatch.setitem(sys.modules, module, None)  # as if it was not there
    with pytest.raises(ModuleNotFoundError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "pip install" in str(caught.value)


def test_what_a_package_lacks_itself_is_not_taken_for_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "quimb.tensor")
    monkeypatch.setitem(sys.modules, "cotengra", None)
    for name in [name for name in sys.modules if name.startswith("quimb.tensor")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="cotengra"):
        io.to_quimb(MPO_)
