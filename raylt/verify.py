"""`raylt store verify`: reads every file of a store as raylt would, names what is damaged, and mends what can be mended.

What can be made again is deleted, so that the next `raylt sweep` makes it; what cannot is set aside. Logs, `study.db` and
locks are no record: nothing is believed of them, so nothing of them is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from raylt.damage import Damaged
from raylt.document import SIMILARITY_FILE, SPEC_FILE, stored_spec
from raylt.errors import Diverged
from raylt.lease import Holder, Lease, read_holder
from raylt.ledger import (
    COMPLETE,
    LOCK_COPY,
    LOCK_FILE,
    SET_ASIDE,
    is_number,
    is_sealed,
    read_asked,
    read_lock,
    read_result,
    require_lock,
    result_path,
    stage_of,
)
from raylt.seals import seal_yaml
from raylt.store import CHECKPOINT, KEY, MANIFEST, STAGES, Store, folder_of, is_digest, within_stage

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


def verify(store: Store) -> Check:
    """Read everything in a store."""
    check = Check()
    for digest, names in _stages(store).items():
        _verify_stage(store, digest, names, check)
    for name in store.names("sweeps"):
        _verify_sweep(store, name, check)
    return check


def _stages(store: Store) -> dict[str, list[str]]:
    """Digest -> the names in its folder."""
    stages: dict[str, list[str]] = {}
    for path, _ in store.all_files(STAGES):
        digest, name = within_stage(path) or ("", "")
        if name and "/" not in name and not name.startswith("."):
            stages.setdefault(digest, []).append(name)
    return stages


def _verify_stage(store: Store, digest: str, names: list[str], check: Check) -> None:
    check.files += len(names)
    if KEY not in names and MANIFEST not in names:
        return  # a claim alone: nothing was begun
    stage = check.reads(store.find, digest)
    if stage is None:
        return
    manifest = check.reads(stage.manifest)
    if manifest is not None:
        check.unverified += "stage" not in (store.read_record(f"{stage.path}/{MANIFEST}") or {})
        for file in manifest.files:
            check.reads(stage.read, file)
    for name in names:
        if name.startswith(CHECKPOINT) and manifest is None:
            check.reads(stage.load_checkpoint, name.removeprefix(CHECKPOINT))


def _verify_sweep(store: Store, name: str, check: Check) -> None:
    check.reads(require_lock, store, name)
    lock = check.reads(read_lock, store, name)
    sealed = is_sealed(lock)
    if lock is not None or store.names(f"sweeps/{name}/trials"):
        check.reads(stored_spec, store, name)
    for path, _ in store.all_files(f"sweeps/{name}"):  # of one that was not begun, its lease
        own = path.removeprefix(f"sweeps/{name}/")
        check.files += 1
        if re.fullmatch(_OF_A_SWEEP, own) and (sealed or not own.startswith("confirm")):
            is_new = sealed and not own.startswith(("lease", "stop"))
            check.reads(store.read_record, path, is_sealed=is_new or None)
    if sealed and store.read(f"sweeps/{name}/{LOCK_COPY}") is None:
        check.damaged.append(store.damaged(f"sweeps/{name}/{LOCK_COPY}", "it is not there"))
    for trial, result in _trials(store, name, sealed, check):
        is_needed = sealed and _needs_its_stages(store, name, trial, result, check)
        _verify_result(store, name, trial, result, check, is_needed=is_needed)
    if not sealed:
        check.unverified += 1


def _trials(store: Store, name: str, sealed: bool, check: Check) -> Iterator[tuple[int, dict[str, Any]]]:
    for entry in store.names(f"sweeps/{name}/trials"):
        if is_number(entry):
            number = int(entry)
            check.reads(read_asked, store, name, number, sealed)
            result = check.reads(read_result, store, name, number, sealed)
            if result is not None:
                yield number, result


def _needs_its_stages(store: Store, name: str, number: int, result: dict[str, Any], check: Check) -> bool:
    """Whether the sweep will read the stages of an ended trial: of dense and pilots, until the similarity is measured."""
    asked = check.reads(read_asked, store, name, number, True)
    is_measured = store.read(f"sweeps/{name}/{SIMILARITY_FILE}") is not None
    return asked is not None and asked.kind in ("dense", "pilot") and result["state"] == COMPLETE and not is_measured


def _verify_result(store: Store, name: str, number: int, result: dict[str, Any], check: Check, *, is_needed: bool) -> None:
    """The stages that a result names, where they are still there: `raylt store gc` may have freed them."""
    for digest in result["stages"]:
        if not is_digest(digest):
            check.damaged.append(store.damaged(result_path(name, number), "it names a stage by what is no address"))
        elif store.read(f"{folder_of(digest)}/{MANIFEST}") is not None:
            check.reads(stage_of, store, result, digest)
        elif is_needed:
            why = f"its stage {digest[:12]} is not there, and the sweep needs it still"
            check.damaged.append(store.damaged(result_path(name, number), why))
            return


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
    return f"{path}: deleted"


def _restored_spec(store: Store, sweep: str, path: str) -> str:
    begun = (read_lock(store, sweep) or {}).get("spec")  # mended before: locks come first
    if begun is None:
        return f"{path}: cannot be restored, no copy of it was kept; give `raylt sweep` the spec file"
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
