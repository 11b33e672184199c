"""The streams of a command, whatever the shell did to them: closed, full, of another encoding, or with nobody who reads on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

_NAMES = ("stdin", "stdout", "stderr")


class _Deaf:
    """A stream whose writes cannot fail: a sweep goes on where nobody can be told of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_usable() -> None:
    """Opens what is closed: else the next file opened, a database perhaps, gets what is printed. stderr fails no more."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        with suppress(AttributeError, OSError, ValueError):  # a stream that is no file
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = cast(Any, _Deaf(sys.stderr))


@contextmanager
def told() -> Iterator[None]:
    """What is printed inside can fail without changing how the command ends: it has done what it was to do."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        complain(error)


def complain(error: OSError, *, quietly: bool = False) -> None:
    """Says that stdout failed; a reader who has left (`| head`) wants no word. What is still to be printed goes nowhere."""
    if error.errno != errno.EPIPE and not quietly:
        print(f"stdout: {error.strerror or error}", file=sys.stderr)
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def close_stdout(*, quietly: bool) -> bool:
    """Writes out what was printed; whether that went well. Else Python would, with words and an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError as error:
        complain(error, quietly=quietly)
        return error.errno == errno.EPIPE
    except ValueError:  # closed
        pass
    return True
