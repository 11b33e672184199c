"""A short run of the harness, and that its checks find what they are there to find."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from tests.chaos.checks import check
from tests.chaos.faults import KINDS, schedule
from tests.chaos.harness import Harness, Run, add_to_record
from tests.chaos.sweep import NAME, Sweep

SHORT = ["driver killed", "raylet killed", "node drained", "MLflow away"]


@pytest.fixture(scope="module")
def harness(_warm_store, tmp_path_factory) -> Iterator[Harness]:
    made = Harness(tmp_path_factory.mktemp("chaos"), _warm_store, seed=0, concurrency=1, searched=2)
    made.undisturbed()
    yield made
    made.close()


def findings_of(sweep: Sweep, whole: Sweep):
    return check(sweep, whole, sweep.folder / "mlflow.db", 0, 1, [])


@pytest.mark.slow
def test_a_short_run_loses_nothing(harness):
    harness.tracking.wait()
    left = SHORT
    while left:  # a sweep that ended before its faults leaves them to another one
        left = harness.disturbed(left)
    assert harness.run.is_clean, harness.run.unexpected
    assert {*SHORT, "poisoned trial"} == set(harness.run.kinds)


@pytest.fixture
def copy_of(harness, tmp_path):
    shutil.copytree(harness.whole.folder, tmp_path, dirs_exist_ok=True)
    return Sweep(tmp_path, harness.warm, harness.spec)


def test_an_undisturbed_sweep_is_clean(harness, copy_of):
    findings = findings_of(copy_of, harness.whole)
    assert findings.is_clean and findings.equal_to_undisturbed, findings


def test_a_lost_result_is_found(harness, copy_of):
    (copy_of.root / f"sweeps/{NAME}/trials/00005/result.json").unlink()
    assert any("trial 5 has no result" in line for line in findings_of(copy_of, harness.whole).lost)


def test_a_trial_told_otherwise_or_twice_is_found(harness, copy_of):
    storage = optuna.storages.RDBStorage(f"sqlite:///{copy_of.study_file}")
    study = optuna.load_study(study_name=NAME, storage=storage)
    first = study.trials[0]
    study.add_trial(first)
    study.add_trial(optuna.trial.create_trial(user_attrs={"raylt.trial": 99}, state=optuna.trial.TrialState.RUNNING))
    storage.remove_session()
    storage.engine.dispose()
    findings = findings_of(copy_of, harness.whole)
    assert "study: two rows of trial 5" in findings.twice
    assert "study: trial 99 is RUNNING" in findings.orphans


def test_a_run_twice_or_left_running_is_found(harness, copy_of):
    with closing(sqlite3.connect(copy_of.folder / "mlflow.db")) as database:
        database.execute("update runs set status = 'RUNNING' where name = '0003-baseline'")
        database.execute("update runs set name = '0000-dense' where name = '0004-baseline'")
        database.execute("delete from metrics where run_uuid = (select run_uuid from runs where name = '0005-search')")
        database.commit()
    findings = findings_of(copy_of, harness.whole)
    assert "MLflow: run 0003-baseline is RUNNING" in findings.orphans
    assert "MLflow: 2 runs 0000-dense" in findings.twice
    assert "MLflow: no run 0004-baseline" in findings.lost
    assert any(line.startswith("MLflow: run 0005-search is FINISHED and lacks ") for line in findings.lost)


def test_a_step_trained_again_and_a_result_written_again_are_found(harness, copy_of):
    with (copy_of.folder / "steps.log").open("a") as log:
        log.write((copy_of.folder / "steps.log").read_text().splitlines()[0] + "\n")
    with (copy_of.folder / "ledger.log").open("a") as log:
        log.write("trials/00002/result.json\n")
    findings = findings_of(copy_of, harness.whole)
    assert findings.steps_repeated == 1
    assert findings.twice == ["trials/00002/result.json was written 2 times"]
    assert not findings.is_clean


def test_the_schedule_depends_on_its_seed_alone_and_uses_every_kind():
    import random

    first, again, other = (schedule(40, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) == set(KINDS)
    assert len(first) == 40


def test_the_record_is_the_sum_of_its_runs(tmp_path: Path):
    path, run = tmp_path / "chaos.json", Run(1, 1)
    run.kinds.update({"driver killed": 2, "store full": 1})
    add_to_record(path, run.as_json())
    run.lost = 1
    add_to_record(path, run.as_json())
    record = json.loads(path.read_text())
    assert (record["faults"], record["lost"], record["twice"], record["orphans"]) == (6, 1, 0, 0)
    assert record["kinds"] == {"driver killed": 4, "store full": 2}
    assert [one["seed"] for one in record["runs"]] == [1, 1]
