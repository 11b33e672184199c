"""A kill at each scripted point, then the same call again: equal results, one run a trial, nothing trained twice."""

from __future__ import annotations

import collections
import json
import sqlite3
from pathlib import Path

import optuna
import pytest

from raylt.report.document import results
from raylt.spec import SweepSpec
from raylt.store import Ledger, Store
from tests.chaos.drive import main
from tests.conftest import TINY
from tests.support import forks

SPEC = SweepSpec.model_validate(TINY)
CHECKPOINT_EVERY = TINY["train"]["checkpoint_every"]


def drive(folder: Path, *kill: str) -> int:
    """One process over the sweep in `folder`; its exit code (-9 where it killed itself)."""
    process = forks.start(main, str(folder), *kill)
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode


def comparable(folder: Path) -> dict:
    """`results --json` without what may differ between two runs, and the hash of what each stage holds."""
    ledger = Ledger(Store(str(folder / "root")), SPEC.name)
    document = results(SPEC, ledger)
    document["stages"] = {number: ledger.results[number].stages for number in ledger.results}
    del document["steps"]
    for trial in document["trials"]:
        for name in ("steps", "timing", "mlflow_run_id"):
            del trial[name]
    return document


def mlflow_counts(folder: Path) -> dict:
    """Runs and metric points by name, from MLflow's own tables."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute("select name, status from runs order by name").fetchall()
        query = """select r.name, m.key, m.step, count(*) from metrics m join runs r using (run_uuid)
                   group by 1, 2, 3 order by 1, 2, 3"""
        points = database.execute(query).fetchall()
    database.close()
    return {"runs": runs, "points": points}


def study_rows(folder: Path) -> list:
    study = optuna.load_study(study_name=SPEC.name, storage=f"sqlite:///{folder / 'root/sweeps/tiny/study.db'}")
    return [(t.number, t.state, t.params, t.values) for t in study.trials]


def steps_trained(folder: Path) -> collections.Counter:
    """How often each step of each training (seed, mask) was done."""
    return collections.Counter((folder / "steps.log").read_text().splitlines())


# --- what lies on disk after the kill: that it fell into the window it is named for ----------------------------------


def ledger_of(folder: Path) -> Ledger:
    return Ledger(Store(str(folder / "root")), SPEC.name)


def the_open_trial(folder: Path) -> int:
    (trial,) = ledger_of(folder).open_trials()
    return trial.id


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("root/stages/*/*/checkpoint-*"))


def owners(folder: Path) -> set[str]:
    """Who made the complete stages."""
    return {json.loads(path.read_text())["owner"] for path in folder.glob("root/stages/*/*/manifest.json")}


def steps_of_whole_stages(folder: Path) -> int:
    manifests = (json.loads(path.read_text()) for path in folder.glob("root/stages/*/*/manifest.json"))
    return sum(manifest["values"].get("steps", 0) for manifest in manifests if manifest["owner"].startswith(SPEC.name))


def asked_not_started(folder: Path) -> None:
    assert f"{SPEC.name}/{the_open_trial(folder)}" not in owners(folder)
    assert not checkpoints(folder)


def before_the_first_checkpoint(folder: Path) -> None:
    the_open_trial(folder)
    assert steps_trained(folder).total() > steps_of_whole_stages(folder)
    assert not checkpoints(folder)


def checkpointed_not_reported(folder: Path) -> None:
    the_open_trial(folder)
    (checkpoint,) = checkpoints(folder)
    assert not checkpoint.with_name("manifest.json").exists()


def reported_not_in_the_ledger(folder: Path) -> None:
    """All that the trial asked for is whole: its result alone is missing."""
    the_open_trial(folder)
    assert steps_trained(folder).total() == steps_of_whole_stages(folder)
    assert not checkpoints(folder)


def in_the_ledger_not_told(folder: Path) -> None:
    ledger = ledger_of(folder)
    last = max(ledger.results)
    assert not ledger.open_trials()
    assert study_states(folder)[last] == "RUNNING"


def told_not_in_mlflow(folder: Path) -> None:
    ledger = ledger_of(folder)
    last = max(ledger.results)
    assert study_states(folder)[last] == "COMPLETE"
    assert (ledger.submitted[last].name, "FINISHED") not in mlflow_counts(folder)["runs"]


def study_states(folder: Path) -> dict[int, str]:
    """Our trial id -> state of its row in `study.db`."""
    study = optuna.load_study(study_name=SPEC.name, storage=f"sqlite:///{folder / 'root/sweeps/tiny/study.db'}")
    return {trial.user_attrs["raylt.trial"]: trial.state.name for trial in study.trials}


# Name -> the point, when it is passed in two drivers, and what must lie on disk after either kill. A trial of the plan
# passes the study's `sync` when asked and when ended, after the driver's own; the sixth trial is the first in the study.
WINDOWS = {
    "asked but not started": ("asked", ("3", "2"), asked_not_started),
    "started before its first checkpoint": ("step", ("3", "1"), before_the_first_checkpoint),
    "checkpoint but not reported": ("checkpointed", ("3", "2"), checkpointed_not_reported),
    "reported but not in the ledger": ("reported", ("3", "2"), reported_not_in_the_ledger),
    "in the ledger but not told": ("in the ledger", ("6", "1"), in_the_ledger_not_told),
    "told but not in MLflow": ("told", ("13", "3"), told_not_in_mlflow),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_kill_in_each_window_changes_nothing(window, undisturbed, fresh):
    folder, (point, times, look) = fresh(), WINDOWS[window]
    for nth in times:  # a resumed sweep may be killed like any other
        assert drive(folder, point, nth) == -9
        look(folder)
    assert drive(folder) == 0
    assert_like(folder, undisturbed, len(times) if window in list(WINDOWS)[1:3] else 0)


# Early, so that much is left, and again, late. The windows above are the same points at chosen moments.
@pytest.mark.parametrize("point", ["started", "half a stage", "stage whole", "round reported", "logged"])
def test_a_kill_at_each_other_point_changes_nothing(point, undisturbed, fresh):
    folder = fresh()
    assert [drive(folder, point, nth) for nth in ("3", "5")] == [-9, -9]
    assert drive(folder) == 0
    assert_like(folder, undisturbed, 2)


def assert_like(tmp_path: Path, undisturbed: Path, intervals: int) -> None:
    """The sweeps are equal, and at most so many checkpoint intervals were trained again."""
    assert comparable(tmp_path) == comparable(undisturbed)
    assert mlflow_counts(tmp_path) == mlflow_counts(undisturbed)
    assert study_rows(tmp_path) == study_rows(undisturbed)
    before, after = steps_trained(undisturbed), steps_trained(tmp_path)
    assert set(after) == set(before)
    again = sum((after - before).values())
    assert again <= intervals * CHECKPOINT_EVERY, f"{again} steps were done again"


def test_the_undisturbed_sweep_trained_nothing_twice(undisturbed):
    assert set(steps_trained(undisturbed).values()) == {1}
    document = results(SPEC, Ledger(Store(str(undisturbed / "root")), SPEC.name))
    assert document["steps"]["trained"] == sum(steps_trained(undisturbed).values())
    assert document["counts"] == {"asked": 8, "complete": 8, "pruned": 0, "failed": 0, "running": 0}
    assert document["state"] == "complete"
