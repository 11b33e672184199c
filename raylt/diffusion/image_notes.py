"""What became of a data set's images on the way to the model: left out, converted, found twice. Said, never silent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One line for the user: to how many images it happened, what, and one of them ("" where none stands for all)."""

    count: int
    what: str
    example: str = ""

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}{f', such as {self.example}' if self.example else ''}"


class Tally:
    """Counts by reason, in the order in which the reasons came up."""

    def __init__(self) -> None:
        self._notes: dict[str, Note] = {}

    def add(self, what: str, example: str, count: int = 1) -> None:
        before = self._notes.get(what, Note(0, what, example))
        self._notes[what] = Note(before.count + count, what, before.example)

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(self._notes.values())
