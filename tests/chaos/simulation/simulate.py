"""One run: a seed decides the sweep, the hosts, the storage and the faults; then everything that must hold is looked at."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from raylt.spec.canonical import canonical
from raylt.store import Ledger, Store, filesystem, sweep_state
from raylt.store.damage import Damaged
from raylt.store.folders import LocalFolder
from raylt.store.layout import LOCK_COPY, LOCK_FILE
from raylt.store.stage_lock import CLAIM
from raylt.store.stages import CHECKPOINT
from raylt.store.sweep_state import is_complete
from raylt.sweep import dispatch
from tests.chaos.simulation import people, work
from tests.chaos.simulation.bucket import Bucket, BucketFault
from tests.chaos.simulation.disk import SimulatedDisk
from tests.chaos.simulation.faults import IN_BUCKET, ON_DISK, TARGETS, Fault, Operations, disk_error, drawn
from tests.chaos.simulation.system import Locks, simulated
from tests.chaos.simulation.watch import Watch
from tests.chaos.simulation.world import Host, Process, StuckError, Thread, World

BASE = "/simulated"
MOST_FAULTS = 5


@dataclass
class Outcome:
    seed: int
    storage: str
    struck: list[Fault]
    found: list[tuple[str, str]]
    operations: int
    simulated_s: float
    drivers: int
    trace: list[str] | None = None
    document: dict[str, Any] = field(default_factory=dict)


class SimulatedStore(Store):
    """A store in the world's storage, which is local where the storage is a disk."""

    def __init__(self, folder: Any, is_local: bool, *args: Any) -> None:
        super().__init__("simulated", *args, folder=folder)
        self.is_local = is_local

    def local_path(self, path: str) -> Any:
        return _Path(path)


class _Path(str):
    """Where a lock lies: no folder has to be made for it."""

    @property
    def parent(self) -> Any:
        return SimpleNamespace(mkdir=lambda **options: None)


class Simulation:
    """The world of one seed. It is the setting that its faults act upon."""

    def __init__(
        self, seed: int, *, faults: int = MOST_FAULTS, traced: bool = False, storage: str | None = None,
        theme: tuple[str, ...] = (), targets: tuple[str, ...] = TARGETS,
    ) -> None:  # fmt: skip
        """`theme`, `targets`: the only kinds of faults, and the files that they wait for."""
        self.seed, self.world = seed, World(seed, traced=traced)
        draw = random.Random(f"setting {seed}")
        self.spec = work.spec_of(draw.randint(1, 3), draw.randint(0, 1), draw.randint(1, 2), draw.randrange(3))
        self.diverges = draw.choice([0.0, 0.0, 0.0, 0.15])
        self.confirms = draw.random() < 0.2
        self.storage = storage or draw.choice(
            ["disk", "disk", "disk without links", "nfs", "nfs without locks", "bucket", "bucket"]
        )
        self.targets = targets
        self.is_bucket = self.storage == "bucket"
        self.hosts = [Host(self.world, f"host{i}") for i in range(1 if self.storage.startswith("disk") else draw.randint(1, 3))]
        self.is_calm, self.menders, self.known = False, set[Process](), list[Process]()
        self.watch = Watch(self.world, self._may_delete)
        self.world.on_traceback = self._traceback
        kinds = IN_BUCKET if self.is_bucket else ON_DISK
        self.faults = drawn(draw, kinds, faults, 1100, theme, targets) if faults else []
        self.all_faults = list(self.faults)
        operate = Operations(self, kinds, (0.02, 0.08) if self.is_bucket else (0.0005, 0.004))
        self.bucket = Bucket(operate, "bucket/prefix", self.watch.changed)
        self.disk = SimulatedDisk(operate, BASE, self.watch.changed, has_links=self.storage != "disk without links")
        self.locks = Locks(self.world, operate, lost_after_s=None if len(self.hosts) == 1 else 90.0)
        if self.storage == "nfs without locks":
            self.locks.acquire = self._no_locks  # type: ignore[method-assign]
        self.folder = self.bucket.folder() if self.is_bucket else None  # of a disk, each process has its own

    # --- what people use ----------------------------------------------------------------------------------------------

    def store(self, *args: Any) -> SimulatedStore:
        return SimulatedStore(self.folder or LocalFolder(BASE, self.disk), not self.is_bucket, *args)

    def start(self, host: Host, name: str, main: Callable[[], None]) -> Process:
        process = Process(host, name)
        self.known.append(process)
        Thread(process, main)
        return process

    def contents(self) -> dict[str, bytes]:
        return self.bucket.contents() if self.is_bucket else self.disk.contents()

    def damage_was_reported(self, error: Damaged) -> None:
        has_died_early = error.path.endswith(LOCK_COPY) and error.why == "it is not there"  # before it wrote the copy
        if not self.watch.can_be_damaged and not has_died_early and self.storage != "disk without links":
            self.watch.report("false alarm", f"{error.path}: {error.why}")

    # --- what faults use ----------------------------------------------------------------------------------------------

    def power_cut(self) -> None:
        """Of everything that shares the disk; of one host where the storage is elsewhere."""
        hosts = [self.world.thread.process.host] if self.is_bucket else self.hosts
        for process in self.known:
            if process.host in hosts:
                process.kill()
        for host in hosts:
            host.boots += 1
        if not self.is_bucket:
            self.disk.crash(self.world.random)
            self.locks.holders.clear()

    def flip(self) -> None:
        """One byte of one file at rest: of any kind, or of those that this run is about."""
        draw, contents = self.world.random, self.contents()
        paths = sorted(path for path, data in contents.items() if data and not path.rpartition("/")[2].startswith("."))
        paths = [path for path in paths if not self._is_last_copy(path)]
        if not paths:
            return
        kinds = {self.kind_of(path) for path in paths}
        kind = draw.choice(
            sorted(kinds & set(self.targets) if self.targets != TARGETS and kinds & set(self.targets) else kinds)
        )
        path = draw.choice([path for path in paths if self.kind_of(path) == kind])
        data = bytearray(contents[path])
        digits = [index for index, byte in enumerate(data) if 48 <= byte < 58]
        if digits and draw.random() < 0.5:
            index = draw.choice(digits)
            data[index] = draw.choice([digit for digit in range(48, 58) if digit != data[index]])
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        self.world.say(f"*** a byte of {path} is flipped")
        (self.bucket if self.is_bucket else self.disk).overwrite(path, bytes(data))
        self.watch.flipped(path)

    def _is_last_copy(self, path: str) -> bool:
        """What the sweep was started with lies there twice: damage to both is beyond mending."""
        pair = [f"sweeps/{self.spec.name}/{name}" for name in (LOCK_FILE, LOCK_COPY)]
        contents = self.contents()
        other = next((name for name in pair if name != path), "")
        return path in pair and contents.get(other) not in self.watch.intended.get(other, ())

    def pause_host(self, seconds: float) -> None:
        host = self.world.thread.process.host
        for process in self.known:
            if process.host is host and process.is_alive:
                process.stop(seconds)
        if self.world.random.random() < 0.5:
            host.frozen_s += seconds

    def call(self, kind: str) -> None:
        host = self.world.random.choice(self.hosts)
        if kind == "second driver":
            self.user.start_driver()
        elif kind == "asked to stop":
            people.Task(self, host, "stop", lambda: people.ask_to_stop(self))
        else:
            people.Task(self, host, "reader", lambda: people.read(self))

    def error(self, kind: str, op: str, path: str) -> OSError:
        if not self.is_bucket:
            return disk_error(self.world.random, kind, op, path)
        if kind == "server away":
            self.bucket.away(self.world.random.choice([1.0, 5.0, 30.0]))
        return BucketFault(kind, op)

    def kind_of(self, path: str) -> str:
        name = path.rpartition("/")[2]
        if name.startswith("."):
            name = name[1:].rpartition(".")[0]
        if name.startswith(CHECKPOINT):
            return "checkpoint"
        if "/lease/" in path:
            return "epoch"
        if "/locks/" in path or path.startswith("locks/"):
            return "lock"
        return name if "." in name or name == CLAIM else "folder"

    def _may_delete(self) -> bool:
        return self.world.thread is not None and self.world.thread.process in self.menders

    def _traceback(self, thread: Thread, error: Exception) -> None:
        self.watch.report("traceback", f"{thread.process.name.split(' ')[0]}: {type(error).__name__}: {error}")

    def _no_locks(self, path: str, timeout: float) -> None:
        raise OSError(37, "no locks")

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        measured, dispatch.measure_similarity = dispatch.measure_similarity, work.measure
        at_once, filesystem.AT_ONCE = filesystem.AT_ONCE, 1  # threads of the system know nothing of ours
        parse, sweep_state.parse_spec = sweep_state.parse_spec, work.parsed
        try:
            with simulated(self.world, self.locks, self.known), self.watch.watching():
                try:
                    self.user = people.User(self)
                    self.world.run()
                    self.is_calm = True
                    self._settle()
                    seen = self._look()
                except StuckError as error:
                    self.watch.report("stuck", str(error))
                    seen = {}
                finally:
                    ended_at = self.world.now
                    self.world.end()
        finally:
            dispatch.measure_similarity, sweep_state.parse_spec, filesystem.AT_ONCE = measured, parse, at_once
        struck = [fault for fault in self.all_faults if fault.struck]
        world = self.world
        return Outcome(
            self.seed, self.storage, struck, self.watch.found, world.operations, ended_at, self.user.drivers, world.trace, seen
        )

    def _settle(self) -> None:
        """No more faults: the store is mended and the sweep finished, as often as that takes."""
        for _ in range(8):
            task = people.Task(self, self.hosts[0], "last repair", lambda: people.mend(self), mends=True)
            self.world.run()
            last = self.user.start_driver()
            self.world.run()
            if last.said == "complete" and task.value == 0 and self._is_clean():
                return
        self.watch.report("stuck", f"the last driver says {last.said}, verify {task.error or task.value}")

    def _is_clean(self) -> bool:
        task = people.Task(self, self.hosts[0], "last look", lambda: len(people.verify(self.store()).damaged))
        self.world.run()
        return task.value == 0

    def _look(self) -> dict[str, Any]:
        contents = self.contents()
        self.watch.check_kept(contents)
        documents: list[dict[str, Any]] = []

        def look() -> None:
            ledger = Ledger(self.store(), self.spec.name)
            if not is_complete(self.spec, ledger):
                self.watch.report("lost", "the sweep is not complete")
            trials = [canonical({**trial.dump(), "id": None}) for trial in ledger.submitted.values()]
            if len(set(trials)) < len(trials):
                self.watch.report("twice", "a trial was asked under two numbers")
            documents.append(work.comparable(ledger))

        people.Task(self, self.hosts[0], "look", look)
        self.world.run()
        return documents[0] if documents else {}


def outcome_of(seed: int, **options: Any) -> Outcome:
    """The run of a seed, compared with the same sweep undisturbed."""
    simulation = Simulation(seed, **options)
    outcome = simulation.run()
    was_set_aside = any(path.endswith("asked.json") for path in simulation.watch.mended)
    if outcome.document and not was_set_aside:
        expected = undisturbed(simulation.spec.model_dump_json(by_alias=True), simulation.confirms, simulation.diverges, seed)
        if outcome.document != expected:
            differ = [key for key in sorted(expected | outcome.document) if expected.get(key) != outcome.document.get(key)]
            kind = "believed" if simulation.watch.can_be_damaged else "twice"
            outcome.found.append((kind, f"not what an undisturbed run gives: {', '.join(differ)}"))
    return outcome


_documents: dict[tuple[Any, ...], dict[str, Any]] = {}


def undisturbed(spec: str, confirms: bool, diverges: float, seed: int) -> dict[str, Any]:
    key = (spec, confirms, diverges)
    if key not in _documents:
        calm = Simulation(seed, faults=0, storage="disk")
        outcome = calm.run()
        assert not outcome.found, outcome.found
        _documents[key] = outcome.document
    return _documents[key]
