"""What a trial costs does not grow with the trials before it: counted, not timed. The times are in benchmarks/overhead.py."""

from __future__ import annotations

import collections
import itertools
from types import SimpleNamespace

import pytest
import sqlalchemy

from raylt.ledger import COMPLETE, Ledger
from raylt.search import dispatch
from raylt.search.dispatch import Dispatcher
from raylt.search.proposal import Proposer
from raylt.search.study import StudyFile
from raylt.store import Store
from raylt.tracking import Recorder

TRIALS, EARLY, LATE = 200, range(10, 20), range(190, 200)
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

    for name in ("read", "write", "names", "delete"):
        counted(Store, name, f"store {name}")
    counted(Proposer, "_begin", "studies begun")
    engine = sqlalchemy.engine.Engine

    def statement(*args):
        found["SQL"] += 1

    sqlalchemy.event.listen(engine, "before_cursor_execute", statement)
    yield found
    sqlalchemy.event.remove(engine, "before_cursor_execute", statement)


def test_the_200th_trial_costs_what_the_10th_costs(tiny_spec, tmp_path, monkeypatch, counts):
    spec = tiny_spec(search={"trials": TRIALS, "concurrency": 1, "pilots": 0, "baselines": []})
    monkeypatch.setattr(dispatch, "measure", lambda spec, ledger: {"profile": {"down": -1.0, "mid": 0.0, "up": 1.0}})
    monkeypatch.setattr("raylt.tracking.connect", lambda uri: Client(lambda name: counts.update([name])))
    store = Store(str(tmp_path / "store"))
    ledger, shown = Ledger(store, spec.name, lambda: None), Ledger(store, spec.name, lambda: None)
    study, recorder = StudyFile(spec, tmp_path / "study.db"), Recorder(spec, shown, "", "stub")
    dispatcher = Dispatcher(spec, ledger, STARTUP, lambda trial, result: study.sync(ledger))
    per_trial = []
    for number in range(TRIALS):
        counts.clear()
        trial = dispatcher.next_trial(set())
        dispatcher.ended(trial.id, outcome(trial))
        shown.reload()
        recorder.sync("running", {}, pictures=False)
        per_trial.append(counts.copy())
        assert trial.id == number
    study.close()
    early, late = (sum((per_trial[n] for n in window), collections.Counter()) for window in (EARLY, LATE))
    assert {"store read", "store write", "SQL", "MLflow log_batch"} <= set(early)
    assert late == early
    assert late["studies begun"] == 0


def outcome(trial):
    loss = 0.1 + sum((value - 0.2) ** 2 for value in trial.params.values())
    return {
        "state": COMPLETE, "cause": None, "loss": loss, "flops": 1000 + 100 * trial.params.get("gamma", 0), "broken": False,
        "fid": None, "rounds": [], "timing": None, "time_ms": 1_700_000_000_000 + trial.id,
    }  # fmt: skip
