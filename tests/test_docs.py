"""The documents: made pages are as made, links lead somewhere, commands that are marked as runnable run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from raylt.report import formats
from raylt.spec import reference

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("benchmarks/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RUNNABLE = re.compile(r"<!-- runnable -->\n```bash\n(.*?)```", re.DOTALL)
PATH = re.compile(r"`((?:raylt|tests|benchmarks|sweeps|docs)/[\w./-]+)`")
WIDTH, CELL = 100, 80
MAX_README_LINES = 120


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize(("made", "path"), [(reference.page, "docs/spec.md"), (formats.page, "docs/formats.md")])
def test_made_pages_are_as_the_code_makes_them(made, path):
    assert (REPOSITORY / path).read_text().rstrip() == made().rstrip(), f"make docs writes {path} anew"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_every_path_of_the_repository_that_is_named_is_there(page):
    for path in PATH.findall(page.read_text()):
        assert (REPOSITORY / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short_but_for_tables_and_links(page):
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("|"):
            assert all(len(cell.strip()) <= CELL for cell in line.strip("|").split("|")), f"{number}: {line}"
        elif "](" not in line:
            assert len(line) < WIDTH, f"{number}: {line}"


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < MAX_README_LINES


@pytest.mark.parametrize("page", [page for page in PAGES if RUNNABLE.search(page.read_text())], ids=name)
def test_commands_that_are_marked_as_runnable_run(page, tmp_path):
    for block in RUNNABLE.findall(page.read_text()):
        script = f'raylt() {{ "{sys.executable}" -m raylt.cli "$@"; }}\nset -e\n{block}'
        done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


def test_the_readme_has_something_to_run():
    assert RUNNABLE.search((REPOSITORY / "README.md").read_text())


def test_the_schema_describes_every_key():
    schema = reference.json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for key, found in section.get("properties", {}).items():
            assert found.get("description") or "$ref" in str(found), key
