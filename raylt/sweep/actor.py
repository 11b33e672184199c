"""The Tune trainable: one trial on one actor, a round a step. The actor is reused for the next trial."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from ray import tune

from raylt.cluster import nodes
from raylt.diffusion import preemption
from raylt.diffusion.device import is_lost
from raylt.diffusion.train import Compute
from raylt.errors import DeviceLost, Fenced, Preempted, StoreFailure
from raylt.spec import SweepSpec, TrialSpec
from raylt.store import Store
from raylt.store.lease import guard_for
from raylt.store.trial_log import TrialLog
from raylt.trial import inputs
from raylt.trial.inputs import Inputs
from raylt.trial.run import MESSAGE, Bench, TrialRun, failure


def _message(**content: Any) -> dict[str, Any]:
    """What a step tells the driver. As text, because Tune flattens nested results."""
    ended = content.get("result") is not None or "fenced" in content or "no_store" in content
    return {MESSAGE: json.dumps(content, allow_nan=False), "done": ended}


class TrialActor(tune.Trainable):
    """Runs what its config says: `spec`, `compute`, `inputs`, `root`, `name`, `epoch`, `token` of the sweep, and the `trial`.

    Every step reports a round; the last one reports `result`, also when the trial raised: an error of the trial is its
    result and is not tried again. Only a trial whose process has gone is: killed, asked to leave (`Preempted`), or without its
    GPU (`DeviceLost`).
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._bench: Bench | None = None
        self._bench_of: tuple[str, Compute] | None = None
        preemption.watch(nodes.drain_notice)
        preemption.on_terminate()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        self._run: TrialRun | None = None
        self._log: TrialLog | None = None
        self._rounds: Iterator[dict[str, Any]] | None = None
        return True

    def step(self) -> dict[str, Any]:
        if self._log is None:  # not before: Tune also sets actors up that it then gives another trial
            self._log = TrialLog(Store(self._config["root"]), self._config["name"], self._config["trial"]["id"])
        log = self._log
        try:
            run, rounds = self._begin(log)
            report = next(rounds)
            log.scored(report)
            return _message(report=report, result=run.result if run.has_ended else None)
        except Fenced as error:
            log.say(str(error))
            return _message(fenced=str(error))
        except Preempted as error:
            log.say(str(error))
            raise  # Tune then drops this actor, which it would keep for the next trial if we returned
        except StoreFailure as error:  # the trial stays open: it goes on once the store is there again
            log.say(str(error))
            return _message(no_store=str(error))
        except Exception as error:
            log.failed(error)
            if is_lost(error):  # by all that this process would still be given, so it goes, as a preempted one does
                raise DeviceLost(f"the GPU was lost: {str(error).splitlines()[0]}") from error
            return _message(result=failure(error) if self._run is None else self._run.failed(error))

    def _begin(self, log: TrialLog) -> tuple[TrialRun, Iterator[dict[str, Any]]]:
        """The running trial and its rounds, begun at the first step."""
        if self._run is None or self._rounds is None:
            config = self._config
            spec, trial = SweepSpec.model_validate(config["spec"]), TrialSpec(**config["trial"])
            guard = guard_for(Store(config["root"]), config["name"], config["epoch"], config["token"])
            store = Store(config["root"], owner=f"{config['name']}/{trial.id}", guard=guard)
            self._run = TrialRun(trial, self._bench_for(spec, Compute(**config["compute"]), store), store, log.trained)
            self._rounds = iter(self._run)
        return self._run, self._rounds

    def _bench_for(self, spec: SweepSpec, compute: Compute, store: Store) -> Bench:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # diffusers must never look anything up
        if self._bench is None or self._bench_of != (spec.digest, compute):
            self._bench, self._bench_of = Bench.open(spec, compute, self._inputs(store)), (spec.digest, compute)
        return self._bench

    def _inputs(self, store: Store) -> Inputs:
        return inputs.get(inputs.Address(**self._config["inputs"]), store)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what is worth keeping is in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial that starts over finds its stages in the store."""
