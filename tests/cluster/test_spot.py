"""A spot notice, over real HTTP from an instance metadata service of our own, ends a real child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raylt.cluster.spot import notice

NOTICE = {"action": "terminate", "time": "2026-01-01T00:02:00Z"}


class Metadata:
    """IMDSv2 on loopback: a session token by PUT, without which nothing is answered; `announced` is the notice's text."""

    def __init__(self) -> None:
        self.announced: str | None = None
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                is_token = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
                self._answer(200 if is_token else 400, "secret")

            def do_GET(self) -> None:
                service.asked.append(self.path)
                if self.headers.get("X-aws-ec2-metadata-token") != "secret":
                    self._answer(401, "")
                elif self.path == "/latest/meta-data/spot/instance-action" and service.announced is not None:
                    self._answer(200, service.announced)
                else:
                    self._answer(404, "")

            def _answer(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.close()


CHILD = """
import signal, sys, time
def leave(number, frame):
    print("drained", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(300)
"""


def watched(url: str, *command: str) -> subprocess.Popen[str]:
    """`python -m raylt.cluster.spot COMMAND`, asking at `url` twice a second, with proxies that would break it."""
    script = "import sys; from raylt.cluster.spot import run; sys.exit(run(sys.argv[2:], sys.argv[1], 0.5))"
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", script, url, *command], stdout=-1, stderr=-1, text=True, env=environment)


def test_what_is_announced(metadata: Metadata):
    assert notice(metadata.url) is None
    metadata.announced = json.dumps(NOTICE)
    assert notice(metadata.url) == "terminate at 2026-01-01T00:02:00Z"
    metadata.announced = "something new"
    assert notice(metadata.url) == "something new"
    metadata.announced = "[]"
    assert notice(metadata.url) == "[]"


def test_no_metadata_to_ask():
    with pytest.raises(OSError):
        notice("http://127.0.0.1:9")


def test_a_notice_ends_the_child_gently(metadata: Metadata):
    process = watched(metadata.url, sys.executable, "-c", CHILD)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not metadata.asked and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "no notice yet"
    metadata.announced = json.dumps(NOTICE)
    out, err = process.communicate(timeout=60)
    assert out == "drained\n"
    assert "spot notice: terminate at 2026-01-01T00:02:00Z" in err
    assert process.returncode == 7


def test_without_metadata_the_child_runs_on_and_signals_reach_it():
    process = watched("http://127.0.0.1:9", sys.executable, "-c", CHILD)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("drained\n", 7)
    assert err.count("no instance metadata") == 1


@pytest.mark.parametrize(("command", "code"), [("exit 5", 5), ("kill -9 $$", 128 + 9)])
def test_the_childs_end_is_ours(metadata: Metadata, command: str, code: int):
    process = watched(metadata.url, "sh", "-c", command)
    process.communicate(timeout=60)
    assert process.returncode == code
