"""A folder in an S3 bucket: pyarrow's filesystem, and boto3 for the one request that pyarrow lacks, the conditional PUT.

boto3 comes with the extra `aws`. Without it, or on a server that ignores `If-None-Match`, two drivers that start at one time
may both believe that they hold a sweep: `why_not_once` says so, and a sweep says it at its start.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pyarrow import fs as pafs

from raylt.store.folders import ArrowFolder

CONNECT_WITHIN_S, ANSWER_WITHIN_S = 4.0, 10.0  # of one request
_LOST_RACE = ("PreconditionFailed", "412")
_PASSING = {  # boto3's codes -> pyarrow's words, which `filesystem.py` knows
    "SlowDown": "SLOW_DOWN", "ServiceUnavailable": "SERVICE_UNAVAILABLE", "InternalError": "INTERNAL_FAILURE",
    "RequestTimeout": "TIMEOUT", "ThrottlingException": "THROTTLING", "ConditionalRequestConflict": "SLOW_DOWN",
    "AccessDenied": "ACCESS_DENIED", "InvalidAccessKeyId": "INVALID_ACCESS_KEY_ID", "NoSuchBucket": "NO_SUCH_BUCKET",
    "SignatureDoesNotMatch": "SIGNATURE_DOES_NOT_MATCH", "ExpiredToken": "EXPIRED_TOKEN", "InvalidToken": "EXPIRED_TOKEN",
}  # fmt: skip


class BucketFolder(ArrowFolder):
    """`base`: bucket/prefix. `options`: `endpoint_override` and `scheme`, of a server other than AWS's."""

    def __init__(self, filesystem: pafs.FileSystem, base: str, region: str, options: Mapping[str, str]) -> None:
        super().__init__(filesystem, base)
        self._region, self._options = region, options
        self._bucket, _, self._prefix = base.partition("/")

    def create(self, path: str, data: bytes) -> bool:
        if self._s3 is None:
            return super().create(path, data)
        return self._put_new(path, data) or self.read(path) == data  # a PUT whose answer was lost is sent again

    def _put_new(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._s3 is not None
        key = f"{self._prefix}/{path}".lstrip("/")
        try:
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"].get("HTTPStatusCode")
            if code in _LOST_RACE or status == 412:
                return False
            word = _PASSING.get(code, f"HTTP status {status}")
            raise OSError(f"AWS Error {word} during PutObject operation: {error}") from error
        except BotoCoreError as error:
            raise OSError(f"AWS Error NETWORK_CONNECTION during PutObject operation: {error}") from error
        return True

    @cached_property
    def _s3(self) -> Any | None:
        if importlib.util.find_spec("boto3") is None:
            return None
        import boto3
        from botocore.config import Config

        endpoint = self._options.get("endpoint_override")
        config = Config(
            connect_timeout=CONNECT_WITHIN_S, read_timeout=ANSWER_WITHIN_S, retries={"total_max_attempts": 1},
            s3={"addressing_style": "path" if endpoint else "auto"},
        )  # fmt: skip
        url = f"{self._options.get('scheme', 'https')}://{endpoint}" if endpoint else None
        return boto3.client("s3", region_name=self._region, endpoint_url=url, config=config)

    def why_not_once(self) -> str | None:
        if self._s3 is None:
            return "boto3 is not installed: pip install 'raylt[aws]'"
        probe = f"probes/{uuid.uuid4().hex}"
        try:
            is_heeded = self._put_new(probe, b"1") and not self._put_new(probe, b"2")
        finally:
            self.delete(probe)
        return None if is_heeded else "its server ignores If-None-Match"
