"""A node that runs out of memory: Ray's monitor ends workers, and neither the sweep nor a trial is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged

GIB = 2**30
SPARE = 7 * GIB  # Ray, the driver, two workers; and what else goes on here
PATIENCE_S = 400.0
LONG = {
    "train": {"steps": 600, "checkpoint_every": 20},
    "ticket": {"rounds": 1, "shared_rounds": 0},
    "search": {"trials": 0, "pilots": 0, "baselines": ["uniform"]},
}
TAKE = "import sys, time; held = bytearray(b'x') * int(sys.argv[1]); print('held', flush=True); time.sleep(600)"

pytestmark = pytest.mark.slow


def used() -> int:
    memory = psutil.virtual_memory()
    return memory.total - memory.available


@pytest.fixture
def threshold() -> int:
    """Bytes in use above which Ray's monitor ends workers."""
    total = psutil.virtual_memory().total
    if used() + SPARE > 0.9 * total:
        pytest.skip(f"needs {SPARE / GIB:.0f} GiB of free memory")
    return used() + SPARE


@pytest.fixture
def sweep(warm_root: Path, tmp_path: Path, threshold: int) -> Iterator[subprocess.Popen]:
    """The driver of a sweep whose first trials train for a while."""
    (tmp_path / "tiny.yaml").write_text(dump_yaml(merged(TINY, LONG)))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))}
    env |= {"RAY_memory_usage_threshold": f"{threshold / psutil.virtual_memory().total:.4f}", "RAYLT_ROOT": str(warm_root)}
    words = [sys.executable, "-m", "raylt.cli", "sweep", "tiny.yaml", "--local"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        driver = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=out, stderr=err, start_new_session=True)
    yield driver
    if driver.poll() is None:
        os.killpg(driver.pid, 9)
        driver.wait()


def test_a_sweep_outlives_a_neighbour_that_takes_the_memory(
    sweep: subprocess.Popen, threshold: int, warm_root: Path, tmp_path: Path
) -> None:
    def said() -> str:
        return (tmp_path / "err").read_text()

    def until(condition: object, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():  # type: ignore[operator]
            assert sweep.poll() is None, f"the sweep has ended, and still not so: {what}; {said()}"
            assert time.monotonic() < deadline, f"still not so: {what}; {said()}"
            time.sleep(0.2)

    logs = warm_root / "sweeps/tiny"
    until(lambda: any("step" in path.read_text() for path in logs.rglob("*.txt")), "a trial trains")
    words = [sys.executable, "-c", TAKE, str(threshold - used() + GIB)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as neighbour:
        until(lambda: "lacks memory" in said(), "a worker is killed")
        time.sleep(20)
        neighbour.kill()
    assert sweep.wait(PATIENCE_S) == 0, said()
    assert "Traceback" not in said()
    words = [sys.executable, "-m", "raylt.cli", "results", "tiny", "--root", str(warm_root), "--json"]
    document = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    assert (document["state"], document["counts"]["failed"]) == ("complete", 0)
