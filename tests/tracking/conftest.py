"""A sweep recorded once, for all tests that only read the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raylt.spec import SweepSpec
from raylt.store import Ledger
from raylt.tracking.tracker import record
from tests.support.recording import (
    YAML,
    make_spec,
    runs_of,
    sqlite_uri,
    whole,
)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepSpec, Ledger, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("a record")  # a space in the path, as people have it
    spec = make_spec()
    ledger = whole(folder / "store", spec)
    record(spec, ledger, YAML, sqlite_uri(folder))
    return folder, spec, ledger, runs_of(sqlite_uri(folder))
