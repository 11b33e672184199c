"""Sweeps with real Ray. One that nothing disturbed serves all tests that only read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged
from tests.support.sweeping import (
    TRAINED,
    Sweep,
)


@pytest.fixture(scope="session")
def new_sweep(
    _warm_store: Path, empty_record: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Sweep]]:
    """`new_sweep(train={...})`: a folder where the tiny sweep, with changes, has not been run yet."""
    sweeps = []

    def make(record: bool = True, **changes: Any) -> Sweep:
        sweep = Sweep(tmp_path_factory.mktemp("sweep"))
        sweeps.append(sweep)
        shutil.copytree(_warm_store, sweep.folder / "raylt-data")
        if record:
            shutil.copy(empty_record, sweep.folder / "mlflow.db")
        (sweep.folder / "tiny.yaml").write_text(dump_yaml(merged(merged(TINY, TRAINED), changes)))
        return sweep

    yield make
    for sweep in sweeps:
        sweep.kill()


@pytest.fixture(scope="session")
def finished(new_sweep: Callable[..., Sweep]) -> Sweep:
    """A sweep that nothing has disturbed, in a folder that knew no MLflow."""
    sweep = new_sweep(record=False)
    done = sweep.run()
    assert done.code == 0, done.err
    assert "tiny: complete, 0 of 8 trials failed" in done.out
    return sweep


@pytest.fixture(scope="session")
def document(finished: Sweep) -> dict[str, Any]:
    return finished.results()
