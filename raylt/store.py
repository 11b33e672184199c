"""The one durable thing: content-addressed stages on a pyarrow filesystem.

A stage is one memoised unit of compute. Its address is the hash of its key, which holds everything that decides its
result; it is whole when its manifest is there, and the manifest is written last. So a reader needs no lock, a writer
that dies leaves nothing that could be taken for a result, and two writers of one stage write the same bytes.

    ROOT/stages/<aa>/<sha256>/  key.json  *.safetensors  manifest.json
                                checkpoint-*.safetensors    while it is being made
                                failed.json                 in place of a manifest: it can only fail again
    ROOT/locks/<sha256>         on a local filesystem: who makes the stage right now (dies with its process)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
from pyarrow import fs as pafs

from raylt.errors import Diverged, EnvironmentFailure, InputError
from raylt.spec import canonical, digest_of

CODE_SCHEMA = 1  # part of every key: raised when the same key would give another result

MANIFEST, KEY, FAILED = "manifest.json", "key.json", "failed.json"


def _no_guard() -> None:
    """The guard of a store that nobody can take over."""


def dump_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class Store:
    """Files under one root: a local path or any pyarrow filesystem URI (`s3://bucket/prefix`)."""

    def __init__(self, root: str, owner: str = "", guard: Callable[[], None] = _no_guard) -> None:
        """`owner` is written into the manifests made here; `guard` raises `Fenced` once this process may not write."""
        self.root, self.owner, self.guard = root, owner, guard
        try:
            if "://" in root:
                self._fs, self._base = pafs.FileSystem.from_uri(root)
            else:
                self._fs, self._base = pafs.LocalFileSystem(), str(Path(root).expanduser().resolve())
        except (OSError, ValueError) as error:
            message = f"storage.root: no store at {root!r}: {error}; a folder, or a URI such as s3://bucket/folder"
            raise InputError(message) from error
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        if self.is_local and Path(self._base).exists() and not Path(self._base).is_dir():
            raise InputError(
                f"storage.root (or RAYLT_ROOT, --root): {root} is a file; a folder, or a URI such as s3://bucket/folder"
            )

    def local_path(self, path: str) -> Path:
        assert self.is_local
        return Path(self._base) / path

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        try:
            with self._fs.open_input_file(f"{self._base}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def read_json(self, path: str) -> Any | None:
        data = self.read(path)
        return None if data is None else json.loads(data)

    def write(self, path: str, data: bytes) -> None:
        """Write a file in one piece: readers see the old bytes or the new ones, also when this process dies here."""
        full = f"{self._base}/{path}"
        if not self.is_local:  # an object store publishes an object when its stream closes
            with self._fs.open_output_stream(full) as stream:
                stream.write(data)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EnvironmentFailure(
                f"cannot write {target}: {error.strerror}; free space or choose another storage.root"
            ) from error

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, dump_json(value))

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._base}/{path}")

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no folder. Half-written files are left out."""
        selector = pafs.FileSelector(f"{self._base}/{path}", allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector) if not info.base_name.startswith("."))

    def stage(self, key: Mapping[str, Any]) -> Stage:
        return Stage(self, {"schema": CODE_SCHEMA, **key})

    def find(self, digest: str) -> Stage:
        """A stage by its address alone: for what a result names."""
        key = self.read_json(f"{_folder(digest)}/{KEY}")
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
        self.path = _folder(self.digest)

    def manifest(self) -> Manifest | None:
        """The stage's manifest where the stage is whole, else None. Raises `Diverged` where it can only fail."""
        data = self.store.read(f"{self.path}/{MANIFEST}")
        if data is None:
            failed = self.store.read_json(f"{self.path}/{FAILED}")
            if failed is not None:
                raise Diverged(failed["cause"])
            return None
        content = json.loads(data)
        return Manifest(hashlib.sha256(data).hexdigest(), **{k: content[k] for k in Manifest.__annotations__ if k != "digest"})

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

        Where another process on this filesystem makes the stage already, wait for it. `Diverged` is remembered.
        """
        found = self.manifest()
        if found is not None:
            return found
        with self._lock():
            found = self.manifest()
            return found if found is not None else self._make(compute)

    def _make(self, compute: Callable[[Stage], Output]) -> Manifest:
        self.store.guard()
        start = time.monotonic()
        self.store.write(f"{self.path}/{KEY}", canonical(self.key))
        try:
            output = compute(self)
        except Diverged as error:
            self.store.guard()
            self.store.write_json(f"{self.path}/{FAILED}", {"cause": str(error), "owner": self.store.owner})
            self.drop_checkpoints()
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
        self.drop_checkpoints()
        return self.whole()

    def checkpoint(self, name: str, data: bytes) -> None:
        """Keep `data` until the stage is whole. Raises `Fenced` where another driver took over."""
        self.store.guard()
        self.store.write(f"{self.path}/checkpoint-{name}", data)

    def load_checkpoint(self, name: str) -> bytes | None:
        return self.store.read(f"{self.path}/checkpoint-{name}")

    def drop_checkpoints(self) -> None:
        for name in self.store.names(self.path):
            if name.startswith("checkpoint-"):
                self.store.delete(f"{self.path}/{name}")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One maker at a time, where the filesystem has locks; elsewhere two makers do the same work, harmlessly."""
        if not self.store.is_local:
            yield
            return
        path = self.store.local_path(f"locks/{self.digest}")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, thread_local=False)
        while True:
            try:
                lock.acquire(timeout=1, poll_interval=0.1)
                break
            except filelock.Timeout:
                self.store.guard()
        try:
            yield
        finally:
            lock.release()


def _folder(digest: str) -> str:
    return f"stages/{digest[:2]}/{digest}"
