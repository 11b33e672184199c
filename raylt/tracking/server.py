"""`raylt ui`: MLflow's own web server over the runs recorded here, or that of a cluster's head."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from types import FrameType
from urllib.parse import urlsplit

from raylt.cluster import ssh
from raylt.errors import EnvironmentFailure, InputError, without_secrets
from raylt.spec.tracking_uri import split_sqlite


def serve_ui(uri: str, port: int) -> int:
    """Serve MLflow's page on the loopback interface until Ctrl-C (port 0: a free one); returns its exit code.

    Raises `EnvironmentFailure` where the port is taken, `InputError` where the URI is a server's, which has a page of its own,
    or names no database yet.
    """
    if uri.startswith(("http://", "https://")):
        raise InputError(f"{without_secrets(uri)} is a tracking server: open it in a browser")
    sqlite = split_sqlite(uri)
    if sqlite is not None and not sqlite[1].exists():
        raise InputError(f"{sqlite[1]} is not there: run a sweep in this folder first, or give --uri")
    port = _bindable(port)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)", file=sys.stderr)
    # the URI not as an argument: it may carry a password, and anyone can list arguments
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri}
    _heed_signals()
    server = subprocess.Popen(command, env=environment, start_new_session=True)  # Ctrl-C is for us to pass on, quietly
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        end_group(server)


def _leave(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def _heed_signals() -> None:
    """SIGTERM as gently as Ctrl-C; and that also where a shell put us in the background, which starts us without SIGINT."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _bindable(port: int) -> int:
    """The port itself, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentFailure(f"port {port} cannot be had ({error.strerror}); give another one with --port") from None
        chosen: int = probe.getsockname()[1]
        return chosen


def end_group(server: subprocess.Popen[bytes]) -> None:
    """End a server of MLflow's with its whole process group: its web workers do not always follow their parent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)


def serve_head_ui(head: ssh.Head, port: int) -> int:
    """A way to the head's own MLflow server, until Ctrl-C.

    Raises `InputError` where the head records in a file, `EnvironmentFailure` where its server does not answer.
    """
    uri = ssh.shell(head, 'echo "$MLFLOW_TRACKING_URI"').strip()
    there = urlsplit(uri or "http://127.0.0.1:5000")
    if there.scheme != "http" or there.hostname not in ("127.0.0.1", "localhost"):
        raise InputError(f"{head} records at {uri}, not with a server of its own; open that, or run `raylt ui` there")
    _heed_signals()
    with ssh.tunnel(head, there.port or 80, port) as local_port:
        url = f"http://127.0.0.1:{local_port}"
        try:
            urllib.request.urlopen(f"{url}/health", timeout=30).close()
        except (OSError, http.client.HTTPException) as error:
            raise EnvironmentFailure(f"MLflow does not answer on {head}, port {there.port} of its loopback: {error}") from None
        print(f"MLflow of {head} at {url} (Ctrl-C ends it)", file=sys.stderr)
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            return 130
