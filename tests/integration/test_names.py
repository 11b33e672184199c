"""A path is a path, whatever is in its name: study.db, MLflow's file and its artifacts lie there, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from raylt.report.document import results
from raylt.search.space import at_base
from raylt.search.study import StudyFile
from raylt.spec import SweepSpec, dump_yaml
from raylt.spec.tracking_uri import split_sqlite, sqlite_uri
from raylt.store import Ledger, Store
from raylt.tracking.runs import tracking_uri
from raylt.tracking.tracker import record
from tests.conftest import TINY
from tests.support.nasty import NAMES
from tests.support.results import a_result
from tests.support.trials import a_trial

WORST = "job%2Fmain a?b#c ä 'x' \"y\" {z} $w:\n%"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema and nothing in it: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments(max_results=1)
    return folder / "mlflow.db"


def ledger_of(spec: SweepSpec, root: str) -> Ledger:
    ledger = Ledger(Store(root), spec.name, lambda: None)
    ledger.submit(a_trial(0, "search", "searched", 0, params=at_base(spec)))
    ledger.finish(0, a_result(state="FAIL", cause="none", time_ms=5))
    return ledger


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("names", [NAMES[i::5] for i in range(5)], ids=lambda names: repr(names[0]))
def test_everything_lies_in_the_folder_whatever_its_name(
    tmp_path: Path, names: tuple[str, ...], tiny_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = tmp_path.joinpath(*names), tiny_spec()  # one below the other: a record takes seconds
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ledger = ledger_of(spec, spec.storage.root)
    file = StudyFile(spec, ledger.store.local_path("study.db"))
    file.sync(ledger)
    file.close()
    uri = tracking_uri(spec)
    record(spec, ledger, dump_yaml(spec.dump()), uri)

    for above, name in zip([*reversed(folder.parents)][-len(names) :], names, strict=True):
        assert names_below(above) == {name}
    assert names_below(folder) == {"raylt-data", "mlflow.db", "mlartifacts"}
    study = optuna.load_study(study_name=spec.name, storage=sqlite_uri(folder / "raylt-data/study.db"))
    assert len(study.trials) == 1
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'raylt/tiny'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    shown = [{entry.path for entry in client.list_artifacts(run.info.run_id)} for run in runs]
    assert any("report.html" in paths for paths in shown)
    assert len(list((folder / "mlartifacts").iterdir())) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_uri_says_which_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    scheme, found, query = split_sqlite(sqlite_uri(path, query="?timeout=5")) or ("", Path(), "")
    assert (found, query) == (path, "?timeout=5") and scheme.startswith("sqlite")
    assert sqlite_uri(found, scheme, query) == sqlite_uri(path, query="?timeout=5")


def test_a_sweep_in_a_folder_of_the_worst_name(tmp_path: Path, warm_root: Path) -> None:
    folder = tmp_path / WORST
    folder.mkdir()
    shutil.move(warm_root, folder / "raylt-data")
    (folder / "sweep.yaml").write_text(dump_yaml({**TINY, "search": {"trials": 1}}))
    environment = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAYLT_ROOT")}
    command = [sys.executable, "-m", "raylt.cli", "sweep", "--local"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert names_below(tmp_path) == {WORST}
    assert {"mlflow.db", "mlartifacts"} <= names_below(folder)
    study = optuna.load_study(study_name="tiny", storage=sqlite_uri(folder / "raylt-data/sweeps/tiny/study.db"))
    assert len(study.trials) == 1
    client = MlflowClient(tracking_uri=sqlite_uri(folder / "mlflow.db"))
    (experiment,) = client.search_experiments(filter_string="name = 'raylt/tiny'")
    for run in client.search_runs([experiment.experiment_id]):
        assert client.list_artifacts(run.info.run_id)


# --- a folder that is moved -------------------------------------------------------------------------------------------


def artifacts_of(folder: Path) -> list[set[str]]:
    """What MLflow lists of each run, asked afresh."""
    utils._artifact_repos_cache.clear()
    client = MlflowClient(tracking_uri=sqlite_uri(folder / "mlflow.db"))
    (experiment,) = client.search_experiments(filter_string="name = 'raylt/tiny'")
    assert experiment.artifact_location == (folder / "mlartifacts").as_uri()
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [{entry.path for entry in client.list_artifacts(run.info.run_id)} for run in runs]


def extend(folder: Path, spec: SweepSpec, number: int) -> None:
    """One more trial that ended, recorded in the folder as a process of its own would."""
    utils._artifact_repos_cache.clear()
    ledger = Ledger(Store(str(folder / "raylt-data")), spec.name, lambda: None)
    ledger.submit(a_trial(number, "search", "searched", 0, params=at_base(spec)))
    ledger.finish(number, a_result(densities={"mid_block": 0.5}, time_ms=9 + number))
    assert results(spec, ledger)
    record(spec, ledger, dump_yaml(spec.dump()), sqlite_uri(folder / "mlflow.db"))


@pytest.fixture
def sweep(tmp_path: Path, empty: Path, tiny_spec: Any) -> tuple[Path, SweepSpec]:
    folder = tmp_path / "a"
    folder.mkdir()
    shutil.copy(empty, folder / "mlflow.db")
    extend(folder, tiny_spec(), 0)
    return folder, tiny_spec()


@pytest.mark.parametrize("name", ["b", "b c%20?#"])
def test_a_moved_sweep_keeps_its_artifacts(sweep: tuple[Path, SweepSpec], name: str) -> None:
    old, spec = sweep
    before = artifacts_of(old)
    assert [bool(paths) for paths in before] == [True, True]
    new = old.rename(old.with_name(name))
    extend(new, spec, 1)
    assert not old.exists()
    after = artifacts_of(new)
    assert len(after) == 3 and all("allocation.png" in paths or "report.html" in paths for paths in after)
    extend(new, spec, 2)  # once mended, nothing is to be done
    assert len(artifacts_of(new)) == 4


def test_a_copied_sweep_leaves_the_other_alone(sweep: tuple[Path, SweepSpec]) -> None:
    old, spec = sweep
    new = shutil.copytree(old, old.with_name("b"))
    before = sorted(path for path in old.rglob("*"))
    extend(new, spec, 1)
    assert sorted(path for path in old.rglob("*")) == before
    assert len(artifacts_of(new)) == 3 and len(artifacts_of(old)) == 2


@pytest.mark.parametrize("copied", ["some", "none"])
def test_a_copy_of_a_sweep_that_runs_writes_nothing_into_the_original(sweep: tuple[Path, SweepSpec], copied: str) -> None:
    """Runs that had no artifacts yet when the folder was copied have some in the original by now."""
    old, spec = sweep
    new = shutil.copytree(old, old.with_name("b"))
    with contextlib.closing(sqlite3.connect(new / "mlflow.db")) as database:
        runs = [run for (run,) in database.execute("select run_uuid from runs order by name")]
        early = runs if copied == "none" else runs[:1]
        database.executemany("delete from tags where run_uuid = ? and key = 'raylt.record'", [(run,) for run in early])
        database.commit()
    for run in early:
        shutil.rmtree(new / "mlartifacts" / run)
    if copied == "none":
        (new / "mlartifacts").rmdir()
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    extend(new, spec, 1)
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before
    assert len(artifacts_of(new)) == 3 and all(artifacts_of(new))
    assert {path.name for path in (new / "mlartifacts").iterdir()} >= set(runs)


def test_what_an_earlier_raylt_put_into_the_old_folder_stays_there(sweep: tuple[Path, SweepSpec]) -> None:
    old, spec = sweep
    new = old.rename(old.with_name("b"))
    client = MlflowClient(tracking_uri=sqlite_uri(new / "mlflow.db"))
    (experiment,) = client.search_experiments(filter_string="name = 'raylt/tiny'")
    run = client.create_run(experiment.experiment_id)
    client.log_text(run.info.run_id, "text", "late.txt")  # makes the old folder anew
    assert names_below(old) == {"mlartifacts"}
    extend(new, spec, 1)
    assert sum("late.txt" in paths for paths in artifacts_of(new)) == 1
    assert len(artifacts_of(new)) == 4 and all(artifacts_of(new))


def test_a_place_that_the_user_chose_is_kept(tmp_path: Path, empty: Path, tiny_spec: Any) -> None:
    folder, chosen = tmp_path / "a", tmp_path / "big" / "artifacts"
    folder.mkdir()
    shutil.copy(empty, folder / "mlflow.db")
    client = MlflowClient(tracking_uri=sqlite_uri(folder / "mlflow.db"))
    number = client.create_experiment("raylt/tiny", artifact_location=chosen.as_uri())
    other = client.create_experiment("raylt/other", artifact_location=(tmp_path / "gone/mlartifacts").as_uri())
    extend(folder, tiny_spec(), 0)
    assert client.get_experiment(number).artifact_location == chosen.as_uri()
    assert client.get_experiment(other).artifact_location == (tmp_path / "gone/mlartifacts").as_uri()
    assert len(list(chosen.iterdir())) == 2 and not (folder / "mlartifacts").exists()
