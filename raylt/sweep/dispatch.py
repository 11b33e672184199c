"""Who runs next, and what becomes of who ended: the sweep's one decision loop, free of Ray.

`next_trial` hands out trials, each committed to the ledger before it may start; `ended` commits results. Both are
functions of the ledger, so a driver that starts over goes on where the last one stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from raylt.search.confirm import Request, confirm
from raylt.search.cost_model import CostModel
from raylt.search.groups import with_chosen_groups
from raylt.search.median_stopping import thresholds
from raylt.search.profile import measure_similarity
from raylt.search.proposal import Proposer
from raylt.search.space import offsets
from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.spec.trials import SEARCHED, Planned, Proposal, TrainingRequest
from raylt.store import Ledger
from raylt.store.results import FAIL, Measured, TrialResult
from raylt.store.sweep_state import next_free_id

log = logging.getLogger("raylt.search")

MAX_EQUAL_FAILURES = 5  # in a row: then the environment is at fault, not the trials


@dataclass
class Finished:
    """Nothing is left to hand out."""


@dataclass
class Wait:
    """Nothing can start until a running trial ends."""


@dataclass
class Dispatcher:
    """Hands out the trials of one sweep. `startup`: the sampler's, as the sweep was started with it.

    `confirm`: what to confirm once the search has ended, on top of what was asked for before.
    """

    spec: SweepSpec
    ledger: Ledger
    startup: int
    on_change: Callable[[TrialSpec, TrialResult | None], None]  # a trial was submitted, or has finished
    confirm: Request | None = None
    stopped_by: str | None = None  # the cause of too many equal failures
    _causes: list[str] = field(default_factory=list)
    _warned: bool = False  # of the ceiling
    _planned: list[Planned] = field(init=False)
    _confirming: list[Planned] | None = None
    _proposer: Proposer | None = None  # made for the first proposal: before, the groups may not have been chosen
    _cost_model: CostModel = field(init=False)

    def __post_init__(self) -> None:
        self._planned = plan(self.spec)
        self._cost_model = CostModel(self.spec, self.ledger)

    def next_trial(self, live: Collection[int]) -> TrialSpec | Wait | Finished:
        """The next trial to start, given those that run right now."""
        if self.stopped_by is not None:
            return Finished()
        for trial in self.ledger.open_trials():
            if trial.id not in live:
                return trial  # submitted by a driver that died: adopt it under its number
        planned = self._next_of(self._planned)
        if planned is not None:
            return self._submit(planned)
        search = self._next_search()
        return self._next_confirmation() if isinstance(search, Finished) else search

    def _next_of(self, planned: list[Planned]) -> TrialSpec | None:
        """The first planned trial that has not been submitted and need not wait."""
        ready = (p.trial for p in planned if p.trial.id not in self.ledger.submitted and self._have_finished(p.after))
        return next(ready, None)

    def _next_confirmation(self) -> TrialSpec | Wait | Finished:
        if self._confirming is None:
            if self.ledger.open_trials():
                return Wait()  # who is to be confirmed is decided by all
            planned = self.ledger.confirmations()
            self._confirming = planned if self.confirm is None else confirm(self.spec, self.ledger, self.confirm)
        trial = self._next_of(self._confirming)
        if trial is not None:
            return self._submit(trial)
        return Finished() if all(p.trial.id in self.ledger.submitted for p in self._confirming) else Wait()

    def _next_search(self) -> TrialSpec | Wait | Finished:
        first = len(self._planned)
        number = self.ledger.num_searched
        if not self._have_finished(range(first)):
            return Wait()
        # Also for a sweep that searches nothing: its pilots were trained for this.
        measured = measure_similarity(self.spec, self.ledger)
        if number >= self.spec.search.trials:
            return Finished()
        trial_id = next_free_id(self.spec, self.ledger)
        seen = trial_id - self.spec.search.concurrency if self.spec.search.repeatable else trial_id
        if self.spec.search.repeatable and any(trial.id <= seen for trial in self.ledger.open_trials()):
            return Wait()
        # What was proposed to a trial that is damaged and set aside is not proposed to another.
        lost = {n for n in self.ledger.set_aside if n >= first and n not in self.ledger.submitted and n != trial_id}
        return self._submit(self._propose(trial_id, number + len(lost), seen, measured))

    def _propose(self, trial_id: int, number: int, seen: int, measured: Measured) -> TrialSpec:
        """A proposal that knows the search trials up to id `seen` that have ended: neither crashes nor races change it."""
        results = self.ledger.results
        history = [
            (trial, results[n])
            for n, trial in sorted(self.ledger.submitted.items())
            if trial.is_search and n <= seen and n in results
        ]
        if self._proposer is None:
            self._proposer = Proposer(with_chosen_groups(self.spec, measured), self.startup)
        spec, profile = self._proposer.spec, measured["profile"]
        params, attrs = self._proposer.propose(
            number, history, lambda drawn: self._cost_model.violation(offsets(spec, drawn, profile))
        )
        bend = offsets(spec, params, profile)
        self._warn_of_ceiling(self._cost_model.violation(bend))
        ended = [result for _, result in [*self.ledger.complete("baseline"), *history]]
        limits = thresholds(spec, ended, lambda rung: self._cost_model.flops(bend, rung))
        training = TrainingRequest(SEARCHED, spec.train.seed)
        return TrialSpec(trial_id, "search", training, proposal=Proposal(params, bend, attrs, limits))

    def _warn_of_ceiling(self, over: float) -> None:
        """Say, once, that no draw keeps the ceiling: the sampler learns from what is trained, and it is not ranked."""
        ceiling = self.spec.search.constraints.flops
        if over > 0 and ceiling is not None and not self._warned:
            self._warned = True
            log.warning(
                "no proposal found that keeps search.constraints.flops (%g): one of %.4g is trained, to learn from, and is not "
                "ranked; a higher ceiling, a smaller density or another base leaves room",
                ceiling, ceiling * (1 + over),
            )  # fmt: skip

    def _submit(self, trial: TrialSpec) -> TrialSpec:
        self.ledger.submit(trial)
        self.on_change(trial, None)
        return trial

    def _have_finished(self, ids: Iterable[int]) -> bool:
        return all(number in self.ledger.results for number in ids)

    def finish(self, number: int, result: TrialResult) -> None:
        """Commit how a trial ended."""
        self.ledger.finish(number, result)
        self._causes = [*self._causes, str(result.cause)] if result.state == FAIL else []
        last = self._causes[-MAX_EQUAL_FAILURES:]
        if len(last) == MAX_EQUAL_FAILURES and len(set(last)) == 1:
            self.stopped_by = last[0]
        self.on_change(self.ledger.submitted[number], result)
