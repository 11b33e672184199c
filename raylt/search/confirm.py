"""What `raylt confirm` plans: the finalists and baselines of an ended search on fresh seeds, with controls, paired by seed.

The plan is written to the ledger whole, before any of its trials is asked: whoever drives the sweep goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.spec.trials import Planned, TrainingRequest
from raylt.store import Ledger
from raylt.store.sweep_state import next_free_id, pareto_of

FIRST_SEED = 1000  # above train.seed: no pilot gets there


@dataclass(frozen=True)
class Request:
    """How many finalists, and on how many fresh seeds."""

    top: int
    seeds: int


def confirm(spec: SweepSpec, ledger: Ledger, request: Request) -> list[Planned]:
    """Plan what the request asks for and the ledger does not have planned yet; returns the whole plan.

    Call it when the search has ended: finalists are those of its Pareto front.
    """
    planned = ledger.confirmations()
    extended = extend(spec, ledger, planned, request)
    if len(extended) > len(planned):
        ledger.plan_confirmation(extended)
    return extended


def extend(spec: SweepSpec, ledger: Ledger, planned: list[Planned], request: Request) -> list[Planned]:
    """`planned`, and after it what the request adds."""
    extended, ids = list(planned), {_what(item.trial): item.trial.id for item in planned}
    asked = {_what(t): number for number, t in ledger.submitted.items() if t.is_confirmation and t.retry_of is None}
    free = next_free_id(spec, ledger)
    for trial, after in _wanted(spec, ledger, request):
        if _what(trial) not in ids:
            number = asked.get(_what(trial), free)  # asked by a plan that was lost: it keeps its number
            ids[_what(trial)] = number
            extended.append(Planned(replace(trial, id=number), [ids[_what(other)] for other in after]))
            free += number == free
    return extended


def _what(trial: TrialSpec) -> tuple[Any, ...]:
    """What a confirming trial is, whatever its number."""
    training = trial.training
    return trial.confirms, training.control, training.steps, training.seed, tuple(training.control_rounds)


def finalists(spec: SweepSpec, ledger: Ledger, top: int) -> list[int]:
    """The `top` trials of the Pareto front that are best in the first objective; of those with one ticket, the first."""
    first, results = spec.search.objectives[0], ledger.results
    ranked = sorted(pareto_of(spec, ledger), key=lambda number: (results[number].objective(first), number))
    return list({results[number].kept_ticket().digest: number for number in reversed(ranked)}.values())[::-1][:top]


def _wanted(spec: SweepSpec, ledger: Ledger, request: Request) -> Iterator[tuple[TrialSpec, list[TrialSpec]]]:
    """(trial without a number, those it waits for): seed after seed, so that an interrupted one leaves whole pairs."""
    chosen = finalists(spec, ledger, request.top)
    planned = [item.trial for item in plan(spec)]
    dense_id = planned[0].id
    baselines = [trial.id for trial in planned if trial.kind == "baseline"]
    rounds = spec.confirm.control_rounds or [spec.ticket.rounds]
    for index in range(request.seeds):
        for steps in spec.confirm.steps or [spec.train.steps]:
            seed = spec.train.seed + FIRST_SEED + index
            dense = TrialSpec(-1, "dense", TrainingRequest(None, seed, seed, steps), "final", confirms=dense_id)
            yield dense, []
            tickets = {number: _anew(ledger.submitted[number], seed, steps) for number in dict.fromkeys([*baselines, *chosen])}
            for ticket in tickets.values():
                yield ticket, [dense]
            for control in spec.confirm.controls:
                for number in chosen:
                    ticket = tickets[number]
                    training = replace(ticket.training, control=control, control_rounds=list(rounds))
                    yield replace(ticket, kind="control", training=training), [ticket]


def _anew(trial: TrialSpec, seed: int, steps: int) -> TrialSpec:
    """A trial's allocation trained on a fresh seed, to its end and under the final protocol."""
    training = replace(trial.training, seed=seed, start_seed=seed, steps=steps)
    proposal = replace(trial.proposal, thresholds={})
    return replace(trial, id=-1, training=training, protocol="final", proposal=proposal, confirms=trial.id, retry_of=None)
