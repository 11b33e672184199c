"""The ledger shown as MLflow runs: what is there, that replays add nothing, and that a server may be away."""

from __future__ import annotations

import contextlib
import os
import shutil
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

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from raylt.background import Pace
from raylt.diffusion.tensors import pack
from raylt.errors import Fenced
from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.store import Ledger, Output, Store
from raylt.store.layout import GRID, RUNS_FILE, SAMPLES, SIMILARITY_FILE, TICKET
from raylt.tracking.client import words_of
from raylt.tracking.parent_run import sweep_points
from raylt.tracking.tracker import Tracker, record, tracking_uri

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


def complete(store: Store, number: int, state: str = "COMPLETE") -> dict[str, Any]:
    rounds = make_rounds(number, 3)
    return {
        "state": state, "cause": None, **rounds[-1], "densities": {"conv_in": 1.0, "down_blocks.0": 0.25, "mid_block": 0.05},
        "kept": {}, "layers": {}, "ticket": f"{number:064x}", "flops_dense": 1000, "broken": number == 6, "rounds": rounds,
        **make_stages(store, number), "steps": {"asked": 9, "trained": 6, "shared": 3}, "stages": {},
        "timing": {"wall_s": 2.5, "stages_s": 2.0}, "time_ms": FIRST_MS + 10_000 * number + 5,
    }  # fmt: skip


def failed(number: int) -> dict[str, Any]:
    now = FIRST_MS + 10_000 * number
    return {"state": "FAIL", "cause": "loss is not finite", "rounds": make_rounds(number, 1), "steps": None, "stages": {},
            "timing": None, "time_ms": now}  # fmt: skip


def begin(root: Path, spec: SweepSpec) -> Ledger:
    """A ledger with the planned trials ended, and the similarity of their pilots."""
    ledger = Ledger(Store(str(root)), "digits", check=lambda: None)
    for planned in plan(spec):
        ledger.ask(planned.trial)
        ledger.finish(planned.trial.id, complete(ledger.store, planned.trial.id))
    old = {"kappa": 0.5, "kappa_start": 0.25, "movement": 0.1, "pairs": 1}  # as an earlier raylt measured
    numbers = {**old, "excess": 0.25, "kappa_partial": 0.4, "kappa_movement": 0.3, "z": 12.5, "kappa_low": None}
    dense = {**dict.fromkeys(numbers), "pairs": 0}
    ledger.write(SIMILARITY_FILE, {"blocks": {"conv_in": dense, "down_blocks.0": old, "mid_block": numbers}, "profile": {}})
    return ledger


def ask_search(ledger: Ledger, number: int) -> TrialSpec:
    trial = TrialSpec(number, "search", "searched", 0, params={"gamma": 0.5, "delta/down": -0.25})
    ledger.ask(trial)
    return trial


def whole(root: Path, spec: SweepSpec) -> Ledger:
    """A sweep that has ended: one search trial complete, one pruned (and broken), one failed."""
    ledger = begin(root, spec)
    for number in (5, 6, 7):
        ask_search(ledger, number)
    ledger.finish(5, complete(ledger.store, 5))
    ledger.finish(6, complete(ledger.store, 6, "PRUNED"))
    ledger.finish(7, failed(7))
    return ledger


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


def sqlite_uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema and nothing in it: making one takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(tracking_uri=sqlite_uri(folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, empty: Path) -> str:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return sqlite_uri(tmp_path)


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


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepSpec, Ledger, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("a record")  # a space in the path, as people have it
    spec = make_spec()
    ledger = whole(folder / "store", spec)
    record(spec, ledger, YAML, sqlite_uri(folder))
    return folder, spec, ledger, runs_of(sqlite_uri(folder))


def test_one_parent_and_one_child_a_trial(recorded: Any) -> None:
    _, spec, ledger, runs = recorded
    parent, runs = runs["digits"], {name: run for name, run in runs.items() if name != "digits"}
    assert sorted(runs) == [trial.name for _, trial in sorted(ledger.asked.items())]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["raylt.kind"] == "sweep"
    for run in (parent, *runs.values()):
        tags = run.data.tags
        assert tags["raylt.sweep"] == "digits" and tags["raylt.digest"] == spec.digest
        assert (tags["fid.features"], tags["fid.samples"], tags["fid.sampler"]) == ("digits-cnn", "1000", "ddim")
        assert (tags["fid.steps"], tags["fid.reference"]) == ("10", "all")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    known = ledger.read(RUNS_FILE)
    assert known["parent"] == parent.info.run_id
    assert {known[run.data.tags["raylt.trial"]] for run in runs.values()} == {run.info.run_id for run in runs.values()}


def test_states_of_children(recorded: Any) -> None:
    *_, runs = recorded
    states = {
        name: (run.info.status, run.data.tags["raylt.state"], run.data.tags.get("raylt.cause"))
        for name, run in runs.items()
        if name != "digits"
    }
    assert states["0005-search"] == ("FINISHED", "COMPLETE", None)
    assert states["0006-search"] == ("FINISHED", "PRUNED", None)
    assert states["0007-search"] == ("FAILED", "FAIL", "loss is not finite")
    tags = runs["0000-dense"].data.tags
    assert [tags[f"raylt.{key}"] for key in ("trial", "kind", "rule", "protocol", "seed")] == [
        "0",
        "dense",
        "dense",
        "search",
        "0",
    ]


def test_params_name_the_allocation_and_the_identity(recorded: Any) -> None:
    _, spec, _, runs = recorded
    params = runs["0005-search"].data.params
    assert (params["gamma"], params["delta/down"], params["rule"], params["density/mid_block"]) == (
        "0.5",
        "-0.25",
        "searched",
        "0.05",
    )
    for run in runs.values():
        assert spec.identity().keys() <= run.data.params.keys()
    assert runs["digits"].data.params["search.objectives"] == '["loss", "flops"]'
    assert "density/mid_block" not in runs["0007-search"].data.params


def test_metrics_have_rounds_as_steps_and_the_times_of_the_ledger(recorded: Any) -> None:
    folder, _, ledger, runs = recorded
    uri, run_id = sqlite_uri(folder), runs["0005-search"].info.run_id
    expected = [(r["round"], pytest.approx(r["loss"]), r["time_ms"]) for r in ledger.results[5]["rounds"]]
    assert history(uri, run_id, "loss") == expected
    assert {"fid", "loss", "flops", "density", "ticket_bytes"} <= runs["0005-search"].data.metrics.keys()
    assert "kid" not in runs["0005-search"].data.metrics  # it was None
    assert history(uri, run_id, "density/mid_block") == [(2, 0.05, ledger.results[5]["time_ms"])]
    assert history(uri, runs["0007-search"].info.run_id, "loss") != []


def test_parent_metrics(recorded: Any) -> None:
    folder, _, ledger, runs = recorded
    uri, run_id = sqlite_uri(folder), runs["digits"].info.run_id
    shown = {"kappa": 0.5, "kappa_start": 0.25, "excess": 0.25, "kappa_partial": 0.4, "kappa_movement": 0.3, "z": 12.5}
    for name, value in shown.items():
        assert history(uri, run_id, f"{name}/mid_block") == [(0, value, ledger.results[2]["time_ms"])]
    named = set(runs["digits"].data.metrics)
    assert {name for name in named if name.endswith("/conv_in")} == set()  # kept dense
    assert {name for name in named if name.endswith("/down_blocks.0")} == {"kappa/down_blocks.0", "kappa_start/down_blocks.0"}
    best = {step: value for step, value, _ in history(uri, run_id, "best_loss")}
    # 3 and 4 are baselines; 5 is better; 6 is pruned and 7 failed, and neither is ranked
    losses = {number: result.get("loss") for number, result in ledger.results.items()}
    assert best == {3: losses[3], 4: losses[4], 5: losses[5], 6: losses[5], 7: losses[5]}
    assert [step for step, _, _ in history(uri, run_id, "best_fid")] == [3, 4, 5, 6, 7]


def test_similarity_has_one_time_whenever_the_ledger_was_read(recorded: Any) -> None:
    """The recorder reads similarity.json after the results: it may be there before its view has every pilot's end."""
    _, spec, ledger, _ = recorded

    def points(view: Ledger) -> list[tuple[str, int]]:
        return [(point.key, point.time_ms) for point in sweep_points(spec, view) if "/" in point.key]

    view = Ledger(ledger.store, ledger.name)
    late = view.results.pop(2)
    assert points(view) == []
    view.results[2] = late
    assert points(view) == points(ledger) != []


def test_best_points_stop_at_the_first_trial_that_runs(tmp_path: Path) -> None:
    spec = make_spec()
    ledger = begin(tmp_path, spec)
    for number in (5, 6):
        ask_search(ledger, number)
    ledger.finish(6, complete(ledger.store, 6) | {"broken": False, "loss": 0.0})
    before = sweep_points(spec, ledger)
    assert max(point.step for point in before if point.key == "best_loss") == 4
    ledger.finish(5, complete(ledger.store, 5))
    assert set(before) < set(sweep_points(spec, ledger))


def test_artifacts_lie_beside_the_database(recorded: Any) -> None:
    folder, _, _, runs = recorded
    artifacts = folder / "mlartifacts"
    child, parent, dense = (
        artifacts / runs[name].info.run_id / "artifacts" for name in ("0005-search", "digits", "0000-dense")
    )
    assert sorted(path.name for path in child.iterdir()) == ["allocation.png", "samples.png", "ticket.safetensors"]
    assert (dense / "samples.npz").read_bytes() == b"npz"
    assert (child / "ticket.safetensors").read_bytes() == b"ticket of 5"
    with Image.open(child / "samples.png") as picture:
        assert picture.width >= 256 and np.asarray(picture)[0, 0] == 5
    files = ["allocations.png", "pareto.png", "report.html", "similarity.png", "similarity_heat.png", "spec.yaml"]
    assert sorted(path.name for path in parent.iterdir()) == files
    assert (parent / "spec.yaml").read_text() == YAML
    assert not (artifacts / runs["0007-search"].info.run_id).exists()


def test_replays_add_nothing(recorded: Any) -> None:
    folder, spec, ledger, runs = recorded
    uri, client = sqlite_uri(folder), MlflowClient(tracking_uri=sqlite_uri(folder))
    before, rows = everything(uri), count_rows(folder)
    record(spec, ledger, YAML, uri)
    assert count_rows(folder) == rows
    for run in runs.values():  # as if the driver had been killed before the last write of each run
        client.delete_tag(run.info.run_id, "raylt.record")
    record(spec, ledger, YAML, uri)
    assert count_rows(folder) == rows
    assert everything(uri) == before


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


def test_a_driver_may_die_after_any_call(tmp_path: Path, uri: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
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
    ticket = ledger.store.find(ledger.results[0]["ticket_stage"])
    ledger.store.delete(f"{ticket.path}/{TICKET}")
    record(spec, ledger, YAML, uri)
    assert runs_of(uri)["0000-dense"].info.status == "FINISHED"
    assert "0000-dense" in caplog.text


def test_a_sweep_as_it_runs(tmp_path: Path, uri: str, empty: Path) -> None:
    """Runs and rounds appear while trials run; interrupted, resumed and completed, the record is that of the ledger."""
    spec = make_spec(trials=1)
    ledger = begin(tmp_path / "store", spec)
    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    trial, result = ask_search(ledger, 5), complete(ledger.store, 5)
    tracker.round_done(trial, result["rounds"][0])
    tracker.round_done(trial, result["rounds"][1])
    assert tracker.close("interrupted")
    runs = runs_of(uri)
    assert runs["digits"].info.status == "KILLED"
    assert (runs["0005-search"].info.status, runs["0005-search"].data.tags["raylt.state"]) == ("RUNNING", "RUNNING")
    assert [step for step, _, _ in history(uri, runs["0005-search"].info.run_id, "fid")] == [0, 1]

    tracker = Tracker(spec, ledger, YAML, uri, QUICK)
    tracker.sync_soon()
    wait_for(lambda: runs_of(uri)["digits"].info.status == "RUNNING")
    for report in result["rounds"]:  # a trial that starts over reports its rounds again
        tracker.round_done(trial, report)
    ledger.finish(5, result)
    tracker.sync_soon()
    assert tracker.close("complete")
    other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
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


def test_a_server_that_is_away_delays_the_record_not_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = make_spec()
    ledger = whole(tmp_path / "store", spec)
    began = time.monotonic()
    tracker = Tracker(spec, ledger, YAML, f"http://user:geheim@127.0.0.1:{free_port()}", QUICK)
    tracker.sync_soon()
    tracker.round_done(ledger.asked[5], ledger.results[5]["rounds"][0])
    assert time.monotonic() - began < 0.5
    wait_for(lambda: "cannot record" in caplog.text)
    time.sleep(1)  # several more tries
    began = time.monotonic()
    assert not tracker.close("complete")
    assert time.monotonic() - began < 30
    assert len(caplog.records) == 1  # said once, with what to do, without the password
    assert "next start of the sweep" in caplog.text and "geheim" not in caplog.text
    assert ledger.read(RUNS_FILE).keys() == {"ledger"}


@pytest.mark.slow  # a real server: 10 processes, 16 s alone, minutes on a busy machine
def test_the_record_is_made_once_the_server_is_back(tmp_path: Path, empty: Path) -> None:
    shutil.copy(empty, tmp_path / "server.db")
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


@pytest.mark.parametrize("fault", ["locked", "full"])
def test_a_database_that_takes_nothing_delays_the_record_not_the_search(
    tmp_path: Path, uri: str, empty: Path, caplog: pytest.LogCaptureFixture, fault: str
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
        tracker.round_done(trial, complete(ledger.store, 5)["rounds"][0])
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
    other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert everything(uri) == everything(other)


@pytest.mark.slow  # a real server, started three times
@pytest.mark.timeout(1200)
def test_a_server_killed_twice_is_caught_up_with(tmp_path: Path, empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed while the sweep runs and back on its port: caught up unasked. Killed again, and the sweep ends: the next start."""
    shutil.copy(empty, tmp_path / "server.db")
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
    other = f"sqlite:///{shutil.copy(empty, tmp_path / 'other.db')}"
    record(spec, ledger, YAML, other)
    assert shown == everything(other)
