"""`raylt store verify --repair`: mends what `verify` found, as far as it can be mended.

What can be made again is deleted, so that the next `raylt sweep` makes it. What has a copy is restored. The rest is set aside.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from raylt.spec.canonical import JsonObject
from raylt.store.damage import Damaged
from raylt.store.index import first_of, part_path
from raylt.store.layout import FOLDERS, LOCK_COPY, LOCK_FILE, SET_ASIDE, SPEC_FILE
from raylt.store.lease import Holder, Lease, read_holder
from raylt.store.ledger_files import listed, read_lock
from raylt.store.stages import CHECKPOINT, MANIFEST, STAGES, Store
from raylt.store.sweep_lock import NO_LOCK
from raylt.store.sweep_state import write_spec
from raylt.store.verify import Check, verify

_EPOCH = r"sweeps/[^/]+/lease/\d+\.json"


def repair(store: Store, check: Check) -> list[str]:
    """Mend what is damaged, under the lease of the sweep that it belongs to; what was done, a line each.

    Stages belong to no sweep, so none may run. Raises `LeaseHeld` where a driver does.
    """
    of_sweeps = sorted({error.path.split("/")[1] for error in check.damaged if error.path.startswith("sweeps/")})
    has_stages = any(error.path.startswith(f"{STAGES}/") for error in check.damaged)
    names = store.names("sweeps") if has_stages else of_sweeps
    misplaced = [error.path for error in check.damaged if error.path.rpartition("/")[2] in FOLDERS]
    for path in misplaced:  # without its folder, nobody has a lease
        store.delete(path)
    check.damaged = [error for error in check.damaged if error.path not in misplaced]
    lines = [f"{path}: deleted" for path in misplaced]
    lines += [_without_holder(store, error) for error in check.damaged if re.fullmatch(_EPOCH, error.path)]
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
    first_yaml = (read_lock(store, sweep) or NO_LOCK).spec  # mended before: locks come first
    if first_yaml is None:
        store.delete(path)
        return f"{path}: deleted, no copy of it was kept; `raylt sweep SPEC` writes it again"
    write_spec(store, sweep, first_yaml)
    return f"{path}: restored as the sweep was started"


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
    files = store.all_files(folder)
    if not files:  # its number is to stay known
        store.write(f"{folder}{SET_ASIDE}/asked.json", b"{}\n")
    for path, _ in files:
        store.write(f"{folder}{SET_ASIDE}/{path.rpartition('/')[2]}", store.read(path) or b"")
    store.delete_folder(folder)
    _forget_in_index(store, folder)
    return f"{folder}: set aside as {folder.rpartition('/')[2]}{SET_ASIDE}"


def _restored(store: Store, source: str, target: str) -> str:
    kept, lost = _record_at(store, source), _record_at(store, target)
    name = target.split("/")[1]
    if kept is None and target.endswith(LOCK_FILE) and not any(listed(store, name)):
        store.delete(target)  # a power cut as the sweep was started
        return f"{target}: deleted, for nothing was submitted under it; `raylt sweep` starts anew"
    if kept is None:
        return f"{target}: cannot be restored, {source} is lost too; start the sweep anew beside it with `raylt sweep --new`"
    if kept == lost:  # it is whole, and does not belong to the trials
        why = "it is whole, and so is its copy, but the trials are another sweep's"
        return f"{target}: left as it is: {why}; restore both from one backup"
    store.write_record(target, kept)
    return f"{target}: restored from {source.rpartition('/')[2]}"


def _record_at(store: Store, path: str) -> JsonObject | None:
    try:
        return store.read_record(path, is_sealed=True)
    except Damaged:
        return None
