"""Files: what is saved comes back to the last bit, what is damaged is refused, and nobody sees half a file."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import zipfile
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import backend_of, cases, dtype_of, exact_ranks, mpos, numpy_of, tts

from tnmpo import MPO, TT, Tolerance, Truncation, Weight, io, mpo_decompose, stream_decompose, tt_decompose

ROOT = Path(__file__).resolve().parents[1]
FORMATS = [".npz", ".safetensors"]
SUFFIX = st.sampled_from(FORMATS)
W = np.random.default_rng(0).normal(size=(12, 18))
CUT = mpo_decompose(W, ((3, 4), (6, 3)), 5)
SMALL = mpo_decompose(W[:4, :4], ((2, 2), (2, 2)), 2)
OTHER = tt_decompose(np.random.default_rng(1).normal(size=(3, 4, 5)).astype("complex64"), Tolerance(0.3))


def through(trains, suffix, backend="numpy"):
    with tempfile.TemporaryDirectory() as folder:
        io.save(Path(folder) / f"trains{suffix}", trains)
        return io.load(Path(folder) / f"trains{suffix}", backend)


def bits(array):
    if dtype_of(array) == "bfloat16":
        return torch.tensor(np.asarray(numpy_of(array), "float32")).view(torch.int32).numpy().tobytes()
    array = array.detach().resolve_conj().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def assert_identical(actual, expected):
    assert type(actual) is type(expected)
    assert actual.center == expected.center
    assert [tuple(core.shape) for core in actual.cores] == [tuple(core.shape) for core in expected.cores]
    assert [dtype_of(core) for core in actual.cores] == [dtype_of(core) for core in expected.cores]
    assert [bits(core) for core in actual.cores] == [bits(core) for core in expected.cores]
    assert_same_record(actual.truncation, expected.truncation)


def assert_same_record(actual, expected):
    assert (actual is None) == (expected is None)
    if expected is None:
        return
    for field in fields(Truncation):
        one, other = getattr(actual, field.name), getattr(expected, field.name)
        if field.name == "spectra":
            assert [values.tobytes() for values in one] == [values.tobytes() for values in other]
            assert all(values.dtype == float for values in one)
        else:
            assert one == other
    assert all(type(rank) is int for rank in actual.ranks)


# ---------------------------------------------------------------------------------------------------------------------
# Saving and loading is the identity
# ---------------------------------------------------------------------------------------------------------------------


@given(st.one_of(mpos(), tts()), SUFFIX)
def test_a_train_comes_back_to_the_last_bit(train, suffix):
    backend = backend_of(train.cores[0])
    for wanted in {backend, "numpy"}:
        back = through(train, suffix, wanted)
        assert_identical(back, train)
        assert {backend_of(core) for core in back.cores} == {wanted}


@given(cases(), SUFFIX, st.data())
def test_the_record_of_a_cut_comes_back_exactly(case, suffix, data):
    center = data.draw(st.integers(0, case.shape.order - 1))
    cut = mpo_decompose(case.W, case.shape, data.draw(exact_ranks(case.shape)), center=center)
    assert cut.truncation is not None
    assert_identical(through(cut, suffix), cut)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_records_of_all_that_cut_come_back(suffix):
    covariance = np.cov(W.T)
    shape = ((3, 4), (6, 3))
    cuts = {
        "weighted": mpo_decompose(W, shape, 5, weight=Weight(cols=covariance)),
        "streamed": stream_decompose(W, shape, 5),
        "tolerance": mpo_decompose(W, shape, Tolerance(0.2)),
        "one site": mpo_decompose(W, ((12,), (18,)), 1),
        "none": mpo_decompose(W, shape),
        "half": mpo_decompose(torch.tensor(W).to(torch.bfloat16), shape, 5),
    }
    back = through(cuts, suffix, "torch")
    assert list(back) == list(cuts)
    for name, cut in cuts.items():
        assert_identical(back[name], cut)


@pytest.mark.parametrize("suffix", FORMATS)
def test_numbers_at_the_ends_of_the_scale_come_back(suffix):
    record = Truncation((1, 2, 1), 5e-324, 0.1 + 0.2, 1.7976931348623157e308, -0.0, (np.array([1e308, 5e-324]),))
    core = np.array([-0.0, 5e-324, 1.7976931348623157e308, np.inf, -np.inf, np.nan]).reshape(1, 3, 2, 1)
    train = MPO([core], truncation=record)
    assert_identical(through(train, suffix), train)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_every_bfloat16_comes_back(suffix, backend):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()].reshape(1, 2, -1, 1)
    core = every if backend == "torch" else jax.numpy.asarray(every.float().numpy(), "bfloat16")
    back = through(MPO([core]), suffix, backend)
    assert_identical(back, MPO([core]))
    with tempfile.TemporaryDirectory() as folder:  # two bytes each
        io.save(Path(folder) / f"a{suffix}", MPO([core]))
        assert (Path(folder) / f"a{suffix}").stat().st_size < 2 * every.numel() + 1500


@pytest.mark.parametrize("suffix", FORMATS)
def test_arrays_in_odd_memory_come_back(suffix):
    values = np.arange(24.0).reshape(1, 4, 6, 1)
    read_only = values.copy()
    read_only.flags.writeable = False
    traced = torch.tensor(values, requires_grad=True)
    conjugated = torch.complex(torch.tensor(values), torch.tensor(values)).conj()
    for core in (values[:, ::-1, ::2], values.astype(">f8"), values.astype(">c8"), read_only, traced, conjugated):
        assert_identical(through(MPO([core]), suffix), MPO([core]))
    assert_identical(
        through(TT([values.astype("float16").reshape(1, 24, 1)]), suffix, "torch"),
        TT([values.astype("float16").reshape(1, 24, 1)]),
    )


@settings(max_examples=20)
@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=4, unique=True), SUFFIX)
def test_any_name_and_any_mixture_comes_back(names, suffix):
    trains = {name: (CUT, OTHER)[place % 2] for place, name in enumerate(names)}
    back = through(trains, suffix)
    assert list(back) == names
    for name, train in trains.items():
        assert_identical(back[name], train)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_loaded_can_be_written_to_and_does_not_hold_the_file(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    io.save(path, CUT)
    back = io.load(path)
    io.save(path, back)
    back.cores[0][...] = 0
    assert_identical(io.load(str(path)), CUT)


# ---------------------------------------------------------------------------------------------------------------------
# The formats, as the page on interchange tells of them
# ---------------------------------------------------------------------------------------------------------------------


def test_another_program_reads_and_writes_the_file(tmp_path):
    io.save(tmp_path / "a.npz", {"cut": CUT, "other": OTHER})
    io.save(tmp_path / "a.safetensors", {"cut": CUT, "other": OTHER})
    with np.load(tmp_path / "a.npz") as archive:
        arrays = dict(archive)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        header = file.metadata()["tnmpo"]
    assert str(arrays.pop("tnmpo")) == header
    assert sorted(arrays) == sorted(tensors)
    assert [entry["name"] for entry in json.loads(header)["trains"]] == ["cut", "other"]
    assert np.array_equal(tensors["0.core.0"], CUT.cores[0])
    assert np.array_equal(tensors["1.core.1"].view("complex64")[..., 0], OTHER.cores[1])
    assert np.array_equal(arrays["1.core.1"], OTHER.cores[1])
    for suffix in FORMATS:
        assert list(io.load(tmp_path / f"a{suffix}")) == ["cut", "other"]


def test_a_file_of_version_1_written_by_hand_is_read(tmp_path):
    truncation = {
        "ranks": [1, 1, 1],
        "spectra": 1,
        "error": 0.5,
        "relative_error": 0.25,
        "lower_bound": 0.5,
        "upper_bound": 0.5,
        "norm": "plain",
    }
    entry = {"name": None, "kind": "MPO", "order": 2, "dtype": "float32", "center": 1, "truncation": truncation}
    arrays = {
        "0.core.0": np.array([1, 2], "<f4").reshape(1, 2, 1, 1),
        "0.core.1": np.array([3, 4], "<f4").reshape(1, 1, 2, 1),
        "0.spectrum.1": np.array([2.0, 0.5]),
    }
    header = json.dumps({"version": 1, "trains": [entry]})
    np.savez_compressed(tmp_path / "a.npz", tnmpo=np.array(header), **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"tnmpo": header, "author": "somebody"})
    for suffix in FORMATS:
        mpo = io.load(tmp_path / f"a{suffix}")
        assert np.array_equal(mpo.to_matrix(), [[3, 4], [6, 8]])
        assert (mpo.center, mpo.truncation.error, mpo.truncation.ranks) == (1, 0.5, (1, 1, 1))
        assert np.array_equal(mpo.truncation.spectra, [[2.0, 0.5]])


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


def test_no_damage_goes_unnoticed_in_an_archive_and_none_does_harm(tmp_path):
    """Every byte in turn: either the same trains come back, or the file is named as the culprit."""
    for suffix, checked in ((".npz", True), (".safetensors", False)):
        path = tmp_path / f"a{suffix}"
        refused = (
            f"path: got {str(path)!r}, expected a file that tnmpo.io.save wrote; it is damaged or another program's"
        )
        io.save(path, SMALL)
        content = path.read_bytes()
        for place in range(0, len(content), 2):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            try:
                back = io.load(path)
            except ValueError as error:
                message = str(error)
            else:
                message = refused
                if checked:
                    assert_identical(back, SMALL)
            assert message.startswith(refused)
            assert "\n" not in message


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_ends_early_is_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    io.save(path, CUT)
    content = path.read_bytes()
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="it is damaged or another program's"):
            io.load(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_no_pickle_is_read(tmp_path):
    path, target = tmp_path / "a.npz", tmp_path / "it was"
    io.save(path, CUT)
    with np.load(path) as archive:
        arrays = dict(archive)
    bomb = np.empty((), object)
    bomb[()] = Bomb(target)
    for name in ("tnmpo", "0.core.0", "0.spectrum.1"):
        np.savez(path, **{**arrays, name: bomb})
        with pytest.raises(ValueError, match="allow_pickle=False"):
            io.load(path)
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="damaged or another program's"):
        io.load(path)
    assert not target.exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tnmpo.npy", pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="damaged or another program's"):
        io.load(path)
    assert not target.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Nobody sees half a file
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_is_full_leaves_the_old_file(suffix, tmp_path):
    """A limit on the size of files, set in a process of its own, fails the write half way as a full disk does."""
    path = tmp_path / f"a{suffix}"
    io.save(path, CUT)
    code = f"""if True:
        import resource, numpy as np
        from tnmpo import MPO, io
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            io.save({str(path)!r}, MPO([np.ones((1, 64, 64, 1))]))
        except OSError as error:
            print(error.strerror)
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT / "tests"
    )
    assert run.stdout.strip() == "File too large"
    assert_identical(io.load(path), CUT)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_reader_sees_the_old_or_the_new_file(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    trains = [MPO([np.full((1, 300, 300, 1), float(k))]) for k in range(2)]
    io.save(path, trains[0])
    done = threading.Event()

    def write():
        for k in range(30):
            io.save(path, trains[k % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(tuple(np.unique(io.load(path).cores[0])))
    writer.join()
    assert seen <= {(0.0,), (1.0,)}
    assert seen
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_needs_numpy_alone():
    code = """if True:
        import sys
        sys.modules["torch"] = sys.modules["safetensors"] = None
        import tempfile, numpy as np
        from tnmpo import MPO, io
        path = tempfile.mkdtemp() + "/a.npz"
        io.save(path, MPO([np.ones((1, 2, 2, 1))]))
        print(io.load(path).ranks, *sorted({"torch", "jax", "quimb", "torchtt", "tltorch"} & {
            name for name, module in sys.modules.items() if module}))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert run.stdout.strip() == "(1, 1)"
