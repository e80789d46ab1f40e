"""What ``import tnmpo`` loads: numpy, scipy, TensorLy and opt_einsum, and nothing that is only sometimes needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "IPython",
    "accelerate",
    "cupy",
    "dask",
    "h5py",
    "hypothesis",
    "jax",
    "jaxlib",
    "matplotlib",
    "pandas",
    "quimb",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tltorch",
    "tntorch",
    "tokenizers",
    "torch",
    "torchtt",
    "tqdm",
    "transformers",
    "typer",
    "zarr",
}


def loaded_by(code):
    """The top-level packages in a fresh interpreter after ``code``."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("code", ["import tnmpo", "import tnmpo; tnmpo.io, tnmpo.plot, tnmpo.random"])
def test_importing_loads_nothing_heavy(code):
    assert not loaded_by(code) & HEAVY


def test_importing_loads_no_package_beyond_tensorly_and_opt_einsum():
    ours = loaded_by("import tnmpo") - loaded_by("import tensorly, opt_einsum")
    assert {name for name in ours if name not in sys.stdlib_module_names and not name.startswith("_")} == {"tnmpo"}
