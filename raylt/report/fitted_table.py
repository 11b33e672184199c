"""Tables for a terminal of any width: a number stands whole in its line, or its column is left out and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WORDS = {"kind", "rule", "control", "state", "block", "Pareto", "verdict", "sweep"}  # all else are numbers
_LEAST_OF_WORDS = 20  # columns of a terminal that words keep before they are folded
_UNTITLED = "Pareto"  # a star needs no header


def justify(name: str) -> Any:
    """Words to the left, numbers to the right."""
    return "left" if name in WORDS else "right"


@dataclass
class FittedTable:
    """A table that leaves columns out where it would be too wide: those of `least_first`, in their order.

    `elsewhere`: where all of it can be seen.
    """

    title: str
    header: Sequence[str]
    least_first: Sequence[int]  # positions in the header
    elsewhere: str
    caption: str = ""
    rows: list[tuple[Sequence[str], str, bool]] = field(default_factory=list)

    def add_row(self, cells: Sequence[str], *, style: str = "", end_section: bool = False) -> None:
        self.rows.append((cells, style, end_section))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._shown(options.max_width)
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        widths = self._widths(shown, options.max_width)
        for index, width in zip(shown, widths, strict=True):
            name = self.header[index]
            title = "" if name == _UNTITLED else name
            table.add_column(Text(title), justify=justify(name), overflow="fold", width=width)
        for cells, style, end_section in self.rows:
            table.add_row(*(Text(cells[index]) for index in shown), style=style, end_section=end_section)
        yield from ([Text(self.title, style="table.title")] if self.title else [])
        yield from console.render(table, options.update(width=max(options.max_width, _width(widths))))
        yield from ([Text(self.caption, style="table.caption")] if self.caption else [])
        left_out = [" ".join(name.split()) for i, name in enumerate(self.header) if i not in shown]
        if left_out:
            yield Text(f"left out for want of width: {', '.join(left_out)}; {self.elsewhere}")

    def _shown(self, width: int) -> list[int]:
        """The positions of the columns that fit."""
        shown = list(range(len(self.header)))
        for index in self.least_first:
            if _width([self._least(i) for i in shown]) <= width:
                break
            shown.remove(index)
        return shown

    def _widths(self, shown: Sequence[int], width: int) -> list[int]:
        """Each as wide as it would like to be, as far as there is room, the first ones first."""
        widths = [self._least(index) for index in shown]
        for place, index in enumerate(shown):
            wish = max([cell_len(line) for line in self.header[index].splitlines()] + [self._longest(index)])
            widths[place] += max(0, min(wish - widths[place], width - _width(widths)))
        return widths

    def _least(self, index: int) -> int:
        """The width below which a number, or a word of the header, would be broken."""
        name = self.header[index]
        cells = self._longest(index)
        words = 1 if name == _UNTITLED else max(map(cell_len, name.split()))
        return max(words, min(cells, _LEAST_OF_WORDS) if name in WORDS else cells)

    def _longest(self, index: int) -> int:
        return max((cell_len(cells[index]) for cells, _, _ in self.rows), default=0)


def _width(columns: Sequence[int]) -> int:
    """Of a table of such columns: one cell between two."""
    return sum(columns) + max(0, len(columns) - 1)
