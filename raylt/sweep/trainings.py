"""Which trainings trials ask for, and which of those are one and the same: known before any of them has started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.trials import SEARCHED, Proposal, TrainingRequest
from raylt.ticket.controls import FROM_SCRATCH


@dataclass(frozen=True)
class Training:
    """A training stage by what its key will hold. Equal ones are trained once, whichever trials ask for them."""

    budget: int  # the step at which the schedule ends
    start_seed: int  # of the initialisation
    seed: int  # of order, noise and timesteps
    allocation: str  # what its mask is cut by
    round: int | None  # None: the training up to the rewind point
    steps: int
    # By the trial that asks: a control trains its ticket's rounds unscored.
    is_scored: bool = field(default=True, compare=False)


def trainings_of(spec: SweepSpec, trial: TrialSpec) -> Iterator[Training]:
    """Those of a trial that runs to its end, in their order."""
    asked = trial.training
    budget, rewind_step = asked.steps or spec.train.steps, spec.ticket.rewind_step
    start_seed = spec.train.seed if asked.start_seed is None else asked.start_seed
    origin, steps = (budget, start_seed, asked.seed), budget - rewind_step
    allocation, is_control = _allocation_of(spec, trial), asked.control is not None
    yield Training(budget, start_seed, start_seed, "dense", None, rewind_step, False)
    yield Training(*origin, "dense", 0, steps)
    last = 0 if asked.rule is None else max(asked.control_rounds) if is_control else spec.ticket.rounds
    for index in range(1, last + 1):
        rule = "uniform" if spec.ticket.is_shared(index) else allocation
        yield Training(*origin, rule, index, steps, not is_control)
        if is_control and index in asked.control_rounds:
            yield Training(*origin, f"{asked.control} of {rule}", index, budget if asked.control in FROM_SCRATCH else steps)


def _allocation_of(spec: SweepSpec, trial: TrialSpec) -> str:
    """A name for the rule and all that bends it; a proposal that nobody has made yet is like no other."""
    if trial.training.rule != SEARCHED:
        return str(trial.training.rule)
    if not trial.proposal.params:
        return f"proposal {trial.id}"
    if not any(trial.proposal.params.values()) and spec.search.base != "lamp":  # LAMP as a base is static, as a rule it is not
        return spec.search.base
    return repr(sorted(trial.proposal.params.items()))


def proposals(spec: SweepSpec, first_id: int, num_asked: int = 0) -> list[TrialSpec]:
    """The search trials that are still to be asked, as far as they are known: the very first is the base itself."""
    numbers, training = range(num_asked, spec.search.trials), TrainingRequest(SEARCHED, spec.train.seed)
    return [
        TrialSpec(first_id + i, "search", training, proposal=Proposal({} if number else {"gamma": 0.0}))
        for i, number in enumerate(numbers)
    ]
