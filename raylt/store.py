"""The one durable thing: content-addressed stages, and the sweeps' ledgers beside them.

A stage is one memoised unit of compute. Its address is the hash of its key, which holds everything that decides its
result; it is whole when its manifest is there, and the manifest is written last, in one piece. So a reader needs no lock,
a writer that dies leaves nothing that could be taken for a result, and two writers of one stage write the same bytes.

    ROOT/stages/<aa>/<sha256>/  key.json  *.safetensors  manifest.json
                                checkpoint-*.safetensors  claim.json   while it is being made
                                failed.json                            in place of a manifest: it can only fail again
    ROOT/locks/<sha256>         on a local filesystem: who makes the stage right now (dies with its process)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from raylt.claim import sole_maker
from raylt.errors import Diverged, EnvironmentFailure
from raylt.files import Files
from raylt.spec import canonical, digest_of

CODE_SCHEMA = 1  # part of every key: raised when the same key would give another result

STAGES, MANIFEST, KEY, FAILED, CHECKPOINT = "stages", "manifest.json", "key.json", "failed.json", "checkpoint-"


def _no_guard() -> None:
    """The guard of a store that nobody can take over."""


class Store(Files):
    """Stages and files under one root: a local path or any pyarrow filesystem URI (`s3://bucket/prefix`)."""

    def __init__(self, root: str, owner: str = "", guard: Callable[[], None] = _no_guard) -> None:
        """`owner` is written into the manifests made here; `guard` raises `Fenced` once this process may not write."""
        super().__init__(root)
        self.owner, self.guard = owner, guard

    def stage(self, key: Mapping[str, Any]) -> Stage:
        return Stage(self, {"schema": CODE_SCHEMA, **key})

    def find(self, digest: str) -> Stage:
        """A stage by its address alone: for what a result names."""
        key = self.read_json(f"{folder_of(digest)}/{KEY}")
        if key is None:
            raise EnvironmentFailure(f"stage {digest[:12]} is not in the store {self.root}")
        return Stage(self, key)


@dataclass(frozen=True)
class Output:
    """What a stage leaves behind: numbers for the manifest, and files."""

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    digest: str  # of the manifest's own bytes: what a result names
    values: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    time_ms: int  # when the stage became whole: the time of its metric points, however often they are replayed
    duration_s: float
    owner: str


class Stage:
    """One stage of a store, made or not."""

    def __init__(self, store: Store, key: Mapping[str, Any]) -> None:
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
        data = self.store.read(f"{self.path}/{MANIFEST}")
        if data is None:
            failed = self.store.read_json(f"{self.path}/{FAILED}")
            if failed is not None:
                raise Diverged(failed["cause"])
            return None
        try:
            content = json.loads(data)
            fields = {name: content[name] for name in Manifest.__annotations__ if name != "digest"}
        except (ValueError, TypeError, KeyError) as error:
            raise EnvironmentFailure(
                f"stage {self.digest[:12]} has a damaged {MANIFEST}; delete {self.store.root}/{self.path} to make it again"
            ) from error
        return Manifest(hashlib.sha256(data).hexdigest(), **fields)

    def whole(self) -> Manifest:
        manifest = self.manifest()
        if manifest is None:
            raise EnvironmentFailure(f"stage {self.digest[:12]} ({self.key.get('kind')}) is not whole in {self.store.root}")
        return manifest

    def read(self, name: str) -> bytes:
        """A file of a whole stage, checked against the manifest."""
        expected, data = self.whole().files.get(name), self.store.read(f"{self.path}/{name}")
        if expected is None or data is None or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            what = "has no file" if expected is None else "lacks its file" if data is None else "has a damaged file"
            raise EnvironmentFailure(
                f"stage {self.digest[:12]} {what} {name}; delete {self.store.root}/{self.path} to make it again"
            )
        return data

    def make(self, compute: Callable[[Stage], Output]) -> Manifest:
        """The manifest of this stage: found, or made by `compute`, which may keep checkpoints meanwhile.

        Where another process makes the stage already, wait for it. `Diverged` is remembered.
        """
        found = self.manifest()
        if found is not None:
            return found
        with self.sole_maker():
            found = self.manifest()
            return found if found is not None else self._make(compute)

    def sole_maker(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Inside, no other process makes this stage."""
        return sole_maker(self.store, self.digest, self.path, self.store.owner, self.store.guard, wait=wait)

    def _make(self, compute: Callable[[Stage], Output]) -> Manifest:
        start = time.monotonic()
        self.store.write(f"{self.path}/{KEY}", canonical(self.key))
        try:
            output = compute(self)
        except Diverged as error:
            self.store.guard()
            self.store.write_json(f"{self.path}/{FAILED}", {"cause": str(error), "owner": self.store.owner})
            self.drop_leftovers()
            raise
        self.store.guard()
        for name, data in output.files.items():
            self.store.write(f"{self.path}/{name}", data)
        self.store.write_json(
            f"{self.path}/{MANIFEST}",
            {
                "values": dict(output.values),
                "files": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in output.files.items()},
                "time_ms": int(time.time() * 1000),
                "duration_s": round(time.monotonic() - start, 3),
                "owner": self.store.owner,
            },
        )
        self.drop_leftovers()
        return self.whole()

    def checkpoint(self, name: str, data: bytes) -> None:
        """Keep `data` until the stage is whole. Raises `Fenced` where another driver took over."""
        self.store.guard()
        self.store.write(f"{self.path}/{CHECKPOINT}{name}", data)

    def load_checkpoint(self, name: str) -> bytes | None:
        return self.store.read(f"{self.path}/{CHECKPOINT}{name}")

    def drop_leftovers(self) -> None:
        """Delete the checkpoints, and what writers that died left half-written. For its sole maker, at the end."""
        for file in self.store.all_files(self.path):
            if is_leftover(file.path.rpartition("/")[2]):
                self.store.delete(file.path)


def is_leftover(name: str) -> bool:
    """Whether a file in a stage's folder serves its maker alone: a checkpoint, or half a file under a name of its own."""
    return name.startswith((CHECKPOINT, "."))


def folder_of(digest: str) -> str:
    return f"{STAGES}/{digest[:2]}/{digest}"
