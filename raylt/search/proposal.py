"""Proposals of search trials: drawn on a study in memory, so nothing is written and nothing can be torn by a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylt.search.sampler import ATTEMPTS, Lineage, fixed_proposal, make_sampler
from raylt.search.space import at_base, distributions
from raylt.spec import SweepSpec, TrialSpec
from raylt.store.results import COMPLETE, FAIL, PRUNED, RUNNING, TrialResult

History = Sequence[tuple[TrialSpec, TrialResult]]
FixedProposal = Callable[[SweepSpec, int], Mapping[str, float] | None]
_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAIL: TrialState.FAIL, RUNNING: TrialState.RUNNING}


class Proposer:
    """Proposes for one sweep. What it keeps from one proposal to the next saves time and changes none."""

    def __init__(self, spec: SweepSpec, startup: int, fixed: FixedProposal = fixed_proposal) -> None:
        """`startup`: the sampler's, as the sweep was started with it. `fixed`: what is proposed without asking it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec, self.startup, self.fixed = spec, startup, fixed
        self._space = distributions(spec)
        self._reset()

    def _reset(self) -> None:
        self._study = optuna.create_study(directions=[StudyDirection.MINIMIZE] * len(self.spec.search.objectives))
        self._known: list[tuple[TrialSpec, TrialResult]] = []  # what the study holds
        self._lineage = Lineage()

    def propose(
        self, number: int, history: History, violation: Callable[[Mapping[str, float]], float] = lambda params: 0.0
    ) -> tuple[dict[str, float], dict[str, object]]:
        """Parameters of search trial `number` (from 0), and the sampler's notes, from the ended trials of `history`.

        A function of spec, startup, number and history alone. `violation`: by how much parameters are known to break a ceiling;
        where that is above 0 they are drawn again, `ATTEMPTS` times in all. Then the last stand, to be learnt from.
        """
        self._extend(history)
        for attempt in range(ATTEMPTS):
            params, attrs, over = self._draw(number, attempt, violation)
            if over <= 0:
                break
        if attempt > 0:
            self._reset()  # what was drawn in vain is nothing that another driver would know
        return params, attrs

    def _draw(
        self, number: int, attempt: int, violation: Callable[[Mapping[str, float]], float]
    ) -> tuple[dict[str, float], dict[str, object], float]:
        self._study.sampler = make_sampler(self.spec, number, self.startup, attempt, self._lineage)
        fixed = self.fixed(self.spec, number) if attempt == 0 else None
        if fixed is not None:
            self._study.enqueue_trial({name: fixed[name] for name in self._space})
        asked = self._study.ask(fixed_distributions=self._space)
        _ = asked.relative_params  # drawn also where all are fixed: NSGA-II then notes the generation
        proposed = self._study.get_trials(deepcopy=False)[-1]
        params, attrs = {**at_base(self.spec), **proposed.params}, dict(proposed.system_attrs)
        over = violation(params)
        if over > 0:
            asked.set_constraint("flops", over)
        # It stays in the study. Samplers learn nothing of one that failed; TPE does of a pruned one that is infeasible.
        self._study.tell(asked, state=TrialState.PRUNED if over > 0 else TrialState.FAIL)
        return params, attrs, over

    def _extend(self, history: History) -> None:
        """Bring the study to `history`. Where that does not go on from what it holds (an older trial ended), begin anew."""
        if list(history[: len(self._known)]) != self._known:
            self._reset()
        new = history[len(self._known) :]
        if new:
            self._study.add_trials([frozen(self.spec, self._space, trial, result) for trial, result in new])
            self._lineage.add(self._study.get_trials(deepcopy=False)[-len(new) :])  # with the numbers they have there
        self._known += new


def frozen(spec: SweepSpec, space: dict[str, BaseDistribution], trial: TrialSpec, result: TrialResult | None) -> FrozenTrial:
    """A search trial, running or ended, as Optuna keeps it. `space`: `distributions(spec)`."""
    ticket = None if result is None else result.ticket
    values = None if result is None or ticket is None else _values(spec, result)
    # Optuna's samplers look at these of a PRUNED trial, and cannot where there are several objectives.
    rounds = () if result is None else result.rounds
    rungs = {scored.round: float(scored.loss) for scored in rounds if scored.loss is not None}
    return create_trial(
        state=_STATES[RUNNING if result is None else result.state],
        values=values,
        params={name: trial.proposal.params[name] for name in space},
        distributions=space,
        system_attrs=dict(trial.proposal.sampler_attrs),
        user_attrs={
            "raylt.trial": trial.id,
            "params": dict(trial.proposal.params),
            "rungs": {str(r): loss for r, loss in rungs.items()},
        },
        intermediate_values=rungs if len(spec.search.objectives) == 1 else None,
        constraints=None if ticket is None else dict(ticket.violations),
    )


def _values(spec: SweepSpec, result: TrialResult) -> list[float]:
    values = [result.objective(name) for name in spec.search.objectives]
    return [float(value) for value in values if value is not None]  # all: a trial that lacks one has failed
