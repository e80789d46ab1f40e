"""What ran a benchmark: the machine, the libraries, and work done in a fresh process of its own."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PACKAGES = ["numpy", "scipy", "torch", "tensorly", "tensorly-torch", "torchTT", "tntorch", "quimb", "peft"]
PACKAGES += ["transformers", "opt_einsum"]


def describe(device: str, seed: int, command: str) -> dict[str, Any]:
    """CPU or GPU, threads, versions, BLAS, the date, the seed and the command."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "blas": {"numpy": _blas_of_numpy(), "torch": _blas_of_torch()},
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "command": command,
    }


def fresh(module: str, function: str, *arguments: Any, here: bool = False) -> Any:
    """The JSON value that ``module.function(*arguments)`` gives in a fresh interpreter, or ``here``, to see it run."""
    if here:
        return getattr(importlib.import_module(module), function)(*arguments)
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); "
        f"import {module}; print(json.dumps({module}.{function}(*json.loads(sys.argv[2]))))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(FOLDER), json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{module}.{function}{arguments}: failed in a fresh process\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def growth_of(call: Callable[[], Any]) -> int:
    """Bytes by which a call raises the resident memory of this process at its peak."""
    with contextlib.suppress(OSError):  # on Linux the peak starts anew
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    call()
    return max(0, _peak() - before)


def _resident() -> int:
    status = Path("/proc/self/status")
    return _field(status, "VmRSS") if status.exists() else _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return _field(status, "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _field(status: Path, name: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _blas_of_numpy() -> str:
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _blas_of_torch() -> str:
    import torch

    lines = torch.__config__.show().splitlines()
    kernels = [line.strip(" -") for line in lines if "oneAPI Math Kernel" in line or "MKL-DNN" in line]
    return "; ".join(
        line.partition(" Product Build")[0].partition("-Product")[0].partition(" (Git")[0] for line in kernels
    )
