"""What raylt prints may come from others: error texts, logs, names and causes in a store. A terminal obeys some of it.

Control characters are shown as escapes, on a terminal and in a pipe, which may end at one.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 without tab and line feed, delete, C1; marks that turn the direction of text, separators of lines, halves of characters.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")


def plain(text: str) -> str:
    """The text with its control characters as `\\u001b`, which JSON reads back; tabs and ends of lines stay."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_plainly() -> None:
    """From here on, all that this process prints is plain; but for what goes through `untouched`."""
    sys.stdout, sys.stderr = _Plain.over(sys.stdout), _Plain.over(sys.stderr)
    if logging.lastResort is not None:  # rich takes stderr over while it shows progress, and reads escapes itself
        logging.lastResort.setFormatter(_PlainFormatter())


def untouched(stream: Any) -> Any:
    """The stream below, for who makes escapes of his own and prints nothing but plain text with them."""
    return stream.below if isinstance(stream, _Plain) else stream


def plain_console(stream: Any) -> Console:
    """Rich on a stream: its own colours and tables, of text that is plain and holds no markup."""
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **options):
                yield segment if segment.control else segment._replace(text=plain(segment.text))

    return PlainConsole(file=untouched(stream), markup=False)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _Plain:
    """A text stream over another one, which it is in all else."""

    def __init__(self, below: Any) -> None:
        self.below = below

    @classmethod
    def over(cls, stream: Any) -> Any:
        """None stays: a program may be started without a stdout."""
        if stream is None or isinstance(stream, cls):
            return stream
        if str(stream.encoding).lower() in ("ascii", "us-ascii", "ansi_x3.4-1968") and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")  # click would, past us
        return cls(stream)

    def write(self, text: str) -> int:
        self.below.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.below)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)
