"""Whether the Ray that a sweep runs on is still there. Ray itself waits for ever for a raylet that died, and ends this process
with exit code 1 a minute after its GCS did.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_EVERY_S = 3.0
GONE_AFTER_S = 15.0  # without an answer; Ray ends the driver after 60
LEAVES_WITHIN_S = 20.0  # Tune, once it was told to stop: where it waits for what is gone, it never does

UNIX_SOCKETS = Path("/proc/net/unix")

Endpoint = tuple[str, Callable[[], None]]  # what it is, and a call that raises OSError where nobody answers


@contextmanager
def watched(endpoints: list[Endpoint], on_gone: Callable[[str], None], on_stuck: Callable[[], None]) -> Iterator[None]:
    """Inside, `on_gone` is called once, with what it is, when one has not answered for a while; `on_stuck` where it takes
    too long to leave after that. Both from a thread."""
    has_left = threading.Event()

    def watch() -> None:
        silent_since: dict[str, float] = {}  # of looks that found nobody, one after another: this process may be paused too
        while not has_left.wait(LOOK_EVERY_S):
            for name, call in endpoints:
                try:
                    call()
                    silent_since.pop(name, None)
                except OSError:
                    if time.monotonic() - silent_since.setdefault(name, time.monotonic()) > GONE_AFTER_S:
                        on_gone(name)
                        if not has_left.wait(LEAVES_WITHIN_S):
                            on_stuck()
                        return

    thread = threading.Thread(target=watch, name="raywatch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_left.set()
        thread.join()


def of_ray() -> list[Endpoint]:
    """The two parts of the connected Ray that nothing replaces: the head's GCS, and the raylet of this machine."""
    import ray

    from raylt.cluster.ray_internals import raylet_socket

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    parts: list[Endpoint] = [("its head (GCS)", lambda: socket.create_connection((host.strip("[]"), int(port)), 3).close())]
    path = raylet_socket()
    if path and _listens(path):
        parts.append(("this machine's raylet", lambda: _expect_listening(path)))
    return parts


def _expect_listening(path: str) -> None:
    if not _listens(path):
        raise ConnectionRefusedError(path)


def _listens(path: str) -> bool:
    """Whether a process has this socket, without a connection: a raylet logs each that says nothing."""
    try:
        return any(line.split()[-1] == path for line in UNIX_SOCKETS.read_text().splitlines())
    except OSError:
        return False  # not on Linux
