"""Defects to be planted, one at a time: what raylt did before each was mended, or might have done. Each must be seen.

Each replaces one piece of raylt by the same piece without its care.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any, NamedTuple
from unittest import mock

from raylt.store import Ledger, Stage, filesystem, lease, ledger, repair, stage_lock, stages, sweep_state, verify
from raylt.store.bucket import BucketFolder
from raylt.store.filesystem import Files, dump_json
from raylt.store.folders import ArrowFolder, LocalFolder
from raylt.store.lease import Holder
from raylt.store.processes import Life
from raylt.store.seals import SUM
from tests.chaos.simulation import disk
from tests.chaos.simulation.faults import TARGETS
from tests.chaos.simulation.simulate import outcome_of

Plant = Callable[[], Any]


def _swap(owner: Any, name: str, careless: Any) -> Any:
    """`careless` in place of a piece of raylt; refused where it no longer fits there, as then it would be seen for that."""
    known, own = (signature(piece).parameters.values() for piece in (getattr(owner, name), careless))
    assert [parameter.kind for parameter in known] == [parameter.kind for parameter in own], f"{name} has changed"
    return mock.patch.object(owner, name, careless)


def _no_folder_sync() -> Any:
    """A file's entry in its folder is left to the page cache."""
    return _swap(disk.SimulatedDisk, "sync_folder", lambda self, path: None)


def _parents_unsynced() -> Any:
    """A folder that is there is taken to be on the disk."""

    def make_folders(self: LocalFolder, folder: str) -> None:
        if self._disk.folder_id(folder) is None:
            parent = folder.rpartition("/")[0]
            make_folders(self, parent)
            with contextlib.suppress(FileExistsError):
                self._disk.make_folder(folder)
            self._disk.sync_folder(parent)

    return _swap(LocalFolder, "_make_folders", make_folders)


def _found_unsettled() -> Any:
    """A stage that can be read is taken to be on the disk."""
    return _swap(LocalFolder, "settle", lambda self, path: None)


def _no_fsync() -> Any:
    """A file's bytes are left to the page cache."""
    really = disk.SimulatedDisk.write

    def write(self: Any, path: str, data: bytes) -> None:
        really(self, path, data)
        node = self._at(path)
        node.on_disk = None

    return _swap(disk.SimulatedDisk, "write", write)


def _checked_then_written() -> Any:
    """`create` looks first, and then replaces."""

    def create(self: LocalFolder, path: str, data: bytes) -> bool:
        found = self.read(path)
        if found is None:
            self.replace(path, data)
        return found is None or found == data

    return _swap(LocalFolder, "create", create)


def _unconditional_put() -> Any:
    """On S3, a PUT like any other in place of the conditional one."""
    return _swap(BucketFolder, "create", ArrowFolder.create)


def _written_in_place() -> Any:
    """`replace` writes into the file itself."""

    def replace(self: LocalFolder, path: str, data: bytes) -> None:
        target = f"{self.base}/{path}"
        self._make_folders(target.rpartition("/")[0])
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(target)
        self._disk.write(target, data)
        self._disk.sync_folder(target.rpartition("/")[0])

    return _swap(LocalFolder, "replace", replace)


def _no_fence() -> Any:
    """Whoever had the lease once may write."""
    return _swap(lease, "guard_for", lambda store, name, epoch, token: lambda: None)


def _results_replaced() -> Any:
    """`finish` checks the lease, and then replaces what is there."""

    def finish(self: Ledger, number: int, result: Any) -> Any:
        self._check()
        self.store.write_record(ledger.result_path(self.name, number), result.to_json())
        self.results[number] = result
        return result

    return _swap(Ledger, "finish", finish)


def _manifests_replaced() -> Any:
    """The last of two makers is the one that counts."""

    def create(self: Files, path: str, data: bytes) -> bool:
        if path.endswith(stages.MANIFEST):
            self.write(path, data)
            return True
        return really(self, path, data)

    really = Files.create
    return _swap(Files, "create", create)


def _checksums_ignored() -> Any:
    """Records are taken as they are."""

    def unseal(record: Any, path: str) -> tuple[dict[str, Any], bool]:
        return {key: value for key, value in record.items() if key != SUM}, SUM in record

    return _all(_swap(filesystem, "unseal", unseal), _swap(stages, "unseal", unseal))


def _stage_files_unchecked() -> Any:
    """A stage's file is taken as it is."""

    def read(self: Stage, name: str) -> bytes:
        entry = self.read_manifest().files[name]
        return self.store.read(f"{self.path}/{entry.get('at', name)}") or b""

    return _swap(Stage, "read", read)


def _checkpoints_unchecked() -> Any:
    """A checkpoint is taken as it is."""
    return _swap(stages, "unseal_bytes", lambda data, path: data.partition(b"\n")[2])


def _clocks_compared() -> Any:
    """A holder elsewhere is alive while its own clock is near ours."""

    def life(self: Holder) -> Life:
        return Life.RUNNING if not self.released and abs(lease.time.time() - self.heartbeat) < 60 else Life.GONE

    return mock.patch.object(Holder, "life", property(life))


def _epochs_replaced() -> Any:
    """An epoch goes to whoever writes its file last."""

    def create_record(self: Files, path: str, record: Any, sweep: str = "") -> bool:
        if "/lease/" in path:
            self.write_record(path, record)
            return True
        return self.create(path, dump_json(filesystem.seal(record, filesystem.place_of(path, sweep))))

    return _swap(Files, "create_record", create_record)


def _epochs_deleted() -> Any:
    """Mending deletes a damaged epoch, which is then given again."""

    def without_holder(store: Any, error: Any) -> str:
        store.delete(error.path)
        return ""

    return _swap(repair, "_without_holder", without_holder)


def _stages_left_lost() -> Any:
    """Lost stages of ended trials are left lost."""
    return _swap(verify, "_needs_its_stages", lambda trial, result: False)


def _spec_unchecked() -> Any:
    """Verify mends a damaged spec by deleting it, and believes the one that is not there."""
    return _swap(sweep_state, "unseal_yaml", lambda data, path: (data.decode(errors="replace"), True))


def _claims_for_ever() -> Any:
    """A claim on a stage is never taken over."""
    return _swap(stage_lock, "_may_take", lambda held, owner, unchanged_s: False)


def _foreign_errors() -> Any:
    """What the filesystem says reaches the user as it is."""
    return _swap(Files, "_patiently", lambda self, verb, path, operation: operation())


def _damage_is_a_traceback() -> Any:
    """A record is read without a thought for what may stand in it."""

    def read_checked(self: Files, path: str, *, is_sealed: bool | None = None, sweep: str = "") -> Any:
        data = self.read(path)
        return (None, False) if data is None else ({k: v for k, v in json.loads(data).items() if k != SUM}, True)

    return _swap(Files, "read_checked", read_checked)


@contextlib.contextmanager
def _all(*patches: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


class Defect(NamedTuple):
    """How it is planted, and on which storage, among which faults at which files the simulation must say what of it."""

    plant: Plant
    says: str
    storage: str | None = None
    theme: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS
    first: int = 0  # the seed to begin with: a hint that saves time

    def is_seen(self, seed: int) -> bool:
        with self.plant():
            outcome = outcome_of(seed, storage=self.storage, theme=self.theme, targets=self.targets)
        return any(kind == self.says for kind, _ in outcome.found)


_CROWD = ("stopped", "host paused", "second driver")
_ROT = ("flipped", "killed")

DEFECTS = {
    "no folder sync": Defect(_no_folder_sync, "lost", "disk", first=26),
    "parents unsynced": Defect(_parents_unsynced, "lost", "disk", ("killed", "killed", "power cut"), ("folder",), first=243),
    "found unsettled": Defect(_found_unsettled, "lost", first=1_177),
    "no fsync": Defect(_no_fsync, "lost", "disk", first=45),
    "written in place": Defect(_written_in_place, "lost", "disk", ("killed", "power cut"), first=1189),
    "checked, then written": Defect(_checked_then_written, "twice", "nfs", _CROWD, first=62),
    "unconditional PUT": Defect(
        _unconditional_put, "twice", "bucket", (*_CROWD, "slow request"), ("manifest.json", "result.json"), first=160
    ),
    "results replaced": Defect(_results_replaced, "twice", None, _CROWD, ("result.json",), first=5),
    "manifests replaced": Defect(
        _manifests_replaced, "twice", "nfs without locks", _CROWD, ("manifest.json", "claim.json"), first=103
    ),
    "no fence": Defect(_no_fence, "twice", None, _CROWD, first=19),
    "epochs replaced": Defect(_epochs_replaced, "twice", None, _CROWD, ("epoch",), first=26),
    "epochs deleted": Defect(_epochs_deleted, "twice", None, ("flipped", *_CROWD), ("epoch",), first=361),
    "clocks compared": Defect(_clocks_compared, "twice", "nfs", first=1),
    "checksums ignored": Defect(_checksums_ignored, "believed", None, _ROT, first=5),
    "stage files unchecked": Defect(_stage_files_unchecked, "believed", None, _ROT, ("trained.safetensors",), first=5),
    "checkpoints unchecked": Defect(_checkpoints_unchecked, "believed", None, _ROT, ("checkpoint",), first=329),
    "spec unchecked": Defect(_spec_unchecked, "believed", None, _ROT, first=13),
    "stages left lost": Defect(_stages_left_lost, "stuck", None, _ROT, ("trained.safetensors", "key.json"), first=9),
    "claims for ever": Defect(
        _claims_for_ever, "stuck", "bucket", ("killed", "power cut"), ("claim.json", "checkpoint"), first=3
    ),
    "foreign errors": Defect(_foreign_errors, "traceback", first=2),
    "damage is a traceback": Defect(_damage_is_a_traceback, "traceback", None, _ROT, first=20),
}
