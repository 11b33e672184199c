"""A real S3 server on loopback: moto's, over HTTP. `running` may be stopped and started again on its port."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
REGION = "us-east-1"


@dataclass
class S3Server:
    """`root(bucket)` is a storage.root on it. What it holds outlives a stop: moto keeps it in this process."""

    port: int
    _server: ThreadedMotoServer = field(init=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    @property
    def client(self):
        return boto3.client("s3", endpoint_url=f"http://{self.address}", region_name=REGION)

    def root(self, bucket: str) -> str:
        """A new bucket, as a storage.root."""
        self.client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/raylt?endpoint_override={self.address}&scheme=http&region={REGION}"

    def keys(self, bucket: str) -> list[str]:
        """The names of all objects, without the markers that pyarrow leaves for folders."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", []) if not found["Key"].endswith("/"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running() -> Iterator[S3Server]:
    """A server, with credentials for it in this process's environment."""
    before = {key: os.environ.get(key) for key in KEYS}
    os.environ.update(KEYS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = S3Server(free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})
