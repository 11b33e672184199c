"""Ray Tune's view of the dispatcher: a Searcher that hands trials out, and a callback that sees workers die.

Tune tries nothing again. A trial whose worker has gone stays open in the ledger, so the dispatcher hands it out anew,
as a new trial of Tune's on an actor of its own: the path on which a new driver adopts the trials of a dead one.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.search import Searcher

from raylt.cluster import ray_internals
from raylt.errors import EnvironmentFailure, Fenced, StoreFailure, cause_of
from raylt.spec import TrialSpec
from raylt.store.results import RoundResult, TrialResult
from raylt.sweep.concurrency import Memory
from raylt.sweep.dispatch import Dispatcher, Finished, Wait
from raylt.sweep.messages import LeaseLost, Message, RoundReported, StoreUnavailable, TrialFinished, message_of
from raylt.trial.run import failure

OnRound = Callable[[TrialSpec, RoundResult], None]

MAX_DEATHS = 3  # of a trial's worker process; a trial that kills its worker does it each time
MAX_LOSSES = 20  # of a trial's node or place on it: no fault of the trial, but no cluster either


class _Unsaved:
    """Tune pickles what it is given into its scratch folder, to restore itself from. We never restore it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearcher(_Unsaved, Searcher):
    """Adapter: Tune's trial ids <-> ours. Holds no state worth saving, so a driver that dies loses none."""

    def __init__(self, dispatcher: Dispatcher, on_round: OnRound, memory: Memory) -> None:
        super().__init__(metric=None, mode=None)  # with a metric, one result that lacks it would abort the sweep
        self.dispatcher, self.on_round, self.memory = dispatcher, on_round, memory
        self.live: dict[str, TrialSpec] = {}
        self.failure: EnvironmentFailure | None = None  # what ends the sweep: raised here, Tune would blame the trial for it
        self.rounds: dict[int, dict[int, RoundResult]] = {}  # trial -> round -> its report

    def suggest(self, trial_id: str) -> Any:  # Tune calls it by this very keyword
        if self.failure is not None:
            return Searcher.FINISHED
        if not self.memory.admits(len(self.live)):
            return None
        chosen = self.dispatcher.next_trial({trial.id for trial in self.live.values()})
        if isinstance(chosen, Finished) and not self.live:
            return Searcher.FINISHED
        if isinstance(chosen, (Finished, Wait)):  # while trials run, one may have to be handed out again
            return None
        self.live[trial_id] = chosen
        return {"trial": chosen.dump()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        message = message_of(result)
        if isinstance(message, RoundReported):
            self._report(trial_id, message.report)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error or result is None:
            return  # a dead worker: `WorkerDeaths` knows the cause
        try:
            self._completed(trial_id, message_of(result))
        except (Fenced, StoreFailure) as failure:
            self.failure = self.failure or failure
            self.live.pop(trial_id, None)  # the trial stays open, for the next driver

    def _completed(self, trial_id: str, message: Message) -> None:
        if isinstance(message, LeaseLost):
            raise Fenced(message.why)
        if isinstance(message, StoreUnavailable):
            raise StoreFailure(message.why)
        if isinstance(message, TrialFinished):  # else Tune was told to stop: the trial stays open, for the next driver
            if message.report is not None:
                self._report(trial_id, message.report)
            self.finish(trial_id, message.result)

    def _report(self, trial_id: str, report: RoundResult) -> None:
        """Pass on a round, once: a trial whose worker died reports its first rounds again."""
        trial = self.live[trial_id]
        rounds = self.rounds.setdefault(trial.id, {})
        if report.round not in rounds:
            rounds[report.round] = report
            self.memory.progressed()
            self.on_round(trial, report)

    def finish(self, trial_id: str, result: TrialResult) -> None:
        trial = self.live.pop(trial_id)
        self.rounds.pop(trial.id, None)
        self.memory.progressed()
        self.dispatcher.finish(trial.id, result)

    def hand_back(self, trial_id: str) -> None:
        """The trial did not end and runs nowhere now: it is handed out again."""
        del self.live[trial_id]

    def starved(self, trial_id: str) -> None:
        """The trial's worker was killed because its node lacks memory: the trial is handed out again, the sweep takes less."""
        trial = self.live.pop(trial_id)
        self.memory.killed(trial.name, len(self.live))
        if self.memory.is_hopeless:
            self.failure = self.failure or EnvironmentFailure(
                f"stopped: Ray ended {self.memory.kills} workers in a row for want of memory, one trial at a time; free some, "
                "or make train.batch_size or the U-Net smaller. Nothing is lost: the same command resumes from here"
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


class WorkerDeaths(_Unsaved, tune.Callback):
    """Hands the trial of a worker that has gone out again; ends one that went too often as FAIL, with the cause.

    Only deaths of the worker process itself are held against a trial. A node that died, was drained or is out of reach
    took its trials with it, whatever they were; one that lacks memory is given less to do.
    """

    def __init__(self, searcher: LedgerSearcher) -> None:
        self.searcher = searcher
        self.deaths: collections.Counter[int] = collections.Counter()  # trial -> of its worker
        self.losses: collections.Counter[int] = collections.Counter()  # trial -> of its node

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.searcher.live:
            return
        number, error = self.searcher.live[trial.trial_id].id, ray_internals.take_error(trial.trial_id)
        culprit = ray_internals.culprit(error)
        if culprit == "memory":
            self.searcher.starved(trial.trial_id)
            return
        counter, bound, what = (
            (self.losses, MAX_LOSSES, "its node was lost")
            if culprit == "node"
            else (self.deaths, MAX_DEATHS, "the worker died")
        )
        counter[number] += 1
        if counter[number] < bound:
            self.searcher.hand_back(trial.trial_id)
            return
        result = failure(EnvironmentFailure(f"{what} {bound} times: {_why(error)}"))
        rounds = self.searcher.rounds.get(number, {})
        self.searcher.finish(trial.trial_id, replace(result, rounds=tuple(rounds[index] for index in sorted(rounds))))


def _why(error: BaseException | None) -> str:
    """The cause as results keep it: the same for the same death. Ray words one in several ways, with ids in them."""
    if error is None:
        return "unknown"
    if isinstance(error, RayActorError) and not error.actor_init_failed:
        return "its process ended unexpectedly (killed, out of memory, or a crash in native code)"
    if isinstance(error, RayTaskError):  # its own text has process ids
        error = error.cause
    return cause_of(error).split(" class_name:")[0].split(" actor_id:")[0]


class StopEarly(_Unsaved, tune.Stopper):
    """Stops the experiment once the dispatcher has seen one cause too often, or the store or the lease is gone."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.searcher.failure is not None or self.searcher.dispatcher.stopped_by is not None
