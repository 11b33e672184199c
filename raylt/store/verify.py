"""`raylt store verify`: reads every file of a store as raylt would, and names what is damaged.

Logs, `study.db` and locks are no record: nothing is believed of them, so nothing of them is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raylt.errors import Diverged
from raylt.spec import TrialSpec
from raylt.store.damage import Damaged
from raylt.store.index import Part
from raylt.store.layout import FOLDERS, LOCK_COPY, LOCK_FILE, RUNS_FILE, SIMILARITY_FILE, result_path
from raylt.store.ledger_files import (
    confirm_files,
    listed,
    lost_trial,
    misplaced,
    missing_trials,
    read_confirmations,
    read_lock,
    read_result,
    read_trial,
    require_lock,
)
from raylt.store.results import COMPLETE, TrialResult
from raylt.store.seals import BadSeal, place_of
from raylt.store.stages import CHECKPOINT, FIRST_SEALED, KEY, MANIFEST, STAGES, Store, is_digest, other_content, within_stage
from raylt.store.sweep_lock import NO_LOCK, Origin, SweepLock
from raylt.store.sweep_state import stored_spec

TrialFiles = tuple[TrialSpec | None, TrialResult | None]  # what a trial's two files say, as far as they can be read


class MissingStage(NamedTuple):
    """A stage that the result of a complete trial names, and that is not there."""

    sweep: str
    trial: int
    digest: str


@dataclass
class Check:
    """What was looked at, and what is wrong.

    `unverified`: files of an earlier raylt, which have no checksums. `missing`: stages that somebody has deleted though results
    of complete trials name them. Numbers do not need them, so they are no damage; exports, pictures and more trials do.
    """

    files: int = 0
    unverified: int = 0
    missing: set[MissingStage] = field(default_factory=set)
    damaged: list[Damaged] = field(default_factory=list)

    def reads(self, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What `read` gives; None where it finds damage, which is kept once."""
        try:
            return read(*args, **options)
        except Damaged as error:
            if error.path not in {other.path for other in self.damaged}:
                self.damaged.append(error)
        except Diverged:
            pass  # a stage that can only fail is as it should be
        return None

    def add(self, other: Check) -> None:
        """What another looked at, as a part of this."""
        self.files, self.unverified = self.files + other.files, self.unverified + other.unverified
        self.missing |= other.missing
        paths = {error.path for error in self.damaged}
        self.damaged += [error for error in other.damaged if error.path not in paths]


def verify(store: Store) -> Check:
    """Read everything in a store, each file once."""
    check = Check()
    contents: dict[str, str | None] = {}  # stage that has a manifest -> the hash of its content, unless it is damaged
    stages = _stages(store)
    for checked, digest, content in store.each(lambda stage: _verify_stage(store, *stage), stages.items()):
        check.add(checked)
        if MANIFEST in stages[digest]:
            contents[digest] = content
    for name in store.names("sweeps"):
        _verify_sweep(store, name, contents, check)
    return check


def _stages(store: Store) -> dict[str, list[str]]:
    """Digest -> the names in its folder."""
    stages: dict[str, list[str]] = {}
    for path, _ in store.all_files(STAGES):
        digest, name = within_stage(path) or ("", "")
        if name and "/" not in name and not name.startswith("."):
            stages.setdefault(digest, []).append(name)
    return stages


def _verify_stage(store: Store, digest: str, names: list[str]) -> tuple[Check, str, str | None]:
    """(what was found, the digest, the hash of the stage's content where it is whole)."""
    check = Check(files=len(names))
    # A claim alone: nothing was started.
    stage = check.reads(store.find, digest) if KEY in names or MANIFEST in names else None
    if stage is None:
        return check, digest, None
    manifest = check.reads(stage.manifest)
    if manifest is not None:
        check.unverified += stage.key.get("schema", 1) < FIRST_SEALED
        for file in manifest.files:
            check.reads(stage.read, file)
    for name in names:
        if name.startswith(CHECKPOINT) and manifest is None:
            check.reads(stage.load_checkpoint, name.removeprefix(CHECKPOINT))
    return check, digest, None if manifest is None else manifest.digest


def _verify_sweep(store: Store, name: str, contents: Mapping[str, str | None], check: Check) -> None:
    folder = f"sweeps/{name}"
    sizes, aside = check.reads(listed, store, name) or ({}, set())
    check.reads(require_lock, store, name)
    lock = check.reads(read_lock, store, name)
    if lock is None:  # damaged: what it says is in its copy
        copy = check.reads(store.read_record, f"{folder}/{LOCK_COPY}", is_sealed=True)
        lock = None if copy is None else SweepLock(copy)
    names = store.names(folder)
    check.files += len(store.all_files(folder))
    check.unverified += lock is not None and not lock.is_sealed
    is_sealed = lock is not None and lock.is_sealed
    _verify_own(store, folder, names, is_sealed, check)
    if lock is None and sizes:
        return  # nothing can be checked, and nothing may be deleted for that
    if is_sealed and LOCK_COPY not in names:
        check.damaged.append(store.damaged(f"{folder}/{LOCK_COPY}", "it is not there"))
    origin = (lock or NO_LOCK).origin
    # All of more trials than a few flipped bits would meet: then it is the lock that does not belong here.
    if len(sizes) > 2 and not any(_is_readable(read_trial, store, name, number, origin) for number in sizes):
        why = "none of the trials was submitted under it, so it is another sweep's"
        check.damaged.append(store.damaged(f"{folder}/{LOCK_FILE}", why))
        return
    if lock is not None:
        check.reads(stored_spec, store, name)
        _verify_trials(store, name, origin, (sizes, aside), contents, check)


def _verify_own(store: Store, folder: str, names: Collection[str], has_sums: bool, check: Check) -> None:
    """The files of a sweep that are checked by their path alone: they are there before it is started, or say how it was."""
    for entry in FOLDERS:
        if entry in names and misplaced(store, f"{folder}/{entry}"):
            check.add(Check(damaged=[store.damaged(f"{folder}/{entry}", "a file lies in a folder's place")]))
            names = [name for name in names if name != entry]
    for entry in ("lease.json", "stop.json", LOCK_FILE, LOCK_COPY):  # before there were sums, the first two were as they are
        must_have = has_sums and entry in (LOCK_FILE, LOCK_COPY)
        check.reads(store.read_record, f"{folder}/{entry}", is_sealed=must_have or None)
    for epoch in store.names(f"{folder}/lease") if "lease" in names else ():
        check.reads(store.read_record, f"{folder}/lease/{epoch}", is_sealed=True)


def _verify_trials(
    store: Store, name: str, origin: Origin, folders: tuple[Collection[int], set[int]],
    contents: Mapping[str, str | None], check: Check,
) -> None:  # fmt: skip
    """The files that a sweep has written since it was started. `folders`: of its trials, and of those set aside."""
    sizes, aside = folders
    folder, planned = f"sweeps/{name}", set[int]()
    for file in (SIMILARITY_FILE, RUNS_FILE):
        check.reads(store.read_record, f"{folder}/{file}", is_sealed=origin.is_sealed or None, sweep=origin.sweep)
    for file in confirm_files(store, name):
        planned |= {item.trial.id for item in check.reads(read_confirmations, store, name, file, origin) or ()}
    trials: dict[int, TrialFiles] = {}
    is_measured = not origin.is_sealed or SIMILARITY_FILE in store.names(folder)

    def look_at(number: int) -> tuple[Check, int, TrialSpec | None, TrialResult | None]:
        return _verify_trial(store, name, number, origin, contents, is_measured=is_measured)

    for checked, number, trial, result in store.each(look_at, sizes):
        check.add(checked)
        trials[number] = trial, result
    asked = {number: trial for number, (trial, _) in trials.items() if trial is not None}
    for number in missing_trials(asked) if origin.is_sealed else ():
        if number not in trials and number not in aside | planned:
            check.damaged.append(lost_trial(store, name, number))
    for entry in store.names(f"{folder}/index"):
        check.reads(_verify_part, store, f"{folder}/index/{entry}", trials, origin)


def _is_readable(read: Callable[..., Any], *args: Any) -> bool:
    try:
        return read(*args) is not None
    except Damaged:
        return False


def _verify_trial(
    store: Store, name: str, number: int, origin: Origin, contents: Mapping[str, str | None], *, is_measured: bool
) -> tuple[Check, int, TrialSpec | None, TrialResult | None]:
    """With the stages that its result names, where they are still there: `raylt store gc` may have freed them."""
    check = Check()
    trial = check.reads(read_trial, store, name, number, origin)
    result = check.reads(read_result, store, name, number, origin)
    is_needed = not is_measured and _needs_its_stages(trial, result)
    for digest, content in {} if result is None else result.stages.items():
        if not is_digest(digest):
            check.damaged.append(store.damaged(result_path(name, number), "it names a stage by what is no address"))
        elif contents.get(digest) not in (None, content):
            check.damaged.append(other_content(store, digest))
        elif is_needed and digest not in contents:
            why = f"its stage {digest[:12]} is not there, and the sweep needs it still"
            check.damaged.append(store.damaged(result_path(name, number), why))
            break
        elif digest not in contents and result is not None and result.state == COMPLETE:
            check.missing.add(MissingStage(name, number, digest))
    return check, number, trial, result


def _needs_its_stages(trial: TrialSpec | None, result: TrialResult | None) -> bool:
    """Whether the similarity is measured by the stages of an ended trial."""
    is_measured_by = trial is not None and trial.kind in ("dense", "pilot")
    return is_measured_by and result is not None and result.state == COMPLETE


def _verify_part(
    store: Store, path: str, trials: Mapping[int, tuple[TrialSpec | None, TrialResult | None]], origin: Origin
) -> None:
    """Raises `Damaged` where a part of the index says of a trial what its files do not."""
    try:
        part = Part.load(store.read(path) or b"", place_of(path, origin.sweep))
    except BadSeal as error:
        raise store.damaged(path, str(error)) from error
    results = part.results()
    for trial in part.asked:
        files = trials.get(trial.id, (None, None))
        if any(now is not None and now != then for now, then in zip(files, (trial, results[trial.id]), strict=True)):
            raise store.damaged(path, f"of trial {trial.id} it says what its files do not")
