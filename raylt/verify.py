"""`raylt store verify`: reads every file of a store as raylt would, names what is damaged, and mends what can be mended.

What can be made again is deleted, so that the next `raylt sweep` makes it; what cannot is set aside. Logs, `study.db` and
locks are no record: nothing is believed of them, so nothing of them is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raylt.damage import Damaged
from raylt.document import SIMILARITY_FILE, SPEC_FILE, stored_spec
from raylt.errors import Diverged
from raylt.index import SET_ASIDE, Part, Result, first_of, listed, part_path
from raylt.lease import Holder, Lease, read_holder
from raylt.ledgerfiles import (
    COMPLETE,
    LOCK_COPY,
    LOCK_FILE,
    is_sealed,
    read_asked,
    read_lock,
    read_result,
    require_lock,
    result_path,
)
from raylt.plan import TrialSpec
from raylt.seals import BadSeal, seal_yaml
from raylt.store import CHECKPOINT, FIRST_SEALED, KEY, MANIFEST, STAGES, Store, is_digest, other_content, within_stage

_EPOCH = r"sweeps/[^/]+/lease/\d+\.json"
_OF_A_SWEEP = r"(similarity|mlflow|stop|lease|spec\.lock\.copy|confirm(-\d+)?|lease/\d+)\.json"


@dataclass
class Check:
    """What was looked at, and what is wrong. `unverified`: files of an earlier raylt, which have no checksums."""

    files: int = 0
    unverified: int = 0
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
            is_new = own.startswith("lease/") or (
                sealed and own not in ("lease.json", "stop.json")
            )  # an earlier raylt's have none
            check.reads(store.read_record, path, is_sealed=is_new or None)
    if sealed and store.read(f"sweeps/{name}/{LOCK_COPY}") is None:
        check.damaged.append(store.damaged(f"sweeps/{name}/{LOCK_COPY}", "it is not there"))
    trials: dict[int, tuple[TrialSpec | None, Result | None]] = {}
    is_measured = not sealed or store.read(f"sweeps/{name}/{SIMILARITY_FILE}") is not None

    def look_at(number: int) -> tuple[Check, int, TrialSpec | None, Result | None]:
        return _verify_trial(store, name, number, sealed, contents, is_measured=is_measured)

    for found, number, trial, result in store.each(look_at, listed(store, name)[0]):
        check.add(found)
        trials[number] = trial, result
    for entry in store.names(f"sweeps/{name}/index"):
        check.reads(_verify_part, store, f"sweeps/{name}/index/{entry}", trials)
    if not sealed:
        check.unverified += 1


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
    return check, number, trial, result


def _needs_its_stages(trial: TrialSpec | None, result: Result | None) -> bool:
    """Whether the similarity is measured by the stages of an ended trial."""
    is_measured_by = trial is not None and trial.kind in ("dense", "pilot")
    return is_measured_by and result is not None and result["state"] == COMPLETE


def _verify_part(store: Store, path: str, trials: Mapping[int, tuple[TrialSpec | None, Result | None]]) -> None:
    """Raises `Damaged` where a part of the index says of a trial what its files do not."""
    try:
        part = Part.load(store.read(path) or b"")
    except BadSeal as error:
        raise store.damaged(path, str(error)) from error
    results = part.results()
    for trial in part.asked:
        known = trials.get(trial.id, (None, None))
        if any(now is not None and now != then for now, then in zip(known, (trial, results[trial.id]), strict=True)):
            raise store.damaged(path, f"of trial {trial.id} it says what its files do not")


# --- mending ----------------------------------------------------------------------------------------------------------


def repair(store: Store, check: Check) -> list[str]:
    """Mend what is damaged, under the lease of the sweep that it belongs to; what was done, a line each.

    Stages belong to no sweep, so none may run. Raises `LeaseHeld` where a driver does.
    """
    of_sweeps = sorted({error.path.split("/")[1] for error in check.damaged if error.path.startswith("sweeps/")})
    has_stages = any(error.path.startswith(f"{STAGES}/") for error in check.damaged)
    names = store.names("sweeps") if has_stages else of_sweeps
    lines = [_without_holder(store, error) for error in check.damaged if re.fullmatch(_EPOCH, error.path)]
    leases = []
    try:
        for name in names:
            if read_holder(store, name) is not None or name in of_sweeps:
                leases.append(Lease.acquire(store, name))
        in_order = sorted(check.damaged, key=lambda error: not error.path.endswith((LOCK_FILE, LOCK_COPY)))
        lines += [_mended(store, error) for error in in_order if not re.fullmatch(_EPOCH, error.path)]
        if has_stages:  # whose loss may show in results that still need them
            mended = {error.path for error in check.damaged}
            lines += [_mended(store, error) for error in verify(store).damaged if error.path not in mended]
        return lines
    finally:
        for lease in leases:
            lease.release()


def _without_holder(store: Store, error: Damaged) -> str:
    """An epoch is never given again, so its file stays, and says that nobody knows who holds it.

    If the holder lives, its signs of life keep the sweep from being taken over.
    """
    nobody = Holder.myself(int(error.path.rpartition("/")[2].removesuffix(".json")))
    store.write_record(error.path, asdict(replace(nobody, host="unknown", machine="unknown", pid=0, heartbeat=0)))
    return f"{error.path}: its holder is not known any more"


def _mended(store: Store, error: Damaged) -> str:
    path = error.path
    if path.startswith(f"{STAGES}/"):
        return _mended_stage(store, path)
    folder, _, name = path.rpartition("/")
    if name == "asked.json":
        return _set_aside(store, folder)
    if name == LOCK_FILE:
        return _restored(store, f"{folder}/{LOCK_COPY}", path)
    if name == LOCK_COPY:
        return _restored(store, f"{folder}/{LOCK_FILE}", path)
    if name == SPEC_FILE:
        return _restored_spec(store, folder.rpartition("/")[2], path)
    store.delete(path)
    if name == "result.json":
        _forget_in_index(store, folder)
    return f"{path}: deleted"


def _forget_in_index(store: Store, folder: str) -> None:
    """What the index has of a trial whose files go: the next may be as long."""
    sweep, entry = folder.split("/")[1], folder.rpartition("/")[2]
    store.delete(part_path(sweep, first_of(int(entry))))


def _restored_spec(store: Store, sweep: str, path: str) -> str:
    begun = (read_lock(store, sweep) or {}).get("spec")  # mended before: locks come first
    if begun is None:
        store.delete(path)
        return f"{path}: deleted, no copy of it was kept; `raylt sweep SPEC` writes it again"
    store.write(path, seal_yaml(begun))
    return f"{path}: restored as the sweep was begun"


def _mended_stage(store: Store, path: str) -> str:
    folder, _, name = path.rpartition("/")
    if name.startswith(CHECKPOINT):
        store.delete(path)
        return f"{path}: deleted"
    store.delete(f"{folder}/{MANIFEST}")  # first: without it, whatever is left is nothing
    store.delete_folder(folder)
    return f"{folder}: deleted"


def _set_aside(store: Store, folder: str) -> str:
    """A trial that nobody knows any more: kept for people, under a name that is no trial's."""
    for path, _ in store.all_files(folder):
        store.write(f"{folder}{SET_ASIDE}/{path.rpartition('/')[2]}", store.read(path) or b"")
    store.delete_folder(folder)
    _forget_in_index(store, folder)
    return f"{folder}: set aside as {folder.rpartition('/')[2]}{SET_ASIDE}"


def _restored(store: Store, source: str, target: str) -> str:
    try:
        record = store.read_record(source, is_sealed=True)
    except Damaged:
        record = None
    if record is None:
        return f"{target}: cannot be restored, {source} is lost too; start the sweep anew beside it with --new"
    store.write_record(target, record)
    return f"{target}: restored from {source.rpartition('/')[2]}"
