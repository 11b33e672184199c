"""Files under one root: written in one piece or created once, read whole and checked, every fault put in words.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pyarrow import fs as pafs

from raylt.errors import InputError, OutOfSpace, StoreFailure
from raylt.spec.canonical import JsonObject
from raylt.spec.paths import CREDENTIALS_ADVICE, has_credentials
from raylt.store.bucket import ANSWER_WITHIN_S, CONNECT_WITHIN_S, BucketFolder
from raylt.store.damage import Damaged
from raylt.store.folders import ArrowFolder, Folder, Found, LocalFolder
from raylt.store.seals import BadSeal, place_of, seal, unseal

FIRST_RETRY_S, GIVE_UP_AFTER_S = 0.5, 8.0  # a fault that may pass is met again at once, then after pauses that double
AT_ONCE = 32  # requests to a store that is a server
S3_OPTIONS = ("endpoint_override", "scheme", "region")

_PASSING = "NETWORK_CONNECTION|TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status 5"
_PASSING_ERRNO = (errno.ESTALE, errno.ETIMEDOUT)  # of NFS
_FULL = (errno.ENOSPC, errno.EDQUOT)
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

S = TypeVar("S")
T = TypeVar("T")


def dump_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


class Files:
    """Files under `root`: a local path or any pyarrow filesystem URI (`s3://bucket/prefix`).

    Raises `InputError` for a root that cannot be, `StoreFailure` for whatever its filesystem refuses. `uri` names the same
    place from any folder and, for S3, whatever AWS_ENDPOINT_URL is there.
    """

    def __init__(self, root: str, folder: Folder | None = None) -> None:
        """`folder`: where `root` lies, in place of what its name says."""
        if has_credentials(root):
            raise InputError(f"storage.root (or RAYLT_ROOT, --root) holds a user name or password; {CREDENTIALS_ADVICE}")
        self.root, self.uri, self.is_local = root, root, False
        if folder is not None:
            self._folder = folder
            return
        try:
            self.uri, opened = self._s3_address(root) if root.startswith("s3://") else self._address(root)
        except (OSError, ValueError) as error:
            message = f"storage.root: no store at {_shown(root)}: {error}; a folder, or a URI such as s3://bucket/folder"
            raise InputError(message) from error
        if opened is not None:
            self._folder = opened
        if self.is_local and Path(self._base).exists() and not Path(self._base).is_dir():
            raise InputError(
                f"storage.root (or RAYLT_ROOT, --root): {root} is a file; a folder, or a URI such as s3://bucket/folder"
            )

    def _address(self, root: str) -> tuple[str, Folder]:
        """(uri, folder) of any root but S3's."""
        if "://" not in root:
            base = str(Path(root).resolve())
            self.is_local = True
            return base, LocalFolder(base)
        filesystem, base = pafs.FileSystem.from_uri(root)
        self.is_local = isinstance(filesystem, pafs.LocalFileSystem)
        return root, LocalFolder(base) if self.is_local else ArrowFolder(filesystem, base)

    def _s3_address(self, root: str) -> tuple[str, None]:
        parts = urlsplit(root)
        options = dict(parse_qsl(parts.query))
        unknown = sorted(set(options) - set(S3_OPTIONS))
        if unknown or not parts.netloc:
            what = f"unknown {', '.join(unknown)}; known are {', '.join(S3_OPTIONS)}" if unknown else "it names no bucket"
            raise InputError(f"storage.root: {_shown(root)}: {what}; for example s3://bucket/folder?region=eu-central-1")
        self._s3_options = _s3_endpoint() | options
        self._s3_base = f"{parts.netloc}{parts.path}".rstrip("/")
        return f"s3://{self._s3_base}?{urlencode(self._s3_options)}".rstrip("?"), None

    @cached_property
    def _folder(self) -> Folder:
        """S3, once it is needed. Raises `StoreFailure` where there is no such server or bucket."""
        bucket, options = self._s3_base.partition("/")[0], dict(self._s3_options)
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
        return BucketFolder(filesystem, self._s3_base, region, options)

    @property
    def _base(self) -> str:
        assert isinstance(self._folder, LocalFolder)
        return self._folder.base

    # --- what may be done ---------------------------------------------------------------------------------------------

    def local_path(self, path: str) -> Path:
        assert self.is_local
        return Path(self._base) / path

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        try:
            return self._patiently("read", path, lambda: self._folder.read(path))
        except StoreFailure as error:
            if isinstance(error.__cause__, IsADirectoryError):
                raise self.damaged(path, "a folder or a pipe lies in its place") from error
            raise

    def read_record(self, path: str, *, is_sealed: bool | None = None, sweep: str = "") -> JsonObject | None:
        """A JSON object that raylt wrote, without its checksum; None where there is none.

        `is_sealed`: whether it must have a checksum. None: one without is taken as it is; it was written by an earlier raylt.
        `sweep`: the one that the file belongs to, as `place_of` takes it. Raises `Damaged`, naming the file.
        """
        return self.read_checked(path, is_sealed=is_sealed, sweep=sweep)[0]

    def read_checked(self, path: str, *, is_sealed: bool | None = None, sweep: str = "") -> tuple[JsonObject | None, bool]:
        """`read_record`, and whether there was a checksum."""
        for attempt in range(3):  # an object that is replaced between the two requests of a read comes cut
            data = self.read(path)
            if data is None:
                return None, False
            try:
                record, has_sum = unseal(json.loads(data), place_of(path, sweep))
                if is_sealed and not has_sum:
                    raise BadSeal("its checksum is missing")
                return record, has_sum
            except (ValueError, RecursionError) as error:
                why = str(error) if isinstance(error, BadSeal) else "it is no JSON"
                time.sleep(0.1 * attempt)
        raise self.damaged(path, why)

    def each(self, read: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """`read` of every item, in their order: one after another on a disk, many at once where each waits for a server.

        What it raises for the first item that fails is raised.
        """
        if self.is_local or AT_ONCE == 1:
            return [read(item) for item in items]
        with ThreadPoolExecutor(AT_ONCE, "store") as pool:
            return list(pool.map(read, items))

    def write(self, path: str, data: bytes) -> None:
        """Write a file in one piece: readers see the old bytes or the new ones, also when this process dies here."""
        self._patiently("write", path, lambda: self._folder.replace(path, data))

    def write_record(self, path: str, record: Mapping[str, object], sweep: str = "") -> None:
        """Write a JSON object with its checksum, in one piece."""
        self.write(path, dump_json(seal(record, place_of(path, sweep))))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that nobody has written yet: whether it now holds `data`. What is there stays as it is."""
        return self._patiently("write", path, lambda: self._folder.create(path, data))

    def create_record(self, path: str, record: Mapping[str, object], sweep: str = "") -> bool:
        """`create` a JSON object with its checksum."""
        return self.create(path, dump_json(seal(record, place_of(path, sweep))))

    def settle(self, path: str) -> None:
        """See that a file which another created is there to stay, before anything is made to rest on it."""
        self._patiently("sync", path, lambda: self._folder.settle(path))

    def why_not_once(self) -> str | None:
        """Why two may `create` one file here, each believing that it alone did; None where that cannot be."""
        return self._patiently("write", "probes", self._folder.why_not_once)

    def delete(self, path: str) -> None:
        """Delete a file, should it be there."""
        self._patiently("delete", path, lambda: self._folder.delete(path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder with all that is in it, should it be there."""
        self._patiently("delete", path, lambda: self._folder.delete_folder(path))

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no folder. Half-written files are left out."""
        names = self._patiently("list", path, lambda: self._folder.names(path))
        return sorted(name for name in names if not name.startswith("."))

    def all_files(self, path: str) -> list[Found]:
        """Every file below a folder, half-written ones too."""
        return sorted(self._patiently("list", path, lambda: self._folder.files(path)))

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
        kind = OutOfSpace if error.errno in _FULL else StoreFailure
        return kind(f"cannot {verb} {where}: {cause}; {advice}")

    def damaged(self, path: str, why: str) -> Damaged:
        """The error that says so of a file, to be raised."""
        return Damaged(f"{_shown(self.root)}/{path}", path, why)

    @contextlib.contextmanager
    def in_words(self, verb: str, path: str) -> Iterator[None]:
        """Turns an OSError of the local filesystem met inside into a `StoreFailure`."""
        try:
            yield
        except OSError as error:
            raise self._failure(verb, path, error) from error


def _shown(root: str) -> str:
    """A root for messages: without the options of its URI."""
    return root.partition("?")[0].rstrip("/") if "://" in root else root.rstrip("/")


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
    match = _AWS_ERROR.search(text)
    name, said = match.groups() if match else ("", text)
    said = said.rpartition("; Details: ")[2] if name == "NETWORK_CONNECTION" else said
    return (f"{said} ({name})" if name else said)[:300]
