"""A process, known so that no other can be taken for it: by its boot of its machine, its pid and when it started."""

from __future__ import annotations

import os
import socket
from enum import Enum
from pathlib import Path

import psutil


class Life(Enum):
    RUNNING = "running"
    STOPPED = "stopped"  # by SIGSTOP, Ctrl-Z or a debugger: it may go on at any time
    GONE = "gone"
    UNKNOWN = "unknown"  # it is of another machine


def this_machine() -> str:
    """This boot of this host's kernel and this process namespace: where a pid means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def start_ticks(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot, which no clock moves; None where only the clock knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def life_of(machine: str, pid: int, ticks: int | None, started: float) -> Life:
    """What became of a process. `started` (unix seconds) is asked where there are no ticks."""
    if machine != this_machine():
        return Life.UNKNOWN
    try:
        process = psutil.Process(pid)
        is_same = start_ticks(pid) == ticks if ticks is not None else abs(process.create_time() - started) < 1
        status = process.status()
    except psutil.NoSuchProcess:
        return Life.GONE
    if not is_same or status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return Life.GONE
    return Life.STOPPED if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else Life.RUNNING


def own_start() -> tuple[int | None, float]:
    """(ticks, unix seconds) of this process's beginning."""
    return start_ticks(os.getpid()), psutil.Process().create_time()
