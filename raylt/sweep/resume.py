"""Whether a sweep can be resumed, and under which name it starts: decided from the store, before anything starts."""

from __future__ import annotations

import errno
import os

from raylt.errors import InputError
from raylt.search.confirm import Request, extend
from raylt.spec import SweepSpec
from raylt.spec.vocabulary import NAME_LENGTH
from raylt.store import Ledger, Store
from raylt.store.layout import SPEC_FILE
from raylt.store.ledger import was_started
from raylt.store.ledger_files import read_lock, require_lock
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import is_complete, stored_spec
from raylt.trial.inputs import InputDigests


def started_with(spec: SweepSpec, store: Store) -> InputDigests | None:
    """The inputs of a sweep of this name, where one was started."""
    lock = read_lock(store, spec.name)
    return None if lock is None or lock.images is None else InputDigests(lock.images, lock.inception)


def with_free_name(spec: SweepSpec, store: Store) -> SweepSpec:
    """NAME, or NAME-2, NAME-3 ... where sweeps of those names exist: `--new` deletes nothing."""
    name, number = spec.name, 1
    while was_started(store, name) or store.read(f"sweeps/{name}/{SPEC_FILE}") is not None:
        number += 1
        name = f"{spec.name}-{number}"
    if len(name) > NAME_LENGTH:
        raise InputError(f"--new: {name} would have more than {NAME_LENGTH} characters; give another name with --set name=NAME")
    return spec.model_copy(update={"name": name})


def refuse_changed_identity(spec: SweepSpec, store: Store) -> None:
    """Raises `InputError`, naming the keys that differ, where a sweep of this name asks for something else."""
    require_lock(store, spec.name)
    lock = read_lock(store, spec.name)
    if store.read(f"sweeps/{spec.name}/{SPEC_FILE}") is None:  # deleted: the lock knows it by its digest
        if lock is not None and lock.digest not in (None, spec.digest):
            raise InputError(f"sweep {spec.name} was started with another spec; {_restore_or_new(spec)}")
        return
    before = stored_spec(store, spec.name)
    if before.digest == spec.digest:
        return
    old, new = before.identity(), spec.identity()
    changed = [f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    raise InputError("\n".join([f"sweep {spec.name} was started with another spec; {_restore_or_new(spec)}:", *changed]))


def _restore_or_new(spec: SweepSpec) -> str:
    return f"restore the spec, or start {spec.name}-2 beside it with `raylt sweep --new`"


def refuse_other_numbers(store: Store, name: str) -> None:
    """Raises `InputError` for a sweep of an earlier raylt: its numbers could not be continued.

    What it has stays readable: `status`, `results`, `report`, `export`.
    """
    lock = read_lock(store, name)
    schema = CODE_SCHEMA if lock is None else lock.code_schema
    if schema != CODE_SCHEMA:
        raise InputError(
            f"sweep {name} was started by another raylt, which computed other numbers (code schema {schema}, this has "
            f"{CODE_SCHEMA}; see the CHANGELOG): trials of both would not compare. Finish it with the raylt that started it, "
            f"or start {name}-2 beside it with `raylt sweep --new`; what it has found so far can be read as before"
        )


def refuse_other_inputs(name: str, lock: SweepLock | None, have: InputDigests) -> None:
    """Raises `InputError` where images or weights are not those that a sweep began with."""
    if lock is not None and lock.images not in (None, have.images):
        cause = "data.root holds others, or this raylt reads them otherwise, and the store has no copy"
        raise InputError(f"the images are not those that sweep {name} began with ({cause}); restore them, or use --new")
    if lock is not None and lock.knows_inception and lock.inception != have.inception:
        raise InputError(f"the Inception weights are not those that sweep {name} began with; restore them, or use --new")


def refuse_read_only(store: Store) -> None:
    """Raises `StoreFailure` where this process could not write into a local store: for who only asks what would be done."""
    if not store.is_local:
        return
    root = store.local_path("")
    folder = next(folder for folder in (root, *root.parents) if folder.exists())
    with store.in_words("write", ""):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def has_more_to_confirm(spec: SweepSpec, ledger: Ledger, request: Request | None) -> bool:
    """Whether a confirmation asks for trials that are not planned yet."""
    planned = ledger.confirmations()
    return request is not None and len(extend(spec, ledger, planned, request)) > len(planned)


def start(spec: SweepSpec, store: Store, *, new: bool = False, confirm: Request | None = None) -> SweepSpec:
    """The spec under the name that it runs by. Raises `InputError` where it cannot be started, or resumed."""
    spec = with_free_name(spec, store) if new else spec
    refuse_changed_identity(spec, store)
    ledger = Ledger(store, spec.name)
    if not is_complete(spec, ledger) or has_more_to_confirm(spec, ledger, confirm):
        refuse_other_numbers(store, spec.name)
    return spec
