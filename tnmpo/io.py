"""Trains on disk and in the hands of other libraries.

``save`` and ``load`` keep every bit, the gauge and the record of a cut. The converters give the same cores to quimb,
torchTT and TensorLy-Torch and take them back; those of TensorLy are methods of ``MPO`` and ``TT``.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping
from io import BytesIO
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
_EXPECTED = "expected a file that tnmpo.io.save wrote"

Arrays = dict[str, np.ndarray]


def save(path: str | os.PathLike[str], trains: Train | Mapping[str, Train]) -> None:
    """Write a train, or a mapping from names to trains, to one file.

    Parameters
    ----------
    path : str or path
        Ends in ``.safetensors`` or in ``.npz``; the page on interchange describes what is in it.
    trains : MPO, TT, or mapping from a name to one
        Of any backend and dtype, also mixed.

    Raises
    ------
    ValueError, TypeError
        If the name ends otherwise, ``trains`` is none or empty, or a name is no string.
    OSError
        If the file cannot be written. What lay there before is then untouched.

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
    header, arrays = _described(trains)
    content = _pack_npz(header, arrays) if place.suffix == ".npz" else _pack_safetensors(header, arrays)
    part = place.with_name(f".{uuid.uuid4().hex}{place.suffix}")
    try:
        part.write_bytes(content)
        os.replace(part, place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], backend: str = "numpy", *, device: Any = None) -> Any:
    """Read what ``save`` wrote: a train, or a dict from names to trains.

    Parameters
    ----------
    path : str or path
    backend : {'numpy', 'torch', 'jax'}
        Whose arrays the cores become, whichever they were.
    device : optional
        Where torch (``'cuda:0'``) or jax (``jax.devices()[0]``) is to put them; by default where it puts new arrays.

    Returns
    -------
    MPO or TT, or dict from str to them

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ValueError
        If it is damaged, of another program or of a newer version, or the backend lacks the device or the dtype:
        numpy has no bfloat16, jax 64-bit types only once they are switched on.
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
    if backend not in ("numpy", "torch", "jax"):
        raise ValueError(f"backend: got {shown(backend)}, expected 'numpy', 'torch' or 'jax'")
    if device is not None and backend == "numpy":
        raise ValueError(f"device: got {shown(device)} for numpy, expected None; load with backend='torch' or 'jax'")
    peer(backend, backend, "load")
    unpack = _unpack_npz if place.suffix == ".npz" else _unpack_safetensors
    if not place.exists():
        raise FileNotFoundError(f"path: got {str(place)!r}, which does not exist, {_EXPECTED}; check its name")
    header, arrays = _readable(place, unpack, place.read_bytes())
    if header is None:
        raise ValueError(f"path: got {str(place)!r}, which holds no trains, {_EXPECTED}; it is another program's")
    description = _readable(place, json.loads, header)
    if _readable(place, lambda: description["version"] > _VERSION):
        raise ValueError(
            f"path: got {str(place)!r} of format version {description['version']}, expected at most {_VERSION}; "
            "update tnmpo"
        )
    entries = _readable(place, _restored, description, arrays)
    trains = {name: _on_backend(train, dtype, backend, device) for name, train, dtype in entries}
    return trains.get(None, trains)


def _checked(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: got {shown(path)}, expected the name of a file")
    place = Path(path)
    if place.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path: got {str(place)!r}, expected a name that ends in .safetensors or .npz")
    return place


def _readable(place: Path, read: Any, *content: Any) -> Any:
    """``read(*content)``, where whatever goes wrong is the file's fault: each reader has exceptions of its own."""
    try:
        return read(*content)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"path: got {str(place)!r}, which cannot be read ({type(error).__name__}: {reason}), {_EXPECTED}; "
            "it is damaged or another program's"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Trains as a header of text and named little-endian arrays
# ---------------------------------------------------------------------------------------------------------------------


def _described(trains: Any) -> tuple[str, Arrays]:
    arrays: Arrays = {}
    entries = []
    for place, (name, train) in enumerate(_named(trains)):
        entries.append({"name": name, **_described_train(train)})
        arrays |= {f"{place}.core.{site}": _stored(core) for site, core in enumerate(train.cores)}
        if train.truncation is not None:
            arrays |= {
                f"{place}.spectrum.{bond}": np.asarray(spectrum, "<f8")
                for bond, spectrum in enumerate(train.truncation.spectra)
            }
    return json.dumps({"version": _VERSION, "trains": entries}), arrays


def _named(trains: Any) -> list[tuple[Any, Train]]:
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


def _described_train(train: Train) -> dict[str, Any]:
    record = train.truncation
    return {
        "kind": "MPO" if isinstance(train, MPO) else "TT",
        "shape": train.frame.site_shapes,
        "ranks": train.ranks,
        "dtype": dtype_name(train.cores[0]),
        "center": train.center,
        "truncation": record
        and {
            "ranks": [int(rank) for rank in record.ranks],
            "spectra": len(record.spectra),
            # JSON leaves the precision of its numbers open, a hexadecimal float does not
            **{name: float(getattr(record, name)).hex() for name in _NUMBERS},
        },
    }


def _restored(description: Any, arrays: Arrays) -> list[tuple[str | None, Train, str]]:
    """Name, train on numpy, and dtype of every entry: a bfloat16 is a float32 here."""
    entries: list[tuple[str | None, Train, str]] = []
    for place, entry in enumerate(description["trains"]):
        cores = [_values(arrays[f"{place}.core.{site}"], entry["dtype"]) for site in range(len(entry["shape"]))]
        record = entry["truncation"]
        truncation = record and Truncation(
            ranks=tuple(map(int, record["ranks"])),
            spectra=tuple(arrays[f"{place}.spectrum.{bond}"].astype(float) for bond in range(record["spectra"])),
            **{name: float.fromhex(record[name]) for name in _NUMBERS},
        )
        train = _KINDS[entry["kind"]](cores, center=entry["center"], truncation=truncation)
        if [list(site) for site in train.frame.site_shapes] != entry["shape"] or list(train.ranks) != entry["ranks"]:
            raise ValueError("the header tells of other shapes than the cores have")
        entries.append((entry["name"] if entry["name"] is None else str(entry["name"]), train, entry["dtype"]))
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
        raise ValueError(f"the header tells of {dtype}, the core is {array.dtype}")
    return array


def _on_backend(train: Train, dtype: str, backend: str, device: Any) -> Train:
    cores = [array_of(core, backend, dtype) for core in train.cores]
    if device is not None:
        put = sys.modules["jax"].device_put if backend == "jax" else sys.modules["torch"].Tensor.to
        cores = [put(core, device) for core in cores]
    return type(train)(cores, center=train.center, truncation=train.truncation)


# ---------------------------------------------------------------------------------------------------------------------
# The two formats
# ---------------------------------------------------------------------------------------------------------------------


def _pack_npz(header: str, arrays: Arrays) -> bytes:
    file = BytesIO()
    contents: dict[str, Any] = {_HEADER: np.array(header), **arrays}
    np.savez(file, **contents)
    return file.getvalue()


def _unpack_npz(content: bytes) -> tuple[str | None, Arrays]:
    archive = np.load(BytesIO(content), allow_pickle=False)
    if isinstance(archive, np.ndarray) or _HEADER not in archive:
        return None, {}
    return str(archive[_HEADER]), {name: archive[name] for name in archive if name != _HEADER}


# safetensors has no complex128: complex numbers have a last axis for their two parts. The only integers are bfloat16s.
_SAFETENSORS = {"f2": "F16", "u2": "BF16", "f4": "F32", "f8": "F64"}


def _pack_safetensors(header: str, arrays: Arrays) -> bytes:
    """A length, a header of JSON, the bytes of the arrays; by hand, since ``safetensors.numpy`` writes no bfloat16."""
    parts = {
        name: array[..., None].view(f"<f{array.itemsize // 2}") if array.dtype.kind == "c" else array
        for name, array in arrays.items()
    }
    described: dict[str, Any] = {"__metadata__": {_HEADER: header}}
    end = 0
    ordered = sorted(parts.items(), key=lambda item: -item[1].itemsize)  # so that each begins at a multiple of its size
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        described[name] = {
            "dtype": _SAFETENSORS[array.dtype.str[1:]],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for _, array in ordered)])


def _unpack_safetensors(content: bytes) -> tuple[str | None, Arrays]:
    tensors = peer("safetensors", "safetensors", "load").deserialize(content)  # checks the header
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_HEADER)
    if header is None:
        return None, {}
    dtypes = {name: f"<{code}" for code, name in _SAFETENSORS.items()}
    return header, {
        name: np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors
    }
