"""The ledger of a sweep: asked trials and results. What is not in it did not happen.

`asked.json` is created before a trial may start, `result.json` when it has ended: each once, by the storage's own word, so
that a driver which was taken for dead cannot write what another has written. Readers need nothing; only the driver that
holds the lease writes, and it checks the lease before each write.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from raylt.errors import Fenced, InputError, StoreFailure
from raylt.spec import TrialSpec
from raylt.spec.canonical import JsonObject
from raylt.spec.trials import Planned
from raylt.store.index import PART, Part, Results, first_of, part_path, read_parts, write_part
from raylt.store.layout import LOCK_COPY, LOCK_FILE, SIMILARITY_FILE, result_path
from raylt.store.ledger_files import (
    confirm_files,
    listed,
    lost_trial,
    missing_trials,
    read_confirmations,
    read_lock,
    read_result,
    read_trial,
    require_lock,
)
from raylt.store.results import COMPLETE, Measured, TrialResult
from raylt.store.stages import Store
from raylt.store.sweep_lock import NO_LOCK, SweepLock

log = logging.getLogger("raylt.ledger")


class Ledger:
    """Trials of sweep `name` in a store. `check` raises `Fenced` where this process may not write (any more).

    Reading raises `Damaged`, naming the file, for what is not as it was written.
    """

    def __init__(self, store: Store, name: str, check: Callable[[], None] | None = None) -> None:
        self.store, self.name, self.check = store, name, check
        self.folder = f"sweeps/{name}"
        self.submitted: dict[int, TrialSpec] = {}
        self.results = Results()
        self.changes: list[int] = []  # trials as they were learnt, asked or ended: who follows keeps a place in it
        self.set_aside: set[int] = set()  # trials that were damaged
        self.num_searched = 0  # trials that the study proposed, without those that are one of them once more
        self._open: dict[int, TrialSpec] = {}
        self._plan: tuple[str, list[Planned]] = "", []  # the last file of confirmations that was read
        self._to_index: set[int] = set()  # first trials of parts that are not written, or say something else
        self._know_lock(read_lock(store, name))
        self.reload()

    def _know_lock(self, lock: SweepLock | None) -> None:
        lock = lock or NO_LOCK
        self.code_schema, self._origin = lock.code_schema, lock.origin

    def reload(self) -> None:
        """Read what is new. Finished trials never change, so they are read once: from the index, as far as it has them."""
        self._read_new()
        if self._is_sealed and self._lost():
            self._read_new()  # submitted while the folder was listed
            for number in self._lost():
                raise lost_trial(self.store, self.name, number)

    def _lost(self) -> set[int]:
        missing = missing_trials(self.submitted)
        return set(missing) - self.set_aside - {item.trial.id for item in self.confirmations()} if missing else set()

    def _read_new(self) -> None:
        sizes, self.set_aside = listed(self.store, self.name)
        if sizes and not self._is_sealed:
            self._know_lock(read_lock(self.store, self.name))  # perhaps meanwhile: a lock comes before trials
        ended = [number for number, size in sizes.items() if size.result is not None and number not in self.results]
        if self._is_sealed and len(ended) >= PART:
            for part in read_parts(self.store, self.name, {first_of(number) for number in ended}, self._origin):
                for trial in part.trials_of(sizes):
                    self._learn(trial)
                    self._learn_result(trial.id, part)
        unknown = [number for number in sizes if number not in self.submitted]
        for asked in self.store.each(self._read_trial, unknown):
            if asked is not None:
                self._learn(asked)
        ended = [number for number in ended if number in self.submitted and number not in self.results]
        for number, result in zip(ended, self.store.each(self._read_result, ended), strict=True):
            if result is not None:
                self._learn_result(number, result)

    def _read_trial(self, number: int) -> TrialSpec | None:
        return read_trial(self.store, self.name, number, self._origin)

    def _read_result(self, number: int) -> TrialResult | None:
        return read_result(self.store, self.name, number, self._origin)

    def _learn(self, trial: TrialSpec) -> None:
        if trial.id not in self.submitted:
            self.submitted[trial.id] = self._open[trial.id] = trial
            self.num_searched += trial.is_search and trial.retry_of is None
            self.changes.append(trial.id)

    def _learn_result(self, number: int, result: TrialResult | Part) -> None:
        if number in self.results:
            return
        if isinstance(result, Part):
            self.results.hold(number, result)
        else:
            self.results[number] = result
            self._to_index.add(first_of(number))
        self._open.pop(number, None)
        self.changes.append(number)

    def view(self) -> Ledger:
        """The ledger as it is now, for another thread: it can be read at leisure while this one goes on."""
        view = copy.copy(self)
        view.submitted, view.results, view._open = self.submitted.copy(), self.results.copy(), self._open.copy()
        return view

    def submit(self, trial: TrialSpec) -> None:
        """Commit a trial before it starts. Raises `Fenced` where another driver has committed one under its number."""
        assert trial.id not in self.submitted
        self.create(f"trials/{trial.id:05d}/asked.json", trial.dump())
        self._learn(trial)

    def finish(self, number: int, result: TrialResult) -> TrialResult:
        """Commit a trial's end, once; returns what the ledger has of it, which stays where it was there already."""
        if number not in self.results:
            self._check()
            path = result_path(self.name, number)
            if not self.store.create_record(path, result.to_json(), self._origin.sweep):
                self._check()  # whoever wrote it has most likely taken the sweep over
                committed = self._read_result(number)
                if committed is None:
                    raise self.store.damaged(path, "it is not there any more")
                result = committed
            self._learn_result(number, result)
            self._write_index()
        return self.results[number]

    def reopen(self, number: int) -> None:
        """Take a trial's end back: it runs again. What it was stays beside it, as `result-1.json`."""
        self._check()
        path, folder = result_path(self.name, number), f"{self.folder}/trials/{number:05d}"
        copies = sum(name.startswith("result-") for name in self.store.names(folder))
        self.store.write(f"{folder}/result-{copies + 1}.json", self.store.read(path) or b"")
        self.store.delete(part_path(self.name, first_of(number)))  # first: the next result may be as long
        self.store.delete(path)
        del self.results[number]
        self._open[number] = self.submitted[number]

    def _write_index(self) -> None:
        """Write the parts whose trials have all ended, each once. What hinders that hinders no sweep."""
        for first in sorted(self._to_index) if self._is_sealed else ():
            numbers = range(first, first + PART)
            if all(number in self.results for number in numbers):
                self._to_index.remove(first)
                part = Part.of([(self.submitted[number], self.results[number]) for number in numbers])
                with contextlib.suppress(StoreFailure):
                    write_part(self.store, self.name, part, self._origin)

    def read(self, name: str) -> JsonObject | None:
        """One of the sweep's own files: spec.lock.json, similarity.json, mlflow.json."""
        return self.store.read_record(f"{self.folder}/{name}", is_sealed=self._is_sealed or None, sweep=self._sweep_of(name))

    def _sweep_of(self, name: str) -> str:
        """The lock says which sweep it is, so its own files cannot be checked by that."""
        return "" if name in (LOCK_FILE, LOCK_COPY) else self._origin.sweep

    def similarity(self) -> Measured:
        """What was measured between the pilots; empty before."""
        return cast(Measured, self.read(SIMILARITY_FILE) or {})

    def write(self, name: str, value: Mapping[str, object]) -> None:
        """Write one of the sweep's own files that may change."""
        self._check()
        self.store.write_record(f"{self.folder}/{name}", value, self._sweep_of(name))

    def decide(self, name: str, value: Mapping[str, object]) -> JsonObject:
        """One of the sweep's own files that is decided once: what it says, whoever has written it."""
        self._check()
        self.store.create_record(f"{self.folder}/{name}", value, self._sweep_of(name))
        return self.read(name) or {}

    def lock(self, lock: SweepLock) -> None:
        """Commit what the sweep starts with; and a copy, since it could be worked out from nothing else."""
        self.create(LOCK_FILE, lock.record)
        self._know_lock(lock)
        self.keep_copy(lock)

    def keep_copy(self, lock: SweepLock) -> None:
        """See that the lock has its copy: whoever started the sweep may have died before writing it."""
        if lock.is_sealed and self.store.read(f"{self.folder}/{LOCK_COPY}") is None:
            self.write(LOCK_COPY, lock.record)

    @property
    def _is_sealed(self) -> bool:
        return self._origin.is_sealed

    def create(self, name: str, value: Mapping[str, object]) -> None:
        """Write one of the sweep's own files that is decided once. Raises `Fenced` where another driver has."""
        self._check()
        if not self.store.create_record(f"{self.folder}/{name}", value, self._sweep_of(name)):
            self._check()
            raise Fenced(f"{self.store.root}/{self.folder}/{name} was written by another driver meanwhile")

    def _check(self) -> None:
        assert self.check is not None, "a reader of the ledger may not write"
        self.check()

    def confirmations(self) -> list[Planned]:
        """The trials that `raylt confirm` has planned, asked or not. Raises `Damaged`."""
        file = next(reversed(confirm_files(self.store, self.name)), "")
        if file == self._plan[0]:
            return list(self._plan[1])  # it never changes
        self._plan = file, read_confirmations(self.store, self.name, file, self._origin)
        return list(self._plan[1])

    def plan_confirmation(self, planned: Sequence[Planned]) -> None:
        """Commit a plan of confirming trials, which holds all of the one before. Each plan is a file of its own."""
        number = len(confirm_files(self.store, self.name)) + 1
        trials = [item.dump() for item in planned]
        self.create("confirm.json" if number == 1 else f"confirm-{number}.json", {"trials": trials})

    def open_trials(self) -> list[TrialSpec]:
        """Asked and not ended, by id: to be adopted by whoever drives the sweep."""
        return [trial for _, trial in sorted(self._open.items())]

    def complete(self, kind: str) -> list[tuple[TrialSpec, TrialResult]]:
        """Trials of a kind that ended well, by id; without those that confirm others."""
        of_kind = ((number, trial) for number, trial in sorted(self.submitted.items()) if trial.kind == kind)
        ended = ((trial, self.results.get(number)) for number, trial in of_kind if not trial.is_confirmation)
        return [(trial, result) for trial, result in ended if result is not None and result.state == COMPLETE]


def sweep_names(store: Store) -> list[str]:
    """The sweeps that were started, also those whose lock is lost: `existing` finds each of them, or says what is damaged."""
    return [name for name in store.names("sweeps") if was_started(store, name)]


def was_started(store: Store, name: str) -> bool:
    folder = f"sweeps/{name}"
    return store.read(f"{folder}/{LOCK_FILE}") is not None or bool(store.names(f"{folder}/trials"))


def existing(store: Store, name: str) -> Ledger:
    """The ledger of a sweep that was started. Raises `InputError`, naming those that were, where it was not."""
    if not was_started(store, name):
        names = ", ".join(sweep_names(store)) or "none"
        raise InputError(f"no sweep {name!r} in {store.root} (there: {names}); give its name, its spec file, or --root")
    require_lock(store, name)
    ledger = Ledger(store, name)
    if not ledger._is_sealed:
        warn_unverified(store, name)
    return ledger


_warned: set[tuple[str, str]] = set()


def warn_unverified(store: Store, name: str) -> None:
    """Say, once a process, that an earlier raylt wrote the sweep's files without checksums."""
    if (store.uri, name) not in _warned:
        _warned.add((store.uri, name))
        log.warning("%s was started by an earlier raylt: its files have no checksums and are read unverified", name)
