"""Trains on disk and in the hands of other libraries.

``save`` and ``load`` keep every bit, the gauge and the record of a cut. The converters give the same cores to quimb,
torchTT and TensorLy-Torch and take them back; those of TensorLy are methods of ``MPO`` and ``TT``.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._backend import Array, array_of, as_numpy, dtype_name
from ._bounds import Truncation
from ._interchange import (
    from_quimb,
    from_tensorly_torch,
    from_torchtt,
    peer,
    to_quimb,
    to_tensorly_torch,
    to_torchtt,
)
from ._mpo import MPO
from ._shapes import shown
from ._train import Train
from ._tt import TT

__all__ = [
    "from_quimb",
    "from_tensorly_torch",
    "from_torchtt",
    "load",
    "save",
    "to_quimb",
    "to_tensorly_torch",
    "to_torchtt",
]

_VERSION = 1
_HEADER = "tnmpo"  # the name under which the description of the trains is kept
_KINDS: dict[str, type[Train]] = {"MPO": MPO, "TT": TT}
_NUMBERS = ("error", "relative_error", "lower_bound", "upper_bound")

Arrays = dict[str, np.ndarray]
Entry = tuple[str | None, Train, str]  # name, train on numpy, dtype: a bfloat16 is a float32 on numpy


def save(path: str | os.PathLike[str], trains: Train | Mapping[str, Train]) -> None:
    """Write a train, or a mapping from names to trains, to one file.

    Parameters
    ----------
    path : str or path
        Ends in ``.npz`` or in ``.safetensors``; the page on interchange describes what is in it.
    trains : MPO, TT, or mapping from a name to one
        Of any backend and dtype, also mixed.

    Raises
    ------
    ValueError, TypeError
        If the name ends otherwise, ``trains`` is none or empty, or a name is no string.
    OSError
        If the file cannot be written. What lay there before is then untouched.
    ModuleNotFoundError
        If safetensors is not installed, for a file of its kind.

    Notes
    -----
    Values, dtypes, ``center`` and the whole record ``truncation`` are kept exactly; backend, device and gradients are
    not. Nothing is pickled. The file is written beside its place and renamed, so that no reader sees half of one.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> mpo = tnmpo.mpo_decompose(np.diag([3.0, 2, 1, 0]), ((2, 2), (2, 2)), rank=1)
    >>> save("query.safetensors", mpo)
    >>> save("layer.npz", {"query": mpo, "key": mpo})
    >>> sorted(load("layer.npz")), load("query.safetensors").truncation.error == mpo.truncation.error
    (['key', 'query'], True)
    """
    place = _checked(path)
    if not place.parent.is_dir():
        raise FileNotFoundError(f"path: got {str(place)!r}, whose folder does not exist, expected one; make it first")
    write = _write_npz if place.suffix == ".npz" else _write_safetensors
    header, arrays = _described(trains)
    part = place.with_name(f".{uuid.uuid4().hex}{place.suffix}")
    try:
        write(part, header, arrays)
        os.replace(part, place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], backend: str = "numpy") -> Any:
    """Read what ``save`` wrote: a train, or a dict from names to trains.

    Parameters
    ----------
    path : str or path
    backend : {'numpy', 'torch', 'jax', 'cupy', 'tensorflow'}
        Whose arrays the cores become, whichever they were, where it puts new arrays.

    Returns
    -------
    MPO or TT, or dict from str to them

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is damaged, of another program or of a newer version, or the backend lacks the dtype: numpy has no
        bfloat16, jax 64-bit types only once they are switched on.
    ModuleNotFoundError
        If the backend, or for ``.safetensors`` the package safetensors, is not installed.

    Notes
    -----
    Nothing in the file is executed: no pickle is read. Of the two only ``.npz`` has checksums: in a ``.safetensors``
    a flipped bit among the values goes unnoticed.

    Examples
    --------
    >>> import numpy as np, tnmpo
    >>> save("tt.npz", tnmpo.tt_decompose(np.ones((2, 3, 4), "float32")))
    >>> load("tt.npz").shape, load("tt.npz", backend="torch").cores[0].dtype
    ((2, 3, 4), torch.float32)
    """
    place = _checked(path)
    read = _read_npz if place.suffix == ".npz" else _read_safetensors
    place.open("rb").close()  # whatever keeps it from being read is said in the system's words
    try:
        header, arrays = read(place)
        entries = _restored(json.loads(header), arrays)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each reader has exceptions of its own, and whatever they are, the file is at fault
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ValueError(
            f"path: got {str(place)!r}, expected a file that tnmpo.io.save wrote; it is damaged or another program's "
            f"({reason})"
        ) from error
    trains = {name: _on_backend(train, backend, dtype) for name, train, dtype in entries}
    return trains.get(None, trains)


def _checked(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: got {shown(path)}, expected the name of a file")
    place = Path(path)
    if place.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: got {str(place)!r}, expected a name that ends in .npz or .safetensors")
    return place


def _on_backend(train: Train, backend: str, dtype: str) -> Train:
    cores = [array_of(core, backend, dtype) for core in train.cores]
    return type(train)(cores, center=train.center, truncation=train.truncation)


# ---------------------------------------------------------------------------------------------------------------------
# Trains as a header of JSON and named little-endian arrays
# ---------------------------------------------------------------------------------------------------------------------


def _described(trains: Any) -> tuple[str, Arrays]:
    arrays: Arrays = {}
    entries = []
    for place, (name, train) in enumerate(_named(trains)):
        record = train.truncation
        entries.append(
            {
                "name": name,
                "kind": "MPO" if isinstance(train, MPO) else "TT",
                "order": train.order,
                "dtype": dtype_name(train.cores[0]),
                "center": train.center,
                "truncation": record and _described_cut(record),
            }
        )
        arrays |= {f"{place}.core.{site}": _stored(core) for site, core in enumerate(train.cores)}
        spectra = () if record is None else record.spectra
        arrays |= {f"{place}.spectrum.{bond}": np.asarray(values, "<f8") for bond, values in enumerate(spectra, 1)}
    return json.dumps({"version": _VERSION, "trains": entries}), arrays


def _described_cut(record: Truncation) -> dict[str, Any]:
    # json writes the shortest digits that read back as the same double
    numbers = {name: float(getattr(record, name)) for name in _NUMBERS}
    return {"ranks": list(map(int, record.ranks)), "spectra": len(record.spectra), "norm": record.norm, **numbers}


def _named(trains: Any) -> list[tuple[str | None, Train]]:
    if isinstance(trains, Train):
        return [(None, trains)]
    if not isinstance(trains, Mapping):
        raise TypeError(f"trains: got {type(trains).__name__}, expected an MPO, a TT, or a mapping from names to them")
    if not trains:
        raise ValueError("trains: got no trains, expected at least one name with its MPO or TT")
    for name, train in trains.items():
        if not isinstance(name, str):
            raise TypeError(f"trains: got {shown(name)} for a name, expected a string")
        if not isinstance(train, Train):
            raise TypeError(f"trains: got {type(train).__name__} under {name!r}, expected an MPO or a TT")
    return list(trains.items())


def _restored(description: Any, arrays: Arrays) -> list[Entry]:
    if description["version"] > _VERSION:
        raise ValueError(f"format version {description['version']}, known up to {_VERSION}: update tnmpo")
    entries: list[Entry] = []
    for place, entry in enumerate(description["trains"]):
        order, dtype, record = entry["order"], entry["dtype"], entry["truncation"]
        truncation = record and Truncation(
            ranks=tuple(map(int, record["ranks"])),
            spectra=tuple(arrays[f"{place}.spectrum.{bond}"].astype(float) for bond in range(1, record["spectra"] + 1)),
            norm=record["norm"],
            **{name: float(record[name]) for name in _NUMBERS},
        )
        cores = [_values(arrays[f"{place}.core.{site}"], dtype) for site in range(order)]
        train = _KINDS[entry["kind"]](cores, center=entry["center"], truncation=truncation)
        entries.append((entry["name"], train, dtype))
    return entries


def _stored(core: Array) -> np.ndarray:
    """The numbers little-endian and contiguous, a bfloat16 as the 16 bits it is."""
    array = as_numpy(core)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    # as float32 its bits are followed by 16 zeros
    return (array.view("<u4") >> 16).astype("<u2") if dtype_name(core) == "bfloat16" else array


def _values(array: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of ``_stored``; a complex number may also come as its two parts, along a last axis."""
    if dtype == "bfloat16" and array.dtype == "<u2":
        return (array.astype("<u4") << 16).view("<f4")
    if dtype.startswith("complex") and array.dtype.kind == "f":
        array = array.view(dtype)[..., 0]
    if array.dtype != dtype:
        raise ValueError(f"the header tells of {dtype}, a core is {array.dtype}")
    return array


# ---------------------------------------------------------------------------------------------------------------------
# The two formats
# ---------------------------------------------------------------------------------------------------------------------


def _write_npz(path: Path, header: str, arrays: Arrays) -> None:
    contents: dict[str, Any] = {_HEADER: np.array(header), **arrays}
    np.savez(path, **contents)


def _read_npz(path: Path) -> tuple[str, Arrays]:
    # opened here: where the archive is damaged, numpy forgets to close what it opened
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return str(archive[_HEADER]), {name: archive[name] for name in archive if name != _HEADER}


def _write_safetensors(path: Path, header: str, arrays: Arrays) -> None:
    # safetensors has no complex128: complex numbers have a last axis for their two parts
    parts = {
        name: array[..., None].view(array.real.dtype) if array.dtype.kind == "c" else array
        for name, array in arrays.items()
    }
    # by way of bytes: what keeps a file from being written is then said in the system's words
    path.write_bytes(peer("safetensors.numpy", "safetensors", "save").save(parts, metadata={_HEADER: header}))


def _read_safetensors(path: Path) -> tuple[str, Arrays]:
    with peer("safetensors", "safetensors", "load").safe_open(path, framework="numpy") as file:
        return (file.metadata() or {})[_HEADER], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
