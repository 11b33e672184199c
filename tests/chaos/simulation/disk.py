"""A filesystem in memory, below raylt's `LocalFolder`: what is in the page cache, and what of it is on the disk.

A file's bytes are on the disk once `fsync` has returned, a folder's entries once the folder was synced. A power cut keeps
of what was not synced whatever it likes: of each folder's changes none, all, the first few, or any; of a file that was
never synced nothing, a part, or zeros.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

from raylt.store.folders import Disk
from tests.chaos.simulation.faults import Operations

Committed = Callable[[str, bytes | None, bool], None]


class Inode:
    def __init__(self) -> None:
        self.data, self.on_disk, self.links = b"", None, 1


class Directory:
    inodes = itertools.count(2)

    def __init__(self) -> None:
        self.inode = next(Directory.inodes)
        self.entries: dict[str, Any] = {}
        self.on_disk: dict[str, Any] = {}
        self.pending: list[dict[str, Any]] = []  # changes since the last sync: name -> node, None where it is gone

    def change(self, change: dict[str, Any]) -> None:
        self._apply(self.entries, change)
        self.pending.append(change)

    @staticmethod
    def _apply(entries: dict[str, Any], change: dict[str, Any]) -> None:
        for name, node in change.items():
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node

    def sync(self) -> None:
        self.on_disk, self.pending = dict(self.entries), []

    def crash(self, draw: random.Random) -> None:
        kept = {
            0: list, 1: lambda: self.pending, 2: lambda: self.pending[: draw.randint(0, len(self.pending))],
            3: lambda: [change for change in self.pending if draw.random() < 0.5],
        }[draw.randrange(4)]()  # fmt: skip
        entries = dict(self.on_disk)
        for change in kept:
            self._apply(entries, change)
        self.entries, self.on_disk, self.pending = entries, dict(entries), []


class SimulatedDisk(Disk):
    """`on_change(path, bytes or None, by the disk itself)` hears of every file that appears, is replaced or goes."""

    def __init__(self, operate: Operations, base: str, on_change: Committed, *, has_links: bool) -> None:
        self._operate, self._base, self._on_change, self.has_links = operate, base, on_change, has_links
        self._root = Directory()
        self._folders: dict[str, Directory] = {"": self._root}  # every folder by its path, as the page cache has it

    # --- the calls, each one an operation --------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        return self._operate("read", path, lambda: self._file(path).data)

    def write(self, path: str, data: bytes) -> None:
        file = Inode()

        def half() -> None:
            self._enter(path, file)
            file.data = data[: len(data) // 2]

        def whole() -> None:
            if not file.data:
                half()
            file.data = data
            folder, name = self._folder_of(path)
            if folder.entries.get(name) is file:  # else it was replaced meanwhile
                self._on_change(self._own(path), data, False)

        if self.has_links:
            self._operate("write", path, whole, half)
        else:  # readers may see it half-written
            self._operate("write", path, half)
            self._operate("write", path, whole)
        self._operate("fsync", path, lambda: setattr(file, "on_disk", data))

    def link(self, path: str, target: str) -> None:
        def effect() -> None:
            file = self._file(path)
            self._enter(target, file)
            file.links += 1
            self._on_change(self._own(target), file.data, False)

        if not self.has_links:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), target)
        self._operate("link", target, effect)

    def links(self, path: str) -> int:
        return self._operate("stat", path, lambda: self._file(path).links)

    def rename(self, path: str, target: str) -> None:
        def effect() -> None:
            folder, old = self._folder_of(path)
            _, new = self._folder_of(target)
            file = self._file(path)
            folder.change({old: None, new: file})
            self._on_change(self._own(target), file.data, False)

        self._operate("rename", target, effect)

    def unlink(self, path: str) -> None:
        def effect() -> None:
            file = self._file(path)
            folder, name = self._folder_of(path)
            folder.change({name: None})
            file.links -= 1
            self._on_change(self._own(path), None, False)

        self._operate("unlink", path, effect)

    def make_folder(self, path: str) -> None:
        def effect() -> None:
            self._enter(path, Directory())
            self._folders[self._own(path)] = self._at(path)

        self._operate("mkdir", path, effect)

    def folder_id(self, path: str) -> int | None:
        if not path.startswith(f"{self._base}/"):
            return 1
        return self._operate("stat", path, lambda: getattr(self._folders.get(self._own(path)), "inode", None))

    def list_folder(self, path: str) -> list[tuple[str, int | None]]:
        return self._operate("list", path, lambda: self._listed(path))

    def remove_folder(self, path: str) -> None:
        def effect() -> None:
            if self._directory(path).entries:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            folder, name = self._folder_of(path)
            folder.change({name: None})
            del self._folders[self._own(path)]

        self._operate("rmdir", path, effect)

    def sync_folder(self, path: str) -> None:
        if path.startswith(f"{self._base}/") or path == self._base:
            self._operate("sync", path, lambda: self._directory(path).sync())

    # --- what the world does to it -----------------------------------------------------------------------------------

    def crash(self, draw: random.Random) -> None:
        """The power is cut: what was not synced is as the disk likes."""
        before = dict(self.files())
        self._folders, waiting = {}, [("", self._root)]
        while waiting:
            path, folder = waiting.pop()
            folder.crash(draw)
            self._folders[path] = folder
            for name, node in folder.entries.items():
                below = f"{path}/{name}".lstrip("/")
                if isinstance(node, Directory):
                    waiting.append((below, node))
                elif node.on_disk is None:
                    cut = draw.randint(0, len(node.data))
                    node.data = draw.choice([b"", node.data[:cut], bytes(len(node.data)), node.data])
                    node.on_disk = node.data
        after = dict(self.files())
        for path in sorted(before.keys() | after.keys()):
            if path not in after or path not in before or before[path].data != after[path].data:
                self._on_change(path, after[path].data if path in after else None, True)

    def files(self) -> Iterator[tuple[str, Inode]]:
        """Every file, by its path under the base."""
        for path in sorted(self._folders):
            for name, node in self._folders[path].entries.items():
                if isinstance(node, Inode):
                    yield f"{path}/{name}".lstrip("/"), node

    def contents(self) -> dict[str, bytes]:
        return {path: file.data for path, file in self.files()}

    def overwrite(self, path: str, data: bytes) -> None:
        """At rest: on the disk and in the page cache, under every name that the file has."""
        file = dict(self.files())[path]
        file.data = data
        file.on_disk = data if file.on_disk is not None else None

    # --- paths ------------------------------------------------------------------------------------------------------

    def _own(self, path: str) -> str:
        return path[len(self._base) + 1 :]

    def _directory(self, path: str) -> Directory:
        found = self._folders.get(self._own(path))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def _folder_of(self, path: str) -> tuple[Directory, str]:
        folder, _, name = path.rpartition("/")
        return self._directory(folder), name

    def _at(self, path: str) -> Any:
        folder, name = self._folder_of(path)
        node = folder.entries.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _file(self, path: str) -> Inode:
        node = self._at(path)
        if not isinstance(node, Inode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return node

    def _enter(self, path: str, node: Any) -> None:
        folder, name = self._folder_of(path)
        if name in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        folder.change({name: node})

    def _listed(self, path: str) -> list[tuple[str, int | None]]:
        entries = self._directory(path).entries
        return [(name, None if isinstance(node, Directory) else len(node.data)) for name, node in entries.items()]
