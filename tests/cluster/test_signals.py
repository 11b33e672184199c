"""When a sweep's hours are over: as upon SIGTERM, with a code of its own, and never while Ray starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from raylt.cluster.signals import Signals

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_ray_swallows_as_it_starts_is_not_lost(signals, number):
    mine = signals(1e300)
    before, up = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), mine.held():
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        except BaseException:
            up = True
    assert up and signal.getsignal(signal.SIGINT) is before
    assert mine.exit_code == (130 if number == signal.SIGINT else 143)


def test_a_shell_that_ignores_ctrl_c_is_heeded_while_ray_starts(signals, monkeypatch):
    mine, before = signals(1e300), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with mine.held():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


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


TERMINAL = """
import os, pty, signal, time
pid, master = pty.fork()
if pid == 0:
    from raylt.cluster.signals import Signals
    said = os.open(PATH, os.O_WRONLY | os.O_CREAT)
    mine = Signals()
    try:
        with mine.held():
            os.write(said, b"held ")
            time.sleep(3)
            os.write(said, b"up ")
        os.write(said, b"stays")
    except KeyboardInterrupt:
        os.write(said, f"leaves with {mine.exit_code}".encode())
    os._exit(0)
while not os.path.exists(PATH) or not os.path.getsize(PATH):
    time.sleep(0.01)
if ENDS:
    os.close(master)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(("ends", "then"), [(True, "leaves with 143"), (False, "stays")])
def test_a_terminal_that_ends_while_ray_starts_is_noticed_once_it_is_up(tmp_path, ends, then):
    code = f"PATH, ENDS = {str(tmp_path / 'said')!r}, {ends}\n{TERMINAL}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "said").read_text() == f"held up {then}"
