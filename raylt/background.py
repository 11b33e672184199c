"""A thread that does one job whenever asked, and again until it succeeds: for work that may wait, and must not block."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

CLOSE_WITHIN_S = 30.0
SWITCH_S = 0.0005  # how long a thread that gave the interpreter up, as for a small write, waits to get it back from a busy one


class AbandonedError(Exception):
    """Nobody waits for this job any more."""


@dataclass(frozen=True)
class Pace:
    """How long the thread waits: between two jobs, and before a failed one is tried again (doubling up to the last).

    After a job it waits at least as long as the job took: it shares the interpreter, and gets half of it at most.
    """

    between_s: float = 1.0
    first_retry_s: float = 5.0
    last_retry_s: float = 60.0


class Background:
    """Runs `job(closing)` in a daemon thread. A job calls `step` between its steps, and may raise.

    `on_failure` hears of each failure, `on_success` of each success; an error in `fatal` ends the thread silently.
    """

    def __init__(
        self,
        name: str,
        job: Callable[[bool], None],
        on_failure: Callable[[Exception], None],
        on_success: Callable[[], None],
        fatal: tuple[type[Exception], ...],
        pace: Pace,
    ) -> None:
        self._job, self._on_failure, self._on_success, self._pace = job, on_failure, on_success, pace
        self._fatal: tuple[type[Exception], ...] = (*fatal, AbandonedError)
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._progress = time.monotonic()
        self._succeeded = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread.start()

    def ask(self) -> None:
        """Ask for the job; returns at once. Asking several times before it starts is asking once."""
        self._wake.set()

    def step(self) -> None:
        """To be called by the job between its steps: shows that it gets on. Raises once nobody waits for it."""
        if self._abandoned.is_set():
            raise AbandonedError
        self._progress = time.monotonic()

    def close(self, total_s: float | None = None) -> bool:
        """Do the job one last time and end the thread; returns whether that went well.

        Gives up after `CLOSE_WITHIN_S` without progress, or after `total_s` in all. The first failure ends it too.
        """
        began = self._progress = time.monotonic()
        self._closing.set()
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(0.1)
            now = time.monotonic()
            if now - self._progress > CLOSE_WITHIN_S or (total_s is not None and now - began > total_s):
                self._abandoned.set()
                self._on_failure(TimeoutError(f"not done within {now - began:.0f} s"))
                return False
        return self._succeeded

    def _work(self) -> None:
        retry_s = self._pace.first_retry_s
        while True:
            self._wake.wait()
            self._wake.clear()
            closing, began = self._closing.is_set(), time.monotonic()
            try:
                self._job(closing)
            except self._fatal:
                return
            except Exception as error:
                self._on_failure(error)
                wait_s, retry_s = retry_s, min(2 * retry_s, self._pace.last_retry_s)
                self._wake.set()
            else:
                self._on_success()
                wait_s, retry_s = max(self._pace.between_s, time.monotonic() - began), self._pace.first_retry_s
                self._succeeded = closing
            if closing:
                return
            self._closing.wait(wait_s)
