"""Which stock Optuna sampler proposes, seeded for one proposal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from raylt.diffusion.rng import Draw, seed_of
from raylt.search.space import GAMMA, at_base
from raylt.spec import SweepSpec

FIRST_GAMMA = 0.7  # second proposal of sampler `similarity`: half a range along the profile; the others choose the sign
ATTEMPTS = 32  # at a proposal that keeps the ceilings; the second half of them at random
FAR = 2**20  # between the seeds of two attempts at one proposal: more than a study has trials
GENERATION = "NSGAIISampler:generation"  # what NSGA-II notes on a trial
MIN_POPULATION = 4  # of NSGA-II, where `startup` is smaller


def default_startup(spec: SweepSpec) -> int:
    """Proposals before the model of the sampler counts: `search.startup`, or a third of the trials, at most 10."""
    startup = spec.search.startup
    return startup if startup is not None else min(10, spec.search.trials // 3)


def fixed_proposal(spec: SweepSpec, number: int) -> dict[str, float] | None:
    """The parameters of search trial `number` where they are not sampled: the base itself first, then the profile alone."""
    if number == 0:
        return at_base(spec)
    if number == 1 and spec.search.sampler == "similarity":
        return {**at_base(spec), GAMMA: FIRST_GAMMA}
    return None


class Lineage:
    """The generations of NSGA-II in a study that grows: whose parents are who, as follows from the trials alone.

    Optuna keeps parents as it first saw them; a trial of their generation that ends later would not count, or would, by who
    looked when. Here it always counts, and only the generations after it are chosen again.
    """

    def __init__(self) -> None:
        self._populations: dict[int, list[FrozenTrial]] = {}
        self._parents: dict[int, list[FrozenTrial]] = {0: []}

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Trials that were added to the study, in its order."""
        for trial in trials:
            generation = trial.system_attrs.get(GENERATION)
            if trial.state == TrialState.COMPLETE and generation is not None:
                self._populations.setdefault(generation, []).append(trial)
                for later in range(generation + 1, len(self._parents)):
                    del self._parents[later]

    def population(self, generation: int) -> list[FrozenTrial]:
        return list(self._populations.get(generation, ()))

    def parents(self, generation: int, select: Callable[[int], list[FrozenTrial]]) -> list[FrozenTrial]:
        """`select`: chooses those of a generation, given `population` and `parents` of the one before."""
        for number in range(len(self._parents), generation + 1):  # not by recursion: there may be a thousand
            self._parents[number] = select(number)
        return list(self._parents[generation])


class NSGAIISampler(optuna.samplers.NSGAIISampler):
    """Optuna's, with a memory that outlives it. The name is part of the notes that it leaves on trials: `GENERATION`."""

    def __init__(self, lineage: Lineage, **options: Any) -> None:
        super().__init__(**options)
        self._lineage = lineage

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return self._lineage.population(generation)

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return self._lineage.parents(generation, lambda number: self.select_parent(study, number))


def make_sampler(spec: SweepSpec, number: int, startup: int, attempt: int = 0, lineage: Lineage | None = None) -> BaseSampler:
    """A sampler whose proposal is a function of (search seed, number, attempt, history): it survives any restart.

    `similarity` and `tpe`: multivariate TPE (Bergstra et al. 2011), with and without gamma. `gp`: a Gaussian process with log
    EI, or EHVI of several objectives. `nsga2`: Deb et al. 2002, in generations of `startup`.
    `lineage`: of the study that it proposes for; NSGA-II alone has one. None: Optuna's own memory, which a fresh study lacks.
    """
    seed = seed_of(spec.search.seed, Draw.PROPOSAL, number + attempt * FAR) % 2**32
    name = spec.search.sampler if attempt < ATTEMPTS // 2 else "random"
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        population = max(startup, MIN_POPULATION)
        if lineage is None:
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        return NSGAIISampler(lineage, seed=seed, population_size=population)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup)
        # It counts what was drawn in vain, which is no reason to trust its model sooner.
        return TPESampler(seed=seed, n_startup_trials=startup + attempt, multivariate=True)
