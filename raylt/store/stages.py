"""The one durable thing: content-addressed stages, and the sweeps' ledgers beside them.

A stage is one memoised unit of compute. Its address is the hash of its key, which holds everything that decides its
result; it is whole when its manifest is there. Files and manifest are created once and never changed, the manifest last.
So a reader needs no lock, a writer that dies leaves nothing that could be taken for a result, and a writer that was taken
for dead, and lives, changes nothing that another has finished.

Whatever is read is checked: a key by its address, a manifest by its own checksum and the stage it names, files by the
manifest, checkpoints by theirs.

    ROOT/stages/<aa>/<sha256>/  key.json  *.safetensors  manifest.json
                                checkpoint-*.safetensors  claim.json   while it is being made
                                failed.json                            in place of a manifest: it can only fail again
    ROOT/locks/<sha256>         on a local filesystem: who makes the stage right now (dies with its process)
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from raylt.errors import Diverged, StoreFailure
from raylt.spec.canonical import JsonObject, canonical, digest_of
from raylt.store.damage import Damaged
from raylt.store.filesystem import Files
from raylt.store.folders import Folder
from raylt.store.seals import BadSeal, seal_bytes, unseal, unseal_bytes
from raylt.store.stage_lock import sole_maker

log = logging.getLogger("raylt.store")

CODE_SCHEMA = 3  # part of every key: raised when the same key would give another result
FIRST_SEALED = 2  # the first schema whose files all have checksums

STAGES, MANIFEST, KEY, FAILED, CHECKPOINT = "stages", "manifest.json", "key.json", "failed.json", "checkpoint-"


StageKey = Mapping[str, Any]  # JSON: what a stage is computed from


def _no_guard() -> None:
    """The guard of a store that nobody can take over."""


class Store(Files):
    """Stages and files under one root: a local path or any pyarrow filesystem URI (`s3://bucket/prefix`)."""

    def __init__(self, root: str, owner: str = "", guard: Callable[[], None] = _no_guard, folder: Folder | None = None) -> None:
        """`owner` is written into the manifests made here; `guard` raises `Fenced` once this process may not write."""
        super().__init__(root, folder)
        self.owner, self.guard = owner, guard

    def stage(self, key: StageKey) -> Stage:
        return Stage(self, {"schema": CODE_SCHEMA, **key})

    def find(self, digest: str) -> Stage:
        """A stage by its address alone: for what a result names. Raises `Damaged` where it is not there."""
        path = f"{folder_of(digest)}/{KEY}"
        data = self.read(path)
        if data is None:
            raise self.damaged(path, "it is not there, though a result names the stage")
        try:
            key = json.loads(data)
            is_right = isinstance(key, dict) and digest_of(key) == digest
        except (ValueError, RecursionError):
            is_right = False
        if not is_right:
            raise self.damaged(path, "it is not the key of its address")
        return Stage(self, key)


@dataclass(frozen=True)
class Output:
    """What a stage leaves behind: numbers for the manifest, and files."""

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    digest: str  # of stage, values and files, not of who made them and when: what a result names
    values: Mapping[str, Any]
    files: Mapping[str, JsonObject]  # name -> bytes, sha256 and, where it lies under another name, at
    time_ms: int  # when the stage became whole: the time of its metric points, however often they are replayed
    duration_s: float
    owner: str


class Stage:
    """One stage of a store, made or not."""

    def __init__(self, store: Store, key: StageKey) -> None:
        self.store, self.key = store, key
        self.digest = digest_of(key)
        self.path = folder_of(self.digest)
        self._manifest: Manifest | None = None  # once it is whole it stays as it is

    def manifest(self) -> Manifest | None:
        """The stage's manifest where the stage is whole, else None. Raises `Diverged` where it can only fail."""
        if self._manifest is None:
            self._manifest = self._read_manifest()
        return self._manifest

    def _read_manifest(self) -> Manifest | None:
        path = f"{self.path}/{MANIFEST}"
        data = self.store.read(path)
        if data is None:
            failed = self.store.read_record(f"{self.path}/{FAILED}")
            if failed is not None:
                raise self._diverged(str(failed.get("cause")))
            return None
        try:
            content, has_sum = unseal(json.loads(data), path)
            if not has_sum and self.key.get("schema", 1) >= FIRST_SEALED:
                raise BadSeal("its checksum is missing")
            if has_sum and content.get("stage") != self.digest:
                raise BadSeal("it is of another stage")
            fields = {name: content[name] for name in Manifest.__annotations__ if name != "digest"}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            why = str(error) if isinstance(error, BadSeal) else "it is no manifest"
            raise self.store.damaged(path, why) from error
        digest = digest_of(_content_of(content)) if has_sum else hashlib.sha256(data).hexdigest()
        return Manifest(digest, **fields)

    def _diverged(self, cause: str) -> Diverged:
        error = Diverged(cause)
        error.stage = self.digest
        return error

    def read_manifest(self) -> Manifest:
        """The manifest of a stage that should be there. Raises `Damaged` where it is not."""
        manifest = self.manifest()
        if manifest is None:
            raise self.store.damaged(
                f"{self.path}/{MANIFEST}", f"it is not there, though its {self.key.get('kind')} stage is needed"
            )
        return manifest

    def read(self, name: str) -> bytes:
        """A file of a whole stage, checked against the manifest. Raises `Damaged`."""
        expected = self.read_manifest().files.get(name)
        if expected is None:
            raise self.store.damaged(f"{self.path}/{MANIFEST}", f"it names no file {name}")
        path = f"{self.path}/{expected.get('at', name)}"
        data = self.store.read(path)
        if data is None:
            raise self.store.damaged(path, "it is not there, though the manifest names it")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise self.store.damaged(path, "its content is not what the manifest says")
        return data

    def make(self, compute: Callable[[Stage], Output]) -> Manifest:
        """The manifest of this stage: found, or made by `compute`, which may keep checkpoints meanwhile.

        Where another process makes the stage already, wait for it. What diverges is computed again, from the stage's inputs
        alone; what diverges twice is remembered: `Diverged`, here and from then on.
        """
        manifest = self._found()
        if manifest is not None:
            return manifest
        with self.sole_maker():
            manifest = self._found()
            return manifest if manifest is not None else self._make(compute)

    def _found(self) -> Manifest | None:
        """The manifest of a stage that is whole, and stays so when the power is cut."""
        manifest = self.manifest()
        if manifest is not None:
            self.store.settle(f"{self.path}/{MANIFEST}")
        return manifest

    def sole_maker(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Inside, no other process makes this stage."""
        return sole_maker(self.store, self.digest, self.path, self.store.owner, self.store.guard, wait=wait)

    def _make(self, compute: Callable[[Stage], Output]) -> Manifest:
        start = time.monotonic()
        self.store.create(f"{self.path}/{KEY}", canonical(self.key))
        output = self._computed(compute)
        self.store.guard()
        files = {name: self._put(name, data) for name, data in output.files.items()}
        content = {
            "stage": self.digest,
            "values": dict(output.values),
            "files": files,
            "time_ms": int(time.time() * 1000),
            "duration_s": round(time.monotonic() - start, 3),
            "owner": self.store.owner,
        }
        self.store.create_record(f"{self.path}/{MANIFEST}", content)  # or another was faster: then its holds
        self.drop_leftovers()
        return self.read_manifest()

    def _computed(self, compute: Callable[[Stage], Output]) -> Output:
        """What `compute` gives. Raises `Diverged`, remembered, where it diverges twice."""
        try:
            return compute(self)
        except Diverged as error:
            log.warning("stage %s (%s): %s; trying once more from its beginning", self.digest[:12], self.key.get("kind"), error)
        self.store.guard()
        self.drop_leftovers()  # its checkpoints, which may be what is wrong
        try:
            return compute(self)
        except Diverged as error:
            self.store.guard()
            self.store.write_record(f"{self.path}/{FAILED}", {"cause": str(error), "owner": self.store.owner})
            self.drop_leftovers()
            raise self._diverged(str(error)) from error

    def _put(self, name: str, data: bytes) -> JsonObject:
        """Write a file of the stage; its entry in the manifest. What another maker wrote, perhaps otherwise, stays."""
        sha256 = hashlib.sha256(data).hexdigest()
        entry: JsonObject = {"bytes": len(data), "sha256": sha256}
        if self.store.create(f"{self.path}/{name}", data):
            return entry
        entry["at"] = f"{sha256[:16]}-{name}"  # not bit for bit the same: a GPU, or the other died while writing
        self.store.write(f"{self.path}/{entry['at']}", data)
        return entry

    def checkpoint(self, name: str, data: bytes) -> None:
        """Keep `data` until the stage is whole. Raises `Fenced` where another driver took over."""
        self.store.guard()
        path = f"{self.path}/{CHECKPOINT}{name}"
        self.store.write(path, seal_bytes(data, path))

    def load_checkpoint(self, name: str) -> bytes | None:
        """What `checkpoint` kept; None where there is none. Raises `Damaged`."""
        path = f"{self.path}/{CHECKPOINT}{name}"
        data = self.store.read(path)
        try:
            return None if data is None else unseal_bytes(data, path)
        except BadSeal as error:
            raise self.store.damaged(path, str(error)) from error

    def drop_leftovers(self) -> None:
        """Delete the checkpoints, and what writers that died left half-written. For its sole maker, at the end."""
        for file in self.store.all_files(self.path):
            if is_leftover(file.path.rpartition("/")[2]):
                self.store.delete(file.path)


def stage_of(store: Store, stages: Mapping[str, str], digest: str) -> Stage:
    """A stage that a result names. Raises `Damaged` where it is not there, or is not the one that the result was of.

    `stages`: the result's, with the digests of their manifests.
    """
    stage = store.find(digest)
    expected = stages.get(digest)
    if expected is not None and stage.read_manifest().digest != expected:
        raise other_content(store, digest)
    return stage


def other_content(store: Store, digest: str) -> Damaged:
    """The error that says so of a stage, to be raised."""
    return store.damaged(f"{folder_of(digest)}/{MANIFEST}", "its content is not that of the stage which a result names")


def _content_of(manifest: JsonObject) -> JsonObject:
    """What a manifest says of the stage, without where its files lie, who made it and when."""
    files = {name: {key: entry[key] for key in ("bytes", "sha256")} for name, entry in manifest["files"].items()}
    return {"stage": manifest["stage"], "values": manifest["values"], "files": files}


def is_leftover(name: str) -> bool:
    """Whether a file in a stage's folder serves its maker alone: a checkpoint, or half a file under a name of its own."""
    return name.startswith((CHECKPOINT, "."))


def is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def folder_of(digest: str) -> str:
    """Raises `StoreFailure` for what is no digest: as a result in the store says it, it may name any folder."""
    if not is_digest(digest):
        raise StoreFailure(f"{digest[:80]!r} is no address of a stage; `raylt store verify` finds the file that names it")
    return f"{STAGES}/{digest[:2]}/{digest}"


def within_stage(path: str) -> tuple[str, str] | None:
    """Digest of the stage that a file belongs to, and its name there; None in a folder that is none's, as one put aside."""
    digest, _, name = path.removeprefix(f"{STAGES}/").partition("/")[2].partition("/")
    return (digest, name) if is_digest(digest) and path == f"{folder_of(digest)}/{name}" else None
