"""A sweep as a user runs it, with real Ray: its folder, the commands typed there, and what lies there afterwards."""

from __future__ import annotations

import collections
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.support import sabotage

PATIENCE_S = 200.0  # for one driver, on a machine with much else to do
NAME = "tiny"
TRAINED = {"train": {"learning_rate": 2e-2, "batch_size": 16}}  # enough in 12 steps for tickets that are not broken
HOPELESS = {"train": {"learning_rate": 1e30, "gradient_clip": None}}
BLOCKS = {"conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"}
KEPT_DENSE = {"conv_in", "conv_out"}
KINDS = ["dense", "pilot", "pilot", "baseline", "baseline", "search", "search", "search"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.05)
    return value


class Sweep:
    """A folder with a spec, a store and an MLflow database, and the commands that a user types there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, folder / "raylt-data/sweeps" / NAME
        self.drivers: list[subprocess.Popen] = []

    def start(self, *options: str, plan: Mapping[int, str] | None = None, command: str = "sweep") -> subprocess.Popen:
        """A driver in a session of its own, as from a terminal of its own. What it prints lies in `N.out` and `N.err`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))}
        env |= sabotage.environment(self.folder, plan or {})
        number = len(self.drivers)
        with (self.folder / f"{number}.out").open("w") as out, (self.folder / f"{number}.err").open("w") as err:
            words = [sys.executable, "-m", "raylt.cli", command, *options]
            driver = subprocess.Popen(words, cwd=self.folder, env=env, stdout=out, stderr=err, start_new_session=True)
        self.drivers.append(driver)
        return driver

    def end(self, driver: subprocess.Popen) -> Done:
        number = self.drivers.index(driver)
        try:
            driver.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"a driver does not end: {(self.folder / f'{number}.err').read_text()[-3000:]}")
        return Done(driver.returncode, *((self.folder / f"{number}.{end}").read_text() for end in ("out", "err")))

    def run(self, *options: str, plan: Mapping[int, str] | None = None) -> Done:
        return self.end(self.start("tiny.yaml", *options, plan=plan))

    def read(self, *words: str) -> str:
        """What a command that only reads prints."""
        done = self.call(*words)
        assert done.code == 0, done.err
        return done.out

    def call(self, *words: str) -> Done:
        return self.end(self.start(*words[1:], command=words[0]))

    def results(self, name: str = NAME) -> dict[str, Any]:
        return json.loads(self.read("results", name, "--json"), parse_constant=pytest.fail)  # NaN, Infinity: no JSON

    def kill(self) -> None:
        """End what still runs of what this test has started."""
        for driver in self.drivers:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()

    # what lies there

    def is_finished(self, trial: int) -> bool:
        return (self.ledger / f"trials/{trial:05d}/result.json").exists()

    def steps(self) -> collections.Counter[str]:
        """Seed, step and mask of every step of training -> how often it was done."""
        path = self.folder / "steps.log"
        return collections.Counter(path.read_text().splitlines() if path.exists() else ())

    def ray_processes(self) -> list[str]:
        """The command lines of all Python processes of Ray so far."""
        path = self.folder / "processes.log"
        return [line for line in path.read_text().splitlines() if "/ray/" in line] if path.exists() else []

    def files(self, pattern: str = "**/*") -> dict[str, tuple[int, int]]:
        """The store's files -> when they were written, and how large they are."""
        store = self.folder / "raylt-data"
        stats = {str(path.relative_to(store)): path.stat() for path in store.glob(pattern) if path.is_file()}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    def record(self) -> dict[str, dict[str, Any]]:
        """All that MLflow has of its runs, but for their ids and files: run name -> state, tags, params, points."""
        found = {}
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            runs = database.execute("select run_uuid, name, status from runs").fetchall()
            for run_id, name, status in runs:
                assert name not in found, "two runs of one name"

                def rows(what: str, run_id: str = run_id) -> list[tuple]:
                    return sorted(database.execute(f"select {what} where run_uuid = ?", [run_id]).fetchall())

                tags = {key: value for key, value in rows("key, value from tags") if key != "mlflow.parentRunId"}
                params, points = dict(rows("key, value from params")), rows("key, step, value, timestamp from metrics")
                found[name] = {"status": status, "tags": tags, "params": params, "points": points}
        return found

    def study(self) -> list[tuple]:
        """The rows of `study.db`."""
        with closing(sqlite3.connect(self.ledger / "study.db")):  # it must be there: Optuna would make another
            pass
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.ledger / 'study.db'}")
        study = optuna.load_study(study_name=NAME, storage=storage)
        rows = [(t.number, t.state.name, t.params, t.values, t.user_attrs) for t in study.trials]
        storage.remove_session()
        storage.engine.dispose()
        return rows


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """`results --json` without what may differ between two runs of one spec."""
    free = ("steps", "timing", "mlflow_run_id")
    trials = [{key: value for key, value in trial.items() if key not in free} for trial in document["trials"]]
    return {key: value for key, value in document.items() if key not in free} | {"trials": trials}


def values_only(record: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What two sweeps of one spec have in common: not the times, nor which ledger it was."""
    own = ("raylt.ledger", "raylt.record")
    return {
        name: {
            **run, "points": [point[:3] for point in run["points"]],
            "tags": {key: value for key, value in run["tags"].items() if key not in own},
        }
        for name, run in record.items()
    }  # fmt: skip
