"""Markdown of tables and numbers, and the sections of a page that are written by a script."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

WIDTH = 99  # of a page's lines, but for rows of tables


def with_section(page: str, name: str, text: str) -> str:
    """The page with what stands between the markers of `name` replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"the page lacks {begin} ... {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def paragraph(text: str) -> str:
    """Text in lines of a page's width, and an empty line after it."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(cells)} |".replace("|   ", "| &nbsp;&nbsp;") for cells in body)  # controls are indented
    yield ""


def plus_minus(value: Mapping[str, float | None], digits: int = 4) -> str:
    half = "" if value["half"] is None else f" ± {value['half']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{half}"


def percent(value: Mapping[str, float | None], digits: int = 1) -> str:
    mean, half = value["mean"] or 0.0, value["half"]
    return f"{100 * mean:+.{digits}f}{'' if half is None else f' ± {100 * half:.{digits}f}'} %"
