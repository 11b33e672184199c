"""The rules of the house that no linter knows: where modules lie, how large things are, and that the map names them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {
    "cli", "cluster", "diffusion", "report", "search", "spec", "store", "sweep", "ticket", "tracking", "trial",
}  # fmt: skip
LOOSE = {"__init__.py", "background.py", "errors.py", "intervals.py", "py.typed"}
MAX_LINES, MAX_PARAMETERS = 300, 6
SOURCES = sorted((REPOSITORY / "raylt").rglob("*.py"))


def functions(source: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef))


def test_nothing_lies_loose():
    found = {path.name for path in (REPOSITORY / "raylt").iterdir() if path.name != "__pycache__"}
    assert found == LOOSE | PACKAGES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_is_long_and_no_function_takes_much(source):
    assert len(source.read_text().splitlines()) <= MAX_LINES
    for function in functions(source):
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        assert len([name for name in names if name not in ("self", "cls")]) <= MAX_PARAMETERS, function.name


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_architecture_names_every_module(package):
    text = (REPOSITORY / "docs/architecture.md").read_text()
    paragraph = re.search(rf"^\*\*{package}\*\*:(.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert paragraph is not None
    named = set(re.findall(r"`(\w+)`", paragraph[1]))
    modules = {path.stem for path in (REPOSITORY / "raylt" / package).glob("*.py")} - {"__init__", "__main__"}
    assert modules <= named


def test_every_test_of_a_package_is_of_a_module_or_a_property():
    """`tests/store/test_lease.py` is of `raylt/store/lease.py`; what crosses modules says so in its docstring."""
    for package in sorted(PACKAGES):
        modules = {path.stem for path in (REPOSITORY / "raylt" / package).glob("*.py")}
        for test in sorted((REPOSITORY / "tests" / package).glob("test_*.py")):
            if test.stem.removeprefix("test_") not in modules:
                assert ast.get_docstring(ast.parse(test.read_text())), test
