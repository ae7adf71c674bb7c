"""The tree is what the packaging and the rules of the house say."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kernelforge
import kernelforge.ir
from kernelforge import errors

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("kernelforge", "ir", "backends")
LONGEST_FILE = 550

HEAVY = ("hypothesis", "llvmlite", "numba", "platformdirs", "pyopencl", "rich", "scipy")
"""What the first use of a feature loads, not the import of the package."""


def sources(*folders: str) -> list[Path]:
    """Return every Python file of the folders, links not followed."""
    links = {ROOT / "kernelforge" / name for name in ("ir", "backends")}
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if links.isdisjoint(path.parents)]


def test_package_list_is_the_tree() -> None:
    tree = set()
    for init in (p for p in sources(*FOLDERS) if p.name == "__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        tree.add(".".join(parts if parts[0] == "kernelforge" else ("kernelforge", *parts)))
    assert tree == set(PROJECT["tool"]["setuptools"]["packages"])


def test_folders_are_packages() -> None:
    for path in sources(*FOLDERS, "tests"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


def test_links_show_the_two_folders() -> None:
    assert kernelforge.ir.__file__ is not None
    assert Path(kernelforge.ir.__file__).samefile(ROOT / "ir" / "__init__.py")
    for name in ("ir", "backends"):
        link = ROOT / "kernelforge" / name
        assert not link.is_symlink() or link.readlink() == Path("..") / name


@pytest.mark.parametrize("path", sources(*FOLDERS, "tests", "examples"), ids=lambda p: str(p.relative_to(ROOT)))
def test_file(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE, "split it"
    assert not re.search(r"^\s*(from|import) (ir|backends)\b", text, re.MULTILINE), "import kernelforge.ir"
    if path.name != "__init__.py" or text:
        assert text.startswith('"""'), "a module says what it is for"


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_import_is_light() -> None:
    loaded = json.loads(fresh("import json, sys, kernelforge; print(json.dumps(sorted(sys.modules)))"))
    heavy = [m for m in loaded if m in HEAVY or m.startswith(tuple(h + "." for h in HEAVY))]
    assert heavy == []


def test_import_is_quick() -> None:
    """Beyond NumPy, which the user has imported anyway, on the clock of the process: the machine may be busy."""
    code = "import time, numpy; t = time.process_time(); import kernelforge; print(time.process_time() - t)"
    assert min(float(fresh(code)) for _ in range(3)) < 0.4


def test_entry_points_name_factories() -> None:
    group = "kernelforge.backends"
    for name, target in PROJECT["project"]["entry-points"][group].items():
        assert callable(importlib.metadata.EntryPoint(name, target, group).load())


def test_every_error_has_a_template() -> None:
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.KernelforgeError):
            assert found.template.split(), name


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_taken_for_its_module(path: Path) -> None:
    """``kernelforge.jit`` is the function: ``from kernelforge import jit`` never means the module of that name."""
    modules = {p.stem for p in (ROOT / "kernelforge").glob("*.py")}
    hidden = {name for name in modules if not isinstance(getattr(kernelforge, name, kernelforge), type(kernelforge))}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "kernelforge":
            taken = {alias.name for alias in node.names} & hidden
            assert not taken, f"line {node.lineno}: import from kernelforge.{taken.pop()}"
