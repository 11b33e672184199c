"""MLflow filled from the store alone: `raylt record`, and what a cluster's new head starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from raylt.errors import InputError, LeaseHeld
from raylt.store import Lease, Ledger, Store
from raylt.store.lease import read_holder
from raylt.tracking.recorder import record_sweep
from tests.support.begun import write_start
from tests.support.recording import (
    answers,
    ask_search,
    begin,
    free_port,
    make_spec,
    runs_of,
    sqlite_uri,
    wait_for,
    whole,
)

REPOSITORY = Path(__file__).parents[2]


def stored(root: Path, *, ended: bool) -> Store:
    """A store with the sweep `digits`, whole or left in the middle, as a driver leaves it."""
    spec = make_spec()
    write_start(Ledger(Store(str(root)), spec.name, lambda: None), spec)
    ledger = (whole if ended else begin)(root, spec)
    if not ended:
        ask_search(ledger, 5)
    return ledger.store


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.parametrize(("ended", "status"), [(True, "FINISHED"), (False, "KILLED")])
def test_every_run_is_made_again_and_a_second_time_adds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, ended: bool, status: str
):
    store = stored(tmp_path / "root", ended=ended)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    num_trials = record_sweep(store, "digits", uri)
    runs = runs_of(uri)
    assert num_trials == len(runs) - 1 == (8 if ended else 6)
    assert runs["digits"].info.status == status
    assert {run.info.status for name, run in runs.items() if name.startswith("0000")} == {"FINISHED"}
    before = {name: (run.info.run_id, run.data.metrics) for name, run in runs.items()}
    record_sweep(store, "digits", uri)
    assert {name: (run.info.run_id, run.data.metrics) for name, run in runs_of(uri).items()} == before
    holder = read_holder(store, "digits")
    assert holder is not None
    assert not holder.seems_alive


def test_a_sweep_that_is_driven_is_left_to_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = stored(tmp_path / "root", ended=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path))
    lease = Lease.acquire(store, "digits")
    try:
        with pytest.raises(LeaseHeld):
            record_sweep(store, "digits", sqlite_uri(tmp_path))
        done = command("raylt.cli", "record", RAYLT_ROOT=store.root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("digits: skipped, its driver keeps the record")
    finally:
        lease.release()
    assert not (tmp_path / "mlflow.db").exists()


def test_who_is_not_there(tmp_path: Path):
    store = stored(tmp_path / "root", ended=True)
    with pytest.raises(InputError, match=r"no sweep 'other' .*there: digits"):
        record_sweep(store, "other", "sqlite:///mlflow.db")
    done = command("raylt.cli", "record", RAYLT_ROOT=store.root, MLFLOW_TRACKING_URI="http://u:secret@127.0.0.1:9")
    assert done.returncode == 3
    assert "\ncannot record digits in MLflow at http://***@127.0.0.1:9" in f"\n{done.stderr}"
    assert "secret" not in done.stderr
    assert command("raylt.cli", "record", RAYLT_ROOT=str(tmp_path / "new")).stdout.startswith("no sweep in the store yet")


@pytest.mark.parametrize("uri", ["http://0.0.0.0:5000", "http://127.0.0.1", "sqlite:///mlflow.db"])
def test_the_heads_server_is_on_loopback_or_not_at_all(tmp_path: Path, uri: str):
    done = command("raylt.tracking.head_server", HOME=str(tmp_path), RAYLT_ROOT=str(tmp_path / "root"), MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert done.stderr.startswith(f"raylt.head: MLFLOW_TRACKING_URI: {uri} is not on this machine's loopback")


def test_a_new_head_serves_what_the_store_holds(tmp_path: Path):
    store = stored(tmp_path / "root", ended=True)
    port = free_port()
    server_uri = f"http://127.0.0.1:{port}"
    environment = {"HOME": str(tmp_path), "RAYLT_ROOT": store.root, "MLFLOW_TRACKING_URI": server_uri}
    with socket.create_server(("127.0.0.1", port)):
        done = command("raylt.tracking.head_server", **environment)
        assert done.returncode == 1
        assert done.stderr.startswith(f"raylt.head: 127.0.0.1:{port} is taken by another program")
    try:
        done = command("raylt.tracking.head_server", **environment)
        assert done.returncode == 0, done.stderr + (tmp_path / ".raylt" / "mlflow.log").read_text()
        assert done.stdout == "digits: recorded, 8 trials\n"
        runs = runs_of(server_uri)
        assert len(runs) == 9
        files = MlflowClient(tracking_uri=server_uri).list_artifacts(runs["digits"].info.run_id)
        assert {"report.html", "spec.yaml"} <= {file.path for file in files}
        assert list((tmp_path / "root" / "mlartifacts").rglob("report.html"))

        keeper = keeper_of(tmp_path)
        (server,) = keeper.children()
        server.kill()
        wait_for(lambda: server not in keeper.children() and answers(f"{server_uri}/health"), 300)  # it came back by itself
        assert len(runs_of(server_uri)) == 9

        keeper.terminate()
        everything = [keeper, *keeper.children(recursive=True)]
        assert not psutil.wait_procs(everything, timeout=60)[1]
    finally:
        for process in psutil.process_iter():  # the keeper first: it would start another server
            if environment_of(process).get("HOME") == str(tmp_path):
                process.kill()


def keeper_of(home: Path) -> psutil.Process:
    return psutil.Process(int((home / ".raylt" / "head.pid").read_text()))


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
