"""A notice to leave: this process or its machine goes away soon, so training keeps what it has and ends.

A notice is for the whole process, hence module-wide. Who knows of notices says how to ask (`watch`); training asks
between two steps (`notice`). Nothing here knows Ray.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASK_EVERY_S = 1.0  # asking costs a millisecond: too much for each step

_ask: Callable[[], str | None] | None = None
_asked_at = -ASK_EVERY_S
_told: str | None = None  # the notice that came as a signal: it stands until this process ends
_listening = 0


def watch(ask: Callable[[], str | None] | None) -> None:
    """From now on `notice` asks `ask`, which says why this process must leave, or None. None: nobody knows."""
    global _ask, _asked_at
    _ask, _asked_at = ask, -ASK_EVERY_S


def notice() -> str | None:
    """Why this process must leave; None where it need not."""
    global _asked_at
    if _told is not None or _ask is None:
        return _told
    now = time.monotonic()
    if now - _asked_at < ASK_EVERY_S:
        return None
    _asked_at = now
    return _ask()


@contextmanager
def listening() -> Iterator[None]:
    """Inside, somebody asks `notice` soon: a SIGTERM that `on_terminate` took over is a notice and ends nothing itself."""
    global _listening
    _listening += 1
    try:
        yield
    finally:
        _listening -= 1


def on_terminate() -> None:
    """Take SIGTERM over, where this thread may. Outside `listening`, and the second time, it does what it did before."""
    if threading.current_thread() is not threading.main_thread():
        return
    before: Any = signal.getsignal(signal.SIGTERM)

    def handler(signum: int, frame: FrameType | None) -> None:
        global _told
        if _listening and _told is None:
            _told = "the worker received SIGTERM"
        elif callable(before):
            before(signum, frame)
        else:
            raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, handler)
