"""What a trial's worker says while it works, kept in the store: one file an attempt, readable from anywhere, at any time.

    ROOT/sweeps/NAME/logs/<trial>/<started, unix ms>-<host>-<pid>.txt

A log is for people: nothing is ever decided from it.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator

from raylt.errors import EnvironmentFailure
from raylt.store.results import RoundResult
from raylt.store.stages import Store

POLL_S = 1.0


def _folder(name: str, trial: int) -> str:
    return f"sweeps/{name}/logs/{trial:05d}"


class TrialLog:
    """The log of one attempt at a trial. Each line is written through at once: a worker that is killed leaves all it said."""

    def __init__(self, store: Store, name: str, trial: int) -> None:
        self._store, self._text = store, ""
        started, host, pid = int(time.time() * 1000), socket.gethostname(), os.getpid()
        self._path = f"{_folder(name, trial)}/{started}-{host}-{pid}.txt"
        self.say(f"trial {trial} starts on {host}, pid {pid}")

    def say(self, text: str) -> None:
        self._text += f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        try:
            self._store.write(self._path, self._text.encode())
        except (EnvironmentFailure, OSError):
            return  # a store that is full or away ends the trial where it matters: at its next stage

    def trained(self, round_index: int, step: int, loss: float) -> None:
        self.say(f"round {round_index} step {step} training loss {loss:.4f}")

    def scored(self, report: RoundResult) -> None:
        numbers = {"density": report.density, "loss": report.loss, "fid": report.fid}
        words = [f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in numbers.items()]
        self.say(f"round {report.round} scored: {' '.join(words)}")

    def failed(self, error: BaseException) -> None:
        self.say("failed\n" + "".join(traceback.format_exception(error)).rstrip())


def read_log(store: Store, name: str, trial: int, *, until: Callable[[], bool] | None = None) -> Iterator[str]:
    """All attempts of a trial, oldest first; then, given `until`, what is added, until that is true."""
    shown: dict[str, int] = {}
    while True:
        is_last = until is None or until()
        for entry in store.names(_folder(name, trial)):
            text = (store.read(f"{_folder(name, trial)}/{entry}") or b"").decode()
            if len(text) > shown.get(entry, 0):
                yield text[shown.get(entry, 0) :]
                shown[entry] = len(text)
        if is_last:
            return
        time.sleep(POLL_S)
