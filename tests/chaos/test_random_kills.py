"""kill -9 of the driver at random moments, the same command again, with real Ray: nothing lost, nothing done twice."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged
from tests.support import sabotage

STEPS, CHECKPOINT_EVERY = 120, 20
DRIVER_STARTS_IN_S = 90.0
POINTS_OF_RUNS = """select r.name, m.key, m.step, count(*) from metrics m join runs r using (run_uuid)
                    group by 1, 2, 3 order by 1, 2, 3"""


def spec_for(concurrency: int) -> dict:
    train = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, "warmup_steps": 10, "batch_size": 16}
    return merged(
        TINY,
        {"name": "chaos", "train": train, "search": {"concurrency": concurrency, "trials": 3}, "ticket": {"rewind_step": 10}},
    )


class Sweep:
    """A folder with a spec, a store and an MLflow database, and the command that runs it."""

    def __init__(self, folder: Path, warm: Path, concurrency: int) -> None:
        self.folder = folder
        shutil.copytree(warm, folder / "raylt-data")
        (folder / "chaos.yaml").write_text(dump_yaml(spec_for(concurrency)))

    def start(self) -> subprocess.Popen:
        own = {**sabotage.environment(self.folder, {}), "OMP_NUM_THREADS": "1"}
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))} | own
        command = [sys.executable, "-m", "raylt.cli", "sweep", "chaos.yaml"]
        with (self.folder / "output.txt").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log)

    def steps(self) -> collections.Counter:
        path = self.folder / "steps.log"
        return collections.Counter(path.read_text().splitlines() if path.exists() else [])

    def results(self) -> dict:
        command = [sys.executable, "-m", "raylt.cli", "results", "chaos", "--json"]
        document = json.loads(subprocess.run(command, cwd=self.folder, capture_output=True, check=True, timeout=60).stdout)
        del document["steps"]
        for trial in document["trials"]:
            for name in ("steps", "timing", "mlflow_run_id"):
                del trial[name]
        return document

    def mlflow(self) -> tuple[list, list]:
        """Names and states of the runs, and how many points each metric of each run has at each step."""
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            runs = database.execute("select name, status from runs order by name").fetchall()
            points = database.execute(POINTS_OF_RUNS).fetchall()
        database.close()
        return runs, points


def finish(sweep: Sweep) -> int:
    return sweep.start().wait(timeout=300)


def kill_at_random(sweep: Sweep, draw: random.Random) -> bool:
    """Start the sweep and kill its driver a random while after its first new step of training; False where it ended before."""
    driver, before, deadline = sweep.start(), sweep.steps().total(), time.monotonic() + DRIVER_STARTS_IN_S
    while sweep.steps().total() == before and driver.poll() is None:
        assert time.monotonic() < deadline, (sweep.folder / "output.txt").read_text()[-3000:]
        time.sleep(0.05)
    pause = draw.uniform(0, 4)
    while pause > 0 and driver.poll() is None:
        time.sleep(0.05)
        pause -= 0.05
    if driver.poll() is not None:
        return False
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return True


@pytest.fixture(scope="module")
def undisturbed(_warm_store, tmp_path_factory):
    """One sweep for each concurrency, run without a kill; made when first asked for."""
    made: dict[int, Sweep] = {}

    def get(concurrency: int) -> Sweep:
        if concurrency not in made:
            made[concurrency] = Sweep(tmp_path_factory.mktemp(f"undisturbed{concurrency}"), _warm_store, concurrency)
            assert finish(made[concurrency]) == 0, (made[concurrency].folder / "output.txt").read_text()
        return made[concurrency]

    return get


@pytest.mark.slow  # the chaos harness does it in `make test`, among other faults
@pytest.mark.parametrize(("concurrency", "num_kills", "seed"), [(2, 2, 0), (1, 5, 1), (2, 5, 2), (2, 5, 3)])
def test_random_kills_of_the_driver_change_nothing(concurrency, num_kills, seed, undisturbed, _warm_store, tmp_path):
    draw, sweep, kills, inside = random.Random(seed), Sweep(tmp_path, _warm_store, concurrency), 0, 0
    while kills < num_kills and kill_at_random(sweep, draw):
        kills += 1
        inside += any((tmp_path / "raylt-data/stages").glob("*/*/checkpoint-*"))
    assert finish(sweep) == 0
    whole = undisturbed(concurrency)
    assert sweep.results() == whole.results()
    assert sweep.mlflow() == whole.mlflow()
    again = (sweep.steps() - whole.steps()).total()
    print(f"concurrency {concurrency}: {kills} kills, {inside} inside a round, {again} of {whole.steps().total()} steps again")
    assert set(sweep.steps()) == set(whole.steps())
    assert kills >= 1
    # Each kill loses at most what lies behind the last checkpoint of each running trial; orphans add what they still did.
    assert again <= kills * concurrency * CHECKPOINT_EVERY
