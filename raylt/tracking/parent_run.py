"""What the parent run of a sweep shows of its trials, brought up to date by those that have changed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from raylt.spec import SweepSpec
from raylt.spec.canonical import digest_of
from raylt.store import Ledger
from raylt.store.results import TrialResult
from raylt.store.sweep_state import is_ranked
from raylt.tracking.runs import Point, points_of, similarity_points


class Shown:
    """Follows one ledger. What it has seen costs nothing again."""

    def __init__(self) -> None:
        self.last_ms = 0  # when the last trial ended
        self._marks: dict[int, str] = {}  # trial -> hash of its result
        self._asked: set[int] = set()
        self._ended: set[int] = set()
        self._sum = 0  # of hashes, so that the order in which trials finished is no matter
        self._best: dict[str, float] = {}
        self._next, self._time_ms = 0, 0  # the first trial without best points, and the time of the last that have

    @property
    def digest(self) -> str:
        """A hash of all trials and results that were seen."""
        return f"{self._sum:064x}"

    def mark_of(self, number: int, result: TrialResult) -> str:
        """Hash of a trial's result, which never changes."""
        if number not in self._marks:
            self._marks[number] = digest_of(result.to_json())
        return self._marks[number]

    def add(self, ledger: Ledger, changed: Iterable[int]) -> list[Point]:
        """Look at trials that were asked or have ended; the points of the best numbers that this adds."""
        for number in changed:
            result = ledger.results.get(number)
            if number not in self._asked:
                self._asked.add(number)
                self._add(digest_of(number))
            if result is not None and number not in self._ended:
                self._ended.add(number)
                self._add(digest_of([number, self.mark_of(number, result)]))
                self.last_ms = max(self.last_ms, result.time_ms)
        return self._best_points(ledger)

    def _add(self, digest: str) -> None:
        self._sum = (self._sum + int(digest, 16)) % 2**256

    def _best_points(self, ledger: Ledger) -> list[Point]:
        """`best_loss` and `best_fid` after each trial, as far as all trials have ended: what comes later changes none."""
        points: list[Point] = []
        while self._next in self._ended:
            number, result = self._next, ledger.results[self._next]
            self._time_ms = max(self._time_ms, result.time_ms)
            if is_ranked(ledger.submitted[number], result):
                for name, value in (("loss", result.scores.loss), ("fid", result.scores.fid)):
                    if value is not None:
                        self._best[name] = min(value, self._best.get(name, math.inf))
            points += points_of(((f"best_{name}", value) for name, value in self._best.items()), self._time_ms, number)
            self._next += 1
        return points


def sweep_points(spec: SweepSpec, ledger: Ledger) -> list[Point]:
    """All points of the parent: similarity of each block, and the best numbers so far, trial by trial."""
    return [*similarity_points(spec, ledger), *Shown().add(ledger, ledger.submitted)]
