"""Failed trials submitted again: the same TrialSpec under a new id, counted once, and never again once it went well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylt.errors import LeaseHeld
from raylt.report.document import results
from raylt.spec import dump_yaml
from raylt.store import Lease, Ledger, Store
from raylt.store.results import FAIL
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_state import failed_trials, is_complete, write_spec
from raylt.sweep import dispatch
from raylt.sweep.retry import retry
from tests.sweep.test_dispatch import PROFILE, asked, outcome, run


@pytest.fixture(autouse=True)
def _profile(monkeypatch):
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": PROFILE})


def failing(*ids):
    def result(trial):
        return {**outcome(trial), **({"state": FAIL, "cause": "planned"} if trial.id in ids else {})}

    return result


def begin(spec, root):
    """What a driver leaves in a store besides the trials."""
    store = Store(str(root))
    write_spec(store, spec.name, dump_yaml(spec.dump()))
    store.write_record(f"sweeps/{spec.name}/spec.lock.json", {"code_schema": CODE_SCHEMA})
    return store


def test_failed_trials_run_again_as_they_were_and_count_once(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 4})
    store = begin(spec, tmp_path)
    run(spec, tmp_path, results=failing(2, 6))
    assert retry(store, spec.name).again == {2: 9, 6: 10}
    ledger = Ledger(store, spec.name)
    assert not is_complete(spec, ledger)
    assert ledger.submitted[10] == replace(ledger.submitted[6], id=10, retry_of=6)
    ledger, _ = run(spec, tmp_path)
    assert len(ledger.submitted) == 11  # nothing else was asked
    assert is_complete(spec, ledger)
    assert failed_trials(ledger) == []
    assert retry(store, spec.name).again == {}
    document = results(spec, ledger)
    assert [trial["retry_of"] for trial in document["trials"]] == [None] * 9 + [2, 6]
    assert document["counts"]["failed"] == 2  # what failed, failed

    longer = tiny_spec(search={"trials": 5})
    ledger, _ = run(longer, tmp_path)
    assert [trial.kind for trial in ledger.submitted.values()][11:] == ["search"]


def test_a_retry_that_fails_is_tried_again_in_its_turn(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 1})
    store = begin(spec, tmp_path)
    run(spec, tmp_path, results=failing(5))
    assert retry(store, spec.name).again == {5: 6}
    run(spec, tmp_path, results=failing(6))
    assert retry(store, spec.name).again == {6: 7}


def test_ids_of_planned_trials_that_were_never_asked_stay_free(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 0})
    store = begin(spec, tmp_path)
    number_planned = 5
    run(spec, tmp_path, results=failing(*range(number_planned)), crash_after=1)
    assert list(retry(store, spec.name).again.values()) == [number_planned]
    ledger, _ = run(spec, tmp_path)
    assert sorted(ledger.submitted) == list(range(number_planned + 1))
    assert is_complete(spec, ledger)
    assert len(asked(ledger)) == number_planned + 1


def test_a_running_sweep_is_left_alone(tiny_spec, tmp_path):
    spec = tiny_spec()
    store = begin(spec, tmp_path)
    lease = Lease.acquire(store, spec.name)
    with pytest.raises(LeaseHeld):
        retry(store, spec.name)
    lease.release()
