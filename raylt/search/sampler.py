"""Which stock Optuna sampler proposes, seeded for one proposal."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from raylt.diffusion.noise import Draw, seed_of
from raylt.search.space import GAMMA, at_base
from raylt.spec import SweepSpec

FIRST_GAMMA = 0.7  # second proposal of sampler `similarity`: half a range along the profile; the others choose the sign
ATTEMPTS = 32  # at a proposal that keeps the ceilings; the second half of them at random
FAR = 2**20  # between the seeds of two attempts at one proposal: more than a study has trials
MIN_POPULATION = 4  # of NSGA-II, where `startup` is smaller


def default_startup(spec: SweepSpec) -> int:
    """Proposals before the model of the sampler counts: `search.startup`, or a third of the trials, at most 10."""
    given = spec.search.startup
    return given if given is not None else min(10, spec.search.trials // 3)


def fixed_proposal(spec: SweepSpec, number: int) -> dict[str, float] | None:
    """The parameters of search trial `number` where they are not sampled: the base itself first, then the profile alone."""
    if number == 0:
        return at_base(spec)
    if number == 1 and spec.search.sampler == "similarity":
        return {**at_base(spec), GAMMA: FIRST_GAMMA}
    return None


def make_sampler(spec: SweepSpec, number: int, startup: int, attempt: int = 0) -> BaseSampler:
    """A sampler whose proposal is a function of (search seed, number, attempt, history): it survives any restart.

    `similarity` and `tpe`: multivariate TPE (Bergstra et al. 2011), with and without gamma. `gp`: a Gaussian process with log
    EI, or EHVI of several objectives. `nsga2`: Deb et al. 2002, in generations of `startup`.
    """
    seed = seed_of(spec.search.seed, Draw.PROPOSAL, number + attempt * FAR) % 2**32
    name = spec.search.sampler if attempt < ATTEMPTS // 2 else "random"
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(startup, MIN_POPULATION))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup)
        # It counts what was drawn in vain, which is no reason to trust its model sooner.
        return TPESampler(seed=seed, n_startup_trials=startup + attempt, multivariate=True)


def remembers(spec: SweepSpec) -> bool:
    """Whether a sampler leaves more in a study than its trials: NSGA-II the parents of a generation, as it first saw them."""
    return spec.search.sampler == "nsga2"
