"""The sweep that chaos befalls: its folder, the command that runs it, and what lies on disk of it."""

from __future__ import annotations

import collections
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna

from raylt.report.document import results
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from tests.chaos.machines import PATIENCE_S, clean_environment, eventually
from tests.conftest import TINY, merged
from tests.support import sabotage

NAME = "chaos"
CHECKPOINT_EVERY = 10
POISONED = 6  # this trial kills its worker each time
PLAN = {POISONED: sabotage.DIE}


def spec_for(concurrency: int, trials: int) -> dict[str, Any]:
    """Trials of about a hundred steps, three rounds each."""
    train = {"steps": 60, "checkpoint_every": CHECKPOINT_EVERY, "warmup_steps": 4, "learning_rate": 2e-2, "batch_size": 16}
    search = {"concurrency": concurrency, "trials": trials}
    return merged(TINY, {"name": NAME, "train": train, "search": search, "ticket": {"rewind_step": 4}})


class Sweep:
    """A folder with a spec and a store, and the command that runs it, on the cluster at `address` or on this machine."""

    def __init__(self, folder: Path, warm: Path, spec: Mapping[str, Any], tracking: str | None = None) -> None:
        self.folder, self.root = folder, folder / "raylt-data"
        shutil.copytree(warm, self.root, dirs_exist_ok=True)
        (folder / "chaos.yaml").write_text(dump_yaml(dict(spec)))
        self.tracking = tracking or f"sqlite:///{folder}/mlflow.db"
        self.driver: subprocess.Popen[bytes] | None = None  # the last one that was meant to run the sweep
        self.driver_number = self.drivers = 0

    # --- running it ---------------------------------------------------------------------------------------------------

    def start(self, environment: Mapping[str, str], address: str | None = None) -> subprocess.Popen[bytes]:
        """One more driver. What it prints goes to `driver-N.log`."""
        env = {**clean_environment(), **environment, "MLFLOW_TRACKING_URI": self.tracking}
        where = ["--local"] if address is None else ["--address", address]
        self.drivers += 1
        with self.log_file(self.drivers).open("wb") as log:
            command = [sys.executable, "-m", "raylt.cli", "sweep", "chaos.yaml", *where]
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def start_driver(self, environment: Mapping[str, str], address: str | None = None) -> None:
        self.driver = self.start(environment, address)
        self.driver_number = self.drivers

    def log_file(self, number: int) -> Path:
        return self.folder / f"driver-{number}.log"

    def output(self, number: int | None = None) -> str:
        """What a driver printed; the one that runs the sweep, if no number is given."""
        return self.log_file(number or self.driver_number).read_text()

    def is_running(self) -> bool:
        return self.driver is not None and self.driver.poll() is None

    def stop(self, number: int, within_s: float = PATIENCE_S) -> int:
        """Send the driver a signal and wait for its end; its exit code."""
        assert self.driver is not None
        self.driver.send_signal(number)
        return self.wait(within_s)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """The driver's exit code once it has ended. One that hangs is killed, after asking it where."""
        assert self.driver is not None
        try:
            return self.driver.wait(within_s)
        except subprocess.TimeoutExpired:
            self.driver.send_signal(signal.SIGKILL)
            self.driver.wait()
            raise TimeoutError(f"driver {self.driver_number} of {self.folder} does not end") from None

    def wait_for_training(self) -> None:
        """Until a step has been trained that was not there before, or the driver has ended."""
        before = self.steps().total()
        eventually(lambda: self.steps().total() > before or not self.is_running(), "the sweep trains")

    # --- what lies there ----------------------------------------------------------------------------------------------

    def steps(self) -> collections.Counter[str]:
        """Seed, step and mask of every step of training -> how often it was done."""
        return self._lines("steps.log")

    def commits(self) -> collections.Counter[str]:
        """Files of trials in the ledger -> how often they were written."""
        return self._lines("ledger.log")

    def deaths(self) -> int:
        """How often the poisoned trial has killed its worker."""
        return self._lines(f"deaths-{POISONED}").total()

    def _lines(self, name: str) -> collections.Counter[str]:
        path = self.folder / name
        return collections.Counter(path.read_text().splitlines() if path.exists() else [])

    @property
    def study_file(self) -> Path:
        return self.root / "sweeps" / NAME / "study.db"

    def ledger(self) -> Ledger:
        return Ledger(Store(str(self.root)), NAME)

    def spec(self) -> SweepSpec:
        return stored_spec(Store(str(self.root)), NAME)

    def holder(self) -> dict[str, Any]:
        lease: dict[str, Any] = json.loads((self.root / "sweeps" / NAME / "lease.json").read_text())
        return lease

    def results(self) -> dict[str, Any]:
        """`results --json` without what may differ between two runs of one spec."""
        document = results(self.spec(), self.ledger())
        del document["steps"]
        for trial in document["trials"]:
            for name in ("steps", "timing", "mlflow_run_id"):
                del trial[name]
        return document

    def study(self) -> list[tuple[str, dict[str, float], list[float] | None, int]]:
        """State, parameters, values and our trial id of each row of `study.db`."""
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.study_file}")
        rows = optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)
        found = [(row.state.name, row.params, row.values, row.user_attrs["raylt.trial"]) for row in rows]
        storage.remove_session()
        storage.engine.dispose()
        return found

    def mlflow(self, database: Path) -> list[tuple[str, str, list[tuple[str, float, int, int]]]]:
        """Name, state and points (key, value, time, step) of each run of this very ledger, from MLflow's own tables."""
        ledger_id = (self.ledger().read("mlflow.json") or {}).get("ledger")
        query = "select run_uuid, name, status from runs join tags using (run_uuid) where key = 'raylt.ledger' and value = ?"
        with closing(sqlite3.connect(database)) as connection:
            runs = connection.execute(query, [ledger_id]).fetchall()
            points = "select key, value, timestamp, step from metrics where run_uuid = ?"
            return sorted((name, status, sorted(connection.execute(points, [run]).fetchall())) for run, name, status in runs)
