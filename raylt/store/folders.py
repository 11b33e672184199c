"""Where a store's files lie: a folder on a local filesystem, S3, or whatever else pyarrow reaches. Faults are `OSError`s.

Each kind of folder can do the same few things. What is written appears in one piece. What is created is created once: of
two that create a file, one does, by the storage's own word (`link` on a local filesystem and NFS, a conditional PUT on S3).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pyarrow import fs as pafs

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # a filesystem without hard links
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF)  # one that syncs no folders


class Found(NamedTuple):
    """A file below a folder: its path under the root, and its size."""

    path: str
    bytes: int


class Folder(Protocol):
    """What a store needs of the place it lies in. Paths are relative to it, with slashes."""

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""

    def replace(self, path: str, data: bytes) -> None:
        """Write a file: readers see the old bytes or the new ones, and the new ones from here on, whatever crashes."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that nobody has written; whether it now holds `data`: False where another was faster."""

    def settle(self, path: str) -> None:
        """See that a file is there to stay: whoever created it may have died before that."""

    def delete(self, path: str) -> None:
        """Delete a file, should it be there."""

    def delete_folder(self, path: str) -> None:
        """Delete a folder with all that is in it, should it be there."""

    def names(self, path: str) -> list[str]:
        """The names in a folder, half-written files too; none where there is no folder."""

    def files(self, path: str) -> list[Found]:
        """Every file below a folder."""

    def why_not_once(self) -> str | None:
        """Why `create` cannot promise that one alone creates a file; None where it can."""


class Disk:
    """The calls of the system that a local folder rests on. (A test's disk fails at each of them.)"""

    def read(self, path: str) -> bytes:
        """Raises `IsADirectoryError` for whatever is no plain file: a pipe would be waited for."""
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """A new file, on the disk when this returns."""
        with Path(path).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def link(self, path: str, target: str) -> None:
        Path(target).hardlink_to(path)

    def links(self, path: str) -> int:
        return Path(path).stat().st_nlink

    def rename(self, path: str, target: str) -> None:
        Path(path).replace(target)

    def unlink(self, path: str) -> None:
        Path(path).unlink()

    def make_folder(self, path: str) -> None:
        Path(path).mkdir()

    def folder_id(self, path: str) -> int | None:
        """The inode of a folder; None where there is none."""
        try:
            status = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino if stat.S_ISDIR(status.st_mode) else None

    def list_folder(self, path: str) -> list[tuple[str, int | None]]:
        """(name, size) of what is in a folder; of a folder in it (name, None)."""
        listing = []
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    is_folder = entry.is_dir(follow_symlinks=False)
                    listing.append((entry.name, None if is_folder else entry.stat().st_size))
        return listing

    def remove_folder(self, path: str) -> None:
        Path(path).rmdir()

    def sync_folder(self, path: str) -> None:
        """What was created, renamed or deleted in a folder is so on the disk when this returns."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(descriptor)


class LocalFolder:
    """A folder on a filesystem of this machine, NFS among them."""

    def __init__(self, base: str, disk: Disk | None = None) -> None:
        self.base, self._disk = base, disk or Disk()
        self._lasting: dict[str, int | None] = {}  # folders that are on the disk for sure -> their inodes

    def read(self, path: str) -> bytes | None:
        try:
            return self._disk.read(f"{self.base}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, path: str, data: bytes) -> None:
        with self._written_aside(path, data) as (temporary, target):
            self._disk.rename(temporary, target)

    def create(self, path: str, data: bytes) -> bool:
        with self._written_aside(path, data) as (temporary, target):
            try:
                self._disk.link(temporary, target)
            except FileExistsError:
                # An NFS server whose answer was lost is submitted again, and then says so of our own link.
                return self._disk.links(temporary) > 1 or self.read(path) == data
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_place(target, data)
            return True

    def _create_in_place(self, target: str, data: bytes) -> bool:
        """Without hard links: exclusive, but a crash in the midst of it leaves half a file, which its checksum shows."""
        try:
            self._disk.write(target, data)
        except FileExistsError:
            return self._disk.read(target) == data
        return True

    @contextlib.contextmanager
    def _written_aside(self, path: str, data: bytes) -> Any:
        """(a file with `data` on the disk, the path it is meant for); the folder is synced at the end, the file gone."""
        target = f"{self.base}/{path}"
        folder, _, name = target.rpartition("/")
        self._make_folders(folder)
        temporary = f"{folder}/.{name[:100]}.{uuid.uuid4().hex}"
        try:
            self._disk.write(temporary, data)
            yield temporary, target
        finally:
            with contextlib.suppress(OSError):  # renamed, or never there
                self._disk.unlink(temporary)
        self._disk.sync_folder(folder)

    def _make_folders(self, folder: str) -> None:
        """The folder is there, and on the disk: one that is there may have been made by a process that died before its sync."""
        inode = self._disk.folder_id(folder)
        is_ours = f"{folder}/".startswith(f"{self.base}/")
        if inode is not None and (not is_ours or self._lasting.get(folder) == inode):
            return
        parent = folder.rpartition("/")[0]
        self._make_folders(parent)
        if inode is None:
            with contextlib.suppress(FileExistsError):
                self._disk.make_folder(folder)
        # Above the store there may be nothing that we may read.
        with contextlib.suppress(*([PermissionError] if folder == self.base and inode is not None else [])):
            self._disk.sync_folder(parent or "/")
        self._lasting[folder] = self._disk.folder_id(folder)

    def settle(self, path: str) -> None:
        folder = f"{self.base}/{path}".rpartition("/")[0]
        self._make_folders(folder)
        self._disk.sync_folder(folder)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._disk.folder_id(f"{self.base}/{path}") is not None:
                self.delete_folder(path)  # in a file's place
            else:
                self._disk.unlink(f"{self.base}/{path}")

    def delete_folder(self, path: str) -> None:
        for name, size in self._listed(path):
            if size is None:
                self.delete_folder(f"{path}/{name}")
            else:
                self.delete(f"{path}/{name}")
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove_folder(f"{self.base}/{path}")

    def names(self, path: str) -> list[str]:
        return [name for name, _ in self._listed(path)]

    def files(self, path: str) -> list[Found]:
        listing = []
        for name, size in self._listed(path):
            below = f"{path}/{name}".lstrip("/")
            listing += self.files(below) if size is None else [Found(below, size)]
        return listing

    def _listed(self, path: str) -> list[tuple[str, int | None]]:
        try:
            return self._disk.list_folder(f"{self.base}/{path}".rstrip("/"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def why_not_once(self) -> str | None:
        return None


class ArrowFolder:
    """A folder on any filesystem of pyarrow's. It has nothing that creates a file only once."""

    def __init__(self, filesystem: pafs.FileSystem, base: str) -> None:
        self.fs, self.base = filesystem, base

    def read(self, path: str) -> bytes | None:
        try:
            with self.fs.open_input_file(f"{self.base}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def replace(self, path: str, data: bytes) -> None:
        """An object appears when its stream closes, be it after an error: so nothing is computed in between."""
        with self.fs.open_output_stream(f"{self.base}/{path}") as stream:
            stream.write(data)

    def create(self, path: str, data: bytes) -> bool:
        present = self.read(path)
        if present is None:
            self.replace(path, data)
            present = self.read(path)
        return present == data

    def settle(self, path: str) -> None:
        """An object that can be read stays."""

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(f"{self.base}/{path}")

    def delete_folder(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_dir(f"{self.base}/{path}")

    def names(self, path: str) -> list[str]:
        return [info.base_name for info in self._listed(path, recursive=False)]

    def files(self, path: str) -> list[Found]:
        files = (info for info in self._listed(path, recursive=True) if info.type == pafs.FileType.File)
        return [Found(info.path[len(self.base) + 1 :], info.size) for info in files]

    def _listed(self, path: str, *, recursive: bool) -> list[Any]:
        folder = f"{self.base}/{path}".rstrip("/")
        return list(self.fs.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)))

    def why_not_once(self) -> str | None:
        return "this kind of storage has no such request"


def replace_file(target: Path, data: bytes) -> None:
    """Write a file of this machine's in one piece."""
    target = target.absolute()
    LocalFolder(str(target.parent)).replace(target.name, data)
