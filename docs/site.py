"""The documentation as a site, in build/site: `make site`.

The pages link to files of the repository as well, so that they read well there. The site has the pages alone: what else they
link to stays as its name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCS, BUILD = REPOSITORY / "docs", REPOSITORY / "build"
SOURCE = BUILD / "site-source"
PAGES = {"README.md": "index.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
CONFIG = """\
[project]
site_name = "raylt"
site_description = "How far can a diffusion model be pruned, and where?"
docs_dir = "site-source"
site_dir = "site"
"""


def main() -> int:
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(DOCS, SOURCE, ignore=shutil.ignore_patterns("*.py"))
    places = {REPOSITORY / path: SOURCE / name for path, name in PAGES.items()}
    places |= {path: SOURCE / path.relative_to(DOCS) for path in DOCS.rglob("*") if path.is_file()}
    for path, target in places.items():
        if path.suffix == ".md":
            target.write_text(with_links_of_the_site(path, target, places))
    (BUILD / "zensical.toml").write_text(CONFIG)
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"], cwd=BUILD).returncode


def with_links_of_the_site(page: Path, target: Path, places: dict[Path, Path]) -> str:
    """A page's text, with links to where the other pages lie on the site."""

    def moved(found: re.Match[str]) -> str:
        mark, label, address, anchor = found[1], found[2], found[3], found[4] or ""
        there = places.get((page.parent / address).resolve())
        if re.match(r"[a-z]+:", address):
            return found[0]
        return label if there is None else f"{mark}[{label}]({os.path.relpath(there, target.parent)}{anchor})"

    return LINK.sub(moved, page.read_text())


if __name__ == "__main__":
    sys.exit(main())
