"""What a cluster's head runs beside Ray: MLflow's server, kept alive, and filled from the store.

    python -m raylt.tracking.head_server          # by cluster.yaml, before it starts Ray
    python -m raylt.tracking.head_server serve    # what that leaves behind

The first returns once the server shows what the store holds. The second is the server, started again whenever it dies, until
Ray's head ends.

RAYLT_ROOT says where the store is, MLFLOW_TRACKING_URI (on loopback) where the server listens. Its database lies on the head's
own disk, in ~/.raylt, and is a projection: a new head makes it again. Artifacts go through the server to ROOT/mlartifacts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import filelock

from raylt.errors import EnvironmentFailure, InputError, LeaseHeld, RayltError
from raylt.report.lookup import store_root
from raylt.report.terminal import print_plainly
from raylt.spec.tracking_uri import sqlite_uri
from raylt.store import Store
from raylt.store.ledger import sweep_names
from raylt.tracking.recorder import record_sweep
from raylt.tracking.server import end_group

STATE = Path("~/.raylt").expanduser()
RAY_PORT = 6379  # cluster.yaml's
UP_WITHIN_S = 300.0
AGAIN_AFTER_S = 5.0  # a server that died is started again
GONE_AFTER_S = 60.0  # without Ray's head, which `ray up` may be starting again


def start() -> None:
    """The server in the background, in place of one started before, then every sweep of the store recorded in it.

    Raises `InputError` and `EnvironmentFailure` where there can be no server. That a sweep cannot be recorded is only said:
    the search does not depend on it.
    """
    store, uri = _store(), _setting("MLFLOW_TRACKING_URI")
    host, port = _address()
    _end_the_one_before()
    if _answers(port):
        raise EnvironmentFailure(f"{host}:{port} is taken by another program; end it, or change MLFLOW_TRACKING_URI")
    with (STATE / "mlflow.log").open("ab") as log:
        serving = subprocess.Popen(
            [sys.executable, "-m", "raylt.tracking.head_server", "serve"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _wait_until_healthy(serving, port)
    for name in sweep_names(store):
        try:
            print(f"{name}: recorded, {record_sweep(store, name, uri)} trials", flush=True)
        except LeaseHeld:
            print(f"{name}: a driver runs it, which keeps the record", flush=True)
        except EnvironmentFailure as error:
            print(f"warning: {error}; later: raylt record {name}", flush=True)


def serve() -> None:
    """Run the server, again and again, until SIGTERM or until Ray's head has been gone for a while."""
    store, (_, port) = _store(), _address()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--artifacts-destination", _artifacts(store),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": sqlite_uri(STATE / "mlflow.db"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nothing here asks for it; it takes seven processes, 1.7 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    signal.signal(signal.SIGTERM, _leave)
    with filelock.FileLock(STATE / "head.lock", timeout=0):
        (STATE / "head.pid").write_text(str(os.getpid()))
        ray = _RayWatch()
        while True:
            server = subprocess.Popen(command, env=environment, start_new_session=True)
            try:
                while server.poll() is None and not ray.is_gone():
                    time.sleep(1)
            finally:
                end_group(server)
            if ray.is_gone():
                return
            print(f"MLflow's server left with {server.returncode}; again in {AGAIN_AFTER_S:g} s", flush=True)
            time.sleep(AGAIN_AFTER_S)


class _RayWatch:
    """Whether Ray's head was here and has been away for `GONE_AFTER_S`: `ray down` on machines that stay on."""

    def __init__(self) -> None:
        self._last_seen: float | None = None
        self._asked = 0.0

    def is_gone(self) -> bool:
        now = time.monotonic()
        if now - self._asked > 5:
            self._asked = now
            if _answers(RAY_PORT):
                self._last_seen = now
        return self._last_seen is not None and now - self._last_seen > GONE_AFTER_S


def _store() -> Store:
    _setting("RAYLT_ROOT")
    return Store(store_root(None))


def _artifacts(store: Store) -> str:
    """Where the server keeps artifacts: in the store, as a URI without the options of its own."""
    if store.is_local:
        return store.local_path("mlartifacts").as_uri()
    return f"{store.uri.partition('?')[0].rstrip('/')}/mlartifacts"


def _setting(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InputError(f"{name} is not set; ~/.raylt/env has it on a head that cluster.yaml made")
    return value


def _address() -> tuple[str, int]:
    """Host and port of the server: on loopback, since MLflow asks nobody who they are."""
    uri = _setting("MLFLOW_TRACKING_URI")
    parts = urlsplit(uri)
    if parts.scheme != "http" or parts.hostname != "127.0.0.1" or parts.port is None:
        raise InputError(f"MLFLOW_TRACKING_URI: {uri} is not on this machine's loopback; for example http://127.0.0.1:5000")
    return parts.hostname, parts.port


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def _end_the_one_before() -> None:
    """SIGTERM to the process that holds the lock, and wait until it has let go."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    lock = filelock.FileLock(STATE / "head.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((STATE / "head.pid").read_text()), signal.SIGTERM)
        try:
            lock.acquire(timeout=60)
        except filelock.Timeout:
            raise EnvironmentFailure(f"the server of {STATE}/head.pid does not end; kill it") from None
    lock.release()


def _wait_until_healthy(serving: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and serving.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.5)
    raise EnvironmentFailure(f"MLflow's server is not up after {UP_WITHIN_S:g} s; see {STATE}/mlflow.log")


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    print_plainly()
    try:
        serve() if sys.argv[1:] == ["serve"] else start()
    except filelock.Timeout:
        sys.exit("raylt.head: another one serves already")
    except RayltError as error:
        sys.exit(f"raylt.head: {error}")


if __name__ == "__main__":
    main()
