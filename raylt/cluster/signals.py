"""How a driver is told to stop, and passes it on to Tune."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raylt.errors import EnvironmentFailure


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Signals:
    """SIGTERM and SIGHUP as gentle as Ctrl-C: Tune stops on SIGUSR1; before and after its run we simply leave.

    SIGHUP comes when the terminal or the SSH session ends. Who has it ignored (`nohup`) goes on.
    """

    def __init__(self) -> None:
        self.terminated, self.expired = False, False
        gentle = (signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.getsignal(number) for number in gentle if signal.getsignal(number) != signal.SIG_IGN}
        self._held = threading.Lock()  # while Ray starts
        self._timer: threading.Timer | None = None
        self.take()

    def start_timer(self, ends_at: float) -> None:
        """From `ends_at` (seconds of `time.monotonic`) on it is as if SIGTERM had come, and `expired`: `--max-hours`."""
        self._timer = threading.Timer(min(max(0.0, ends_at - time.monotonic()), threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True
        self._timer.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the time does not run out: `ray.init` puts handlers of its own in place, and its C++ one aborts.

        Ray's processes inherit that SIGHUP is ignored. It reaches every process of a terminal that ends, and workers are to
        live until the driver has asked them to leave. A terminal that ended meanwhile is noticed afterwards.

        A Ctrl-C or SIGTERM that Ray swallows as it starts is heeded at the end.
        """
        had_terminal = signal.SIGHUP in self._before and _has_terminal()
        on_interrupt, interrupts = signal.getsignal(signal.SIGINT), []

        def interrupt(signum: int, frame: FrameType | None) -> None:
            interrupts.append(signum)
            raise KeyboardInterrupt

        with self._held:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if on_interrupt is signal.default_int_handler:
                signal.signal(signal.SIGINT, interrupt)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, on_interrupt)
                self.take()
        if interrupts or self.terminated:
            raise KeyboardInterrupt
        if had_terminal and not _has_terminal():
            self.terminate()

    def take(self) -> None:
        for number in self._before:
            signal.signal(number, self._on_terminate)

    def _expire(self) -> None:
        with self._held:
            if not self.terminated:
                self.expired = True
                self.terminate()

    def end_timer(self) -> None:
        """What ends from here on ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True
        if callable(signal.getsignal(signal.SIGUSR1)):
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        """As if somebody had sent SIGTERM; from any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def exit_code(self) -> int:
        """Of a sweep that was stopped: by its hours, SIGTERM, Ctrl-C."""
        if self.expired:
            return EnvironmentFailure.exit_code
        return 143 if self.terminated else 130

    def restore(self) -> None:
        self.end_timer()
        for number, handler in self._before.items():
            signal.signal(number, handler)
