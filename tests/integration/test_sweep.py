"""`raylt sweep` as a user runs it, with real Ray: its results, its record, and whatever may happen to it meanwhile."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from raylt.report.document import SIMILARITY_NUMBERS
from raylt.spec import dump_yaml
from raylt.spec.presets import block_of
from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from raylt.sweep.dry_run import all_trials, work_of
from raylt.ticket.ticket_file import load_ticket
from tests import sabotage
from tests.conftest import TINY, merged
from tests.sabotage import DIE, HOLD

PATIENCE_S = 200.0  # for one driver, on a machine with much else to do
NAME = "tiny"
TRAINED = {"train": {"learning_rate": 2e-2, "batch_size": 16}}  # enough in 12 steps for tickets that are not broken
HOPELESS = {"train": {"learning_rate": 1e30, "gradient_clip": None}}
BLOCKS = {"conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"}
KEPT_DENSE = {"conv_in", "conv_out"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.05)
    return value


class Sweep:
    """A folder with a spec, a store and an MLflow database, and the commands that a user types there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder, folder / "raylt-data/sweeps" / NAME
        self.drivers: list[subprocess.Popen] = []

    def start(self, *options: str, plan: Mapping[int, str] | None = None, command: str = "sweep") -> subprocess.Popen:
        """A driver in a session of its own, as from a terminal of its own. What it prints lies in `N.out` and `N.err`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))}
        env |= sabotage.environment(self.folder, plan or {})
        number = len(self.drivers)
        with (self.folder / f"{number}.out").open("w") as out, (self.folder / f"{number}.err").open("w") as err:
            words = [sys.executable, "-m", "raylt.cli", command, *options]
            driver = subprocess.Popen(words, cwd=self.folder, env=env, stdout=out, stderr=err, start_new_session=True)
        self.drivers.append(driver)
        return driver

    def end(self, driver: subprocess.Popen) -> Done:
        number = self.drivers.index(driver)
        try:
            driver.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"a driver does not end: {(self.folder / f'{number}.err').read_text()[-3000:]}")
        return Done(driver.returncode, *((self.folder / f"{number}.{end}").read_text() for end in ("out", "err")))

    def run(self, *options: str, plan: Mapping[int, str] | None = None) -> Done:
        return self.end(self.start("tiny.yaml", *options, plan=plan))

    def read(self, *words: str) -> str:
        """What a command that only reads prints."""
        done = self.call(*words)
        assert done.code == 0, done.err
        return done.out

    def call(self, *words: str) -> Done:
        return self.end(self.start(*words[1:], command=words[0]))

    def results(self, name: str = NAME) -> dict[str, Any]:
        return json.loads(self.read("results", name, "--json"), parse_constant=pytest.fail)  # NaN, Infinity: no JSON

    def kill(self) -> None:
        """End what still runs of what this test has started."""
        for driver in self.drivers:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()

    # what lies there

    def has_ended(self, trial: int) -> bool:
        return (self.ledger / f"trials/{trial:05d}/result.json").exists()

    def steps(self) -> collections.Counter[str]:
        """Seed, step and mask of every step of training -> how often it was done."""
        path = self.folder / "steps.log"
        return collections.Counter(path.read_text().splitlines() if path.exists() else ())

    def ray_processes(self) -> list[str]:
        """The command lines of all Python processes of Ray so far."""
        path = self.folder / "processes.log"
        return [line for line in path.read_text().splitlines() if "/ray/" in line] if path.exists() else []

    def files(self, pattern: str = "**/*") -> dict[str, tuple[int, int]]:
        """The store's files -> when they were written, and how large they are."""
        store = self.folder / "raylt-data"
        stats = {str(path.relative_to(store)): path.stat() for path in store.glob(pattern) if path.is_file()}
        return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}

    def record(self) -> dict[str, dict[str, Any]]:
        """All that MLflow has of its runs, but for their ids and files: run name -> state, tags, params, points."""
        found = {}
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            runs = database.execute("select run_uuid, name, status from runs").fetchall()
            for run_id, name, status in runs:
                assert name not in found, "two runs of one name"

                def rows(what: str, run_id: str = run_id) -> list[tuple]:
                    return sorted(database.execute(f"select {what} where run_uuid = ?", [run_id]).fetchall())

                tags = {key: value for key, value in rows("key, value from tags") if key != "mlflow.parentRunId"}
                params, points = dict(rows("key, value from params")), rows("key, step, value, timestamp from metrics")
                found[name] = {"status": status, "tags": tags, "params": params, "points": points}
        return found

    def study(self) -> list[tuple]:
        """The rows of `study.db`."""
        with closing(sqlite3.connect(self.ledger / "study.db")):  # it must be there: Optuna would make another
            pass
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.ledger / 'study.db'}")
        study = optuna.load_study(study_name=NAME, storage=storage)
        rows = [(t.number, t.state.name, t.params, t.values, t.user_attrs) for t in study.trials]
        storage.remove_session()
        storage.engine.dispose()
        return rows


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """`results --json` without what may differ between two runs of one spec."""
    free = ("steps", "timing", "mlflow_run_id")
    trials = [{key: value for key, value in trial.items() if key not in free} for trial in document["trials"]]
    return {key: value for key, value in document.items() if key not in free} | {"trials": trials}


def values_only(record: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What two sweeps of one spec have in common: not the times, nor which ledger it was."""
    own = ("raylt.ledger", "raylt.record")
    return {
        name: {
            **run, "points": [point[:3] for point in run["points"]],
            "tags": {key: value for key, value in run["tags"].items() if key not in own},
        }
        for name, run in record.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def empty_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def new_sweep(
    _warm_store: Path, empty_record: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Sweep]]:
    """`new_sweep(train={...})`: a folder where the tiny sweep, with changes, has not been run yet."""
    sweeps = []

    def make(record: bool = True, **changes: Any) -> Sweep:
        sweep = Sweep(tmp_path_factory.mktemp("sweep"))
        sweeps.append(sweep)
        shutil.copytree(_warm_store, sweep.folder / "raylt-data")
        if record:
            shutil.copy(empty_record, sweep.folder / "mlflow.db")
        (sweep.folder / "tiny.yaml").write_text(dump_yaml(merged(merged(TINY, TRAINED), changes)))
        return sweep

    yield make
    for sweep in sweeps:
        sweep.kill()


@pytest.fixture(scope="module")
def finished(new_sweep: Callable[..., Sweep]) -> Sweep:
    """A sweep that nothing has disturbed, in a folder that knew no MLflow."""
    sweep = new_sweep(record=False)
    done = sweep.run()
    assert done.code == 0, done.err
    assert "tiny: complete, 0 of 8 trials failed" in done.out
    return sweep


@pytest.fixture(scope="module")
def document(finished: Sweep) -> dict[str, Any]:
    return finished.results()


# --- results ----------------------------------------------------------------------------------------------------------

NUMBER = (int, float)
DOCUMENT = {
    "schema": int, "name": str, "digest": str, "state": str, "objectives": list, "protocols": dict, "counts": dict,
    "steps": dict, "similarity": dict, "similarity_layers": dict, "groups": dict, "trials": list,
}  # fmt: skip
TRIAL = {
    "id": int, "kind": str, "rule": (str, type(None)), "control": type(None), "seed": int, "state": str, "protocol": str,
    "density": float, "densities": dict, "kept": dict, "layers": dict, "loss": float, "fid": float, "kid": float,
    "flops": NUMBER, "flops_dense": NUMBER, "ticket_bytes": int, "pareto": bool, "broken": bool, "rounds": list,
    "steps": dict, "params": dict, "error": type(None), "ticket": str, "timing": dict, "mlflow_run_id": str,
}  # fmt: skip
KINDS = ["dense", "pilot", "pilot", "baseline", "baseline", "search", "search", "search"]
RULES = [None, "uniform", "uniform", "uniform", "erk", "searched", "searched", "searched"]


def assert_types(record: dict[str, Any], types: dict[str, Any]) -> None:
    assert set(types) <= set(record)
    wrong = {key: record[key] for key, kind in types.items() if not isinstance(record[key], kind)}
    assert not wrong


def test_results_have_every_key_of_the_schema(document):
    assert_types(document, DOCUMENT)
    assert (document["schema"], document["name"], document["state"]) == (1, NAME, "complete")
    assert re.fullmatch("[0-9a-f]{64}", document["digest"])
    assert document["objectives"] == ["loss", "flops"]
    behind = {"sampler": "ddim", "features": "digits-cnn", "reference": 200}
    assert document["protocols"]["search"] == {"samples": 80, "steps": 2, "spacing": "trailing", **behind}
    assert document["protocols"]["final"] == {"samples": 50_000, "steps": 50, "spacing": "leading", **behind}
    assert document["counts"] == {"asked": 8, "complete": 8, "pruned": 0, "failed": 0, "running": 0}
    for trial in document["trials"]:
        assert_types(trial, TRIAL)
        assert set(trial["steps"]) == {"asked", "trained", "shared"}
        for row in trial["rounds"]:
            assert_types(row, {"round": int, "density": float, "fid": float, "loss": float})


def test_trials_are_those_of_the_plan_by_id(document):
    trials = document["trials"]
    assert [trial["id"] for trial in trials] == list(range(8))
    assert [trial["kind"] for trial in trials] == KINDS
    assert [trial["rule"] for trial in trials] == RULES
    assert [trial["seed"] for trial in trials] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert {(trial["state"], trial["protocol"], trial["control"]) for trial in trials} == {("COMPLETE", "search", None)}
    params = {"gamma", "delta/down", "delta/mid", "delta/up"}
    assert [set(trial["params"]) for trial in trials] == [set()] * 5 + [params] * 3
    assert set(trials[5]["params"].values()) == {0.0}  # the base itself, ERK, comes first
    assert trials[5]["ticket"] == trials[4]["ticket"]
    assert len({trial["ticket"] for trial in trials}) == 6  # and the uniform baseline is the first pilot
    assert len({trial["mlflow_run_id"] for trial in trials}) == 8


def test_what_a_trial_keeps_adds_up(document):
    for trial in document["trials"]:
        layers, blocks = trial["layers"], trial["kept"]
        kept, total = (sum(count[i] for count in layers.values()) for i in (0, 1))
        asked = 1.0 if trial["kind"] == "dense" else 0.2
        assert kept == round(asked * total)
        assert trial["density"] == trial["rounds"][-1]["density"] == kept / total
        assert set(blocks) == set(trial["densities"]) == BLOCKS
        for block, counts in blocks.items():
            own = [count for layer, count in layers.items() if layer == block or layer.startswith(f"{block}.")]
            assert counts == [sum(count[i] for count in own) for i in (0, 1)]
            assert trial["densities"][block] == counts[0] / counts[1]
            assert counts[0] == counts[1] or block not in KEPT_DENSE
        assert all(1 <= kept <= total for kept, total in layers.values())
        assert kept == sum(counts[0] for counts in blocks.values())
        rounds = 1 if trial["kind"] == "dense" else 3
        assert [row["round"] for row in trial["rounds"]] == list(range(rounds))
        for row in trial["rounds"]:
            assert abs(row["density"] - 0.2 ** (row["round"] / 2)) <= 0.5 / total
        assert all(trial[key] == trial["rounds"][-1][key] for key in ("loss", "fid"))
        assert 0 < trial["flops"] <= trial["flops_dense"]
        assert (trial["flops"] == trial["flops_dense"]) == (trial["kind"] == "dense")


def test_the_front_is_what_no_ranked_trial_beats(document):
    ranked = [trial for trial in document["trials"] if trial["kind"] in ("baseline", "search") and not trial["broken"]]

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a[key], b[key]) for key in document["objectives"]]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    front = {trial["id"] for trial in ranked if not any(beats(other, trial) for other in ranked)}
    assert front
    assert {trial["id"] for trial in document["trials"] if trial["pareto"]} == front


def test_similarity_has_a_number_for_every_block_that_may_be_pruned(document):
    assert set(document["similarity"]) == BLOCKS
    for block, numbers in document["similarity"].items():
        if block in KEPT_DENSE:
            assert numbers == {**dict.fromkeys(SIMILARITY_NUMBERS), "pairs": 0}
        else:
            interval = {"kappa_low": type(None), "kappa_high": type(None)}  # two pilots are too few for one
            numeric = dict.fromkeys(set(SIMILARITY_NUMBERS) - set(interval), NUMBER)
            assert set(numbers) == set(SIMILARITY_NUMBERS)
            assert_types(numbers, interval | numeric)
            assert 0 < numbers["kappa"] < 1  # not by chance alone, and not one ticket twice
            assert numbers["movement"] > 0
            assert numbers["pairs"] == 1
    assert {block_of(layer) for layer in document["similarity_layers"]} == BLOCKS


def test_every_step_was_trained_once(finished, document):
    steps = finished.steps()
    assert set(steps.values()) == {1}
    trials = document["trials"]
    assert all(trial["steps"]["trained"] + trial["steps"]["shared"] == trial["steps"]["asked"] for trial in trials)
    assert sum(trial["steps"]["trained"] for trial in trials) == len(steps)
    assert document["steps"] == {key: sum(trial["steps"][key] for trial in trials) for key in ("asked", "trained", "shared")}
    assert [trial["steps"]["asked"] for trial in trials] == [12] + [2 + 3 * 10] * 7


def test_a_dry_run_knew_how_much_would_be_asked_and_trained(finished, document, tmp_path):
    store = Store(str(finished.folder / "raylt-data"))
    spec = stored_spec(store, NAME)
    for ledger in (Ledger(Store(str(tmp_path)), NAME), Ledger(store, NAME)):
        work = work_of(spec, (item.trial for item in all_trials(spec, ledger)))
        assert (work.asked.steps, work.distinct.steps) == (document["steps"]["asked"], document["steps"]["trained"])
        assert work.asked.trainings == sum(len(trial["rounds"]) for trial in document["trials"])
    assert work.distinct.samples == 80 * len({path.split("/")[2] for path in finished.files("stages/*/*/grid.safetensors")})


def test_hours_add_up(document):
    hours = [trial["timing"]["hours"] for trial in document["trials"]]
    assert all(trial["timing"]["hours"] == round(trial["timing"]["stages_s"] / 3600, 6) for trial in document["trials"])
    assert min(hours) >= 0 < hours[0]


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_mlflow_has_a_run_for_the_sweep_and_one_below_it_for_each_trial(finished, document, tmp_path):
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raylt/tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(NAME)
    assert sorted(runs) == [f"{number:04d}-{kind}" for number, kind in enumerate(KINDS)]
    assert len(client.search_runs([experiment.experiment_id])) == 9
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    for trial in document["trials"]:
        run = runs[f"{trial['id']:04d}-{trial['kind']}"]
        assert run.info.run_id == trial["mlflow_run_id"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["raylt.state"] == "COMPLETE"
        assert "raylt.cause" not in run.data.tags
        numbers = ("loss", "fid", "kid", "flops", "density", "ticket_bytes")
        assert {key: run.data.metrics[key] for key in numbers} == {key: trial[key] for key in numbers}
        points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss"))
        assert points == [(row["round"], row["loss"]) for row in trial["rounds"]]
        folder = tmp_path / str(trial["id"])
        folder.mkdir()
        ticket = Path(client.download_artifacts(run.info.run_id, "ticket.safetensors", str(folder)))
        assert ticket.stat().st_size == trial["ticket_bytes"]
        mask = load_ticket(ticket).mask
        assert mask.digest == trial["ticket"]
        assert {layer: list(counts) for layer, counts in mask.counts.items()} == trial["layers"]
    assert (finished.folder / "mlartifacts").is_dir()


# --- the same command again -------------------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing(finished, document):
    before, record, study = finished.files("*/**/*.json"), finished.record(), finished.study()
    processes, steps = finished.ray_processes(), finished.steps()
    assert processes
    done = finished.run()
    assert (done.code, finished.results()) == (0, document)
    assert finished.ray_processes() == processes  # nothing was to be done, so it was not even started
    after = finished.files("*/**/*.json")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert all(name.startswith("sweeps/tiny/lease") for name in changed), changed
    assert (finished.record(), finished.study(), finished.steps()) == (record, study, steps)


def test_study_and_mlflow_come_back_from_the_ledger_and_more_trials_extend_it(finished, document, new_sweep):
    sweep = new_sweep(record=False)
    shutil.rmtree(sweep.folder / "raylt-data")
    shutil.copytree(finished.folder / "raylt-data", sweep.folder / "raylt-data")
    (sweep.ledger / "study.db").unlink()
    assert sweep.run().code == 0
    assert sweep.record() == finished.record()
    assert sweep.study() == finished.study()
    assert not sweep.steps()
    again = sweep.results()
    assert comparable(again) == comparable(document)
    for old, new in zip(document["trials"], again["trials"], strict=True):
        assert (old["steps"], old["timing"]) == (new["steps"], new["timing"])
        assert old["mlflow_run_id"] != new["mlflow_run_id"]

    before = sweep.files("sweeps/*/trials/*/*.json")
    assert sweep.run("--set", "search.trials=4").code == 0
    extended = sweep.results()
    assert [trial["kind"] for trial in extended["trials"]] == [*KINDS, "search"]
    assert extended["counts"]["complete"] == 9
    assert before.items() <= sweep.files("sweeps/*/trials/*/*.json").items()
    free = ("pareto",)  # a new trial may beat an old one
    for old, new in zip(again["trials"], extended["trials"][:8], strict=True):
        assert {k: v for k, v in old.items() if k not in free} == {k: v for k, v in new.items() if k not in free}
    assert len(sweep.steps()) == extended["trials"][8]["steps"]["trained"] == 10
    assert [name for name in sweep.record() if name not in finished.record()] == ["0008-search"]
    assert len(sweep.study()) == 4


def test_a_changed_identity_is_refused(finished):
    before = finished.files()
    done = finished.run("--set", "train.steps=13")
    assert done.code == 2
    assert "train.steps: 12 -> 13" in done.err
    assert "--new" in done.err
    assert "Traceback" not in done.err
    assert finished.files() == before


# --- disturbed --------------------------------------------------------------------------------------------------------


def test_a_sweep_that_was_disturbed_ends_as_one_that_was_not(finished, document, new_sweep):
    sweep = new_sweep()
    first = sweep.start("tiny.yaml", plan={2: HOLD, 6: HOLD})

    def held_worker(trial: int, driver: subprocess.Popen) -> int:
        flag = sabotage.held(sweep.folder, trial)
        eventually(lambda: flag.exists() or driver.poll() is not None, f"trial {trial} is at work")
        assert driver.poll() is None, sweep.end(driver).err
        pid = int(flag.read_text())
        flag.unlink()
        return pid

    # a second driver, while the first holds the lease
    worker = held_worker(2, first)
    lease = json.loads((sweep.ledger / "lease.json").read_text())
    done = sweep.run()
    assert done.code == 3
    assert f"pid {first.pid} on {lease['host']} since {lease['since']}" in done.err
    assert len(done.err.splitlines()) == 1
    assert json.loads((sweep.ledger / "lease.json").read_text())["token"] == lease["token"]
    assert first.poll() is None
    assert sweep.results()["state"] == "running"
    assert f"pid {first.pid}" in sweep.read("status", NAME)

    # kill -9 of a worker in the middle of a round
    assert not sweep.has_ended(2)
    os.kill(worker, signal.SIGKILL)
    sabotage.let_go(sweep.folder, 2)
    eventually(lambda: sweep.has_ended(2) or first.poll() is not None, "the trial whose worker was killed ends")
    assert json.loads((sweep.ledger / "trials/00002/result.json").read_text())["state"] == "COMPLETE"

    # Ctrl-C in the driver's terminal, while a worker is in the middle of a step and will not end it
    worker = held_worker(6, first)
    os.killpg(first.pid, signal.SIGINT)
    done = sweep.end(first)
    assert done.code == 130
    assert "the same command goes on from here" in done.out
    assert "Traceback" not in done.err
    eventually(lambda: not psutil.pid_exists(worker), "the worker is gone")
    stopped = sweep.results()
    assert (stopped["state"], stopped["trials"][6]["state"]) == ("interrupted", "RUNNING")
    assert sweep.record()[NAME]["status"] == "KILLED"

    # SIGTERM, and the step ends
    second = sweep.start("tiny.yaml", plan={6: HOLD})
    held_worker(6, second)
    second.send_signal(signal.SIGTERM)
    sabotage.let_go(sweep.folder, 6)
    done = sweep.end(second)
    assert done.code == 143
    assert "Traceback" not in done.err

    # its hours are over
    done = sweep.run("--max-hours", "0.003", plan={6: HOLD})
    assert (done.code, sweep.results()["state"]) == (3, "interrupted")
    assert "stopped: the 0.003 hours of --max-hours are over; the same command goes on from here" in done.out
    assert "Traceback" not in done.err
    assert sweep.record()[NAME]["status"] == "KILLED"

    done = sweep.run("--max-hours", "5")
    assert done.code == 0, done.err
    assert "--max-hours" not in done.out
    assert comparable(sweep.results()) == comparable(document)
    assert values_only(sweep.record()) == values_only(finished.record())
    assert sweep.study() == finished.study()
    assert set(sweep.steps()) == set(finished.steps())
    again = (sweep.steps() - finished.steps()).total()
    assert again <= 4 * TINY["train"]["checkpoint_every"] * TINY["search"]["concurrency"]


def assert_a_kill_changes_nothing(whole, sweep, *, after, last):
    """Run one to its end; kill the other once trial `after` has ended, before `last` has, and run it again. Its document."""
    done = whole.run()
    assert done.code == 0, done.err
    killed = sweep.start("tiny.yaml")
    eventually(lambda: sweep.has_ended(after) or killed.poll() is not None, f"trial {after} ends")
    killed.kill()
    killed.wait()
    assert not sweep.has_ended(last)
    done = sweep.run()
    assert done.code == 0, done.err
    document = sweep.results()
    assert comparable(document) == comparable(whole.results())
    assert sweep.study() == whole.study()
    assert values_only(sweep.record()) == values_only(whole.record())
    return document


@pytest.mark.slow  # two more sweeps: kills are tried above, and who is stopped in tests/unit/test_rungs.py
def test_a_guided_sweep_with_rungs_that_was_killed_ends_as_one_that_was_not(new_sweep):
    search = {"rungs": True, "objectives": ["loss"], "trials": 5, "concurrency": 1}  # loss alone: more of them are stopped
    changes = {"ticket": {"rounds": 3}, "search": search}
    whole, sweep = new_sweep(**changes), new_sweep(**changes)
    document = assert_a_kill_changes_nothing(whole, sweep, after=6, last=9)
    assert document["counts"]["pruned"] > 0
    for trial in document["trials"]:
        if trial["state"] == "PRUNED":
            assert len(trial["rounds"]) == 3
            assert trial["error"].startswith("stopped at round 2: loss ")
            assert not trial["pareto"]


@pytest.mark.slow  # two more sweeps: what decides is tried in tests/unit/test_dispatch.py and test_profile.py
def test_a_sweep_with_auto_groups_that_was_killed_ends_as_one_that_was_not(new_sweep):
    changes = {"search": {"groups": "auto", "profile": "movement", "pilots": 0, "baselines": [], "trials": 4}}
    whole, sweep = new_sweep(**changes), new_sweep(**changes)
    assert "groups   chosen from the profile once the dense training has ended" in whole.run("--dry-run").out
    document = assert_a_kill_changes_nothing(whole, sweep, after=1, last=4)
    assert sorted(block for blocks in document["groups"].values() for block in blocks) == sorted(BLOCKS - KEPT_DENSE)
    names = {f"delta/{group}" for group in document["groups"]}
    shown = whole.record()[NAME]["params"]
    assert {group: json.loads(shown[f"group/{group}"]) for group in document["groups"]} == document["groups"]
    assert [set(trial["params"]) for trial in document["trials"]] == [set()] + [{"gamma"} | names] * 4


@pytest.mark.slow
def test_the_end_of_a_terminal_is_as_gentle_as_sigterm(new_sweep):
    """SIGHUP to the driver and to all that it has started, as the kernel sends it."""
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={2: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 2).exists() or driver.poll() is not None, "trial 2 is at work")
    assert driver.poll() is None, sweep.end(driver).err
    for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
        process.send_signal(signal.SIGHUP)
    sabotage.let_go(sweep.folder, 2)
    done = sweep.end(driver)
    assert done.code == 143 and "Traceback" not in done.err, done.err
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]
    assert sweep.results()["counts"]["failed"] == 0


def test_an_interrupt_before_anything_began_is_one(new_sweep):
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml")
    eventually(lambda: driver.poll() is not None or sweep.ray_processes(), "Ray is about to start")
    os.killpg(driver.pid, signal.SIGINT)
    done = sweep.end(driver)
    where = "runs on this machine (no cluster is named, and there is no ./cluster.yaml)\n"
    assert (done.code, done.err) == (130, where)
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]


def test_a_sweep_is_stopped_from_elsewhere_and_its_trials_logs_say_what_they_did(new_sweep):
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={0: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 0).exists() or driver.poll() is not None, "trial 0 is at work")
    stopper = sweep.start(NAME, command="stop")
    sabotage.let_go(sweep.folder, 0)
    done, stopped = sweep.end(driver), sweep.end(stopper)
    assert (done.code, stopped.code) == (143, 0)
    assert f"pid {driver.pid}" in stopped.err
    assert "goes on from here" in stopped.out
    assert sweep.results()["state"] == "interrupted"
    assert "nobody drives it" in sweep.read("stop", NAME)
    assert "round 0 step 4 training loss" in sweep.read("logs", NAME, "0", "-f")
    missing = sweep.end(sweep.start(NAME, "99", command="logs"))
    assert (missing.code, missing.err.count("\n")) == (2, 1)


# --- failing trials ---------------------------------------------------------------------------------------------------


def test_trials_that_fail_leave_the_others_alone(new_sweep):
    sweep = new_sweep(search={"trials": 4})
    done = sweep.run(plan={4: DIE, 5: "OutOfMemoryError", 6: "MemoryError", 7: "RuntimeError"})
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    found = sweep.results()
    assert (found["state"], found["counts"]["complete"], found["counts"]["failed"]) == ("complete", 5, 4)
    causes = {trial["id"]: trial["error"] for trial in found["trials"] if trial["state"] == "FAIL"}
    deaths = (sweep.folder / "deaths-4").read_text().split()
    assert len(deaths) == len(set(deaths)) == 3
    assert causes.pop(4).startswith("the worker died 3 times: its process ended unexpectedly")
    assert causes == {
        5: "OutOfMemoryError: planned for trial 5",
        6: "MemoryError: planned for trial 6",
        7: "RuntimeError: planned for trial 7",
    }
    assert [len(found["trials"][number]["rounds"]) for number in (5, 6, 7)] == [2, 2, 2]  # those before the error
    assert found["trials"][8]["state"] == "COMPLETE"

    log = sweep.read("logs", NAME, "7")
    assert "Traceback" in log
    assert log.endswith("RuntimeError: planned for trial 7\n")
    assert sweep.read("logs", NAME, "4").count("begins on") == 3
    status, record = sweep.read("status", NAME), sweep.record()
    for trial in found["trials"]:
        run = record[f"{trial['id']:04d}-{trial['kind']}"]
        failed = trial["state"] == "FAIL"
        assert run["status"] == ("FAILED" if failed else "FINISHED")
        assert (run["tags"]["raylt.state"], run["tags"].get("raylt.cause")) == (trial["state"], trial["error"])
        assert not failed or any(re.match(rf" *{trial['id']} .*FAIL", line) for line in status.splitlines())
        assert not failed or trial["error"] in status
    assert record[NAME]["status"] == "FINISHED"
    assert [row[1] for row in sweep.study()] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_a_worker_whose_gpu_is_lost_takes_no_other_trial_along(new_sweep):
    """Each attempt has a process of its own, and no later trial is given one of these."""
    sweep = new_sweep(search={"trials": 0, "pilots": 1, "baselines": ["erk"], "concurrency": 1})
    done = sweep.run(plan={1: "AcceleratorError"})
    assert done.code == 1 and "Traceback" not in done.err, done.err
    found = sweep.results()
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found["trials"][1]["error"] == "the worker died 3 times: the GPU was lost: planned for trial 1"
    lost, later = (set(re.findall(r"begins on .*, pid (\d+)", sweep.read("logs", NAME, number))) for number in ("1", "2"))
    assert len(lost) == 3 and not lost & later


def test_one_cause_five_times_in_a_row_stops_the_sweep_and_fewer_do_not(new_sweep):
    sweep = new_sweep(**HOPELESS)
    done = sweep.run()
    assert done.code == 3
    assert "Traceback" not in done.err
    found = sweep.results()
    causes = {trial["error"] for trial in found["trials"] if trial["state"] == "FAIL"}
    assert len(causes) == 1
    cause = causes.pop()
    assert re.match(r"training diverged: the loss is (nan|inf) at step \d+", cause)
    assert done.err.splitlines()[-1] == f"stopped: five trials in a row failed with one cause: {cause}"
    assert found["state"] == "interrupted"
    assert 5 <= found["counts"]["failed"] < 8
    assert cause in sweep.read("status", NAME)
    assert {run["tags"].get("raylt.cause") for run in sweep.record().values() if run["status"] == "FAILED"} == {cause}

    before = sweep.files("sweeps/tiny/**/*")
    few = ("search.trials=0", "search.baselines=[]", "train.seed=1")
    done = sweep.run("--new", *(word for key in few for word in ("--set", key)))
    assert done.code == 1, done.err
    found = sweep.results("tiny-2")
    assert (found["state"], found["counts"]["failed"], len(found["trials"])) == ("complete", 3, 3)
    assert sweep.files("sweeps/tiny/**/*") == before


@pytest.mark.slow
@pytest.mark.parametrize("part", ["raylet/raylet", "gcs/gcs_server"])
def test_a_ray_that_is_gone_ends_the_sweep_in_words_and_loses_nothing(new_sweep, finished, part):
    """Ray itself waits for ever for a raylet that was killed, and ends the driver with exit code 1 after its GCS was."""
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={4: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 4).exists() or driver.poll() is not None, "trial 4 is at work")
    (process,) = [
        child for child in psutil.Process(driver.pid).children(recursive=True) if "".join(child.cmdline()[:1]).endswith(part)
    ]
    process.kill()
    done = sweep.end(driver)
    sabotage.let_go(sweep.folder, 4)
    assert done.code == 3 and "Traceback" not in done.err, done.err
    assert "stopped: Ray no longer answers" in done.err and part.split("/")[0] in done.err.lower()
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]
    assert sweep.run().code == 0
    assert comparable(sweep.results()) == comparable(finished.results())
