"""A kill at each scripted point, then the same call again: equal results, one run a trial, nothing trained twice."""

from __future__ import annotations

import collections
import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient

from raylt.ledger import Ledger
from raylt.results import results
from raylt.spec import SweepSpec
from raylt.store import Store
from tests.chaos.drive import POINTS, main
from tests.conftest import TINY

SPEC = SweepSpec.model_validate(TINY)
CHECKPOINT_EVERY = TINY["train"]["checkpoint_every"]


# A server that has imported everything once forks a process a drive: seconds instead of half a minute each.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.chaos.drive", "mlflow.tracking", "mlflow.store.db.utils", "raylt.figures", "raylt.report"])


def drive(folder: Path, *kill: str) -> int:
    """One process over the sweep in `folder`; its exit code (-9 where it killed itself)."""
    process = FORK.Process(target=main, args=(str(folder), *kill))
    process.start()
    process.join()
    assert process.exitcode in (0, -9)
    return process.exitcode


def comparable(folder: Path) -> dict:
    """`results --json` without what may differ between two runs."""
    document = results(SPEC, Ledger(Store(str(folder / "root")), SPEC.name))
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


@pytest.fixture(scope="module")
def fresh(_warm_store, tmp_path_factory):
    """Makes folders with a warm store and an empty MLflow database, whose schema takes seconds to create."""
    template = tmp_path_factory.mktemp("template")
    shutil.copytree(_warm_store, template / "root")
    MlflowClient(f"sqlite:///{template / 'mlflow.db'}").search_experiments()
    return lambda: Path(shutil.copytree(template, tmp_path_factory.mktemp("sweep"), dirs_exist_ok=True))


@pytest.fixture(scope="module")
def undisturbed(fresh):
    folder = fresh()
    assert drive(folder) == 0
    return folder


def steps_trained(folder: Path) -> collections.Counter:
    """How often each step of each training (seed, mask) was done."""
    return collections.Counter((folder / "steps.log").read_text().splitlines())


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_point_changes_nothing(point, undisturbed, fresh):
    tmp_path = fresh()
    # Early, so that much is left, and again, late: a resumed sweep may be killed like any other.
    kills = sum(drive(tmp_path, point, nth) == -9 for nth in ("3", "5"))
    assert kills == 2
    assert drive(tmp_path) == 0
    assert comparable(tmp_path) == comparable(undisturbed)
    assert mlflow_counts(tmp_path) == mlflow_counts(undisturbed)
    assert study_rows(tmp_path) == study_rows(undisturbed)
    before, after = steps_trained(undisturbed), steps_trained(tmp_path)
    assert set(after) == set(before)
    again = sum((after - before).values())
    assert again <= kills * CHECKPOINT_EVERY, f"{again} steps were done again"


def test_the_undisturbed_sweep_trained_nothing_twice(undisturbed):
    assert set(steps_trained(undisturbed).values()) == {1}
    document = results(SPEC, Ledger(Store(str(undisturbed / "root")), SPEC.name))
    assert document["steps"]["trained"] == sum(steps_trained(undisturbed).values())
    assert document["counts"] == {"asked": 8, "complete": 8, "pruned": 0, "failed": 0, "running": 0}
    assert document["state"] == "complete"
