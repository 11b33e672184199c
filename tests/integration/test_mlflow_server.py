"""The record on a real MLflow server that goes away and comes back."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from raylt.store.layout import RUNS_FILE
from raylt.tracking.tracker import Tracker, record
from tests.support.recording import (
    QUICK,
    YAML,
    ask_search,
    begin,
    complete,
    everything,
    free_port,
    make_spec,
    mlflow_server,
    runs_of,
    wait_for,
    whole,
)


@pytest.mark.slow  # a real server: 10 processes, 16 s alone, minutes on a busy machine
def test_the_record_is_made_once_the_server_is_back(tmp_path: Path, empty_record: Path) -> None:
    shutil.copy(empty_record, tmp_path / "server.db")
    port = free_port()
    spec, uri = make_spec(), f"http://127.0.0.1:{port}"
    ledger = whole(tmp_path / "store", spec)
    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    tracker.sync_soon()
    with mlflow_server(tmp_path, port):
        wait_for(lambda: "parent" in (ledger.read(RUNS_FILE) or {}))  # it is tried again without being asked
        assert tracker.close("complete")
        record(spec, ledger, YAML, uri)
        shown = everything(uri)
    assert len(shown) == 9 and shown["digits"]["status"] == "FINISHED"
    assert shown["0005-search"]["files"] == ["allocation.png", "samples.png", "ticket.safetensors"]
    assert not Path("mlruns").exists()


@pytest.mark.slow  # a real server, started three times
@pytest.mark.timeout(1200)
def test_a_server_killed_twice_is_caught_up_with(tmp_path: Path, empty_record: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed while the sweep runs and back on its port: caught up unasked. Killed again, and the sweep ends: the next start."""
    shutil.copy(empty_record, tmp_path / "server.db")
    port, spec = free_port(), make_spec(trials=3)
    uri, ledger = f"http://127.0.0.1:{port}", begin(tmp_path / "store", spec)
    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    with mlflow_server(tmp_path, port, kill=True):
        tracker.sync_soon()
        wait_for(lambda: "4" in (ledger.read(RUNS_FILE) or {}))
    ask_search(ledger, 5)
    ledger.finish(5, complete(ledger.store, 5))
    tracker.sync_soon()
    wait_for(lambda: len(caplog.records) == 1)
    time.sleep(3)  # several more tries
    assert len(caplog.records) == 1  # an outage is said once
    with mlflow_server(tmp_path, port, kill=True):
        wait_for(lambda: "5" in (ledger.read(RUNS_FILE) or {}), 120)
        wait_for(lambda: runs_of(uri)["0005-search"].info.status == "FINISHED", 120)
    for number in (6, 7):
        ask_search(ledger, number)
        ledger.finish(number, complete(ledger.store, number))
    tracker.sync_soon()
    assert not tracker.close("complete")
    assert len(caplog.records) <= 3  # the second outage, and at most that the last sync was given up
    with mlflow_server(tmp_path, port):
        assert Tracker(spec, ledger, YAML, uri, QUICK).close("complete")  # as the next start of a sweep that has ended
        shown = everything(uri)
    other = f"sqlite:///{shutil.copy(empty_record, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert shown == everything(other)
