"""Ray Tune's view of the dispatcher: a Searcher that hands trials out, and a callback that sees workers die."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raylt.errors import EnvironmentFailure, Fenced, cause_of
from raylt.ledger import Result
from raylt.plan import TrialSpec
from raylt.search.dispatch import Dispatcher, Finished, Wait
from raylt.trial import MESSAGE, failure

OnRound = Callable[[TrialSpec, dict[str, Any]], None]


class _Unsaved:
    """Tune pickles what it is given into its scratch folder, to restore itself from. We never restore it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearcher(_Unsaved, Searcher):
    """Adapter: Tune's trial ids <-> ours. Holds no state worth saving, so a driver that dies loses none."""

    def __init__(self, dispatcher: Dispatcher, on_round: OnRound) -> None:
        super().__init__(metric=None, mode=None)  # with a metric, one result that lacks it would abort the sweep
        self.dispatcher, self.on_round = dispatcher, on_round
        self.live: dict[str, TrialSpec] = {}
        self.rounds: dict[str, dict[int, dict[str, Any]]] = {}  # Tune's trial id -> round -> its report

    def suggest(self, trial_id: str) -> Any:  # Tune calls it by this very keyword
        chosen = self.dispatcher.next_trial({trial.id for trial in self.live.values()})
        if isinstance(chosen, Finished):
            return Searcher.FINISHED
        if isinstance(chosen, Wait):
            return None
        self.live[trial_id] = chosen
        return {"trial": chosen.dump()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._report(trial_id, json.loads(result[MESSAGE]).get("report"))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error or result is None:
            return  # a dead worker: `WorkerDeaths` knows the cause
        message = json.loads(result[MESSAGE])
        if "fenced" in message:
            raise Fenced(message["fenced"])
        if message.get("result") is None:
            return  # Tune was told to stop: the trial stays open, for the next driver
        self._report(trial_id, message.get("report"))
        self.end(trial_id, message["result"])

    def _report(self, trial_id: str, report: dict[str, Any] | None) -> None:
        """Pass on a round, once: a trial whose worker died reports its first rounds again."""
        known = self.rounds.setdefault(trial_id, {})
        if report is not None and report["round"] not in known:
            known[report["round"]] = report
            self.on_round(self.live[trial_id], report)

    def end(self, trial_id: str, result: Result) -> None:
        trial = self.live.pop(trial_id)
        self.rounds.pop(trial_id, None)
        self.dispatcher.ended(trial.id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


class WorkerDeaths(_Unsaved, tune.Callback):
    """Ends a trial whose worker died too often as FAIL, with the cause."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        self.searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self.searcher.live:
            error = trial.get_pickled_error() or trial.get_error()
            attempts = trial.run_metadata.num_failures
            why = "unknown" if error is None else cause_of(error).split(" class_name:")[0].split(" actor_id:")[0]
            result = failure(EnvironmentFailure(f"the worker died {attempts} times: {why}"))
            rounds = self.searcher.rounds.get(trial.trial_id, {})
            self.searcher.end(trial.trial_id, {**result, "rounds": [rounds[index] for index in sorted(rounds)]})


class StopAfterEqualFailures(_Unsaved, tune.Stopper):
    """Stops the experiment once the dispatcher has seen one cause too often."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.dispatcher.stopped_by is not None
