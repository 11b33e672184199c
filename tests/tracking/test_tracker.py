"""The record of a sweep that runs: drivers that die, databases that are lost, locked, full or away."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from raylt.errors import Fenced
from raylt.spec import SweepSpec
from raylt.store.layout import RUNS_FILE, TICKET
from raylt.tracking.client import words_of
from raylt.tracking.tracker import Tracker, record, tracking_uri
from tests.support.recording import (
    QUICK,
    YAML,
    ask_search,
    begin,
    complete,
    count_rows,
    everything,
    failed,
    free_port,
    history,
    make_spec,
    runs_of,
    sqlite_uri,
    wait_for,
    whole,
)


def test_a_databases_refusal_is_said_without_its_sql(tmp_path):
    path = tmp_path / "mlflow.db"
    client = MlflowClient(tracking_uri=sqlite_uri(tmp_path))
    client.search_experiments()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DROP TABLE experiments")
    with pytest.raises(Exception, match="SQL") as raised:
        client.search_experiments()
    assert words_of(raised.value) == "OperationalError: no such table: experiments"
    assert words_of(ValueError("a\n b")) == "ValueError: a b"


class KilledError(BaseException):
    """The driver dies here."""


class Mortal:
    """An MlflowClient whose driver dies right after call number `calls`."""

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self.client, self.left = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = getattr(self.client, name)(*args, **kwargs)
            self.left -= 1
            if self.left == 0:
                raise KilledError
            return found

        return call


def test_a_driver_may_die_after_any_call(tmp_path: Path, uri: str, empty_record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each next start finds what the dead one left, runs without an id in the ledger included."""
    spec = SweepSpec.model_validate({"schema": 1, "name": "digits", "search": {"trials": 1, "pilots": 0, "baselines": []}})
    ledger = begin(tmp_path / "store", spec)
    ask_search(ledger, 1)
    ledger.finish(1, failed(1))
    client, deaths = MlflowClient(tracking_uri=uri), 0
    for calls in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16):
        monkeypatch.setattr("raylt.tracking.tracker.connect", lambda _, calls=calls: Mortal(client, calls))
        with contextlib.suppress(KilledError):
            record(spec, ledger, YAML, uri)
            break
        deaths += 1
    assert deaths >= 10
    monkeypatch.undo()
    record(spec, ledger, YAML, uri)
    other = f"sqlite:///{shutil.copy(empty_record, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert everything(uri) == everything(other)


def test_a_lost_database_is_rebuilt(recorded: Any, uri: str) -> None:
    folder, spec, ledger, _ = recorded
    record(spec, ledger, YAML, uri)
    assert everything(uri) == everything(sqlite_uri(folder))
    record(spec, ledger, YAML, sqlite_uri(folder))  # and the ledger names the runs of the record at hand again
    assert ledger.read(RUNS_FILE)["parent"] == runs_of(sqlite_uri(folder))["digits"].info.run_id


def test_sweeps_of_one_name_do_not_mix(recorded: Any, tmp_path: Path) -> None:
    """Two people run the quickstart against one server: same name, same digest, two ledgers."""
    folder, spec, _, _ = recorded
    rows = count_rows(folder)
    client = MlflowClient(tracking_uri=sqlite_uri(folder))
    other = begin(tmp_path, spec)
    record(spec, other, YAML, sqlite_uri(folder))
    assert count_rows(folder)["runs"] == rows["runs"] + 6
    for run_id in (other.read(RUNS_FILE)[key] for key in ("parent", "0", "1", "2", "3", "4")):
        client.delete_run(run_id)


def test_a_deleted_experiment_comes_back(tmp_path: Path, uri: str) -> None:
    spec = make_spec()
    ledger = begin(tmp_path / "store", spec)
    record(spec, ledger, YAML, uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("raylt/digits")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    record(spec, ledger, YAML, uri)
    assert len(runs_of(uri)) == 6


def test_missing_stages_cost_the_files_not_the_record(tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    ledger = begin(tmp_path / "store", spec)
    ticket = ledger.store.find(ledger.results[0].ticket.ticket_stage)
    ledger.store.delete(f"{ticket.path}/{TICKET}")
    record(spec, ledger, YAML, uri)
    assert runs_of(uri)["0000-dense"].info.status == "FINISHED"
    assert "0000-dense" in caplog.text


def test_a_sweep_as_it_runs(tmp_path: Path, uri: str, empty_record: Path) -> None:
    """Runs and rounds appear while trials run; interrupted, resumed and completed, the record is that of the ledger."""
    spec = make_spec(trials=1)
    ledger = begin(tmp_path / "store", spec)
    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    trial, result = ask_search(ledger, 5), complete(ledger.store, 5)
    tracker.round_done(trial, result.rounds[0])
    tracker.round_done(trial, result.rounds[1])
    assert tracker.close("interrupted")
    runs = runs_of(uri)
    assert runs["digits"].info.status == "KILLED"
    assert (runs["0005-search"].info.status, runs["0005-search"].data.tags["raylt.state"]) == ("RUNNING", "RUNNING")
    assert [step for step, _, _ in history(uri, runs["0005-search"].info.run_id, "fid")] == [0, 1]

    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    tracker.sync_soon()
    wait_for(lambda: runs_of(uri)["digits"].info.status == "RUNNING")
    for report in result.rounds:  # a trial that starts over reports its rounds again
        tracker.round_done(trial, report)
    ledger.finish(5, result)
    tracker.sync_soon()
    assert tracker.close("complete")
    other = f"sqlite:///{shutil.copy(empty_record, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert everything(uri) == everything(other)


def test_a_fenced_driver_writes_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    ledger = begin(tmp_path / "store", spec)

    def fenced() -> None:
        raise Fenced("taken over")

    ledger.check = fenced
    tracker = Tracker(spec, ledger, YAML, sqlite_uri(tmp_path), QUICK)
    tracker.sync_soon()
    assert not tracker.close("interrupted")
    assert caplog.text == ""


def test_where_the_record_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(make_spec()) == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("sqlite:////srv/m.db", "http://host:5000", "postgresql://user@host/db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking_uri(make_spec()) == uri


def test_a_server_that_is_away_delays_the_record_not_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    ledger = whole(tmp_path / "store", spec)
    began = time.monotonic()
    tracker = Tracker(spec, ledger, YAML, f"http://user:geheim@127.0.0.1:{free_port()}", QUICK)
    tracker.sync_soon()
    tracker.round_done(ledger.submitted[5], ledger.results[5].rounds[0])
    assert time.monotonic() - began < 0.5
    wait_for(lambda: "cannot record" in caplog.text)
    time.sleep(1)  # several more tries
    began = time.monotonic()
    assert not tracker.close("complete")
    assert time.monotonic() - began < 30
    assert len(caplog.records) == 1  # said once, with what to do, without the password
    assert "next start of the sweep" in caplog.text and "geheim" not in caplog.text
    assert ledger.read(RUNS_FILE).keys() == {"ledger"}


@pytest.mark.parametrize("fault", ["locked", "full"])
def test_a_database_that_takes_nothing_delays_the_record_not_the_search(
    tmp_path: Path, uri: str, empty_record: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    spec = make_spec(trials=1)
    ledger = begin(tmp_path / "store", spec)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
        if fault == "locked":
            database.execute("begin exclusive")
        else:  # as SQLite answers where the disk has no room
            database.execute("create trigger f before insert on runs begin select raise(fail, 'database or disk is full'); end")
        tracker = Tracker(spec, ledger, YAML, uri, QUICK)
        began = time.monotonic()
        trial = ask_search(ledger, 5)
        tracker.sync_soon()
        tracker.round_done(trial, complete(ledger.store, 5).rounds[0])
        ledger.finish(5, complete(ledger.store, 5))
        tracker.sync_soon()
        assert time.monotonic() - began < 1  # MLflow waits 20 s for a lock, and this thread does not wait for MLflow
        if fault == "full":
            wait_for(lambda: "disk is full" in caplog.text)
            time.sleep(2)  # several more tries
        else:
            time.sleep(2)
        database.execute("rollback" if fault == "locked" else "drop trigger f")
    assert tracker.close("complete")
    assert len(caplog.records) == (1 if fault == "full" else 0)
    other = f"sqlite:///{shutil.copy(empty_record, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert everything(uri) == everything(other)
