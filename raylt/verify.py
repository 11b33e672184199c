"""`raylt store verify`: reads every file of a store as raylt would, and names what is damaged.

Logs, `study.db` and locks are no record: nothing is believed of them, so nothing of them is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raylt.damage import Damaged
from raylt.document import SIMILARITY_FILE, stored_spec
from raylt.errors import Diverged
from raylt.index import Part
from raylt.ledgerfiles import (
    COMPLETE,
    LOCK_COPY,
    Result,
    confirm_files,
    is_sealed,
    listed,
    lost_trial,
    missing_trials,
    read_asked,
    read_confirmations,
    read_lock,
    read_result,
    require_lock,
    result_path,
)
from raylt.plan import TrialSpec
from raylt.seals import BadSeal
from raylt.store import CHECKPOINT, FIRST_SEALED, KEY, MANIFEST, STAGES, Store, is_digest, other_content, within_stage

_OF_A_SWEEP = r"(similarity|mlflow|stop|lease|spec\.lock\.copy|confirm(-\d+)?|lease/\d+)\.json"


@dataclass
class Check:
    """What was looked at, and what is wrong.

    `unverified`: files of an earlier raylt, which have no checksums. `missing`: stages that somebody has deleted though results
    of complete trials name them. Numbers do not need them, so they are no damage; exports, pictures and more trials do.
    """

    files: int = 0
    unverified: int = 0
    missing: set[str] = field(default_factory=set)
    damaged: list[Damaged] = field(default_factory=list)

    def reads(self, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What `read` gives; None where it finds damage, which is kept once."""
        try:
            return read(*args, **options)
        except Damaged as error:
            if error.path not in {known.path for known in self.damaged}:
                self.damaged.append(error)
        except Diverged:
            pass  # a stage that can only fail is as it should be
        return None

    def add(self, other: Check) -> None:
        """What another looked at, as a part of this."""
        self.files, self.unverified = self.files + other.files, self.unverified + other.unverified
        self.missing |= other.missing
        known = {error.path for error in self.damaged}
        self.damaged += [error for error in other.damaged if error.path not in known]


def verify(store: Store) -> Check:
    """Read everything in a store, each file once."""
    check = Check()
    contents: dict[str, str | None] = {}  # stage that has a manifest -> the hash of its content, unless it is damaged
    stages = _stages(store)
    for found, digest, content in store.each(lambda stage: _verify_stage(store, *stage), stages.items()):
        check.add(found)
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
    # A claim alone: nothing was begun.
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
    check.reads(require_lock, store, name)
    lock = check.reads(read_lock, store, name)
    sealed = is_sealed(lock)
    if lock is not None or store.names(f"sweeps/{name}/trials"):
        check.reads(stored_spec, store, name)
    for path, _ in store.all_files(f"sweeps/{name}"):  # of one that was not begun, its lease
        own = path.removeprefix(f"sweeps/{name}/")
        check.files += 1
        if re.fullmatch(_OF_A_SWEEP, own) and (sealed or not own.startswith("confirm")):
            # An earlier raylt has written no epochs; a lease and a request to stop it writes to this day.
            has_sum = own.startswith("lease/") or (sealed and own not in ("lease.json", "stop.json"))
            check.reads(store.read_record, path, is_sealed=has_sum or None)
    if sealed and store.read(f"sweeps/{name}/{LOCK_COPY}") is None:
        check.damaged.append(store.damaged(f"sweeps/{name}/{LOCK_COPY}", "it is not there"))
    trials: dict[int, tuple[TrialSpec | None, Result | None]] = {}
    is_measured = not sealed or store.read(f"sweeps/{name}/{SIMILARITY_FILE}") is not None

    def look_at(number: int) -> tuple[Check, int, TrialSpec | None, Result | None]:
        return _verify_trial(store, name, number, sealed, contents, is_measured=is_measured)

    sizes, aside = listed(store, name)
    for found, number, trial, result in store.each(look_at, sizes):
        check.add(found)
        trials[number] = trial, result
    if sealed:
        _verify_numbers(store, name, trials, aside, check)
    for entry in store.names(f"sweeps/{name}/index"):
        check.reads(_verify_part, store, f"sweeps/{name}/index/{entry}", trials)
    if not sealed:
        check.unverified += 1


def _verify_numbers(
    store: Store, name: str, trials: Mapping[int, tuple[TrialSpec | None, Result | None]], aside: set[int], check: Check
) -> None:
    """Whether a trial was deleted whole."""
    planned: set[int] = set()
    for file in confirm_files(store, name):
        planned |= {item.trial.id for item in check.reads(read_confirmations, store, name, file, True) or ()}
    asked = {number: trial for number, (trial, _) in trials.items() if trial is not None}
    for number in missing_trials(asked):
        if number not in trials and number not in aside | planned:
            check.damaged.append(lost_trial(store, name, number))


def _verify_trial(
    store: Store, name: str, number: int, sealed: bool, contents: Mapping[str, str | None], *, is_measured: bool
) -> tuple[Check, int, TrialSpec | None, Result | None]:
    """With the stages that its result names, where they are still there: `raylt store gc` may have freed them."""
    check = Check()
    trial = check.reads(read_asked, store, name, number, sealed)
    result = check.reads(read_result, store, name, number, sealed)
    is_needed = not is_measured and _needs_its_stages(trial, result)
    for digest, content in {} if result is None else result["stages"].items():
        if not is_digest(digest):
            check.damaged.append(store.damaged(result_path(name, number), "it names a stage by what is no address"))
        elif contents.get(digest) not in (None, content):
            check.damaged.append(other_content(store, digest))
        elif is_needed and digest not in contents:
            why = f"its stage {digest[:12]} is not there, and the sweep needs it still"
            check.damaged.append(store.damaged(result_path(name, number), why))
            break
        elif digest not in contents and result is not None and result["state"] == COMPLETE:
            check.missing.add(digest)
    return check, number, trial, result


def _needs_its_stages(trial: TrialSpec | None, result: Result | None) -> bool:
    """Whether the similarity is measured by the stages of an ended trial."""
    is_measured_by = trial is not None and trial.kind in ("dense", "pilot")
    return is_measured_by and result is not None and result["state"] == COMPLETE


def _verify_part(store: Store, path: str, trials: Mapping[int, tuple[TrialSpec | None, Result | None]]) -> None:
    """Raises `Damaged` where a part of the index says of a trial what its files do not."""
    try:
        part = Part.load(store.read(path) or b"", path)
    except BadSeal as error:
        raise store.damaged(path, str(error)) from error
    results = part.results()
    for trial in part.asked:
        known = trials.get(trial.id, (None, None))
        if any(now is not None and now != then for now, then in zip(known, (trial, results[trial.id]), strict=True)):
            raise store.damaged(path, f"of trial {trial.id} it says what its files do not")
