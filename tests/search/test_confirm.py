"""`raylt confirm`, without Ray: what is planned, that it is paired, that no crash or second request changes or repeats it."""

from __future__ import annotations

import json

import pytest

from raylt.report.document import results
from raylt.search.confirm import FIRST_SEED, Request, finalists
from raylt.spec import plan
from raylt.store import Ledger, Store
from raylt.store.results import COMPLETE, FAIL
from raylt.store.sweep_state import is_complete, pareto_of
from raylt.sweep import dispatch
from raylt.sweep.retry import retry
from tests.support.begun import write_start
from tests.support.driving import asked, drive

REQUEST = Request(top=2, seeds=2)
CONFIRM = {"steps": [12, 6], "controls": ["reinit", "small-dense"], "control_rounds": [1, 2]}


@pytest.fixture(autouse=True)
def _profile(monkeypatch):
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": {"down": -1.0, "mid": 0.0, "up": 1.0}})


def outcome(trial):
    """Loss falls with the id, FLOPs rise: every ranked trial is on the front. No two tickets are equal."""
    shown = {"loss": 1 / (1 + trial.id), "flops": trial.id, "ticket": f"mask of {trial.id}"}
    return {"state": COMPLETE, "cause": None, **shown, "broken": False, "rounds": [], "timing": None, "steps": None}


def run(spec, root, request=None, crash_after=None, order_seed=0, results=outcome):
    """The ledger of a sweep driven to its end; None where the driver dies first."""
    ended = drive(spec, root, results, request=request, crash_after=crash_after, order_seed=order_seed)
    return ended and ended[0]


def confirming(ledger):
    return [trial for _, trial in sorted(ledger.submitted.items()) if trial.is_confirmation]


def test_what_is_trained_anew(tiny_spec, tmp_path):
    spec = tiny_spec(confirm=CONFIRM)
    ledger = run(spec, tmp_path, REQUEST)
    trials, chosen = confirming(ledger), finalists(spec, ledger, 2)
    assert chosen == sorted(pareto_of(spec, ledger), reverse=True)[:2]  # the lowest losses
    assert all(ledger.submitted[number].is_search for number in chosen)
    assert {trial.protocol for trial in trials} == {"final"}
    assert {(t.training.seed, t.training.start_seed) for t in trials} == {(FIRST_SEED + i, FIRST_SEED + i) for i in range(2)}
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        for steps in (12, 6):
            own = [t for t in trials if (t.training.seed, t.training.steps) == (seed, steps)]
            kinds = [(t.kind, t.confirms, t.training.control) for t in own]
            baselines = [p.trial.id for p in plan(spec) if p.trial.kind == "baseline"]
            assert kinds == [
                ("dense", 0, None),
                *(("baseline", number, None) for number in baselines),
                *(("search", number, None) for number in chosen),
                *(("control", number, "reinit") for number in chosen),
                *(("control", number, "small-dense") for number in chosen),
            ]
            for t in own[1:]:
                before = ledger.submitted[t.confirms]
                assert (t.training.rule, t.proposal) == (before.training.rule, before.proposal)
            assert [t.training.control_rounds for t in own] == [[1, 2] if t.training.control else [] for t in own]
    assert is_complete(spec, ledger)


@pytest.mark.parametrize("crash_after", [0, 7, 9, 12, 20, 40])
def test_neither_crashes_nor_races_change_it(tiny_spec, tmp_path, crash_after):
    spec = tiny_spec(confirm=CONFIRM, search={"concurrency": 3})
    undisturbed = run(spec, tmp_path / "a", REQUEST)
    assert run(spec, tmp_path / "b", REQUEST, crash_after, order_seed=1) is None
    began = (tmp_path / "b" / "sweeps" / spec.name / "confirm.json").exists()
    resumed = run(spec, tmp_path / "b", None if began else REQUEST, order_seed=2)  # `raylt sweep` goes on with it, too
    assert asked(resumed) == asked(undisturbed)


def test_tickets_wait_for_their_dense_model_and_controls_for_their_ticket(tiny_spec, tmp_path):
    spec = tiny_spec(confirm=CONFIRM, search={"concurrency": 4})
    order = []

    def note(trial):
        order.append(trial)
        return outcome(trial)

    run(spec, tmp_path, REQUEST, results=note)
    for place, trial in enumerate(order):
        if trial.is_confirmation and trial.kind != "dense":
            wanted = ("dense", 0, None) if trial.training.control is None else (None, trial.confirms, None)
            before = [
                t
                for t in order[:place]
                if (t.training.seed, t.training.steps) == (trial.training.seed, trial.training.steps)
                and t.confirms == wanted[1]
            ]
            assert any(t.training.control is None and wanted[0] in (None, t.kind) for t in before)


def test_more_seeds_extend_it_and_the_same_request_adds_nothing(tiny_spec, tmp_path):
    spec = tiny_spec(confirm=CONFIRM)
    first = asked(run(spec, tmp_path, REQUEST))
    assert asked(run(spec, tmp_path, REQUEST)) == first
    more = asked(run(spec, tmp_path, Request(top=2, seeds=3)))
    assert more[: len(first)] == first
    assert {trial["seed"] for trial in more[len(first) :]} == {FIRST_SEED + 2}
    fewer = asked(run(spec, tmp_path, Request(top=1, seeds=1)))
    assert fewer == more


def test_a_longer_search_goes_on_beside_a_confirmation(tiny_spec, tmp_path):
    """More search trials get ids that nobody has, planned ones included, and a driver that dies leaves both whole."""
    spec = tiny_spec(confirm=CONFIRM)
    assert run(spec, tmp_path, REQUEST, crash_after=12) is None  # the confirmation is planned, and has begun
    longer = tiny_spec(confirm=CONFIRM, search={"trials": 5})
    ledger = run(longer, tmp_path)
    assert sum(trial.is_search for trial in ledger.submitted.values()) == 5
    assert len(confirming(ledger)) == len(ledger.confirmations())
    assert is_complete(longer, ledger)


def test_final_numbers_never_rank(tiny_spec, tmp_path):
    spec = tiny_spec(confirm=CONFIRM)
    ledger = run(spec, tmp_path, REQUEST)
    front = pareto_of(spec, ledger)
    assert front and not any(ledger.submitted[number].is_confirmation for number in front)
    document = json.loads(json.dumps(results(spec, ledger)))
    assert {t["protocol"] for t in document["trials"] if t["pareto"]} == {"search"}
    assert document["state"] == "complete"


def test_equal_tickets_are_one_finalist(tiny_spec, tmp_path):
    """The first search trial is the base itself: where that is a baseline, one of them is enough."""
    spec = tiny_spec(confirm=CONFIRM)

    def same(trial):
        return {**outcome(trial), "ticket": "one mask", "loss": 0.1, "flops": 1}

    ledger = run(spec, tmp_path, REQUEST, results=same)
    assert len(finalists(spec, ledger, 5)) == 1
    assert ledger.submitted[finalists(spec, ledger, 5)[0]].kind == "baseline"


def test_a_failed_one_is_asked_again_beside_what_is_planned(tiny_spec, tmp_path):
    spec = tiny_spec(confirm=CONFIRM)

    def one_fails(trial):
        return {**outcome(trial), "state": FAIL, "cause": "x"} if trial.id == 12 else outcome(trial)

    store = Store(str(tmp_path))
    write_start(Ledger(store, spec.name, lambda: None), spec)
    ledger = run(spec, tmp_path, REQUEST, results=one_fails)
    assert retry(store, spec.name).again == {12: 1 + max(ledger.submitted)}


def test_a_plan_that_is_lost_asks_nothing_twice(tiny_spec, tmp_path):
    """`raylt store verify --repair` deletes a damaged plan (simulation, seed 381)."""
    spec = tiny_spec(confirm=CONFIRM)
    before = asked(run(spec, tmp_path, REQUEST))
    Store(str(tmp_path)).delete(f"sweeps/{spec.name}/confirm.json")
    ledger = run(spec, tmp_path, REQUEST)
    assert asked(ledger) == before
    assert {item.trial.id for item in ledger.confirmations()} == {trial.id for trial in confirming(ledger)}
