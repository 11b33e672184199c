"""When a sweep's hours are over: as upon SIGTERM, with a code of its own, and never while Ray starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from raylt.cluster import Signals

SOON_S = 0.1


@pytest.fixture
def signals() -> Iterator[Callable[..., Signals]]:
    """`signals(seconds)`: taken, with an end in so many seconds."""
    made, before = [], signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # Tune's handler, where a test before this one ran Tune

    def make(after_s: float) -> Signals:
        made.append(Signals())
        made[-1].start_timer(time.monotonic() + after_s)
        return made[-1]

    yield make
    for one in made:
        one.restore()
    signal.signal(signal.SIGUSR1, before)


def test_the_end_interrupts_with_code_3(signals):
    mine = signals(SOON_S)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)
    assert (mine.exit_code, mine.expired) == (3, True)


def test_an_end_that_has_passed_waits_until_ray_is_up(signals):
    began, up = time.monotonic(), False
    with pytest.raises(KeyboardInterrupt):
        mine = signals(SOON_S)
        with mine.held():
            time.sleep(5 * SOON_S)
            up = True
        time.sleep(30)
    assert up and time.monotonic() - began < 30
    assert mine.exit_code == 3


def test_the_codes_of_signals_stay(signals):
    assert signals(1e300).exit_code == 130
    mine = signals(SOON_S)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    time.sleep(5 * SOON_S)
    assert mine.exit_code == 143


def test_who_ended_before_is_left_alone(signals):
    mine = signals(SOON_S)
    mine.end_timer()
    time.sleep(5 * SOON_S)
    assert not mine.expired
