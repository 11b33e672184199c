"""Sweeps with invented results, and what MLflow has of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from raylt.background import Pace
from raylt.diffusion.tensors import pack
from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.store import Ledger, Output, Store
from raylt.store.layout import GRID, SAMPLES, SIMILARITY_FILE, TICKET
from raylt.store.results import TrialResult
from tests.support.results import a_result
from tests.support.trials import a_trial

YAML = "schema: 1\nname: digits\n"
FIRST_MS = 1_700_000_000_000
QUICK = Pace(between_s=0.05, first_retry_s=0.2, last_retry_s=0.5)


def make_spec(trials: int = 3) -> SweepSpec:
    return SweepSpec.model_validate({"schema": 1, "name": "digits", "search": {"trials": trials}})


def make_stages(store: Store, number: int) -> dict[str, str]:
    """A ticket stage and a sample stage, as a trial leaves them."""
    ticket = store.stage({"kind": "ticket", "of": number})
    ticket.make(lambda stage: Output({"bytes": 3}, {TICKET: b"ticket of %d" % number}))
    grid = pack(images={"first": torch.full((64, 1, 8, 8), number, dtype=torch.uint8)})
    sample = store.stage({"kind": "sample", "of": number})
    sample.make(lambda stage: Output({"fid": 1.0}, {GRID: grid} | ({SAMPLES: b"npz"} if number == 0 else {})))
    return {"ticket_stage": ticket.digest, "sample_stage": sample.digest}


def make_rounds(number: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "round": r, "density": 0.1 ** (r / 2), "loss": 0.1 + 0.01 * r - 0.001 * number, "fid": 50.0 + r - number % 3,
            "kid": None, "flops": 1000 - 100 * r, "ticket_bytes": 900 - 100 * r, "time_ms": FIRST_MS + 10_000 * number + r,
        }
        for r in range(count)
    ]  # fmt: skip


def complete(store: Store, number: int, **changes: Any) -> TrialResult:
    found = {
        "densities": {"conv_in": 1.0, "down_blocks.0": 0.25, "mid_block": 0.05}, "ticket": f"{number:064x}",
        "flops_dense": 1000, "broken": number == 6, "rounds": make_rounds(number, 3), **make_stages(store, number),
        "steps": {"asked": 9, "trained": 6, "shared": 3}, "timing": {"wall_s": 2.5, "stages_s": 2.0},
        "time_ms": FIRST_MS + 10_000 * number + 5,
    }  # fmt: skip
    return a_result(**{**found, **changes})


def failed(number: int) -> TrialResult:
    now = FIRST_MS + 10_000 * number
    return a_result(state="FAIL", cause="loss is not finite", rounds=make_rounds(number, 1), time_ms=now)


def begin(root: Path, spec: SweepSpec) -> Ledger:
    """A ledger with the planned trials finished, and the similarity of their pilots."""
    ledger = Ledger(Store(str(root)), "digits", check=lambda: None)
    for planned in plan(spec):
        ledger.submit(planned.trial)
        ledger.finish(planned.trial.id, complete(ledger.store, planned.trial.id))
    old = {"kappa": 0.5, "kappa_start": 0.25, "movement": 0.1, "pairs": 1}  # as an earlier raylt measured
    numbers = {**old, "excess": 0.25, "kappa_partial": 0.4, "kappa_movement": 0.3, "z": 12.5, "kappa_low": None}
    dense = {**dict.fromkeys(numbers), "pairs": 0}
    ledger.write(SIMILARITY_FILE, {"blocks": {"conv_in": dense, "down_blocks.0": old, "mid_block": numbers}, "profile": {}})
    return ledger


def ask_search(ledger: Ledger, number: int) -> TrialSpec:
    trial = a_trial(number, "search", "searched", 0, params={"gamma": 0.5, "delta/down": -0.25})
    ledger.submit(trial)
    return trial


def whole(root: Path, spec: SweepSpec) -> Ledger:
    """A sweep that has ended: one search trial complete, one pruned (and broken), one failed."""
    ledger = begin(root, spec)
    for number in (5, 6, 7):
        ask_search(ledger, number)
    ledger.finish(5, complete(ledger.store, 5))
    ledger.finish(6, complete(ledger.store, 6, state="PRUNED"))
    ledger.finish(7, failed(7))
    return ledger


def sqlite_uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def runs_of(uri: str) -> dict[str, Any]:
    """Run name -> run, of the one experiment."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("raylt/digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in runs]
    assert len(names) == len(set(names))
    return dict(zip(names, runs, strict=True))


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float, int]]:
    points = MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value, point.timestamp) for point in points)


def everything(uri: str) -> dict[str, Any]:
    """All that a record holds except the ids of its runs."""
    client, found = MlflowClient(tracking_uri=uri), {}
    for name, run in runs_of(uri).items():
        own = ("raylt.", "fid.")
        found[name] = {
            "status": run.info.status,
            "tags": {key: value for key, value in run.data.tags.items() if key.startswith(own)},
            "params": run.data.params,
            "points": {key: history(uri, run.info.run_id, key) for key in run.data.metrics},
            "files": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        }
    return found


def count_rows(folder: Path) -> dict[str, int]:
    tables = ("metrics", "runs", "params", "tags", "experiments")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return {table: database.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


def wait_for(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, *, kill: bool = False) -> Iterator[None]:
    """A real tracking server that stores artifacts too; ended with its own process group alone, or killed."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "served"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True, cwd=folder)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), 120)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
