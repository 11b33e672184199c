"""What a trial costs does not grow with the trials before it: counted, not timed. The times are in benchmarks/overhead.py.

And what a command reads grows with the sweep as it must: once for each trial at most, in parallel where a server answers.
The times of that are in benchmarks/growth.py.
"""

from __future__ import annotations

import collections
import itertools
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from typer.testing import CliRunner

from raylt.cli import app
from raylt.search.proposal import Proposer
from raylt.search.sampler import GENERATION, NSGAIISampler
from raylt.search.study import StudyFile
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger, Store, index
from raylt.store import ledger as ledger_module
from raylt.store.folders import LocalFolder
from raylt.store.ledger import existing
from raylt.store.results import COMPLETE, TrialResult
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import is_complete, stored_spec, write_spec
from raylt.store.verify import verify
from raylt.sweep import dispatch
from raylt.sweep.dispatch import Dispatcher
from raylt.tracking.tracker import Recorder
from tests.support.counting import CountingFolder
from tests.support.results import a_result
from tests.support.trials import a_trial

TRIALS, EARLY, LATE = 200, range(20, 40), range(180, 200)
PART = 10  # trials of a part of the index
STARTUP = 5  # proposals before the sampler notes anything, which costs a statement


class Client:
    """In place of an MlflowClient: counts the calls, and gives every run an id."""

    def __init__(self, count):
        self.count, self.ids = count, itertools.count()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.count(f"MLflow {name}")
            info = SimpleNamespace(run_id=f"run{next(self.ids)}", start_time=0, status="RUNNING")
            return SimpleNamespace(info=info, experiment_id="1", lifecycle_stage="active") if name != "search_runs" else Page()

        return call


class Page(list):
    token = None


@pytest.fixture
def counts(monkeypatch):
    """What was done since the last `clear`, by name."""
    found: collections.Counter[str] = collections.Counter()

    def counted(owner, name, label):
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            found[label] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for name in ("read", "write", "create", "names", "all_files", "delete"):
        counted(Store, name, f"store {name}")
    write = LocalFolder.replace

    def replace(self, path, data):
        found["bytes"] += len(data)
        write(self, path, data)

    monkeypatch.setattr(LocalFolder, "replace", replace)
    counted(Proposer, "_reset", "studies begun")
    engine = sqlalchemy.engine.Engine

    def statement(*args):
        found["SQL"] += 1

    sqlalchemy.event.listen(engine, "before_cursor_execute", statement)
    yield found
    sqlalchemy.event.remove(engine, "before_cursor_execute", statement)


def test_the_200th_trial_costs_what_the_10th_costs(tiny_spec, tmp_path, monkeypatch, counts):
    spec = tiny_spec(search={"trials": TRIALS, "concurrency": 1, "pilots": 0, "baselines": []})
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": {"down": -1.0, "mid": 0.0, "up": 1.0}})
    monkeypatch.setattr("raylt.tracking.tracker.connect", lambda uri: Client(lambda name: counts.update([name])))
    store = Store(str(tmp_path / "store"))
    monkeypatch.setattr(index, "PART", PART)
    monkeypatch.setattr(ledger_module, "PART", PART)
    ledger = Ledger(store, spec.name, lambda: None)
    ledger.lock(SweepLock({"code_schema": CODE_SCHEMA}))
    study, recorder = StudyFile(spec, tmp_path / "study.db"), Recorder(spec, ledger, "", "stub")
    dispatcher = Dispatcher(spec, ledger, STARTUP, lambda trial, result: study.sync(ledger))
    per_trial = []
    for number in range(TRIALS):
        counts.clear()
        trial = dispatcher.next_trial(set())
        dispatcher.finish(trial.id, a_result(**outcome(trial)))
        recorder.sync("running", {}, pictures=False)
        per_trial.append(counts.copy())
        assert trial.id == number
    study.close()
    early, late = (sum((per_trial[n] for n in window), collections.Counter()) for window in (EARLY, LATE))
    assert {"store read", "store write", "SQL", "MLflow log_batch"} <= set(early)
    assert late.pop("bytes") < 1.5 * early.pop("bytes")
    assert late <= early  # fewer where files are written whole: only once enough is new
    assert late["studies begun"] == late["store all_files"] == 0


def test_nsga2_goes_on_from_what_it_knows_and_starts_over_at_a_thousand_generations(tiny_spec, monkeypatch):
    spec = tiny_spec(search={"sampler": "nsga2", "trials": 6000})
    selected = []
    select = NSGAIISampler.select_parent
    monkeypatch.setattr(NSGAIISampler, "select_parent", lambda self, study, n: (selected.append(n), select(self, study, n))[1])
    history = [searched(number, number // STARTUP) for number in range(1100 * STARTUP)]
    proposer = Proposer(spec, STARTUP)
    proposer.propose(len(history), history)
    assert selected == list(range(1, 1101))  # a new driver: each generation once
    for number in range(len(history), len(history) + 2 * STARTUP):
        selected.clear()
        _, attrs = proposer.propose(number, history)
        assert len(selected) <= 1
        trial, result = searched(number, attrs[GENERATION])
        history.append((trial, result))
    selected.clear()
    late = searched(len(history), 1101)  # of a generation that had been thought whole
    proposer.propose(len(history) + 1, [*history, late])
    assert selected == [1102]


def searched(number, generation):
    draw = random.Random(number)
    params = {"gamma": draw.uniform(-1, 1), **{f"delta/{group}": draw.uniform(-1, 1) for group in ("down", "mid", "up")}}
    trial = a_trial(number, "search", "searched", 0, params=params, sampler_attrs={GENERATION: generation})
    return trial, a_result(**outcome(trial))


def long_sweep(trials):
    """A store in memory with a sweep whose driver has written its index, and what counts its requests."""
    folder = CountingFolder()
    store = Store("memory", folder=folder)
    spec = SweepSpec.model_validate(
        {"schema": 1, "name": "long", "search": {"trials": trials - 1, "pilots": 0, "baselines": []}}
    )
    yaml = dump_yaml(spec.dump())
    write_spec(store, "long", yaml)
    ledger = Ledger(store, "long", lambda: None)
    ledger.lock(SweepLock({"code_schema": CODE_SCHEMA, "spec": yaml}))
    for number in range(trials):
        trial = a_trial(number, "search" if number else "dense", "searched" if number else None, 0)
        ledger.submit(trial)
        ledger.finish(number, a_result(**outcome(trial), stages={f"{number:064x}": "0" * 64}))
    ledger.create("similarity.json", {"blocks": {}, "layers": {}, "groups": {}, "profile": {}})
    folder.clear()
    return store, folder


def told(store, monkeypatch, *command):
    """What a command prints about a store in memory."""
    monkeypatch.setattr("raylt.store.Store", lambda root: store)
    said = CliRunner().invoke(app, [*command, "--local", "--root", "memory"], catch_exceptions=False)
    assert said.exit_code == 0
    return said.output


def test_status_of_ten_thousand_trials_takes_a_hundred_requests_in_turn(monkeypatch):
    store, folder = long_sweep(10_000 + 199)  # the longest tail that no part has
    assert "10199 asked, 10199 complete" in told(store, monkeypatch, "status", "long")
    assert folder.in_turn <= 100
    assert folder.reads < 10_000 / 200 + 2 * 199 + 20
    folder.clear()
    store.delete_folder("sweeps/long/index")  # also without an index: in parallel, and each file once
    assert "10199 asked, 10199 complete" in told(store, monkeypatch, "status", "long")
    assert folder.reads < 2 * 10_199 + 20
    assert folder.in_turn < 2 * 2 * 10_199 / 32 + 100


@pytest.mark.parametrize("command", [["status", "long"], ["results", "long", "--json"], ["store", "du"], ["store", "verify"]])
def test_what_a_command_reads_is_in_proportion_to_the_sweep(monkeypatch, command):
    """Ten times the trials, ten times the reads at most; and as many listings."""
    counts = []
    for trials in (200, 2000):
        store, folder = long_sweep(trials)
        told(store, monkeypatch, *command)
        counts.append((folder.reads, folder.lists))
    (few, lists), (many, same) = counts
    assert many <= 10 * few
    assert lists == same
    assert many < 2 * 2000 + 100 if command[-1] == "verify" else many < 100


def outcome(trial):
    params = trial.proposal.params
    loss = 0.1 + sum((value - 0.2) ** 2 for value in params.values())
    return {
        "state": COMPLETE, "cause": None, "loss": loss, "flops": 1000 + 100 * params.get("gamma", 0), "broken": False,
        "fid": None, "rounds": [], "timing": None, "time_ms": 1_700_000_000_000 + trial.id,
    }  # fmt: skip


def test_the_sweep_that_growth_is_measured_on_is_one_that_raylt_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2] / "benchmarks")])
    from longsweep import write_stages, write_sweep

    spec, store = write_sweep(tmp_path, 60), Store(str(tmp_path))
    write_stages(tmp_path, 3)
    for path in tmp_path.rglob("result.json"):  # to the key: an index believes what is as long as it would write it
        record = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
        assert TrialResult.from_json(record).to_json() == record
    assert verify(store).damaged == []
    assert is_complete(stored_spec(store, spec.name), existing(store, spec.name))
