"""Proposals of search trials: drawn on a study in memory, so nothing is written and nothing can be torn by a kill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylt.ledger import COMPLETE, FAIL, PRUNED, RUNNING, Result
from raylt.plan import TrialSpec
from raylt.search.sampler import fixed_proposal, make_sampler, remembers
from raylt.search.space import at_base, distributions
from raylt.spec import SweepSpec

History = Sequence[tuple[TrialSpec, Result]]
_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAIL: TrialState.FAIL, RUNNING: TrialState.RUNNING}


class Proposer:
    """Proposes for one sweep. What it keeps from one proposal to the next saves time and changes none."""

    def __init__(self, spec: SweepSpec, startup: int) -> None:
        """`startup`: the sampler's, as the sweep began with it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec, self.startup = spec, startup
        self._space = distributions(spec)
        self._begin()

    def _begin(self) -> None:
        self._study = optuna.create_study(directions=[StudyDirection.MINIMIZE] * len(self.spec.search.objectives))
        self._known: list[tuple[TrialSpec, Result]] = []  # what the study holds

    def propose(self, number: int, history: History) -> tuple[dict[str, float], dict[str, Any]]:
        """Parameters of search trial `number` (from 0), and the sampler's notes, from the ended trials of `history`.

        A function of spec, startup, number and history alone.
        """
        self._extend(history)
        self._study.sampler = make_sampler(self.spec, number, self.startup)
        fixed = fixed_proposal(self.spec, number)
        if fixed is not None:
            self._study.enqueue_trial({name: fixed[name] for name in self._space})
        asked = self._study.ask(fixed_distributions=self._space)
        _ = asked.relative_params  # drawn also where all are fixed: NSGA-II then notes the generation
        proposed = self._study.get_trials(deepcopy=False)[-1]
        # It stays in the study, as one that failed: samplers learn from trials with values.
        self._study.tell(asked, state=TrialState.FAIL)
        return {**at_base(self.spec), **proposed.params}, dict(proposed.system_attrs)

    def _extend(self, history: History) -> None:
        """Bring the study to `history`. Where that does not go on from what it holds (an older trial ended), begin anew."""
        if remembers(self.spec) or list(history[: len(self._known)]) != self._known:
            self._begin()
        new = history[len(self._known) :]
        self._study.add_trials([frozen(self.spec, self._space, trial, result) for trial, result in new])
        self._known += new


def frozen(spec: SweepSpec, space: dict[str, Any], trial: TrialSpec, result: Result | None) -> FrozenTrial:
    """A search trial, running or ended, as Optuna keeps it. `space`: `distributions(spec)`."""
    state = _STATES[RUNNING if result is None else result["state"]]
    values = [float(result[o]) for o in spec.search.objectives] if result is not None and state == TrialState.COMPLETE else None
    # Optuna's samplers look at these of a PRUNED trial, and cannot where there are several objectives.
    rungs = {r["round"]: float(r["loss"]) for r in (result or {}).get("rounds", []) if r["loss"] is not None}
    return create_trial(
        state=state,
        values=values,
        params={name: trial.params[name] for name in space},
        distributions=space,
        system_attrs=dict(trial.sampler_attrs),
        user_attrs={
            "raylt.trial": trial.id,
            "params": dict(trial.params),
            "rungs": {str(r): loss for r, loss in rungs.items()},
        },
        intermediate_values=rungs if len(spec.search.objectives) == 1 else None,
    )
