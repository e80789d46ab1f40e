"""Checkpoint folders of transformers, read and written without a model: a tensor or a shard at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".vocab", ".merges", ".tiktoken"}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file.

    Attributes
    ----------
    file : Path
    key : str
    like : Tensor
        Of the same shape and dtype, on the meta device.
    """

    file: Path
    key: str
    like: Tensor

    def read(self) -> Tensor:
        """A copy in memory, aligned as any tensor."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.key).clone()


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes
    ----------
    tensors : dict of StoredTensor
        By the names in the files.
    files : list of dict
        Name, size in bytes, time of the last change in nanoseconds and digest of the header, of every file.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    files: list[dict[str, Any]]

    def check_unchanged(self) -> None:
        """Refuse files that were written since.

        Raises
        ------
        ValueError
            If there is one.
        """
        for file in self.files:
            path = self.folder / file["name"]
            if not path.is_file() or _fingerprint(path) != file:
                raise ValueError(f"source: {path} changed during the run; start again")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look into the headers of a checkpoint's files, and check that they are whole.

    Raises
    ------
    ValueError
        If the folder has no safetensors, a file is missing or damaged, or the index names a tensor that is not there.
    """
    index = folder / _INDEX
    where = _weight_map(index) if index.is_file() else None
    if where is None and not (folder / _WEIGHTS).is_file():
        raise ValueError(
            f"source: {folder} has neither {_WEIGHTS} nor {_INDEX}; "
            "save the model with save_pretrained, which writes safetensors"
        )
    names = sorted(set(where.values())) if where is not None else [_WEIGHTS]
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        tensors.update(stored_tensors(folder / name))
    for key, name in (where or {}).items():
        if key not in tensors:
            raise ValueError(f"source: {_INDEX} says that {key} is in {name}, which does not have it; get both anew")
    return Checkpoint(folder, tensors, [_fingerprint(folder / name) for name in names])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"source: {index} is no index of a checkpoint ({error!r}); get it anew") from error
    absent = sorted({name for name in where.values() if not (index.parent / name).is_file()})
    if absent:
        raise ValueError(f"source: {index.parent} lacks {', '.join(absent)}, which its index names; get them")
    return where


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What is in a file, by its keys; nothing is read but the header.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # mapped into memory, not read
            return {
                key: StoredTensor(path, key, torch.empty_like(file.get_tensor(key), device="meta"))
                for key in file.keys()  # noqa: SIM118
            }
    except SafetensorError as error:
        raise ValueError(f"source: {path} is damaged or cut short ({error}); get it anew") from error


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    status = path.stat()
    return {
        "name": path.name,
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "header": hashlib.sha256(header).hexdigest(),
    }


def write_part(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a file of its own name only when it is complete; values of the metadata as JSON."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            part,
            {key: json.dumps(value) for key, value in metadata.items()},
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def part_metadata(path: Path) -> dict[str, Any] | None:
    """Of a complete part; None where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (FileNotFoundError, SafetensorError):  # damaged: the machine went down while it was written
        return None


def write_shards(
    folder: Path, pieces: Mapping[str, StoredTensor], max_shard_size: int | str, n_parameters: int
) -> None:
    """Write a checkpoint as ``save_pretrained`` does, from tensors in other files; one shard is in memory at a time."""
    split = split_torch_state_dict_into_shards(
        {name: piece.like for name, piece in pieces.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: pieces[name].read() for name in names}, folder / file, {"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors lets only the owner read its files
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": n_parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_companions(source: Path, target: Path) -> None:
    """The tokenizer's files, ``generation_config.json`` and the like; neither weights nor ``config.json``."""
    for file in source.iterdir():
        is_companion = file.suffix in _COMPANIONS and not file.name.endswith(".index.json") and file.is_file()
        if is_companion and file.name != "config.json":
            shutil.copy2(file, target / file.name)
