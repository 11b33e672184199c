"""Machines that may be lost, all on this one: a Ray cluster of several raylets, and an MLflow server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 150.0
DRAIN_S = 5  # how long a node that got SIGTERM lives on
# A dead node is known after about 3 s, not 14; whoever has lost the head gives up after 10 s, not 60.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
    "RAY_raylet_start_wait_time_s": "120",
}


NO_TRIALS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


def eventually(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {within_s:.0f} s: {what}")
        time.sleep(0.1)
    return value


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of raylt, MLflow and Ray, and with one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_", "TUNE_"))}
    return kept | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One `ray start --block`: a raylet and its workers, under an address of its own."""

    def __init__(self, process: subprocess.Popen[bytes], ip: str) -> None:
        self.process, self.ip = process, ip
        self._known: dict[int, psutil.Process] = {}  # all that were seen: those of a dead raylet are nobody's children

    def processes(self) -> list[psutil.Process]:
        self._known |= {process.pid: process for process in family(self.process.pid)}
        return [process for process in self._known.values() if process.is_running()]

    @property
    def raylet(self) -> psutil.Process | None:
        return next((process for process in self.processes() if _name(process) == "raylet"), None)

    def workers(self) -> list[psutil.Process]:
        """Those that run trials: Ray writes into the title of its processes what they do."""
        titled = ((process, _title(process)) for process in self.processes())
        return [process for process, title in titled if title.startswith("ray::") and not title.startswith(NO_TRIALS)]

    def kill(self) -> None:
        self.processes()
        send(self.processes(), signal.SIGKILL)
        self.process.wait()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class RayCluster:
    """A head without CPUs, and nodes of one CPU each, behind a token of their own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A short name: the path of a socket may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rc-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **IMPATIENT}
        self.for_drivers = {**environment, **own}
        self.environment = {**clean_environment(), **self.for_drivers}
        self.nodes: list[Node] = []
        self._started = 0
        self._all: list[Node] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self) -> None:
        self.port = free_port()
        words = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        self.head = self._start("127.0.0.1", words)
        eventually(self._has_gcs, "the head listens")

    def add_node(self) -> Node:
        """Returns once its raylet runs; it joins a moment later."""
        self._started += 1
        node = self._start(f"127.0.1.{self._started}", [f"--address={self.address}", "--num-cpus=1"])
        self.nodes.append(node)
        eventually(lambda: node.raylet or node.process.poll() is not None, "a raylet runs")
        return node

    def _start(self, ip: str, words: list[str]) -> Node:
        lean = ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000", "--include-log-monitor=false"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={ip}", *lean, *words]
        if "--head" in words:
            command.append(f"--temp-dir={self.folder}")
        with (self.folder / f"node-{ip}.log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        node = Node(process, ip)
        self._all.append(node)
        return node

    def _has_gcs(self) -> bool:
        if self.head.process.poll() is not None:
            raise RuntimeError(f"the head does not start: see {self.folder}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0 and self.head.raylet is not None

    def lose(self, node: Node) -> None:
        """It counts no longer; whoever calls ends it."""
        self.nodes.remove(node)

    def busy(self) -> list[Node]:
        """Nodes with a worker that runs a trial."""
        return [node for node in self.nodes if node.workers()]

    def stop(self) -> None:
        for node in self._all:
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class MlflowServer:
    """`mlflow server` on loopback over a SQLite file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "mlflow.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Returns at once: the server is ready in half a minute."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        # Without its job runner, which we do not need, the server is one process in place of ten.
        env = {**clean_environment(), "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return answer.status == 200
        return False

    def wait(self) -> None:
        eventually(self.is_healthy, "MLflow's server answers")

    def kill(self) -> None:
        send(family(self.process.pid), signal.SIGKILL)
        self.process.wait()
