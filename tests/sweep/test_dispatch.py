"""The dispatcher: order, adoption, and proposals that no crash and no race can change."""

from __future__ import annotations

import json

import optuna
import pytest

from raylt.report.document import results
from raylt.search.sampler import default_startup
from raylt.search.space import offsets
from raylt.search.study import StudyFile
from raylt.spec import plan
from raylt.store import Ledger, Store
from raylt.store.layout import SIMILARITY_FILE
from raylt.store.results import COMPLETE, FAIL, PRUNED
from raylt.store.sweep_state import is_complete, pareto_of
from raylt.sweep import dispatch
from raylt.sweep.dispatch import Dispatcher, Finished, Wait
from raylt.tracking.runs import group_params
from tests.support.driving import asked, drive
from tests.support.results import a_result

PROFILE = {"down": -1.0, "mid": -0.2, "up": 1.2}
CHOSEN = {
    "groups": {"g0": ["down_blocks.0", "mid_block", "up_blocks.1"], "g1": ["time_embedding", "down_blocks.1", "up_blocks.0"]},
    "profile": {"g0": -1.0, "g1": 1.0},
}


@pytest.fixture(autouse=True)
def _profile(monkeypatch):
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": PROFILE})


class Killed(Exception):
    """The driver is no more."""


@pytest.fixture
def chooses(monkeypatch):
    """In place of `measure` under `groups: auto`: it chooses, and would choose otherwise the next time, were it asked.

    `chooses(kills=True)`: the driver dies once the first choice lies in the ledger.
    """

    def make(kills=False):
        def measure(spec, ledger):
            known = ledger.read(SIMILARITY_FILE)
            if known is None:
                ledger.write(SIMILARITY_FILE, next(choices))
                if kills:
                    raise Killed
            return known or ledger.read(SIMILARITY_FILE)

        choices = iter([CHOSEN, {"groups": {"g0": ["mid_block"]}, "profile": {"g0": 0.0}}])
        monkeypatch.setattr(dispatch, "measure_similarity", measure)

    return make


def outcome(trial):
    """A result as a function of what was asked: a bowl around gamma 0.5."""
    gamma, delta = trial.proposal.params.get("gamma", 0.0), trial.proposal.params.get("delta/down", 0.0)
    loss = 0.1 + (gamma - 0.5) ** 2 + (delta + 0.2) ** 2 + 0.01 * trial.id % 0.003
    return {"state": COMPLETE, "cause": None, "loss": loss, "flops": 1000 + 100 * gamma, "broken": False, "rounds": []}


def run(spec, root, order_seed=0, crash_after=None, results=outcome):
    return drive(spec, root, results, crash_after=crash_after, order_seed=order_seed)


@pytest.mark.parametrize("sampler", ["similarity", "tpe", "random", "nsga2"])
@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_proposals_depend_neither_on_races_nor_on_crashes(tiny_spec, tmp_path, sampler, concurrency):
    spec = tiny_spec(search={"sampler": sampler, "concurrency": concurrency, "trials": 9})
    undisturbed, _ = run(spec, tmp_path / "a")
    assert is_complete(spec, undisturbed)
    for seed in range(1, 4):
        other, _ = run(spec, tmp_path / f"order{seed}", order_seed=seed)
        assert asked(other) == asked(undisturbed)
    crashes = 0
    while run(spec, tmp_path / "crashed", order_seed=crashes, crash_after=crashes % 3) is None:
        crashes += 1
        assert crashes < 60
    crashed = Ledger(Store(str(tmp_path / "crashed")), spec.name)
    assert crashes >= 3
    assert asked(crashed) == asked(undisturbed)


def test_the_order_of_kinds_and_what_waits(tiny_spec, tmp_path):
    spec = tiny_spec(search={"pilots": 2, "baselines": ["uniform", "erk", "lamp"], "concurrency": 9})
    kinds = [(item.trial.kind, item.trial.training.rule, item.trial.training.seed) for item in plan(spec)]
    pilots = [("pilot", "uniform", 0), ("pilot", "uniform", 1)]
    assert kinds == [("dense", None, 0), *pilots, *(("baseline", rule, 0) for rule in ("uniform", "erk", "lamp"))]
    ledger = Ledger(Store(str(tmp_path)), spec.name, lambda: None)
    dispatcher = Dispatcher(spec, ledger, 1, lambda trial, result: None)
    first, second = (dispatcher.next_trial(set(ledger.submitted)) for _ in range(2))
    assert (first.kind, second.training.seed) == ("dense", 1)  # the pilot that shares nothing but the rewind point may start
    assert isinstance(dispatcher.next_trial({0, 2}), Wait)
    dispatcher.finish(0, a_result(**outcome(first)))
    live = {2}
    for expected in (1, 4, 5):
        chosen = dispatcher.next_trial(live)
        assert chosen.id == expected
        live.add(chosen.id)
    assert isinstance(dispatcher.next_trial(live), Wait)  # uniform waits for its twin, the search for everything


def test_the_base_comes_first_then_the_profile_then_what_was_learnt(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 8})
    assert default_startup(spec) == 2
    ledger, _ = run(spec, tmp_path)
    search = [trial for trial in ledger.submitted.values() if trial.kind == "search"]
    assert len(search) == 8
    assert set(search[0].proposal.params.values()) == {0.0}
    assert set(search[0].proposal.offsets.values()) == {0.0}
    assert (search[1].proposal.params["gamma"], search[1].proposal.params["delta/up"]) == (0.7, 0.0)
    assert all(abs(t.proposal.params["gamma"]) <= 1.5 for t in search)
    assert len({t.proposal.params["gamma"] for t in search}) == 8


def test_tpe_alone_never_bends_along_the_profile(tiny_spec, tmp_path):
    ledger, _ = run(tiny_spec(search={"sampler": "tpe", "trials": 6}), tmp_path)
    search = [trial for trial in ledger.submitted.values() if trial.kind == "search"]
    assert {trial.proposal.params["gamma"] for trial in search} == {0.0}
    assert len({trial.proposal.params["delta/up"] for trial in search}) == 6


def test_offsets_follow_the_profile_and_the_centred_deltas(tiny_spec):
    spec = tiny_spec()
    found = offsets(spec, {"gamma": 2.0, "delta/down": 0.3, "delta/mid": 0.0, "delta/up": 0.0}, PROFILE)
    assert found["down_blocks.0"] == pytest.approx(2 * -1.0 + 0.3 - 0.1)
    assert found["mid_block"] == found["time_embedding"] == pytest.approx(2 * -0.2 - 0.1)
    assert set(found) == {"down_blocks.0", "down_blocks.1", "mid_block", "time_embedding", "up_blocks.0", "up_blocks.1"}


def test_auto_groups_are_chosen_once_and_no_kill_changes_them(tiny_spec, tmp_path, chooses):
    spec = tiny_spec(search={"groups": "auto", "trials": 6})
    chooses()
    undisturbed, _ = run(spec, tmp_path / "a")
    search = [trial for trial in undisturbed.submitted.values() if trial.kind == "search"]
    assert {frozenset(trial.proposal.params) for trial in search} == {frozenset({"gamma", "delta/g0", "delta/g1"})}
    second = {block: 0.7 * CHOSEN["profile"][group] for group, blocks in CHOSEN["groups"].items() for block in blocks}
    assert search[1].proposal.offsets == pytest.approx(second)
    assert results(spec, undisturbed)["groups"] == CHOSEN["groups"]
    assert {key: json.loads(value) for key, value in group_params(spec, undisturbed).items()} == {
        "group/g0": CHOSEN["groups"]["g0"],
        "group/g1": CHOSEN["groups"]["g1"],
    }

    chooses(kills=True)
    with pytest.raises(Killed):
        run(spec, tmp_path / "b")
    killed = Ledger(Store(str(tmp_path / "b")), spec.name)
    assert not any(trial.kind == "search" for trial in killed.submitted.values())
    crashes = 0
    while run(spec, tmp_path / "b", order_seed=crashes, crash_after=crashes % 3) is None:
        crashes += 1
    assert crashes > 1
    assert asked(Ledger(Store(str(tmp_path / "b")), spec.name)) == asked(undisturbed)


def test_more_trials_extend_a_finished_sweep_and_keep_what_was(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 3})
    before = asked(run(spec, tmp_path)[0])
    longer = tiny_spec(search={"trials": 6})
    assert longer.digest == spec.digest
    after, _ = run(longer, tmp_path)
    assert asked(after)[: len(before)] == before
    assert len(after.submitted) == len(before) + 3


def test_five_failures_of_one_cause_in_a_row_stop_the_sweep(tiny_spec, tmp_path):
    def fails(trial):
        return {**outcome(trial), "state": FAIL, "cause": "no space left"} if trial.kind == "search" else outcome(trial)

    ledger, dispatcher = run(tiny_spec(search={"trials": 20}), tmp_path, results=fails)
    assert dispatcher.stopped_by == "no space left"
    assert sum(result.state == FAIL for result in ledger.results.values()) in (5, 6)  # one more may have been live

    def differ(trial):
        return {**fails(trial), "cause": f"cause {trial.id % 2}"}

    ledger, dispatcher = run(tiny_spec(search={"trials": 20}), tmp_path / "other", results=differ)
    assert dispatcher.stopped_by is None
    assert is_complete(tiny_spec(search={"trials": 20}), ledger)


def test_the_study_is_a_projection_that_can_be_lost(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 7})

    def mixed(trial):
        state = {6: FAIL, 8: PRUNED}.get(trial.id, COMPLETE)
        return {**outcome(trial), "state": state, "cause": "x" if state == FAIL else None}

    ledger, _ = run(spec, tmp_path, results=mixed)

    def contents():
        file = StudyFile(spec, tmp_path / "study.db")
        file.sync(ledger)
        file.sync(ledger)
        file.close()
        study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{tmp_path / 'study.db'}")
        return [(t.number, t.state, t.params, t.values, t.user_attrs) for t in study.trials]

    first = contents()
    assert [state.name for _, state, *_ in first] == [
        "COMPLETE",
        "FAIL",
        "COMPLETE",
        "PRUNED",
        "COMPLETE",
        "COMPLETE",
        "COMPLETE",
    ]
    assert [attrs["raylt.trial"] for *_, attrs in first] == list(range(5, 12))
    (tmp_path / "study.db").unlink()
    assert contents() == first


@pytest.mark.parametrize("groups", [None, "auto"])
def test_a_study_told_step_by_step_equals_one_made_at_the_end(tiny_spec, tmp_path, chooses, groups):
    spec = tiny_spec(search={"trials": 4, "groups": groups})
    if groups == "auto":
        chooses()
    ledger = Ledger(Store(str(tmp_path)), spec.name, lambda: None)
    live = StudyFile(spec, tmp_path / "live.db")
    dispatcher = Dispatcher(spec, ledger, 1, lambda trial, result: live.sync(ledger))
    while not isinstance(chosen := dispatcher.next_trial(set()), Finished):
        dispatcher.finish(chosen.id, a_result(**outcome(chosen)))
    late = StudyFile(spec, tmp_path / "late.db")
    late.sync(ledger)

    def contents(path):
        study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{path}")
        return [(t.state, t.params, t.values) for t in study.trials]

    live.close()
    late.close()
    assert len(contents(tmp_path / "live.db")) == 4
    assert contents(tmp_path / "live.db") == contents(tmp_path / "late.db")


def test_broken_and_unranked_kinds_are_never_on_the_front(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 3})

    def best_are_out(trial):
        good = {**outcome(trial), "loss": 0.001 * trial.id, "flops": trial.id}
        return {**good, "broken": trial.id == 3}

    ledger, _ = run(spec, tmp_path, results=best_are_out)
    assert pareto_of(spec, ledger) == {4}


def test_what_was_proposed_to_a_trial_that_is_set_aside_is_not_proposed_again(tiny_spec, tmp_path):
    """`raylt store verify --repair` sets a trial aside whose `asked.json` is damaged (simulation, seed 593)."""
    spec = tiny_spec(search={"sampler": "random", "trials": 4})
    run(spec, tmp_path)
    trials = tmp_path / "sweeps" / spec.name / "trials"
    search = [number for number, trial in run(spec, tmp_path)[0].submitted.items() if trial.is_search]
    (trials / f"{search[1]:05d}").rename(trials / f"{search[1]:05d}.damaged")
    ledger, _ = run(spec, tmp_path)
    params = [json.dumps(trial.proposal.params, sort_keys=True) for trial in ledger.submitted.values() if trial.is_search]
    assert len(params) == len(set(params)) == 4
