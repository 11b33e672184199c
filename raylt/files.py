"""Files under one root on any pyarrow filesystem: written in one piece, read whole, every fault put in words.

A dead or silent server is an error within seconds; a fault that passes is sat out. Nothing here knows what a stage is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pyarrow import fs as pafs

from raylt.errors import EnvironmentFailure, InputError, StoreFailure
from raylt.spec import CREDENTIALS_ADVICE, has_credentials

CONNECT_WITHIN_S, ANSWER_WITHIN_S = 4.0, 10.0  # of one request
FIRST_RETRY_S, GIVE_UP_AFTER_S = 0.5, 8.0  # a fault that may pass is met again at once, then after pauses that double
S3_OPTIONS = ("endpoint_override", "scheme", "region")

_PASSING = "NETWORK_CONNECTION|TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status 5"
_PASSING_ERRNO = (errno.ESTALE, errno.ETIMEDOUT)  # of NFS
_DENIED = "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|EXPIRED_TOKEN|HTTP status 40[13]"
_AWS_ERROR = re.compile(r"AWS Error (\w+) during \w+ operation: (.*)")
_ADVICE = (  # what the cause contains -> what to do
    ("No space|quota", "free space there (raylt store du, raylt store gc NAME), then give the same command again"),
    ("Read-only", "make it writable, or choose another storage.root"),
    ("NO_SUCH_BUCKET|no such bucket", "create the bucket, or correct storage.root"),
    (_DENIED, f"{CREDENTIALS_ADVICE}; see that they may read, write, list and delete there"),
    ("Permission|not permitted", "give this user the right to it, or choose another storage.root"),
    (_PASSING, "see that the server is up and that its address is right, then give the same command again"),
)

T = TypeVar("T")


class Found(NamedTuple):
    """A file below a folder: its path under the root, and its size."""

    path: str
    bytes: int


def dump_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class Files:
    """Files under `root`: a local path or any pyarrow filesystem URI (`s3://bucket/prefix`).

    Raises `InputError` for a root that cannot be, `StoreFailure` for whatever its filesystem refuses. `uri` names the same
    place from any folder and, for S3, whatever AWS_ENDPOINT_URL is there.
    """

    def __init__(self, root: str) -> None:
        if has_credentials(root):
            raise InputError(f"storage.root (or RAYLT_ROOT, --root) holds a user name or password; {CREDENTIALS_ADVICE}")
        self.root = root
        try:
            self._base, self.uri = self._s3_address(root) if root.startswith("s3://") else self._address(root)
        except (OSError, ValueError) as error:
            message = f"storage.root: no store at {_shown(root)}: {error}; a folder, or a URI such as s3://bucket/folder"
            raise InputError(message) from error
        if self.is_local and Path(self._base).exists() and not Path(self._base).is_dir():
            raise InputError(
                f"storage.root (or RAYLT_ROOT, --root): {root} is a file; a folder, or a URI such as s3://bucket/folder"
            )

    def _address(self, root: str) -> tuple[str, str]:
        """(base, uri) of any root but S3's."""
        if "://" in root:
            self._fs, base = pafs.FileSystem.from_uri(root)
            self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
            return base, root
        self._fs, self.is_local = pafs.LocalFileSystem(), True
        base = str(Path(root).expanduser().resolve())
        return base, base

    def _s3_address(self, root: str) -> tuple[str, str]:
        parts = urlsplit(root)
        options = dict(parse_qsl(parts.query))
        unknown = sorted(set(options) - set(S3_OPTIONS))
        if unknown or not parts.netloc:
            what = f"unknown {', '.join(unknown)}; known are {', '.join(S3_OPTIONS)}" if unknown else "it names no bucket"
            raise InputError(f"storage.root: {_shown(root)}: {what}; for example s3://bucket/folder?region=eu-central-1")
        self._s3_options, self.is_local = _s3_endpoint() | options, False
        base = f"{parts.netloc}{parts.path}".rstrip("/")
        return base, f"s3://{base}?{urlencode(self._s3_options)}".rstrip("?")

    @cached_property
    def _fs(self) -> pafs.FileSystem:
        """S3, once it is needed. Raises `StoreFailure` where there is no such server or bucket."""
        bucket, options = self._base.partition("/")[0], dict(self._s3_options)
        region = options.pop("region", None) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None:
            own_server = "endpoint_override" in options
            region = "us-east-1" if own_server else self._patiently("find", "", lambda: pafs.resolve_s3_region(bucket))
        filesystem = pafs.S3FileSystem(
            **options, region=region, connect_timeout=CONNECT_WITHIN_S, request_timeout=ANSWER_WITHIN_S,
            allow_delayed_open=True,  # one PUT below 10 MiB: whole, or not there
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),  # ours is `_patiently`
        )  # fmt: skip
        info = self._patiently("reach", "", lambda: filesystem.get_file_info(bucket))
        if info.type == pafs.FileType.NotFound:
            raise self._failure("reach", "", OSError(f"no such bucket {bucket}"))
        return filesystem

    # --- what may be done ---------------------------------------------------------------------------------------------

    def local_path(self, path: str) -> Path:
        assert self.is_local
        return Path(self._base) / path

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""

        def read() -> bytes | None:
            try:
                with self._fs.open_input_file(f"{self._base}/{path}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._patiently("read", path, read)

    def read_json(self, path: str) -> Any | None:
        """A JSON file's content; None where there is none. Raises `EnvironmentFailure` for a file that is no JSON."""
        for attempt in range(3):  # an object that is replaced between the two requests of a read comes cut
            data = self.read(path)
            try:
                return None if data is None else json.loads(data)
            except ValueError:
                time.sleep(0.1 * attempt)
        raise EnvironmentFailure(f"{self.root}/{path} is damaged, or no file of raylt's: it is no JSON; restore or delete it")

    def write(self, path: str, data: bytes) -> None:
        """Write a file in one piece: readers see the old bytes or the new ones, also when this process dies here."""
        full = f"{self._base}/{path}"
        self._patiently("write", path, lambda: replace_file(Path(full), data) if self.is_local else self._put(full, data))

    def _put(self, full: str, data: bytes) -> None:
        """An object appears when its stream closes, be it after an error: so nothing is computed in between."""
        with self._fs.open_output_stream(full) as stream:
            stream.write(data)

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, dump_json(value))

    def delete(self, path: str) -> None:
        """Delete a file, should it be there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(f"{self._base}/{path}")

        self._patiently("delete", path, delete)

    def delete_folder(self, path: str) -> None:
        """Delete a folder with all that is in it, should it be there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_dir(f"{self._base}/{path}")

        self._patiently("delete", path, delete)

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no folder. Half-written files are left out."""
        return sorted(info.base_name for info in self._listed(path, False) if not info.base_name.startswith("."))

    def all_files(self, path: str) -> list[Found]:
        """Every file below a folder, half-written ones too."""
        files = (info for info in self._listed(path, True) if info.type == pafs.FileType.File)
        return sorted(Found(info.path[len(self._base) + 1 :], info.size) for info in files)

    def _listed(self, path: str, recursive: bool) -> list[Any]:
        selector = pafs.FileSelector(f"{self._base}/{path}".rstrip("/"), allow_not_found=True, recursive=recursive)
        return list(self._patiently("list", path, lambda: self._fs.get_file_info(selector)))

    def free_bytes(self) -> int | None:
        """What is free on a local store's disk; None where nobody can know."""
        if not self.is_local:
            return None
        folder = next(folder for folder in (Path(self._base), *Path(self._base).parents) if folder.is_dir())
        with self.in_words("look at", ""):
            return shutil.disk_usage(folder).free

    # --- what may go wrong --------------------------------------------------------------------------------------------

    def _patiently(self, verb: str, path: str, operation: Callable[[], T]) -> T:
        """The result of an operation, tried again while it fails in a way that may pass. Raises `StoreFailure`."""
        began, pause_s = time.monotonic(), 0.0
        while True:
            try:
                return operation()
            except OSError as error:
                may_pass = error.errno in _PASSING_ERRNO or bool(re.search(_PASSING, str(error)))
                if not may_pass or (pause_s and time.monotonic() + pause_s - began > GIVE_UP_AFTER_S):
                    raise self._failure(verb, path, error) from error
            time.sleep(pause_s)
            pause_s = 2 * pause_s or FIRST_RETRY_S

    def _failure(self, verb: str, path: str, error: OSError) -> StoreFailure:
        cause = _cause(error)
        advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, cause)), "see to the store")
        where = f"{_shown(self.root)}/{path}".rstrip("/")
        return StoreFailure(f"cannot {verb} {where}: {cause}; {advice}")

    @contextlib.contextmanager
    def in_words(self, verb: str, path: str) -> Iterator[None]:
        """Turns an OSError of the local filesystem met inside into a `StoreFailure`."""
        try:
            yield
        except OSError as error:
            raise self._failure(verb, path, error) from error


def in_units(num_bytes: float) -> str:
    """`0 B`, `12 kB`, `3.4 MB`: what people compare with what their disk has left."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.{0 if unit == 'B' or num_bytes >= 10 else 1}f} {unit}"


def _shown(root: str) -> str:
    """A root for messages: without the options of its URI."""
    return root.partition("?")[0].rstrip("/")


def replace_file(target: Path, data: bytes) -> None:
    """Write a local file aside, make it durable, and put it in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _s3_endpoint() -> dict[str, str]:
    """What AWS_ENDPOINT_URL says, as other clients of S3 read it. pyarrow does not when it is set too late."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return {}
    parts = urlsplit(url)
    if has_credentials(url) or parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError("AWS_ENDPOINT_URL is no http:// or https:// address without user and password")
    return {"scheme": parts.scheme, "endpoint_override": parts.netloc}


def _cause(error: OSError) -> str:
    """One line without pyarrow's wrapping: the system's words, or the server's."""
    if error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split()).partition(" (Request ID:")[0]
    found = _AWS_ERROR.search(text)
    name, said = found.groups() if found else ("", text)
    said = said.rpartition("; Details: ")[2] if name == "NETWORK_CONNECTION" else said
    return (f"{said} ({name})" if name else said)[:300]
