"""One trial from its spec to its result: find_ticket(), then score() after every round. Knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import ImageSet
from raylt.diffusion.flops import count_flops
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import layers_of
from raylt.errors import Diverged, RayltError, cause_of
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.ceilings import violations
from raylt.spec.trials import SEARCHED
from raylt.store import Manifest, Output, Stage, Store
from raylt.store.layout import START, TICKET
from raylt.store.results import COMPLETE, FAIL, PRUNED, RoundResult, State, StepCounts, TicketSummary, Timing, TrialResult
from raylt.ticket.allocation import Allocation
from raylt.ticket.controls import control_round
from raylt.ticket.find import Progress, Round, TicketRunner
from raylt.ticket.ticket_file import Ticket, block_counts
from raylt.ticket.ticket_search import TicketSearch
from raylt.trial.inputs import Inputs
from raylt.trial.score import Scorer


@dataclass
class TrialContext:
    """What trials of one sweep share in one process: images on hand, features, reference statistics."""

    spec: SweepSpec
    compute: Compute
    inputs: Inputs
    scorers: dict[str, Scorer] = field(default_factory=dict)

    @staticmethod
    def open(spec: SweepSpec, compute: Compute, inputs: Inputs) -> TrialContext:
        compute.use()  # whatever this machine has: as the sweep was started
        return TrialContext(spec, compute, inputs)

    @property
    def images(self) -> ImageSet:
        return self.inputs.images

    def scorer(self, protocol: Any) -> Scorer:
        if protocol not in self.scorers:
            self.scorers[protocol] = Scorer(self.spec, self.compute, self.images, protocol, self.inputs.inception)
        return self.scorers[protocol]


def search_of(context: TrialContext, trial: TrialSpec) -> TicketSearch:
    """The ticket search that a trial asks for; of a control, that of its ticket."""
    spec = context.spec
    if trial.training.rule is None:
        allocation = None
    elif trial.training.rule == SEARCHED:
        allocation = Allocation(SEARCHED, spec.search.base, trial.proposal.offsets)
    else:
        allocation = Allocation(trial.training.rule)
    return TicketSearch(spec, context.compute, allocation, trial.training.seed, trial.training.start_seed, trial.training.steps)


class TrialRun:
    """A trial at work: iterate over its rounds, then take its `result`. Stages in the store are used, never made again."""

    def __init__(self, trial: TrialSpec, context: TrialContext, store: Store, progress: Progress | None = None) -> None:
        self.trial, self.context, self.store = trial, context, store
        self.runner = TicketRunner(search_of(context, trial), context.images, store, progress)
        self.rounds: list[RoundResult] = []
        self.ticket: TicketSummary | None = None  # of the last scored round
        self._began = time.monotonic()
        self._manifests: dict[str, Manifest] = {}
        self._steps: dict[str, tuple[int, str]] = {}  # training stage -> steps, who trained them

    def __iter__(self) -> Iterator[RoundResult]:
        """Train and score round after round."""
        for trained in self._rounds():
            self.context.compute.release_memory()  # training and scoring want different pieces of it
            report = self._score(trained)
            self.context.compute.release_memory()
            yield report
            if self.is_finished:
                return

    @property
    def is_finished(self) -> bool:
        """Whether the last scored round was the trial's last: of all, or the rung that it did not pass."""
        return bool(self.rounds) and (self.rounds[-1].round == self.last_round or self._stopped_by is not None)

    @property
    def _stopped_by(self) -> str | None:
        """Why the trial ends at the last scored round, if it does."""
        scored = self.rounds[-1]
        threshold = self.trial.proposal.thresholds.get(str(scored.round))
        if threshold is None:
            return None
        is_poor = scored.broken or scored.loss is None or scored.loss > threshold
        loss = "no loss" if scored.loss is None else f"loss {scored.loss:.6g}{' (broken)' if scored.broken else ''}"
        return f"stopped at round {scored.round}: {loss}, above {threshold:.6g}, the median there" if is_poor else None

    @property
    def last_round(self) -> int:
        return (
            max(self.trial.training.control_rounds)
            if self.trial.training.control is not None
            else self.runner.search.num_rounds - 1
        )

    def _rounds(self) -> Iterator[Round]:
        """The search's rounds; of a control, the dense round and then the control of each of its rounds."""
        for ticket in self.runner.rounds():
            self._count_round(ticket)
            if self.trial.training.control is None or ticket.index == 0:
                yield ticket
            elif ticket.index in self.trial.training.control_rounds:
                control = control_round(self.runner, ticket, self.trial.training.control)
                self._count_round(control)
                yield control
            if ticket.index == self.last_round:
                return

    def _count_round(self, trained: Round) -> None:
        self._count(trained.start, trained.start.read_manifest())
        self._count(trained.stage, trained.manifest)
        if trained.mask_stage is not None:
            self._count(trained.mask_stage, trained.mask_stage.read_manifest())

    def _count(self, stage: Stage, manifest: Manifest) -> None:
        self._manifests[stage.digest] = manifest
        if "steps" in manifest.values:
            self._steps[stage.digest] = (manifest.values["steps"], manifest.owner)

    def _score(self, trained: Round) -> RoundResult:
        scores = self.context.scorer(self.trial.protocol).score(trained, self.store)
        ticket = self._ticket_stage(trained)
        for stage in (scores.loss_stage, scores.sample_stage, ticket):
            self._count(stage, stage.read_manifest())
        stages = (trained.stage, scores.loss_stage, scores.sample_stage, ticket)
        report = RoundResult(
            trained.index,
            trained.mask.density,
            _finite(scores.loss),
            _finite(scores.fid),
            time_ms=max(stage.read_manifest().time_ms for stage in stages),  # of its metric points in every replay
            kid=_finite(scores.kid),
            kid_sd=_finite(scores.kid_sd),
            broken=scores.broken,
            flops=count_flops(trained.unet_config).of(trained.mask.counts),
            ticket_bytes=ticket.read_manifest().values["bytes"],
            shared=trained.manifest.owner != self.store.owner,
        )
        self.rounds.append(report)
        self.ticket = self._summary(trained, report, scores.sample_stage, ticket)
        return report

    def _summary(self, trained: Round, report: RoundResult, sample: Stage, ticket: Stage) -> TicketSummary:
        spec, mask = self.context.spec, trained.mask
        flops, dense = count_flops(trained.unet_config).of(mask.counts), count_flops(spec.unet_config).dense
        return TicketSummary(
            mask.digest,
            blocks={k: list(v) for k, v in block_counts(mask, layers_of(trained.unet_config), spec.blocks).items()},
            layers={layer: list(counts) for layer, counts in mask.counts.items()},
            flops_dense=dense,
            start_stage=trained.start.digest,
            final_stage=trained.stage.digest,
            sample_stage=sample.digest,
            ticket_stage=ticket.digest,
            violations=violations(spec.search.constraints, flops / dense, ticket.read_manifest().values["bytes"]),
            unet_config=dict(trained.unet_config) if trained.unet_config != spec.unet_config else None,
        )

    def _ticket_stage(self, trained: Round) -> Stage:
        """The ticket's file, of the last round and of the dense model; of rounds between the size of that file alone."""
        has_file = trained.index in (0, self.last_round)  # of the dense model it is one for all trials of a start

        def compute(stage: Stage) -> Output:
            state = TrainState.from_bytes(trained.start.read(START))
            data = Ticket(trained.unet_config, trained.mask, state).to_bytes()
            return Output({"bytes": len(data)}, {TICKET: data} if has_file else {})

        of = {"start": trained.start.digest, "mask": trained.mask.digest}
        stage = self.store.stage({"kind": "ticket", **of})
        if TICKET not in stage.make(compute).files and has_file:  # it was a round before the last of a longer search
            stage = self.store.stage({"kind": "ticket-file", **of})
            stage.make(compute)
        return stage

    @property
    def result(self) -> TrialResult:
        """What the ledger keeps of a trial that ran to its end; of one stopped at a rung, its rounds and why.

        The numbers of a rung are of another density, and so no result of the trial.
        """
        if self._stopped_by is not None:
            return self._result(PRUNED, self._stopped_by)
        complete = self._result(COMPLETE, None)
        values = {name: complete.objective(name) for name in self.context.spec.search.objectives}
        if None in values.values():
            return self.failed(RayltError(f"an objective is not finite: {values}"))
        return complete

    def failed(self, error: BaseException) -> TrialResult:
        """What the ledger keeps of a trial that an error ended: the cause, and the rounds before it."""
        return self._result(FAIL, cause_of(error), _diverged(error))

    def _result(self, state: State, cause: str | None, diverged: str | None = None) -> TrialResult:
        trained = sum(steps for steps, owner in self._steps.values() if owner == self.store.owner)
        return TrialResult(
            state,
            cause,
            tuple(self.rounds),
            max((manifest.time_ms for manifest in self._manifests.values()), default=int(time.time() * 1000)),
            self.ticket if state == COMPLETE else None,
            {stage: manifest.digest for stage, manifest in self._manifests.items()},
            StepCounts(sum(steps for steps, _ in self._steps.values()), trained),
            Timing(round(time.monotonic() - self._began, 3), self._stage_seconds()),
            diverged,
        )

    def _stage_seconds(self) -> float:
        seconds = (m.duration_s for m in self._manifests.values() if m.owner == self.store.owner)
        return round(sum(seconds), 3)


def failure(error: BaseException) -> TrialResult:
    """The result of a trial that failed before it had any numbers."""
    return TrialResult(FAIL, cause_of(error), (), int(time.time() * 1000), diverged=_diverged(error))


def _diverged(error: BaseException) -> str | None:
    """The stage that did: what `raylt retry` forgets."""
    return error.stage if isinstance(error, Diverged) else None


def _finite(value: float | None) -> float | None:
    """None for what JSON and a comparison cannot take: NaN and the infinities."""
    return value if value is not None and math.isfinite(value) else None
