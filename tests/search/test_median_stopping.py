"""Rungs: what stops a trial between two rounds, that nothing but the ledger decides it, and what is kept of it."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.report.document import trial_record
from raylt.search.median_stopping import MIN_SEEN, thresholds
from raylt.search.study import StudyFile
from raylt.spec.checks import cross_key_problems
from raylt.store import Ledger, Store
from raylt.store.index import Results
from raylt.store.results import COMPLETE, FAIL, PRUNED
from raylt.store.sweep_state import is_complete, pareto_of
from raylt.sweep import dispatch
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from tests.support.driving import asked, drive
from tests.support.results import a_result
from tests.support.trials import a_trial

TICKET = {"rounds": 4, "shared_rounds": 1}  # rungs: rounds 2 and 3


def ended(losses, *, state=COMPLETE, broken=(), flops=10):
    """A result whose round r has loss `losses[r]`."""
    rounds = [{"round": r, "loss": loss, "broken": r in broken, "flops": flops} for r, loss in enumerate(losses)]
    return {"state": state, "cause": None, "rounds": rounds}


def limits(spec, results, flops=10):
    return thresholds(spec, [a_result(**result) for result in results], lambda rung: flops)


def test_the_threshold_is_the_median_of_those_that_were_at_the_rung(tiny_spec):
    spec = tiny_spec(ticket=TICKET, search={"rungs": True})
    whole = [ended([0.9, 0.8, loss, loss / 2, 0.3]) for loss in (0.5, 0.1, 0.4, 0.2)]
    assert limits(spec, whole[:3]) == {}  # too few
    assert limits(spec, whole) == {"2": 0.4, "3": 0.2}
    stopped = [ended([0.9, 0.8, loss], state=PRUNED) for loss in (0.6, 0.7)]
    assert limits(spec, [*whole, *stopped]) == {"2": 0.5, "3": 0.2}
    assert limits(spec, [*whole, ended([0.9, 0.8, 0.01], state=FAIL)]) == limits(spec, whole)
    assert limits(tiny_spec(ticket=TICKET), whole) == {}


def test_a_broken_ticket_is_as_bad_as_can_be(tiny_spec):
    spec = tiny_spec(ticket=TICKET, search={"rungs": True})
    dead = [ended([0.9, 0.8, 0.01, 0.01], broken={2, 3}), ended([0.9, 0.8, None, None])]
    alive = [ended([0.9, 0.8, loss, loss]) for loss in (0.1, 0.2, 0.3)]
    assert limits(spec, [*alive, *dead]) == {"2": 0.3, "3": 0.3}
    assert limits(spec, [*alive[:2], *dead]) == {}  # half of them are dead: nothing to reach


def test_where_flops_count_too_a_trial_is_held_against_those_that_cost_no_more(tiny_spec):
    dear = [ended([0.9, 0.8, loss, loss], flops=20) for loss in (0.1, 0.2, 0.3, 0.4)]
    cheap = [ended([0.9, 0.8, loss, loss], flops=5) for loss in (0.5, 0.6, 0.7, 0.8)]
    both = tiny_spec(ticket=TICKET, search={"rungs": True, "objectives": ["loss", "flops"]})
    assert limits(both, dear, flops=10) == {}  # nobody that cost no more
    assert limits(both, [*dear, *cheap], flops=10) == {"2": 0.7, "3": 0.7}
    assert limits(both, [*dear, *cheap], flops=20) == {"2": 0.5, "3": 0.5}
    alone = tiny_spec(ticket=TICKET, search={"rungs": True, "objectives": ["loss"]})
    assert limits(alone, dear, flops=10) == {"2": 0.3, "3": 0.3}


@given(st.lists(st.floats(0.01, 1), min_size=MIN_SEEN, max_size=40))
def test_at_least_half_of_those_seen_would_pass(losses):
    from raylt.spec import SweepSpec
    from tests.conftest import TINY, merged

    spec = SweepSpec.model_validate(merged(TINY, {"ticket": TICKET, "search": {"rungs": True}}))
    [threshold, _] = limits(spec, [ended([1, 1, loss, loss]) for loss in losses]).values()
    assert sum(loss <= threshold for loss in losses) >= len(losses) / 2
    assert sum(loss < threshold for loss in losses) <= len(losses) / 2


@pytest.mark.parametrize(("rounds", "shared", "is_right"), [(2, 0, True), (2, 1, False), (1, 0, False), (3, 1, True)])
def test_rungs_need_a_round_to_stop_at(tiny_spec, rounds, shared, is_right):
    spec = tiny_spec(ticket={"rounds": rounds, "shared_rounds": shared}, search={"rungs": True})
    assert [problem.key for problem in cross_key_problems(spec)] == ([] if is_right else ["search.rungs"])


# --- in the dispatcher ------------------------------------------------------------------------------------------------


@pytest.fixture
def _profile(monkeypatch):
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": {"down": -1.0, "mid": 0.0, "up": 1.0}})


def outcome(trial):
    """What an actor would say: the rounds of a bowl around gamma 0.5, up to the rung that is not passed."""
    loss = (
        0.1 + (trial.proposal.params.get("gamma", 0.0) - 0.5) ** 2 + (trial.proposal.params.get("delta/down", 0.0) + 0.2) ** 2
    )
    losses = [0.05, 0.06, loss, 1.1 * loss, 1.2 * loss]
    for rung, threshold in trial.proposal.thresholds.items():
        if losses[int(rung)] > threshold:
            return {**ended(losses[: int(rung) + 1], state=PRUNED), "cause": "stopped"}
    return {**ended(losses), "loss": losses[-1], "flops": 1000, "broken": False, "time_ms": trial.id, "timing": None}


@pytest.mark.usefixtures("_profile")
@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_who_is_stopped_depends_neither_on_races_nor_on_crashes(tiny_spec, tmp_path, concurrency):
    spec = tiny_spec(ticket=TICKET, search={"rungs": True, "concurrency": concurrency, "trials": 14, "objectives": ["loss"]})
    undisturbed, _ = drive(spec, tmp_path / "a", outcome)
    states = {number: result.state for number, result in undisturbed.results.items()}
    assert 3 <= list(states.values()).count(PRUNED) <= 11
    assert is_complete(spec, undisturbed)
    assert not pareto_of(spec, undisturbed) & {number for number, state in states.items() if state == PRUNED}
    crashes = 0
    while drive(spec, tmp_path / "b", outcome, order_seed=crashes, crash_after=crashes % 3) is None:
        crashes += 1
        assert crashes < 60
    crashed = Ledger(Store(str(tmp_path / "b")), spec.name)
    assert asked(crashed) == asked(undisturbed)
    assert {number: result.state for number, result in crashed.results.items()} == states


@pytest.mark.usefixtures("_profile")
@pytest.mark.parametrize("objectives", [["loss"], ["loss", "flops"]])
def test_optuna_is_told_with_the_rungs_values(tiny_spec, tmp_path, objectives):
    spec = tiny_spec(ticket=TICKET, search={"rungs": True, "concurrency": 1, "trials": 9, "objectives": objectives})
    ledger, _ = drive(spec, tmp_path, outcome)
    live, late = (StudyFile(spec, tmp_path / f"{name}.db") for name in ("live", "late"))
    running = Ledger(Store(str(tmp_path)), spec.name)
    running.results, ends = Results(), running.results
    live.sync(running)
    for number in ends:
        running.results[number] = ends[number]
        running.changes.append(number)
    for file, followed in ((live, running), (late, ledger)):
        file.sync(followed)
        file.close()
    found = [optuna.load_study(study_name=spec.name, storage=f"sqlite:///{tmp_path / name}.db") for name in ("live", "late")]
    told, others = ([(t.state, t.values, t.intermediate_values, t.user_attrs) for t in study.trials] for study in found)
    assert told == others
    searched = [ledger.results[number] for number, trial in sorted(ledger.submitted.items()) if trial.is_search]
    assert [state.name for state, *_ in told] == [result.state for result in searched]
    assert PRUNED in {result.state for result in searched}
    for (_, _, values, attrs), result in zip(told, searched, strict=True):
        expected = {scored.round: scored.loss for scored in result.rounds}
        assert values == (expected if objectives == ["loss"] else {})
        assert attrs["rungs"] == {str(rung): loss for rung, loss in expected.items()}


# --- in a trial that trains -------------------------------------------------------------------------------------------


def test_a_trial_ends_at_the_rung_it_does_not_pass_and_keeps_its_rounds(tiny_spec, warm_root):
    train = {"steps": 120, "batch_size": 16}  # enough that no ticket is broken
    spec = tiny_spec(train=train, ticket={"rounds": 3, "shared_rounds": 1}, search={"rungs": True})
    bench = TrialContext.open(spec, Compute(), Inputs(load_images(spec.data)))

    def ran(number, threshold):
        trial = a_trial(number, "search", "searched", 0, thresholds={"2": threshold})
        run = TrialRun(trial, bench, Store(str(warm_root), owner=str(number)))
        return [report.round for report in run], run.result

    _, whole = ran(1, 1e9)
    assert (whole.state, len(whole.rounds)) == (COMPLETE, 4)
    loss = whole.rounds[2].loss
    assert ran(2, loss)[1].state == COMPLETE  # no worse than the threshold
    reported, stopped = ran(3, loss * 0.999)
    assert reported == [0, 1, 2]
    assert stopped.state == PRUNED
    assert stopped.cause == f"stopped at round 2: loss {loss:.6g}, above {loss * 0.999:.6g}, the median there"
    shown = trial_record(a_trial(3, "search", "searched", 0), stopped)
    numbers = ("loss", "fid", "density", "flops", "broken", "ticket")
    assert [shown[name] for name in numbers] == [None] * len(numbers)  # those of a rung are none
    assert shown["rounds"][2]["loss"] == loss
    assert [scored.loss for scored in stopped.rounds] == [scored.loss for scored in whole.rounds[:3]]
    assert stopped.steps.asked == whole.steps.asked - (120 - spec.ticket.rewind_step)  # one training less
