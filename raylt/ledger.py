"""The ledger of a sweep: asked trials and results. What is not in it did not happen.

`asked.json` is created before a trial may start, `result.json` when it has ended: each once, by the storage's own word, so
that a driver which was taken for dead cannot write what another has written. Readers need nothing; only the driver that
holds the lease writes, and it checks the lease before each write.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raylt.errors import Fenced, InputError
from raylt.plan import Planned, TrialSpec
from raylt.store import MANIFEST, Stage, Store

log = logging.getLogger("raylt.ledger")

COMPLETE, PRUNED, FAIL, RUNNING = "COMPLETE", "PRUNED", "FAIL", "RUNNING"
SET_ASIDE = ".damaged"  # ends the name of a trial's folder of which nobody knows what the trial was
LOCK_FILE, LOCK_COPY = "spec.lock.json", "spec.lock.copy.json"
Result = dict[str, Any]

_OF_A_RESULT = {"state": str, "rounds": list, "stages": dict, "time_ms": int}  # what every result has


class Ledger:
    """Trials of sweep `name` in a store. `check` raises `Fenced` where this process may not write (any more).

    Reading raises `Damaged`, naming the file, for what is not as it was written.
    """

    def __init__(self, store: Store, name: str, check: Callable[[], None] | None = None) -> None:
        self.store, self.name, self.check = store, name, check
        self.folder = f"sweeps/{name}"
        self.asked: dict[int, TrialSpec] = {}
        self.results: dict[int, Result] = {}
        self.set_aside: set[int] = set()  # trials that were damaged
        self._is_sealed = is_sealed(read_lock(store, name))
        self.reload()

    def reload(self) -> None:
        """Read what is new. Finished trials never change, so they are read once."""
        for entry in self.store.names(f"{self.folder}/trials"):
            own, is_aside = entry.removesuffix(SET_ASIDE), entry.endswith(SET_ASIDE)
            if not own.isdigit():
                continue  # nothing of ours
            number = int(own)
            if is_aside:
                self.set_aside.add(number)
                continue
            if number not in self.asked:
                asked = read_asked(self.store, self.name, number, self._is_sealed)
                if asked is not None:
                    self.asked[number] = asked
            if number in self.asked and number not in self.results:
                result = read_result(self.store, self.name, number, self._is_sealed)
                if result is not None:
                    self.results[number] = result

    def ask(self, trial: TrialSpec) -> None:
        """Commit a trial before it starts. Raises `Fenced` where another driver has committed one under its number."""
        assert trial.id not in self.asked
        self._create(f"trials/{trial.id:05d}/asked.json", trial.dump())
        self.asked[trial.id] = trial

    def finish(self, number: int, result: Mapping[str, Any]) -> Result:
        """Commit a trial's end, once; returns what the ledger has of it, which stays where it was there already."""
        if number not in self.results:
            self._check()
            path = result_path(self.name, number)
            if self.store.create_record(path, result):
                self.results[number] = dict(result)
            else:
                self._check()  # whoever wrote it has most likely taken the sweep over
                self.results[number] = read_result(self.store, self.name, number, self._is_sealed) or {}
        return self.results[number]

    def read(self, name: str) -> dict[str, Any] | None:
        """One of the sweep's own files: spec.lock.json, similarity.json, mlflow.json."""
        return self.store.read_record(f"{self.folder}/{name}", is_sealed=self._is_sealed or None)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the sweep's own files that may change."""
        self._check()
        self.store.write_record(f"{self.folder}/{name}", value)

    def create(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the sweep's own files that is decided once. Raises `Fenced` where another driver has."""
        self._create(name, value)

    def lock(self, value: Mapping[str, Any]) -> None:
        """Commit what the sweep is begun with; and a copy, since it could be worked out from nothing else."""
        self._create(LOCK_FILE, value)
        self._is_sealed = is_sealed(value)
        self.keep_copy(value)

    def keep_copy(self, lock: Mapping[str, Any]) -> None:
        """See that the lock has its copy: whoever began the sweep may have died before writing it."""
        if is_sealed(lock) and self.store.read(f"{self.folder}/{LOCK_COPY}") is None:
            self.write(LOCK_COPY, lock)

    def _create(self, name: str, value: Mapping[str, Any]) -> None:
        self._check()
        if not self.store.create_record(f"{self.folder}/{name}", value):
            self._check()
            raise Fenced(f"{self.store.root}/{self.folder}/{name} was written by another driver meanwhile")

    def _check(self) -> None:
        assert self.check is not None, "a reader of the ledger may not write"
        self.check()

    def confirmations(self) -> list[Planned]:
        """The trials that `raylt confirm` has planned, asked or not. Raises `Damaged`."""
        files = self._confirm_files()
        if not files:
            return []
        path = f"{self.folder}/{files[-1]}"
        try:
            return [Planned(TrialSpec.load(item["trial"]), item["after"]) for item in self._confirm_items(path)]
        except (ValueError, TypeError, KeyError) as error:
            raise self.store.damaged(path, f"it is no plan: {error}") from error

    def _confirm_items(self, path: str) -> list[Any]:
        if not self._is_sealed:
            content = json.loads(self.store.read(path) or b"")
            if isinstance(content, list):  # of an earlier raylt
                return content
        return list((self.store.read_record(path, is_sealed=self._is_sealed) or {})["trials"])

    def plan_confirmation(self, planned: Sequence[Planned]) -> None:
        """Commit a plan of confirming trials, which holds all of the one before. Each plan is a file of its own."""
        trials = [{"trial": item.trial.dump(), "after": list(item.after)} for item in planned]
        number = len(self._confirm_files()) + 1
        self._create("confirm.json" if number == 1 else f"confirm-{number}.json", {"trials": trials})

    def _confirm_files(self) -> list[str]:
        """In the order in which they were written."""
        numbered = ((re.fullmatch(r"confirm(?:-(\d+))?\.json", name), name) for name in self.store.names(self.folder))
        return [name for _, name in sorted((int(match[1] or 1), name) for match, name in numbered if match)]

    def open_trials(self) -> list[TrialSpec]:
        """Asked and not ended, by id: to be adopted by whoever drives the sweep."""
        return [trial for number, trial in sorted(self.asked.items()) if number not in self.results]

    def complete(self, kind: str) -> list[tuple[TrialSpec, Result]]:
        """Trials of a kind that ended well, by id; without those that confirm others."""
        mine = ((number, trial) for number, trial in sorted(self.asked.items()) if trial.kind == kind)
        ended = ((trial, self.results.get(number)) for number, trial in mine if not trial.is_confirmation)
        return [(trial, result) for trial, result in ended if result is not None and result["state"] == COMPLETE]


def stage_of(store: Store, result: Result, digest: str) -> Stage:
    """A stage that a result names. Raises `Damaged` where it is not there, or is not the one that the result was of."""
    stage = store.find(digest)
    expected = result["stages"].get(digest)
    if expected is not None and stage.whole().digest != expected:
        raise store.damaged(f"{stage.path}/{MANIFEST}", "its content is not that of the stage which a result names")
    return stage


def asked_path(name: str, number: int) -> str:
    return f"sweeps/{name}/trials/{number:05d}/asked.json"


def result_path(name: str, number: int) -> str:
    return f"sweeps/{name}/trials/{number:05d}/result.json"


def read_asked(store: Store, name: str, number: int, sealed: bool) -> TrialSpec | None:
    """A trial as it was asked; None where it was not. Raises `Damaged`."""
    path = asked_path(name, number)
    record = store.read_record(path, is_sealed=sealed)
    if record is None:
        if store.read(result_path(name, number)) is None:
            return None
        record = store.read_record(path, is_sealed=sealed)  # asked and ended between the two
        if record is None:
            raise store.damaged(path, "it is not there, though the trial has a result")
    try:
        trial = TrialSpec.load(record)
    except ValueError as error:
        raise store.damaged(path, str(error)) from None
    if trial.id != number:
        raise store.damaged(path, f"it is of trial {trial.id}")
    return trial


def read_result(store: Store, name: str, number: int, sealed: bool) -> Result | None:
    """How a trial ended; None where it has not. Raises `Damaged`."""
    path = result_path(name, number)
    record, is_verified = store.read_checked(path, is_sealed=sealed)
    if record is None:
        return None
    if not is_verified:
        for key, kind in _OF_A_RESULT.items():
            if not isinstance(record.get(key), kind):
                raise store.damaged(path, f"it has no {key}")
    if record.get("state") not in (COMPLETE, PRUNED, FAIL):
        raise store.damaged(path, "it does not say how the trial ended")
    return record


def read_lock(store: Store, name: str) -> dict[str, Any] | None:
    """What a sweep was begun with; None where none was begun. Raises `Damaged` where that is lost."""
    path = f"sweeps/{name}/{LOCK_FILE}"
    lock = store.read_record(path)
    if lock is None and store.read(f"sweeps/{name}/{LOCK_COPY}") is not None:
        lock = store.read_record(path)  # begun between the two
        if lock is None:
            raise store.damaged(path, "it is not there, and its copy is")
    if lock is not None and lock.get("code_schema", 1) >= 2:
        lock = store.read_record(path, is_sealed=True)
    return lock


def is_sealed(lock: Mapping[str, Any] | None) -> bool:
    """Whether a sweep's files have checksums: those of an earlier raylt have none."""
    return lock is not None and lock.get("code_schema", 1) >= 2


def sweep_names(store: Store) -> list[str]:
    """The sweeps that were begun, also those whose lock is lost: `existing` finds each of them, or says what is damaged."""
    return [name for name in store.names("sweeps") if _was_begun(store, name)]


def _was_begun(store: Store, name: str) -> bool:
    folder = f"sweeps/{name}"
    return store.read(f"{folder}/{LOCK_FILE}") is not None or bool(store.names(f"{folder}/trials"))


def existing(store: Store, name: str) -> Ledger:
    """The ledger of a sweep that was begun. Raises `InputError`, naming those that were, where it was not."""
    if not _was_begun(store, name):
        known = ", ".join(sweep_names(store)) or "none"
        raise InputError(f"no sweep {name!r} in {store.root} (there: {known}); give its name, its spec file, or --root")
    require_lock(store, name)
    ledger = Ledger(store, name)
    if not ledger._is_sealed:
        warn_unverified(store, name)
    return ledger


def require_lock(store: Store, name: str) -> None:
    """Raises `Damaged` for a sweep that has trials and no lock: it was lost."""
    if read_lock(store, name) is None and store.names(f"sweeps/{name}/trials") and read_lock(store, name) is None:
        raise store.damaged(f"sweeps/{name}/{LOCK_FILE}", "it is not there, though the sweep has trials")


_warned: set[tuple[str, str]] = set()


def warn_unverified(store: Store, name: str) -> None:
    """Say, once a process, that an earlier raylt wrote the sweep's files without checksums."""
    if (store.uri, name) not in _warned:
        _warned.add((store.uri, name))
        log.warning("%s was begun by an earlier raylt: its files have no checksums and are read unverified", name)
