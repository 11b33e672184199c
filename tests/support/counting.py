"""A store in memory that counts its requests as a bucket's server would, and which of them waited for others."""

from __future__ import annotations

import threading

from raylt.store.filesystem import AT_ONCE
from raylt.store.folders import Found

PAGE = 1000  # objects in one answer to a listing
READ = 2  # requests of a read: pyarrow asks for the size first


class CountingFolder:
    """`files`: path -> bytes. `in_turn`: requests one after another, where `AT_ONCE` of a pool's count as one."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.reads, self.lists, self._alone, self._pooled, self._pools = 0, 0, 0, 0, 0
        self._main, self._lock = threading.get_ident(), threading.Lock()

    def _count(self, requests: int) -> None:
        with self._lock:
            if threading.get_ident() != self._main:
                self._pooled += requests
            else:
                self._end_pool()
                self._alone += requests

    def _end_pool(self) -> None:
        self._pools, self._pooled = self._pools - -self._pooled // AT_ONCE, 0

    @property
    def in_turn(self) -> int:
        self._end_pool()
        return self._alone + self._pools

    def clear(self) -> None:
        self.reads = self.lists = self._alone = self._pooled = self._pools = 0

    def read(self, path: str) -> bytes | None:
        self._count(READ)
        self.reads += 1
        return self.content.get(path)

    def replace(self, path: str, data: bytes) -> None:
        self.content[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return self.content.setdefault(path, data) == data

    def delete(self, path: str) -> None:
        self.content.pop(path, None)

    def delete_folder(self, path: str) -> None:
        for file in [file for file in self.content if file.startswith(f"{path}/")]:
            del self.content[file]

    def names(self, path: str) -> list[str]:
        below = {file.removeprefix(f"{path}/").partition("/")[0] for file in self.content if file.startswith(f"{path}/")}
        return self._listed(list(below))

    def files(self, path: str) -> list[Found]:
        return self._listed([Found(file, len(data)) for file, data in self.content.items() if file.startswith(f"{path}/")])

    def _listed(self, found: list) -> list:
        self._count(max(1, -(-len(found) // PAGE)))
        self.lists += 1
        return found

    def why_not_once(self) -> str | None:
        return None
