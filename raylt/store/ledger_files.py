"""The files of a sweep's ledger, one by one: where each lies, and how it is read and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from raylt.spec import TrialSpec
from raylt.spec.trials import Planned
from raylt.store.damage import Damaged
from raylt.store.layout import LOCK_COPY, LOCK_FILE, SET_ASIDE, asked_path, result_path
from raylt.store.results import TrialResult
from raylt.store.stages import MANIFEST, Store, folder_of, is_digest
from raylt.store.sweep_lock import Origin, SweepLock

_OF_A_RESULT = {"state": str, "rounds": list, "stages": dict, "time_ms": int}  # what every result has


class Sizes(NamedTuple):
    """Bytes of a trial's asked.json and result.json, as far as they are there."""

    asked: int | None
    result: int | None


def listed(store: Store, name: str) -> tuple[dict[int, Sizes], set[int]]:
    """(trial -> the sizes of its files, by id; the trials set aside): one look at a folder, however many trials there are."""
    trials = f"sweeps/{name}/trials/"
    by_file: dict[str, dict[str, int]] = {"asked.json": {}, "result.json": {}}  # file -> folder -> bytes
    files = store.all_files(trials.rstrip("/"))
    if not files and misplaced(store, trials.rstrip("/")):
        raise store.damaged(trials.rstrip("/"), "a file lies in a folder's place")
    for path, size in files:
        entry, _, file = path[len(trials) :].partition("/")
        if file in by_file:
            by_file[file][entry] = size
    asked, ended = by_file.values()
    entries = sorted({*asked, *ended})
    aside = {int(number) for number, end, _ in (entry.partition(SET_ASIDE) for entry in entries) if end and is_number(number)}
    sizes = {int(entry): Sizes(asked.get(entry), ended.get(entry)) for entry in entries if is_number(entry)}
    return sizes, aside


def misplaced(store: Store, folder: str) -> bool:
    """Whether a file lies in the place of a folder, as can be on a filesystem."""
    try:
        return store.is_local and store.read(folder) is not None
    except Damaged:
        return False  # it is a folder


def is_number(entry: str) -> bool:
    """Whether the name of a folder is a trial's number, as it is written."""
    return entry.isascii() and entry.isdecimal() and entry == f"{int(entry):05d}"


def read_trial(store: Store, name: str, number: int, origin: Origin) -> TrialSpec | None:
    """A trial as it was asked; None where it was not. Raises `Damaged`."""
    path = asked_path(name, number)
    record = store.read_record(path, **origin._asdict())
    if record is None:
        if store.read(result_path(name, number)) is None:
            return None
        record = store.read_record(path, **origin._asdict())  # asked and ended between the two
        if record is None:
            raise store.damaged(path, "it is not there, though the trial has a result")
    try:
        trial = TrialSpec.load(record)
    except ValueError as error:
        raise store.damaged(path, str(error)) from None
    if trial.id != number:
        raise store.damaged(path, f"it is of trial {trial.id}")
    return trial


def read_result(store: Store, name: str, number: int, origin: Origin) -> TrialResult | None:
    """How a trial ended; None where it has not. Raises `Damaged`."""
    path = result_path(name, number)
    record, is_verified = store.read_checked(path, **origin._asdict())
    if record is None:
        return None
    if not is_verified:
        for key, kind in _OF_A_RESULT.items():
            if not isinstance(record.get(key), kind):
                raise store.damaged(path, f"it has no {key}")
    try:
        return TrialResult.from_json(record)
    except (ValueError, TypeError, KeyError) as error:
        raise store.damaged(path, f"it is no result: {error}") from error


def confirm_files(store: Store, name: str) -> list[str]:
    """The plans of confirmations, in the order in which they were written."""
    numbered = ((re.fullmatch(r"confirm(?:-(\d+))?\.json", file), file) for file in store.names(f"sweeps/{name}"))
    return [file for _, file in sorted((int(match[1] or 1), file) for match, file in numbered if match)]


def read_confirmations(store: Store, name: str, file: str, origin: Origin) -> list[Planned]:
    """The trials of a plan of confirmations. Raises `Damaged`."""
    path = f"sweeps/{name}/{file}"
    content = None
    try:
        if not origin.is_sealed:
            content = json.loads(store.read(path) or b"")
        if not isinstance(content, list):  # as an earlier raylt wrote it
            content = (store.read_record(path, **origin._asdict()) or {})["trials"]
        return [Planned.load(item) for item in content]
    except (ValueError, TypeError, KeyError) as error:
        raise store.damaged(path, f"it is no plan: {error}") from error


def missing_trials(asked: Mapping[int, TrialSpec]) -> list[int]:
    """The numbers below that of the last search trial that no trial has. Numbers are given in order: such a trial is planned
    for a confirmation, or it was lost."""
    last = max((number for number, trial in asked.items() if trial.is_search), default=0)
    return [number for number in range(last) if number not in asked]


def lost_trial(store: Store, name: str, number: int) -> Damaged:
    """The error that says so of a trial, to be raised."""
    return store.damaged(asked_path(name, number), "it is not there, though later trials were submitted")


def read_lock(store: Store, name: str) -> SweepLock | None:
    """What a sweep was started with; None where none was started. Raises `Damaged` where that is lost."""
    path = f"sweeps/{name}/{LOCK_FILE}"
    lock, is_verified = store.read_checked(path)
    if not is_verified and store.read(f"sweeps/{name}/{LOCK_COPY}") is not None:  # an earlier raylt made no copy
        lock, is_verified = store.read_checked(path)  # started between the two
        if not is_verified:
            raise store.damaged(path, "it is not there" if lock is None else "its checksum is missing")
    return None if lock is None else SweepLock(lock)


def require_lock(store: Store, name: str) -> None:
    """Raises `Damaged` for a sweep that has trials and no lock: it was lost."""
    is_lost = read_lock(store, name) is None and bool(store.names(f"sweeps/{name}/trials"))
    if is_lost and read_lock(store, name) is None:  # not one that was started between the two
        raise store.damaged(f"sweeps/{name}/{LOCK_FILE}", "it is not there, though the sweep has trials")


def missing_stages(store: Store, result: TrialResult) -> list[str]:
    """The stages that a result names and the store has no more: deleted as damaged, or by somebody."""
    paths = {digest: f"{folder_of(digest)}/{MANIFEST}" for digest in result.stages if is_digest(digest)}
    manifests = store.each(store.read, paths.values())
    return [digest for digest, manifest in zip(paths, manifests, strict=True) if manifest is None]
