"""The lease: one driver a sweep. Whoever drives it has an epoch, which the storage gives to one process alone.

    ROOT/sweeps/NAME/lease/<epoch>.json   who holds the epoch: created once, never changed. The newest epoch drives.
    ROOT/sweeps/NAME/lease.json           the newest holder's sign of life, and `released` at its end
    ROOT/sweeps/NAME/stop.json            a request to stop, which names the epoch it is for

A holder is dead when its process is gone from this very machine, or when its sign of life has not changed for a minute of
the watcher's own time: two hosts' clocks are never compared. Whoever was taken for dead, and lives, is fenced: it sees the
next epoch before each of its writes, and what commits a result is created once, so that it cannot be written twice.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from raylt.errors import EnvironmentFailure, Fenced, LeaseHeld
from raylt.store.damage import Damaged
from raylt.store.layout import epoch_path, lease_path, stop_path
from raylt.store.processes import Life, life_of, own_start, this_machine
from raylt.store.stages import Store

log = logging.getLogger("raylt.lease")

STALE_AFTER_S = 60.0  # a holder whose sign of life has not changed for so long is taken for dead
HEARTBEAT_EVERY_S = 10.0
LOOK_EVERY_S = 2.0  # for a stop request
WATCH_EVERY_S = 1.0
SETTLE_S = 1.0  # where no filesystem gives the epoch: servers are said to know conditional PUTs that look first and write then


@dataclass(frozen=True)
class Holder:
    """Who drives a sweep. `machine` tells two boots, and two containers, of one host name apart."""

    epoch: int
    token: str
    host: str
    machine: str
    pid: int
    process_start: float  # unix seconds
    since: str
    heartbeat: float  # unix seconds of its own clock: for people to read, and new with each sign of life
    released: bool = False
    start_ticks: int | None = None  # of the process, since boot; None of earlier sweeps, and where the system has none

    @staticmethod
    def myself(epoch: int) -> Holder:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        ticks, start = own_start()
        token, host = uuid.uuid4().hex, socket.gethostname()
        return Holder(epoch, token, host, this_machine(), os.getpid(), start, now, time.time(), start_ticks=ticks)

    @property
    def life(self) -> Life:
        """What can be said of it at once. RUNNING and STOPPED: of its process on this machine."""
        return Life.GONE if self.released else life_of(self.machine, self.pid, self.start_ticks, self.process_start)

    @property
    def seems_alive(self) -> bool:
        """For what people are shown. Of another host its own clock must do, so nothing may be decided by it."""
        life = self.life
        if life is Life.UNKNOWN:
            return abs(time.time() - self.heartbeat) <= STALE_AFTER_S
        return life is not Life.GONE

    def __str__(self) -> str:
        if not self.pid:
            return "somebody whose name was damaged"
        seen = max(0, round(time.time() - self.heartbeat))
        stopped = f" (stopped; `kill -CONT {self.pid}` lets it go on)" if self.life is Life.STOPPED else ""
        return f"pid {self.pid} on {self.host} since {self.since}, last seen {seen} s ago{stopped}"


def newest_epoch(store: Store, name: str) -> int:
    """The newest epoch that somebody holds or held; 0: nobody ever did."""
    names = (entry.removesuffix(".json") for entry in store.names(f"sweeps/{name}/lease"))
    return max((int(entry) for entry in names if entry.isascii() and entry.isdecimal()), default=0)


def read_holder(store: Store, name: str) -> Holder | None:
    """Who drives a sweep, or did last, with its newest sign of life. Raises `Damaged`."""
    epoch = newest_epoch(store, name)
    try:
        sign = _read(store, lease_path(name))
    except Damaged:
        if not epoch:
            raise
        sign = None  # its holder writes it anew
    if sign is not None and sign.epoch >= epoch:  # also of a sweep started before epochs had files
        return sign
    return _read(store, epoch_path(name, epoch)) if epoch else None  # it has given no sign yet, or an older one's came late


def _read(store: Store, path: str) -> Holder | None:
    record = store.read_record(path)
    names = {field.name for field in fields(Holder)}
    try:
        return None if record is None else Holder(**{key: value for key, value in record.items() if key in names})
    except TypeError as error:
        raise store.damaged(path, "it does not say who holds the lease") from error


def request_stop(store: Store, name: str) -> Holder | None:
    """Ask the driver of a sweep to stop, from anywhere that reaches the store; returns it, None where nobody drives it."""
    holder = read_holder(store, name)
    if holder is None or holder.life is Life.GONE:
        return None
    store.write_record(stop_path(name), {"epoch": holder.epoch})
    return holder


def has_stopped(store: Store, name: str, holder: Holder) -> bool:
    """Whether `holder` drives the sweep no more."""
    now = read_holder(store, name)
    return now is None or now.epoch != holder.epoch or now.life is Life.GONE


def guard_for(store: Store, name: str, epoch: int, token: str) -> Callable[[], None]:
    """A guard for writers under an epoch: raises `Fenced` once there is another, or where the epoch was never theirs."""
    confirmed = False

    def guard() -> None:
        nonlocal confirmed
        if not confirmed:
            holder = _read(store, epoch_path(name, epoch))
            if holder is None or holder.token != token:
                raise Fenced(f"sweep {name} was taken over by {holder or 'nobody: its lease was deleted'}")
            confirmed = True  # created once, so it stays
        if store.read(epoch_path(name, epoch + 1)) is not None:
            raise Fenced(f"sweep {name} was taken over by {read_holder(store, name)}")

    return guard


class Lease:
    """A lease held by this process, kept alive by a thread until `release`."""

    def __init__(
        self, store: Store, name: str, holder: Holder, on_stop: Callable[[], None] = lambda: None, *, has_thread: bool = True
    ) -> None:
        self.store, self.name, self.holder, self._on_stop = store, name, holder, on_stop
        self.check = guard_for(store, name, holder.epoch, holder.token)
        self._was_asked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        if has_thread:
            self._thread.start()

    @staticmethod
    def acquire(store: Store, name: str, on_stop: Callable[[], None] = lambda: None, *, has_thread: bool = True) -> Lease:
        """The lease of a sweep. Raises `LeaseHeld`, naming the holder, where another driver lives.

        `on_stop` is called, once and from the lease's thread, when somebody asks this driver to stop. Where it takes a minute
        to see whether another driver lives, the log says so.
        """
        while True:
            current = read_holder(store, name)
            if current is not None:
                _await_its_end(store, name, current)
            epoch = 0 if current is None else current.epoch
            if newest_epoch(store, name) > epoch:
                continue  # another was faster
            holder = Holder.myself(epoch + 1)
            if store.create_record(epoch_path(name, holder.epoch), asdict(holder)) and _still_has(store, name, holder):
                break
        lease = Lease(store, name, holder, on_stop, has_thread=False)
        lease.beat()
        if has_thread:
            lease._thread.start()
        return lease

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
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(EnvironmentFailure):  # fenced, or the store is away: the lease goes stale by itself
            self._sign(released=True)

    def beat(self) -> None:
        """One sign of life. Raises `Fenced` where another driver has taken over."""
        self._sign(released=False)

    def look_for_request(self) -> None:
        """Call `on_stop` where somebody asks this driver to stop: once."""
        if self._was_asked:
            return
        try:
            request = self.store.read_record(stop_path(self.name))
        except Damaged:
            return  # whoever wrote it may ask again
        if request is not None and request.get("epoch") == self.holder.epoch:
            self._was_asked = True
            self._on_stop()

    def _sign(self, *, released: bool) -> None:
        self.check()
        self.store.write_record(lease_path(self.name), asdict(replace(self.holder, heartbeat=time.time(), released=released)))

    def _beat(self) -> None:
        """The lease's thread. A store that is away fails the next write of the ledger, which will say so."""
        due = time.monotonic() + HEARTBEAT_EVERY_S
        while not self._stop.wait(LOOK_EVERY_S):
            with contextlib.suppress(EnvironmentFailure):
                self.look_for_request()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + HEARTBEAT_EVERY_S
            try:
                self.beat()
            except Fenced:
                return
            except EnvironmentFailure:
                continue


def _still_has(store: Store, name: str, holder: Holder) -> bool:
    if not store.is_local:
        time.sleep(SETTLE_S)
    written = _read(store, epoch_path(name, holder.epoch))
    return written is not None and written.token == holder.token


def _await_its_end(store: Store, name: str, holder: Holder) -> None:
    """Returns once `holder` is dead. Raises `LeaseHeld` as soon as it is seen to live."""
    began, said = time.monotonic(), False
    while holder.life is not Life.GONE:
        if holder.life is Life.RUNNING:
            raise _held(name, holder)
        if time.monotonic() - began > STALE_AFTER_S:
            return  # it was silent for too long, wherever it is
        if not said:
            log.warning(
                "sweep %s was driven by %s; waiting up to %.0f s to see whether it still is", name, holder, STALE_AFTER_S
            )
            said = True
        time.sleep(WATCH_EVERY_S)
        now = read_holder(store, name)
        if now is None:
            return
        if now != holder and not now.released:
            raise _held(name, now)
        holder = now


def _held(name: str, holder: Holder) -> LeaseHeld:
    return LeaseHeld(f"sweep {name} is being driven by {holder}; wait for it, or stop it: raylt stop {name}")
