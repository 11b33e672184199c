"""A real Ray head behind a real sshd, both on loopback and in homes of their own: the cluster of a test's cluster.yaml."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.sshd import Sshd, own_sshd

PROJECT = Path(__file__).parents[2]
STARTS_WITHIN_S = 180.0
NAME = "lab"


@dataclass
class RayHead:
    """`home` is the head's, `tmp` where its Ray keeps its sessions (short: sockets lie there)."""

    home: Path
    tmp: Path
    token: str
    address: str
    dashboard_port: int
    extra_env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY", "MLFLOW_"))}
        return {
            **kept, "HOME": str(self.home), "RAY_TMPDIR": str(self.tmp), "RAY_AUTH_MODE": "token", "PYTHONPATH": str(PROJECT),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120", **self.extra_env,
        }  # fmt: skip

    def start(self, *options: str, cpus: int = 2) -> None:
        """`ray start --head`, until it answers."""
        host, port = self.address.split(":")
        agent, client = free_ports(2)
        words = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--node-ip-address={host}",
            f"--port={port}", f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", *options,
        ]  # fmt: skip
        log = self.home / "ray.log"
        with log.open("a") as out:
            self.process = subprocess.Popen(words, env=self.env, cwd=self.home, stdout=out, stderr=out, start_new_session=True)
        end = time.monotonic() + STARTS_WITHIN_S
        while not (_answers(int(port)) and _answers(self.dashboard_port) and "Ray runtime started" in log.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, f"Ray did not start:\n{log.read_text()}"
            time.sleep(0.2)

    def stop(self) -> None:
        """End the head and all that it started."""
        if self.process is None:
            return
        family = (
            [self.process, *psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        )
        for process in family:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait(timeout=30)
        self.process = None
        psutil.wait_procs([process for process in family if isinstance(process, psutil.Process)], timeout=30)


@dataclass(frozen=True)
class Lab:
    """A laptop's folder with a cluster.yaml that has been brought up, and the head it leads to."""

    folder: Path
    head: RayHead
    sshd: Sshd

    @property
    def env(self) -> dict[str, str]:
        """The laptop's: nothing of raylt's or Ray's in it but where this Ray keeps what it knows of clusters."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY", "MLFLOW_"))}
        return {
            **kept, "HOME": str(self.folder / "home"), "RAY_TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": str(PROJECT),
            "PATH": f"{self.sshd.shims}:{os.environ['PATH']}", "COLUMNS": "200",
        }  # fmt: skip

    def set_state(self, state: str) -> None:
        """What Ray's local provider wrote down of the head: running, terminated."""
        record = {"127.0.0.1": {"tags": {"ray-node-type": "head", "ray-node-status": "up-to-date"}, "state": state}}
        path = self.folder / "tmp" / "ray" / f"cluster-{NAME}.state"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))


@contextmanager
def own_lab(folder: Path, *, cpus: int = 2, is_started: bool = True) -> Iterator[Lab]:
    """Everything up, until the block is left."""
    tmp = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    gcs, dashboard = free_ports(2)
    head = RayHead(folder / "head", tmp, secrets.token_hex(32), f"127.0.0.1:{gcs}", dashboard)
    (head.home / "bin").mkdir(parents=True)
    _write(head.home / "bin/raylt", f'#!/bin/sh\nexec {sys.executable} -m raylt.cli "$@"\n', 0o755)
    exports = " ".join(f"{key}='{head.env[key]}'" for key in ("PATH", "PYTHONPATH", "RAY_TMPDIR", "RAY_AUTH_MODE"))
    _write(head.home / ".bashrc", f"[[ $- == *i* ]] || return\necho noise; echo noise >&2\nexport {exports}\n")
    _write(head.home / ".ray/auth_token", head.token, 0o600)
    _write(
        head.home / ".raylt/env", f"RAYLT_ROOT={head.home}/store\nMLFLOW_TRACKING_URI=sqlite:///{head.home}/mlflow.db\n", 0o600
    )
    laptop = folder / "laptop"
    _write(laptop / "home/.ray/auth_token", head.token, 0o600)
    try:
        with own_sshd(folder / "sshd", extra=f"SetEnv HOME={head.home}") as sshd:
            lab = Lab(laptop, head, sshd)
            _write(laptop / "cluster.yaml", _cluster_file(lab))
            lab.set_state("running")
            if is_started:
                head.start(cpus=cpus)
            yield lab
    finally:
        head.stop()
        shutil.rmtree(tmp, ignore_errors=True)


def _cluster_file(lab: Lab) -> str:
    start = f"RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1 --dashboard-port={lab.head.dashboard_port}"
    return "\n".join([
        f"cluster_name: {NAME}",
        "provider: {type: local, head_ip: 127.0.0.1, worker_ips: []}",
        f"auth: {{ssh_user: {lab.sshd.user}, ssh_private_key: {lab.sshd.key}}}",
        f"head_start_ray_commands: [ray stop, {start}]",
        "",
    ])  # fmt: skip


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
