"""`raylt ui`: a port of its own or a plain line, and nothing left behind however it is ended."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = [sys.executable, "-m", "raylt.cli", "ui", "--uri", "sqlite:///mlflow.db", "--port"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mlflow.db").touch()
    return tmp_path


def test_a_port_that_is_taken_is_said_at_once(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run([*COMMAND, port], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(f"port {port} cannot be had (Address already in use); give another one")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_what_it_started_ends_with_it(folder, number, code):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shown = subprocess.Popen([*COMMAND, port], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(shown.pid).children()):
        assert shown.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    shown.send_signal(number)
    assert shown.wait(60) == code
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
