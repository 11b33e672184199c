"""Stores of both kinds that raylt knows: a local folder, and a real S3 server, of which one serves all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import s3


@pytest.fixture(scope="session")
def server() -> Iterator[s3.S3Server]:
    with s3.running() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    bucket = f"b{abs(hash(request.node.name))}"
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("server").root(bucket)
