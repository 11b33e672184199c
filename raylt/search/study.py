"""The Optuna study as a projection of the ledger, and the proposals drawn from it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raylt.ledger import COMPLETE, FAIL, PRUNED, RUNNING, Ledger, Result
from raylt.plan import TrialSpec
from raylt.search.sampler import fixed_proposal, make_sampler
from raylt.search.space import at_base, distributions
from raylt.spec import SweepSpec

_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAIL: TrialState.FAIL, RUNNING: TrialState.RUNNING}


def propose(
    spec: SweepSpec, startup: int, number: int, history: Sequence[tuple[TrialSpec, Result]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Parameters of search trial `number` (from 0), and the sampler's notes, from the ended trials of `history`.

    Drawn on a study in memory: nothing is written, so nothing can be torn by a kill.
    """
    fixed = fixed_proposal(spec, number)
    if fixed is not None:
        return fixed, {}
    study = _in_memory(spec, make_sampler(spec, number, startup))
    study.add_trials([_frozen(spec, trial, result) for trial, result in history])
    study.ask(fixed_distributions=distributions(spec))
    proposed = study.get_trials(deepcopy=False)[-1]
    return {**at_base(spec), **proposed.params}, dict(proposed.system_attrs)


def _in_memory(spec: SweepSpec, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=[StudyDirection.MINIMIZE] * len(spec.search.objectives), sampler=sampler)


def _frozen(spec: SweepSpec, trial: TrialSpec, result: Result | None) -> FrozenTrial:
    space = distributions(spec)
    state = _STATES[RUNNING if result is None else result["state"]]
    values = [float(result[o]) for o in spec.search.objectives] if result is not None and state == TrialState.COMPLETE else None
    return create_trial(
        state=state,
        values=values,
        params={name: trial.params[name] for name in space},
        distributions=space,
        system_attrs=dict(trial.sampler_attrs),
        user_attrs={"raylt.trial": trial.id, "params": dict(trial.params)},
    )


class StudyFile:
    """`study.db`: the search trials as Optuna and its dashboard see them, brought up to date from the ledger.

    It is never read back for a decision: deleted, it is made again. Number i of the study is the i-th search trial.
    """

    def __init__(self, spec: SweepSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        path.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = RDBStorage(f"sqlite:///{path}")
        directions = [StudyDirection.MINIMIZE] * len(spec.search.objectives)
        self._study = optuna.create_study(
            study_name=spec.name,
            storage=self._storage,
            directions=directions,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_metric_names(list(spec.search.objectives))

    def sync(self, ledger: Ledger) -> None:
        """Add the search trials it lacks, and tell those that have ended."""
        known = self._study.get_trials(deepcopy=False)
        trials = [trial for _, trial in sorted(ledger.asked.items()) if trial.kind == "search"]
        for number, trial in enumerate(trials):
            result = ledger.results.get(trial.id)
            if number >= len(known):
                self._study.add_trial(_frozen(self.spec, trial, result))
            elif result is not None and known[number].state == TrialState.RUNNING:
                frozen = _frozen(self.spec, trial, result)
                values = frozen.values if frozen.state == TrialState.COMPLETE else None
                self._study.tell(number, values, state=frozen.state)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._storage.remove_session()
            self._storage.engine.dispose()
