"""Which trainings of a sweep need not be made again: those of trials that have ended, and what else is whole in its store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from raylt.diffusion.compute import Compute
from raylt.errors import Diverged, InputError
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.trials import SEARCHED
from raylt.store import Ledger
from raylt.store.read_only import NotComplete, ReadOnlyStore
from raylt.sweep.trainings import Training, trainings_of
from raylt.ticket.find import find_ticket
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, search_of


@dataclass
class CompletedTrainings:
    trained: set[Training] = field(default_factory=set)
    scored: set[tuple[str, Training]] = field(default_factory=set)  # under a protocol

    def add(self, trial: TrialSpec, training: Training, *, is_scored: bool) -> None:
        self.trained.add(training)
        if is_scored and training.is_scored:
            self.scored.add((trial.protocol, training))


def completed_trainings(
    spec: SweepSpec, ledger: Ledger, inputs: Inputs, compute: Compute, trials: Iterable[TrialSpec]
) -> CompletedTrainings:
    """What ended trials have, and what is there for `trials`, whoever made it. `compute`: as the sweep's keys have it."""
    made = CompletedTrainings()
    for number, result in ledger.results.items():
        trial, last = ledger.submitted[number], max((scored.round for scored in result.rounds), default=-1)
        for training in trainings_of(spec, trial):  # of a trial that failed or was stopped: its reported rounds
            if (training.round or 0) <= last:
                made.add(trial, training, is_scored=True)
    context, store = TrialContext(spec, compute, inputs), ReadOnlyStore(ledger.store.root)
    for trial in trials:
        if trial.training.rule != SEARCHED or trial.proposal.params:
            _look(spec, trial, context, store, made)
    return made


def _look(spec: SweepSpec, trial: TrialSpec, context: TrialContext, store: ReadOnlyStore, made: CompletedTrainings) -> None:
    """As far as the search's trainings are whole; the last may have to be scored yet. A control's own count as not made."""
    rounds: list[int | None] = []
    try:
        for ticket in find_ticket(search_of(context, trial), context.images, store):
            rounds += [ticket.index] if rounds else [None, ticket.index]
    except (NotComplete, Diverged, InputError):
        pass
    by_round = {training.round: training for training in trainings_of(spec, trial) if not _is_controls(trial, training)}
    for index, after in pairwise([*rounds, None]):
        made.add(trial, by_round[index], is_scored=after is not None)


def _is_controls(trial: TrialSpec, training: Training) -> bool:
    return trial.training.control is not None and training.is_scored and bool(training.round)
