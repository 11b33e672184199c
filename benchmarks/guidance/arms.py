"""The arms: searches of one problem that differ in one thing each, as specs of raylt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# One group a block: six parameters, so that there is something for a signal to save.
GROUPS = {
    "time": ["time_embedding"],
    "down0": ["down_blocks.0"],
    "down1": ["down_blocks.1"],
    "mid": ["mid_block"],
    "up0": ["up_blocks.0"],
    "up1": ["up_blocks.1"],
}

# arm -> (what it is, its `search` keys). Every arm has the same budget, objectives and number of trials.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "similarity": ("gamma along the excess of pilots over the start, and a delta a block",
                   {"sampler": "similarity", "pilots": 2}),
    "gamma0": ("similarity with gamma fixed at 0: the deltas alone", {"sampler": "tpe", "pilots": 0}),
    "shuffled": ("placebo: similarity's excess, shuffled over the blocks",
                 {"sampler": "similarity", "profile": "shuffled", "pilots": 2}),
    "size": ("placebo: -log of a block's weights in place of the excess",
             {"sampler": "similarity", "profile": "size", "pilots": 0}),
    "movement": ("gamma along how far dense training moved a block; needs no pilots",
                 {"sampler": "similarity", "profile": "movement", "pilots": 0}),
    "cost": ("gamma along the log of a weight's FLOPs; needs no training and no pilots",
             {"sampler": "similarity", "profile": "cost", "pilots": 0}),
    "random": ("the deltas drawn at random", {"sampler": "random", "pilots": 0}),
    "random-uniform": ("the deltas drawn at random, over uniform in place of ERK",
                       {"sampler": "random", "base": "uniform", "pilots": 0}),
    "rungs": ("similarity, with poor trials stopped between rounds", {"sampler": "similarity", "pilots": 2, "rungs": True}),
}  # fmt: skip

BASELINES = ["uniform", "erk", "lamp", "global"]


def spec_of(name: str, seed: int, search: Mapping[str, Any], *, quick: bool, **ticket: Any) -> dict[str, Any]:
    """A sweep of 8x8 digits to 5 % of the weights, the first pruning shared. `search`: an arm's keys, and how many trials."""
    return {
        "schema": 1,
        "name": name,
        "data": {"name": "digits"},
        "model": {"preset": "digits"},
        "train": {
            "steps": 40 if quick else 400, "batch_size": 32, "learning_rate": 3e-3, "beta_schedule": "linear",
            "seed": seed, "precision": "fp32", "checkpoint_every": 400,
        },
        "ticket": {"densities": [0.2, 0.1, 0.05], "shared_rounds": 1, **ticket},
        "search": {"base": "erk", "concurrency": 1, "seed": seed, "baselines": BASELINES, "groups": GROUPS, **search},
        "metrics": {"search": {"samples": 64, "sampler": "ddim", "steps": 5}},
        "resources": {"cpus": 1, "gpus": 0},
    }  # fmt: skip


# The same random allocations under several training seeds, and once without a shared round: for rank agreement and bias.
DESIGN_SEARCH = {"sampler": "random", "pilots": 0, "seed": 100, "baselines": []}
DESIGN_METRICS = {"search": {"samples": 1000, "sampler": "ddim", "steps": 10}}
UNSHARED = "design-unshared"


def arm_specs(seeds: Sequence[int], trials: int, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Sweep -> its spec, of every arm and seed; all arms of one seed before the next."""
    return {
        f"{arm}-{seed}": spec_of(f"{arm}-{seed}", seed, {**search, "trials": trials}, quick=quick)
        for seed in seeds
        for arm, (_, search) in ARMS.items()
    }


def design_specs(seeds: Sequence[int], trials: int, *, quick: bool) -> dict[str, dict[str, Any]]:
    """Sweep -> its spec, of the allocations that are trained again and again."""
    search = {**DESIGN_SEARCH, "trials": trials}
    shared = {f"design-{seed}": spec_of(f"design-{seed}", seed, search, quick=quick) for seed in seeds}
    apart = spec_of(UNSHARED, seeds[0], search, quick=quick, shared_rounds=0)
    return {name: {**spec, "metrics": DESIGN_METRICS} for name, spec in {**shared, UNSHARED: apart}.items()}
