"""raylt's modules in a simulated world: `time`, `threading`, `uuid`, file locks and the life of processes are the world's."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from raylt.store import bucket, filesystem, folders, lease, processes, stage_lock, stages
from raylt.store.processes import Life
from raylt.trial import run
from tests.chaos.simulation.world import Event, Process, Thread, World


class _Thread:
    """`threading.Thread`, as far as raylt uses it."""

    def __init__(self, world: World, target: Any) -> None:
        self._world, self._target, self._thread = world, target, None

    def start(self) -> None:
        self._thread = Thread(self._world.thread.process, self._target)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.is_done

    def join(self) -> None:
        assert self._thread is not None
        self._thread.done.wait()


class Locks:
    """File locks. They die with their process; a server of NFS drops those of a client that was silent for `lost_after_s`."""

    class Timeout(Exception):
        pass

    def __init__(self, world: World, operation: Any, *, lost_after_s: float | None) -> None:
        self.world, self.operation, self.lost_after_s = world, operation, lost_after_s
        self.holders: dict[str, Process] = {}

    def is_held(self, path: str) -> bool:
        holder = self.holders.get(path)
        if holder is None:
            return False
        is_elsewhere = holder.host is not self.world.thread.process.host
        if self.lost_after_s is not None and is_elsewhere:
            silent_until = holder.stopped_until if holder.is_alive else getattr(holder, "forgotten_at", None)
            if not holder.is_alive:
                if silent_until is None:
                    holder.forgotten_at = silent_until = self.world.now + self.lost_after_s  # type: ignore[attr-defined]
                return bool(self.world.now < silent_until)
            return not (silent_until is not None and silent_until - self.world.now > self.lost_after_s)
        return holder.is_alive

    def acquire(self, path: str, timeout: float) -> None:
        waited = 0.0
        self.operation("lock", path)
        while self.is_held(path):
            if waited >= timeout:
                raise Locks.Timeout
            self.world.sleep(0.1)
            waited += 0.1
        self.holders[path] = self.world.thread.process

    def release(self, path: str) -> None:
        if self.holders.get(path) is self.world.thread.process:
            del self.holders[path]

    def module(self) -> SimpleNamespace:
        locks = self

        class FileLock:
            def __init__(self, path: Any, **options: Any) -> None:
                self.path = str(path)

            def acquire(self, timeout: float, poll_interval: float) -> None:
                locks.acquire(self.path, timeout)

            def release(self) -> None:
                locks.release(self.path)

        return SimpleNamespace(FileLock=FileLock, Timeout=Locks.Timeout)


def _life_of(world: World, machine: str, pid: int, ticks: int | None, known: list[Process]) -> Life:
    if machine != world.thread.process.host.boot:
        return Life.UNKNOWN
    process = next((p for p in known if p.ticks == ticks and p.pid == pid and p.host is world.thread.process.host), None)
    if process is None or not process.is_alive:
        return Life.GONE
    return Life.STOPPED if process.stopped_until > world.now else Life.RUNNING


@contextlib.contextmanager
def simulated(world: World, locks: Locks, known: list[Process]) -> Iterator[None]:
    """Inside, raylt lives in `world`. `known`: the processes that were ever started."""
    host = lambda: world.thread.process.host  # noqa: E731
    clock = SimpleNamespace(time=lambda: host().wall(), monotonic=lambda: host().monotonic(), sleep=world.sleep)
    threads = SimpleNamespace(Thread=lambda target, name, daemon: _Thread(world, target), Event=lambda: Event(world))
    unique = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{world.random.getrandbits(128):032x}"))
    date = SimpleNamespace(
        UTC=datetime.UTC, datetime=SimpleNamespace(now=lambda zone: datetime.datetime.fromtimestamp(host().wall(), zone))
    )
    replaced = {
        lease: {
            "time": clock, "threading": threads, "uuid": unique, "dt": date,
            "os": SimpleNamespace(getpid=lambda: world.thread.process.pid),
            "socket": SimpleNamespace(gethostname=lambda: host().name),
            "this_machine": lambda: host().boot,
            "own_start": lambda: (world.thread.process.ticks, host().wall()),
            "life_of": lambda machine, pid, ticks, started: _life_of(world, machine, pid, ticks, known),
        },
        stage_lock: {"time": clock, "threading": threads, "uuid": unique, "filelock": locks.module()},
        filesystem: {"time": clock}, stages: {"time": clock}, run: {"time": clock},
        folders: {"uuid": unique}, bucket: {"uuid": unique}, processes: {},
    }  # fmt: skip
    before = [(module, name, getattr(module, name)) for module, names in replaced.items() for name in names]
    try:
        for module, names in replaced.items():
            for name, value in names.items():
                setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
