"""The layout of the package: who imports whom, what is public, and what importing costs.

``tests/public_api.txt`` is a snapshot, so that a change of the public surface shows as a diff. After an
intended change write it anew with

    python tests/test_architecture.py
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tnmpo

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "public_api.txt"
# A module imports only modules above it. ``_weighted`` stands above ``_truncate``, which cuts in its norm.
LAYERS = [
    "_backend",
    "_factor",
    "_shapes",
    "_contract",
    "_bounds",
    "_allot",
    "_ranks",
    "_vocabularies",
    "_weights",
    "_chain",
    "_train",
    "_tt",
    "_mpo",
    "_gram",
    "_canonical",
    "_entanglement",
    "_profile",
    "_blocks",
    "_weighted",
    "_joint",
    "_fit",
    "_trials",
    "_truncate",
    "_decompose",
    "_algebra",
    "_residual",
    "_unfolding",
    "_randomized",
    "_streaming",
    "_search",
    "_estimator",
    "_interchange",
    "io",
    "random",
    "testing",
    "plot",
]
PUBLIC_MODULES = {"io", "plot", "random", "testing", "integrations"}


def trees(folder):
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(tree, package):
    """Every (module, name) that is imported anywhere in the file, relative ones resolved; name is None for a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def integrations_package(path):
    return ".".join(["tnmpo", *path.relative_to(ROOT).parts[:-1]])


def test_every_module_has_its_place():
    assert {path.stem for path in (ROOT / "tnmpo").glob("*.py")} - {"__init__"} <= set(LAYERS)


@pytest.mark.parametrize("name", [name for name in LAYERS if (ROOT / "tnmpo" / f"{name}.py").exists()])
def test_a_module_imports_only_what_is_above_it(name):
    tree = ast.parse((ROOT / "tnmpo" / f"{name}.py").read_text())
    above = set(LAYERS[: LAYERS.index(name)])
    for module, imported in imports(tree, "tnmpo"):
        if module == "tnmpo":
            assert imported in above, f"{name} imports {imported}"
        elif module.startswith("tnmpo."):
            assert module.removeprefix("tnmpo.") in above, f"{name} imports {module}"
        else:
            package = module.partition(".")[0]
            assert package != "transformers", f"{name} imports {module}"
            # torch and jax in functions only, where a tensor of their own has come in
            top_level = {entry for node in tree.body for entry in imports(ast.Module([node], []), "tnmpo")}
            assert package not in {"torch", "jax", "matplotlib"} or (module, imported) not in {
                entry for entry in top_level if not in_function(tree, entry)
            }, f"{name} imports {module} at its top"


def in_function(tree, entry):
    guarded = (ast.FunctionDef, ast.If)  # if TYPE_CHECKING
    return any(
        entry in set(imports(ast.Module([node], []), "tnmpo")) for node in tree.body if isinstance(node, guarded)
    )


def test_importing_tnmpo_pulls_in_no_framework():
    code = "import sys, tnmpo, tnmpo.plot; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    loaded = set(run.stdout.split())
    assert "tnmpo" in loaded
    assert not loaded & {"torch", "jax", "transformers", "matplotlib", "tensorflow", "cupy"}


def test_the_core_works_without_torch():
    code = """if True:
        import sys
        sys.modules["torch"] = None
        import numpy as np, tnmpo
        W = np.random.default_rng(0).normal(size=(12, 12)).astype("float32")
        cut = tnmpo.mpo_decompose(W, tnmpo.MPOShape.low_rank(W.shape), 3, weight=tnmpo.Weight(cols=np.ones(12)))
        print(tnmpo.truncate(cut, 2).ranks, len(tnmpo.entanglement_entropy(cut)))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert run.stdout.strip() == "(1, 2, 1) 1"


def test_integrations_use_public_names_only():
    allowed = set(tnmpo.__all__) | PUBLIC_MODULES | {"__version__"}
    files = trees("integrations")
    assert files
    for path, tree in files.items():
        for module, name in imports(tree, integrations_package(path)):
            if module == "tnmpo":
                assert name is None or name in allowed, f"{path.name} imports tnmpo.{name}"
            elif module.startswith("tnmpo."):
                assert module.split(".")[1] in PUBLIC_MODULES, f"{path.name} imports {module}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tnmpo":
                assert node.attr in allowed, f"{path.name} uses tnmpo.{node.attr}"


def test_integrations_refuse_their_bare_name():
    code = "import integrations"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode != 0
    assert "import it as 'tnmpo.integrations'" in run.stderr


@pytest.mark.parametrize("folder", ["tnmpo", "integrations"])
def test_tensorlys_global_backend_is_never_touched(folder):
    forbidden = {"set_backend", "backend_context", "get_backend"}
    for path, tree in trees(folder).items():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = {name for _, name in imports(tree, "tnmpo")}
        assert not (names | attributes | imported) & forbidden, path


def public_api():
    """One line for every public name, and for every public member of a public class."""
    lines = []
    for name in tnmpo.__all__:
        value = getattr(tnmpo, name)
        if not inspect.isclass(value):
            lines.append(f"{name}{inspect.signature(value)}")
            continue
        protocol = getattr(value, "_is_protocol", False)
        lines.append(f"class {name}" + ("" if protocol else str(inspect.signature(value))))
        # the members that the class or a base of ours defines, and the fields of a dataclass without a default
        ours = [vars(base) for base in value.__mro__ if base.__module__.startswith("tnmpo")]
        for member, raw in {name: raw for members in ours[::-1] for name, raw in members.items()}.items():
            if member.startswith("_") or inspect.ismemberdescriptor(raw):
                continue
            if isinstance(raw, property):
                lines.append(f"    {name}.{member}: {raw.fget.__annotations__['return']}")
            elif callable(raw) or isinstance(raw, classmethod):
                lines.append(f"    {name}.{member}{inspect.signature(getattr(value, member))}")
    return "\n".join(lines) + "\n"


def test_the_public_api_is_the_recorded_one():
    assert sorted(tnmpo.__all__, key=str) == sorted(set(tnmpo.__all__), key=str)
    assert public_api() == SNAPSHOT.read_text()


def test_every_public_object_is_documented():
    for name in tnmpo.__all__:
        value = getattr(tnmpo, name)
        doc = inspect.getdoc(value) or ""
        first = doc.partition("\n")[0]
        assert first.endswith((".", ":", ",")) or len(doc.splitlines()) > 1, name
        if inspect.isfunction(value):
            assert "Examples\n--------" in doc, name
            for parameter in inspect.signature(value).parameters:
                assert parameter in doc, f"{name}: {parameter}"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
