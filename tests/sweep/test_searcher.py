"""Whose fault it is that a worker has gone, and how often a trial is handed out again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from raylt.cluster import ray_internals
from raylt.errors import DeviceLost, Fenced, Preempted, StoreFailure
from raylt.store.results import RoundResult, TrialResult
from raylt.sweep.concurrency import MAX_KILLS, SUFFICES_AFTER_S, Memory
from raylt.sweep.dispatch import Finished
from raylt.sweep.messages import LeaseLost, RoundReported, StoreUnavailable, TrialFinished, as_result
from raylt.sweep.searcher import MAX_DEATHS, MAX_LOSSES, LedgerSearcher, StopEarly, WorkerDeaths
from tests.support.results import a_result
from tests.support.trials import a_trial

TRIAL = a_trial(4, "search", "searched", 0)
LOST = RayActorError(error_msg="The actor died because its node was preempted.", preempted=True)
LEFT = RayTaskError("train", "", Preempted("left at step 7: its node is being drained"))
CRASHED = ActorDiedError()
KILLED = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
NEVER_BEGAN = RayActorError(error_msg="its setup failed", actor_init_failed=True)


@dataclass
class OneTrial:
    """A dispatcher of one trial, open until it has a result."""

    results: list[tuple[int, TrialResult]] = field(default_factory=list)

    def next_trial(self, live: set[int]) -> Any:
        return Finished() if self.results or live else TRIAL

    def finish(self, number: int, result: TrialResult) -> None:
        self.results.append((number, result))


class Tune:
    """What Tune does when an actor is gone: it gives the trial up, and asks for another one."""

    def __init__(self) -> None:
        ray_internals.patch()
        self.dispatcher, self.asked, self.reported = OneTrial(), 0, []
        self.said, self.now = [], 0.0
        memory = Memory(2, self.said.append, lambda: self.now)
        self.searcher = LedgerSearcher(self.dispatcher, lambda trial, report: self.reported.append(report), memory)
        self.deaths = WorkerDeaths(self.searcher)

    def suggest(self) -> Any:
        self.asked += 1
        return self.searcher.suggest(f"t{self.asked}")

    def lose(self, error: BaseException, asked: int | None = None) -> None:
        trial = MagicMock(trial_id=f"t{asked or self.asked}", local_path=None, is_restoring=False)
        Trial.handle_error(trial, error)  # as Tune's controller does, before it asks its callbacks
        self.searcher.on_trial_complete(trial.trial_id, error=True)
        self.deaths.on_trial_error(0, [], trial)

    def fail_call(self, error: Exception) -> None:
        """A call to the trial's actor ends in an error: by Tune's own manager of actors, with its callbacks put in."""
        manager, actor, call = MagicMock(), MagicMock(), MagicMock()
        call._tracked_actor, call._on_error = actor, None
        actor._on_error = lambda actor, exception: self.lose(exception)
        RayActorManager._actor_task_failed(manager, tracked_actor_task=call, exception=error)  # Tune's keywords


@pytest.fixture
def tune():
    return Tune()


@pytest.mark.parametrize("error", [CRASHED, NEVER_BEGAN, RayTaskError("train", "", ValueError("Tune's own"))], ids=str)
def test_a_worker_that_dies_is_tried_three_times(tune, error):
    for attempt in range(1, MAX_DEATHS + 1):
        assert tune.suggest() == {"trial": TRIAL.dump()}
        assert not tune.dispatcher.results
        tune.lose(error)
        assert len(tune.dispatcher.results) == (attempt == MAX_DEATHS)
    ((number, result),) = tune.dispatcher.results
    assert (number, result.state) == (TRIAL.id, "FAIL")
    assert result.cause.startswith("the worker died 3 times: ")
    assert tune.suggest() == Searcher.FINISHED


def test_the_cause_is_the_same_however_ray_words_a_death(monkeypatch):
    monkeypatch.setattr("raylt.cluster.ray_internals._cause_of_death", lambda actor_id: "process")
    causes = set()
    for error in [CRASHED, ActorUnavailableError("Socket closed", b"1" * 16)]:
        tune = Tune()
        for _ in range(MAX_DEATHS):
            tune.suggest()
            tune.lose(error)
        ((_, result),) = tune.dispatcher.results
        causes.add(result.cause)
    assert len(causes) == 1, causes


def test_a_gpu_that_is_lost_counts_as_a_death_whose_cause_is_always_the_same(tune):
    def lost(pid):
        return RayTaskError("train", f"traceback of pid {pid}", DeviceLost("the GPU was lost: CUDA error: unknown"), pid=pid)

    for attempt in range(MAX_DEATHS):
        assert tune.suggest() == {"trial": TRIAL.dump()}
        tune.lose(lost(1000 + attempt))
    ((_, result),) = tune.dispatcher.results
    assert result.cause == "the worker died 3 times: the GPU was lost: CUDA error: unknown"


@pytest.mark.parametrize("error", [LOST, LEFT], ids=["lost", "left"])
def test_a_lost_node_is_not_the_trials_fault_but_not_endless_either(tune, error):
    for deaths in range(MAX_DEATHS - 1):  # nor do they add up with those that are
        assert tune.suggest(), deaths
        tune.lose(CRASHED)
    for losses in range(MAX_LOSSES):
        assert not tune.dispatcher.results, losses
        assert tune.suggest() == {"trial": TRIAL.dump()}
        tune.lose(error)
    ((_, result),) = tune.dispatcher.results
    assert result.cause.startswith("its node was lost 20 times: ")


@dataclass
class ManyTrials(OneTrial):
    """Trials without end."""

    def next_trial(self, live: set[int]) -> Any:
        return a_trial(next(n for n in range(99) if n not in live), "search", "searched", 0)


def test_tunes_own_manager_passes_a_kill_of_the_memory_monitor_on(tune):
    """Unmended, Ray 2.60 raises RuntimeError('Caught unexpected exception') here, which ends the whole experiment."""
    tune.suggest()
    tune.fail_call(KILLED)
    assert tune.dispatcher.results == [] and tune.searcher.live == {}
    with pytest.raises(RuntimeError, match="unexpected"):
        RayActorManager._actor_task_failed(MagicMock(), tracked_actor_task=MagicMock(), exception=ValueError("none of Ray's"))


@pytest.mark.parametrize(
    ("error", "culprit"),
    [
        (KILLED, "memory"),
        (ray_internals.ActorGone(KILLED), "memory"),
        (ray_internals.ActorGone(NodeDiedError("the node is gone")), "node"),
        (CRASHED, "process"),
        (NEVER_BEGAN, "process"),
        (LOST, "node"),
    ],
    ids=repr,
)
def test_whose_fault_it_is(error, culprit):
    assert ray_internals.culprit(error) == culprit


def test_want_of_memory_fails_no_trial_but_ends_the_sweep_once_nothing_helps(tune):
    for kill in range(1, MAX_KILLS + 1):
        assert tune.suggest() == {"trial": TRIAL.dump()}, kill
        tune.fail_call(KILLED)
        assert (tune.dispatcher.results, len(tune.said)) == ([], kill)
        assert tune.suggest() == (Searcher.FINISHED if kill == MAX_KILLS else None)
        tune.now += 601
    assert "for want of memory" in str(tune.searcher.failure) and "resumes from here" in str(tune.searcher.failure)
    assert tune.searcher.failure.exit_code == 3
    assert StopEarly(tune.searcher).stop_all()


def test_crashes_and_kills_are_counted_apart(tune):
    for _ in range(MAX_DEATHS - 1):
        tune.suggest()
        tune.lose(CRASHED)
        tune.suggest()
        tune.lose(KILLED)
        tune.now += 601
    assert tune.dispatcher.results == []
    tune.suggest()
    tune.lose(CRASHED)
    assert tune.dispatcher.results[0][1].cause.startswith("the worker died 3 times")


def test_with_too_little_memory_for_two_one_runs_until_memory_suffices(tune):
    tune.searcher.dispatcher = tune.dispatcher = ManyTrials()
    assert tune.suggest() and tune.suggest()
    tune.lose(KILLED)
    assert "1 trial at once" in tune.said[-1]
    assert tune.suggest() is None  # one is still running
    tune.now += SUFFICES_AFTER_S / 2
    assert tune.suggest() is None
    tune.now += SUFFICES_AFTER_S / 2
    assert tune.suggest() and tune.suggest() is None
    assert "2 trials at once" in tune.said[-1]
    assert len(tune.said) == 2


def test_two_killed_at_one_time_begin_again_after_a_pause(tune):
    tune.searcher.dispatcher = tune.dispatcher = ManyTrials()
    assert tune.suggest() and tune.suggest()
    tune.lose(KILLED, 1)
    tune.lose(KILLED, 2)
    assert tune.suggest() is None
    tune.now += 15
    assert tune.suggest() and tune.suggest() is None


def test_what_ends_between_two_kills_makes_the_pauses_short_again(tune):
    for _ in range(3 * MAX_KILLS):
        tune.suggest()
        report = RoundResult(tune.asked, 0.1, 0.5, None, 0)
        tune.searcher.on_trial_result(f"t{tune.asked}", as_result(RoundReported(report)))
        tune.lose(KILLED)
        assert "in 15 s (pause 1 of" in tune.said[-1]
        tune.now += 15
    assert tune.searcher.failure is None


def test_while_a_trial_runs_tune_is_never_told_that_all_is_handed_out(tune):
    """Tune asks no more after that, and the trial could not be handed out again."""
    tune.suggest()
    assert tune.searcher.suggest("another") is None
    tune.lose(LOST)
    assert tune.searcher.suggest("another") == {"trial": TRIAL.dump()}


@pytest.mark.parametrize("kind", [StoreUnavailable, LeaseLost, TrialFinished])
def test_a_store_or_a_lease_that_is_gone_ends_the_sweep_and_is_no_trials_result(tune, monkeypatch, kind):
    """An exception would be Tune's reason to fail the trial: three times over, and it would be blamed for good."""
    tune.suggest()
    stop = StopEarly(tune.searcher)
    tune.dispatcher.stopped_by = None
    assert not stop.stop_all()
    message = kind("the disk is full")
    if kind is TrialFinished:  # the worker reached the store, the driver does not

        def refuses(number, result):
            raise StoreFailure("the disk is full")

        monkeypatch.setattr(tune.dispatcher, "finish", refuses)
        message = TrialFinished(a_result())
    tune.searcher.on_trial_complete("t1", result=as_result(message))
    assert isinstance(tune.searcher.failure, Fenced if kind is LeaseLost else StoreFailure)
    assert str(tune.searcher.failure) == "the disk is full"
    assert stop.stop_all()
    assert (tune.dispatcher.results, tune.searcher.live) == ([], {})
    assert tune.searcher.suggest("t2") == Searcher.FINISHED


def test_rounds_that_are_reported_again_are_passed_on_once(tune):

    report = RoundResult(0, 0.1, 0.5, None, 0)
    for _ in range(MAX_DEATHS):
        tune.suggest()
        tune.searcher.on_trial_result(f"t{tune.asked}", as_result(RoundReported(report)))
        tune.lose(CRASHED)
    assert tune.reported == [report]
    assert tune.dispatcher.results[0][1].rounds == (report,)
