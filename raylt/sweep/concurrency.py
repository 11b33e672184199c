"""How many trials run at once where a node lacks the memory for all of them: fewer, then one, then one after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 600.0
SUFFICES_AFTER_S = 600.0  # without a kill: then one trial more is tried
MAX_KILLS = 16  # in a row of trials that ran alone, with nothing that ended between them: two hours of pauses


@dataclass
class Memory:
    """Counts the workers that a node's memory monitor kills. That is no trial's fault, so none fails for it.

    `most`: the trials at once where memory suffices. `say` gets a line upon each change. `now`: seconds.
    """

    most: int
    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    at_once: int = field(init=False)
    kills: int = 0  # in a row, of trials that ran alone
    _killed_at: float = 0.0
    _resumes_at: float = 0.0

    def __post_init__(self) -> None:
        self.at_once = self.most

    @property
    def is_hopeless(self) -> bool:
        return self.kills >= MAX_KILLS

    def admits(self, running: int) -> bool:
        """Whether another trial may start beside so many."""
        now = self.now()
        if self.at_once < self.most and now >= max(self._killed_at, self._resumes_at) + SUFFICES_AFTER_S:
            self.at_once, self._killed_at = self.at_once + 1, now
            self.say(f"memory has sufficed for {SUFFICES_AFTER_S / 60:.0f} minutes: {_trials(self.at_once)} at once")
        return running < self.at_once and now >= self._resumes_at

    def killed(self, trial: str, others: int) -> None:
        """A worker was killed for want of memory while so many others ran."""
        now = self.now()
        if now >= max(self._killed_at, self._resumes_at) + SUFFICES_AFTER_S:
            self.progressed()  # so long a run has written checkpoints
        self._killed_at = now
        what = f"{trial}: its node lacks memory, and Ray ended the worker; "
        fewer = min(self.at_once, others + 1) - 1
        if fewer:
            self.at_once = fewer
            self.say(f"{what}{_trials(fewer)} at once from here, until memory suffices")
            return
        pause = min(FIRST_PAUSE_S * 2**self.kills, LONGEST_PAUSE_S)
        self.at_once, self.kills, self._resumes_at = 1, self.kills + 1, now + pause
        self.say(f"{what}one trial at once goes on in {pause:.0f} s (pause {self.kills} of {MAX_KILLS} at most)")

    def progressed(self) -> None:
        """A round or a trial has ended, so memory suffices for one at least."""
        self.kills = 0


def _trials(number: int) -> str:
    return f"{number} trial{'s' if number > 1 else ''}"
