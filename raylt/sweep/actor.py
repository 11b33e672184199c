"""The Tune trainable: one trial on one actor, a round a step. The actor is reused for the next trial."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from raylt.cluster import ray_internals
from raylt.diffusion import preemption
from raylt.diffusion.compute import Compute
from raylt.diffusion.device import is_lost
from raylt.errors import DeviceLost, Fenced, Preempted, StoreFailure
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.canonical import JsonObject
from raylt.spec.sections import TrackingSpec
from raylt.store import Store
from raylt.store.lease import guard_for
from raylt.store.results import RoundResult
from raylt.store.trial_log import TrialLog
from raylt.sweep.messages import LeaseLost, RoundReported, StoreUnavailable, TrialFinished, as_result
from raylt.trial import inputs
from raylt.trial.inputs import InputDigests
from raylt.trial.run import TrialContext, TrialRun, failure


@dataclass(frozen=True)
class WorkerConfig:
    """What all trials of a sweep share, for their workers."""

    spec: SweepSpec
    compute: Compute
    inputs: InputDigests
    root: str  # the store's
    name: str  # the sweep's in that store
    epoch: int  # and token: of the driver's lease
    token: str

    def dump(self) -> JsonObject:
        """As Tune's config takes it."""
        return {**self.__dict__, "spec": self.spec.dump(), "compute": self.compute.key(), "inputs": asdict(self.inputs)}

    @staticmethod
    def load(config: JsonObject) -> WorkerConfig:
        """What `dump` made."""
        spec, compute, inputs = config["spec"], config["compute"], config["inputs"]
        return WorkerConfig(
            SweepSpec.model_validate(spec), Compute(**compute), InputDigests(**inputs), config["root"], config["name"],
            config["epoch"], config["token"],
        )  # fmt: skip


def for_workers(spec: SweepSpec) -> SweepSpec:
    """The spec without what workers never see: MLflow, and the data set, which reaches them by the store."""
    data = spec.data.model_copy(update={"root": None})
    return spec.model_copy(update={"data": data, "tracking": TrackingSpec()})


class TrialActor(tune.Trainable):
    """Runs the `trial` of its config, with the rest of it as `WorkerConfig.dump` gives it.

    Every step says how it ended. An error of the trial is its result, also when the trial raised: an error of the trial is its
    result and is not tried again. Only a trial whose process has gone is: killed, asked to leave (`Preempted`), or without its
    GPU (`DeviceLost`).
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._context: TrialContext | None = None
        self._context_of: tuple[str, Compute] | None = None
        preemption.watch(ray_internals.drain_notice)
        preemption.on_terminate()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        self._run: TrialRun | None = None
        self._log: TrialLog | None = None
        self._rounds: Iterator[RoundResult] | None = None
        return True

    def step(self) -> dict[str, Any]:
        if self._log is None:  # not before: Tune also sets actors up that it then gives another trial
            self._log = TrialLog(Store(self._config["root"]), self._config["name"], self._config["trial"]["id"])
        log = self._log
        try:
            run, rounds = self._start(log)
            report = next(rounds)
            log.scored(report)
            return as_result(TrialFinished(run.result, report) if run.is_finished else RoundReported(report))
        except Fenced as error:
            log.say(str(error))
            return as_result(LeaseLost(str(error)))
        except Preempted as error:
            log.say(str(error))
            raise  # Tune then drops this actor, which it would keep for the next trial if we returned
        except StoreFailure as error:  # the trial stays open: it goes on once the store is there again
            log.say(str(error))
            return as_result(StoreUnavailable(str(error)))
        except Exception as error:
            log.failed(error)
            if is_lost(error):  # by all that this process would still be given, so it goes, as a preempted one does
                raise DeviceLost(f"the GPU was lost: {str(error).splitlines()[0]}") from error
            return as_result(TrialFinished(failure(error) if self._run is None else self._run.failed(error)))

    def _start(self, log: TrialLog) -> tuple[TrialRun, Iterator[RoundResult]]:
        """The running trial and its rounds, started at the first step."""
        if self._run is None or self._rounds is None:
            shared, trial = WorkerConfig.load(self._config), TrialSpec.load(self._config["trial"])
            guard = guard_for(Store(shared.root), shared.name, shared.epoch, shared.token)
            store = Store(shared.root, owner=f"{shared.name}/{trial.id}", guard=guard)
            self._run = TrialRun(trial, self._context_for(shared, store), store, log.trained)
            self._rounds = iter(self._run)
        return self._run, self._rounds

    def _context_for(self, shared: WorkerConfig, store: Store) -> TrialContext:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # diffusers must never look anything up
        if self._context is None or self._context_of != (shared.spec.digest, shared.compute):
            self._context = TrialContext.open(shared.spec, shared.compute, inputs.get(shared.inputs, store))
            self._context_of = (shared.spec.digest, shared.compute)
        return self._context

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: what is worth keeping is in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial that starts over finds its stages in the store."""
