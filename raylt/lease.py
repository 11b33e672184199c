"""The lease: one driver per sweep. Its epoch fences off whoever held it before; a stop request names the epoch it is for."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import filelock
import psutil

from raylt.errors import EnvironmentFailure, Fenced, LeaseHeld
from raylt.store import Store

STALE_AFTER_S = 60.0  # a holder on another host is taken for dead when its last heartbeat is older
HEARTBEAT_EVERY_S = 10.0
LOOK_EVERY_S = 2.0  # for a stop request
SETTLE_S = 2.0  # on stores without locks: how long two newcomers wait to see who wrote last


@dataclass(frozen=True)
class Holder:
    """Who drives a sweep. `machine` tells two boots, and two containers, of one host name apart."""

    epoch: int
    token: str
    host: str
    machine: str
    pid: int
    process_start: float
    since: str
    heartbeat: float  # unix seconds
    released: bool = False

    @staticmethod
    def myself(epoch: int) -> Holder:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        start = psutil.Process().create_time()
        return Holder(epoch, uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), start, now, time.time())

    def is_alive(self) -> bool:
        if self.released:
            return False
        if self.machine == _machine():
            return _process_lives(self.pid, self.process_start)
        return time.time() - self.heartbeat <= STALE_AFTER_S

    def __str__(self) -> str:
        seen = max(0, round(time.time() - self.heartbeat))
        return f"pid {self.pid} on {self.host} since {self.since}, last seen {seen} s ago"


def _machine() -> str:
    """This boot of this host's kernel and this process namespace: where a pid means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _process_lives(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - start) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def lease_path(name: str) -> str:
    return f"sweeps/{name}/lease.json"


def stop_path(name: str) -> str:
    return f"sweeps/{name}/stop.json"


def request_stop(store: Store, name: str) -> Holder | None:
    """Ask the driver of a sweep to stop, from anywhere that reaches the store; returns it, None where nobody drives it."""
    holder = read_holder(store, name)
    if holder is None or not holder.is_alive():
        return None
    store.write_json(stop_path(name), {"epoch": holder.epoch})
    return holder


def has_stopped(store: Store, name: str, holder: Holder) -> bool:
    """Whether `holder` drives the sweep no more."""
    now = read_holder(store, name)
    return now is None or now.epoch != holder.epoch or not now.is_alive()


def read_holder(store: Store, name: str) -> Holder | None:
    data = store.read_json(lease_path(name))
    return None if data is None else Holder(**data)


def guard_for(store: Store, name: str, epoch: int, token: str | None = None) -> Callable[[], None]:
    """A guard for writers under epoch `epoch`: raises `Fenced` once the lease has another.

    `token`: the driver's own. Where there are no locks, a newcomer whose write was late may have taken the same epoch.
    """

    def guard() -> None:
        holder = read_holder(store, name)
        if holder is None or holder.epoch != epoch or token not in (None, holder.token):
            newer = "nobody" if holder is None else str(holder)
            raise Fenced(f"sweep {name} was taken over by {newer}")

    return guard


class Lease:
    """A lease held by this process, kept alive by a thread until `release`."""

    def __init__(self, store: Store, name: str, holder: Holder, on_stop: Callable[[], None]) -> None:
        self.store, self.name, self.holder, self._on_stop = store, name, holder, on_stop
        self.check = guard_for(store, name, holder.epoch, holder.token)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @staticmethod
    def acquire(store: Store, name: str, on_stop: Callable[[], None] = lambda: None) -> Lease:
        """The lease of a sweep. Raises `LeaseHeld`, naming the holder, where another driver lives.

        `on_stop` is called, once and from the lease's thread, when somebody asks this driver to stop.
        """
        with _exclusive(store, name):
            current = read_holder(store, name)
            if current is not None and current.is_alive():
                raise LeaseHeld(f"sweep {name} is being driven by {current}; wait for it, or stop it: raylt stop {name}")
            mine = Holder.myself(1 if current is None else current.epoch + 1)
            store.write_json(lease_path(name), asdict(mine))
        if not store.is_local:
            time.sleep(SETTLE_S)
            written = read_holder(store, name)
            if written is None or written.token != mine.token:
                raise LeaseHeld(f"sweep {name} is being driven by {written}; wait for it, or stop it: raylt stop {name}")
        return Lease(store, name, mine, on_stop)

    @property
    def is_mine(self) -> bool:
        """Whether no other driver has taken the sweep over."""
        try:
            self.check()
        except Fenced:
            return False
        return True

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(EnvironmentFailure):  # fenced, or the store is away: the lease goes stale by itself
            self._write(replace(self.holder, heartbeat=time.time(), released=True))

    def _beat(self) -> None:
        due, asked = time.monotonic() + HEARTBEAT_EVERY_S, False
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                if not asked and self._is_asked_to_stop():
                    asked = True
                    self._on_stop()
                if time.monotonic() >= due:
                    due = time.monotonic() + HEARTBEAT_EVERY_S
                    self._write(replace(self.holder, heartbeat=time.time()))
            except Fenced:
                return
            except EnvironmentFailure:
                continue  # the store is away: the next write of the ledger will say so

    def _is_asked_to_stop(self) -> bool:
        request = self.store.read_json(stop_path(self.name))
        return request is not None and request["epoch"] == self.holder.epoch

    def _write(self, holder: Holder) -> None:
        with _exclusive(self.store, self.name):
            self.check()
            self.store.write_json(lease_path(self.name), asdict(holder))


@contextlib.contextmanager
def _exclusive(store: Store, name: str) -> Iterator[None]:
    """Between reading and writing the lease nobody else may write it, where the filesystem has locks."""
    if not store.is_local:
        yield
        return
    path = store.local_path(f"locks/lease-{name}")
    lock = filelock.FileLock(path, thread_local=False)
    with store.in_words("lock", f"locks/lease-{name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
