"""The records of results: what a folder was made with, so that a finished stage is known and not run again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

from ..checkpoint import write_text

_PLAN = "plan.json"


def check_output(output: Path) -> None:
    """Refuse a result that could not be written, before any work.

    Raises
    ------
    ValueError
        If the path, or one above it, is a file.
    """
    for path in (output, *output.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"output: {path} is a file, expected a folder; choose another path")
            return


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "tnmpo": importlib.metadata.version("tnmpo"),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def finished(record: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a stage that is done; one of other settings is refused, so that no result is lost unasked."""
    found = read_record(record)
    if not found or found.get("settings") == settings:
        return found or None
    earlier, now = _flat(found.get("settings") or {}), _flat(settings)
    changed = [f"{name} was {earlier.get(name)}" for name in now if earlier.get(name) != now[name]]
    raise ValueError(
        f"output: {record.parent} holds a result of other settings ({', '.join(changed) or 'other stages'}); "
        "choose another output, or remove that folder"
    )


def read_record(record: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none."""
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for stage, values in settings.items():
        if isinstance(values, dict):
            flat.update({f"{stage}.{key}": value for key, value in values.items()})
        else:
            flat[stage] = values
    return flat


def check_plan(work: Path, plan: dict[str, Any]) -> None:
    """Refuse to go on with other settings than the first start had.

    Raises
    ------
    ValueError
        If the folder holds work that was begun with others; the message names them.
    """
    earlier = read_record(work / _PLAN)
    begun = any(any(work.glob(pattern)) for pattern in ("seed-*.json", "seed-*/checkpoint-*", "log.json"))
    if earlier and begun and earlier != plan:
        changed = ", ".join(f"{name} {earlier.get(name)}" for name in plan if earlier.get(name) != plan[name])
        raise ValueError(f"{work} holds an interrupted run with other settings ({changed}); remove it to start anew")


def write_plan(work: Path, plan: dict[str, Any]) -> None:
    """Begin work in a folder: from here on ``check_plan`` knows its settings."""
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / _PLAN, to_json(plan))


def to_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1)
