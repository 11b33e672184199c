"""Every `from raylt... import ...` that stands anywhere, in scripts, in code inside strings and in docs, finds its names."""

from __future__ import annotations

import contextlib
import importlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
IMPORT = re.compile(r"from (raylt[\w.]*) import (\([^)]*\)|[\w, ]+)")
PLACES = [path for folder in ("benchmarks", "tests", "docs") for path in REPOSITORY.glob(f"{folder}/**/*.*")]
PLACES = [REPOSITORY / "README.md", *(path for path in PLACES if path.suffix in (".py", ".md"))]


def is_there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    with contextlib.suppress(ModuleNotFoundError):
        return bool(importlib.import_module(f"{module}.{name}"))
    return False


@pytest.mark.parametrize("path", PLACES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_is_imported_is_there(path: Path) -> None:
    found = IMPORT.findall(re.sub("#.*", "", path.read_text()))
    wanted = [(module, name) for module, names in found for name in re.findall(r"(\w+)(?: as \w+)?", names)]
    assert [f"{module}.{name}" for module, name in wanted if not is_there(module, name)] == []
