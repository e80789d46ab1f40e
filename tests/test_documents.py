"""What is written runs: the examples of every docstring, of the README, and the notebooks."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import tnmpo
from tnmpo import integrations

ROOT = Path(__file__).resolve().parents[1]
# pytest's own doctest collection would import integrations/ under its bare name, which it refuses.
PACKAGES = [tnmpo, integrations]
MODULES = sorted(
    {info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    | {package.__name__ for package in PACKAGES}
)
MARKDOWN = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in MARKDOWN if "```python" in page.read_text()]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


@pytest.mark.parametrize("name", tnmpo.__all__)
def test_every_public_function_has_examples(name):
    value = getattr(tnmpo, name)
    examples = [example for test in doctest.DocTestFinder().find(value, name) for example in test.examples]
    # records of results are shown where they are made, the protocol where policies are
    records = {"ALSFit", "ContractionPlan", "ShapeCandidate", "ShapeRanking", "SpectralBounds", "Truncation"}
    assert examples or name in records | {"RankPolicy"}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_stored_outputs_are_results_alone(path):
    """Neither warnings, which name folders of the machine, nor errors."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_the_notebooks_run(tmp_path):
    assert (ROOT / "notebooks").is_dir()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
