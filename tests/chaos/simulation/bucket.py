"""An S3 server in memory, below raylt's `BucketFolder`: what pyarrow's filesystem and boto3's client would do and say.

Listings are consistent, as S3's are. A conditional PUT decides when it lands. A request may be under way for longer than its
client waits for the answer, or lives.
"""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError, ReadTimeoutError
from pyarrow import fs as pafs

from raylt.store.bucket import BucketFolder
from tests.chaos.simulation.disk import Committed
from tests.chaos.simulation.faults import Operations

WORDS = {  # fault -> pyarrow's words and boto3's code
    "refused": ("SERVICE_UNAVAILABLE", "ServiceUnavailable"), "server away": ("SLOW_DOWN", "SlowDown"),
    "answer lost": ("NETWORK_CONNECTION", None), "slow request": ("NETWORK_CONNECTION", None),
}  # fmt: skip


class BucketFault(OSError):
    """As pyarrow words it; `code` is what boto3 calls it, None where no answer came."""

    def __init__(self, kind: str, op: str) -> None:
        word, self.code = WORDS[kind]
        super().__init__(f"AWS Error {word} during {op} operation: HTTP status 503 (simulated)")


class _Output(io.BytesIO):
    """pyarrow's output stream: one PUT when it closes."""

    def __init__(self, put: Any) -> None:
        super().__init__()
        self._put = put

    def __exit__(self, *failure: Any) -> None:
        self._put(self.getvalue())


class Bucket:
    """The server, and both clients to it."""

    def __init__(self, operate: Operations, base: str, on_change: Committed) -> None:
        self._operate, self.base, self._on_change = operate, base, on_change
        self.objects: dict[str, bytes] = {}
        self._away_until = 0.0

    def folder(self) -> BucketFolder:
        found = BucketFolder(self, self.base, "nowhere", {})
        found.__dict__["_s3"] = SimpleNamespace(put_object=self.put_object)
        return found

    def away(self, seconds: float) -> None:
        self._away_until = self._operate.world.now + seconds

    def contents(self) -> dict[str, bytes]:
        return {path.removeprefix(f"{self.base}/"): data for path, data in self.objects.items()}

    def overwrite(self, path: str, data: bytes) -> None:
        self.objects[f"{self.base}/{path}"] = data

    # --- boto3 ------------------------------------------------------------------------------------------------------

    def put_object(self, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> None:
        path = f"{Bucket}/{Key}"

        def effect() -> bool:
            if path in self.objects:
                return False
            self._land(path, Body)
            return True

        try:
            is_new = self._request("put-new", path, effect)
        except BucketFault as fault:
            if fault.code is None:
                raise ReadTimeoutError(endpoint_url="simulated") from fault
            raise ClientError(
                {"Error": {"Code": fault.code}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"
            ) from fault
        if not is_new:
            error = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
            raise ClientError(error, "PutObject")

    # --- pyarrow ----------------------------------------------------------------------------------------------------

    def open_input_file(self, path: str) -> Any:
        """HEAD, and GET of as many bytes as there were then."""
        size = len(self._request("head", path, lambda: self._get(path)))
        return _Input(lambda: self._request("get", path, lambda: self._get(path))[:size])

    def open_output_stream(self, path: str) -> _Output:
        return _Output(lambda data: self._request("put", path, lambda: self._land(path, data)))

    def delete_file(self, path: str) -> None:
        self._request("head", path, lambda: self._get(path))
        self._request("delete", path, lambda: self._remove([path]))

    def delete_dir(self, path: str) -> None:
        inside = self._request("list", path, lambda: [key for key in self.objects if key.startswith(f"{path}/")])
        if not inside:
            raise FileNotFoundError(path)
        self._request("delete", path, lambda: self._remove(inside))

    def get_file_info(self, selector: Any) -> list[Any]:
        return self._request("list", selector.base_dir, lambda: self._listed(selector.base_dir, selector.recursive))

    # --- the server -------------------------------------------------------------------------------------------------

    def _request(self, op: str, path: str, effect: Any) -> Any:
        if self._operate.world.now < self._away_until:
            self._operate.world.sleep(0.2)
            raise BucketFault("server away", op)
        return self._operate(op, path, effect)

    def _get(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def _land(self, path: str, data: bytes) -> None:
        self.objects[path] = data
        self._on_change(path.removeprefix(f"{self.base}/"), data, False)

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            if self.objects.pop(path, None) is not None:
                self._on_change(path.removeprefix(f"{self.base}/"), None, False)

    def _listed(self, folder: str, recursive: bool) -> list[Any]:
        found: dict[str, Any] = {}
        for key, data in self.objects.items():
            if key.startswith(f"{folder}/"):
                name, mark, _ = key[len(folder) + 1 :].partition("/")
                if recursive or not mark:
                    found[key] = SimpleNamespace(
                        path=key, base_name=key.rpartition("/")[2], type=pafs.FileType.File, size=len(data)
                    )
                else:
                    whole = f"{folder}/{name}"
                    found[whole] = SimpleNamespace(path=whole, base_name=name, type=pafs.FileType.Directory, size=0)
        return list(found.values())


class _Input:
    def __init__(self, read: Any) -> None:
        self.read = read

    def __enter__(self) -> _Input:
        return self

    def __exit__(self, *failure: Any) -> None:
        pass
