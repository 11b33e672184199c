"""The arms on the surrogate, under many seeds: the real ones, the other samplers, and other ways of using similarity."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from guidance import curves
from guidance.arms import ARMS, GROUPS, spec_of
from guidance.simulate import World, search
from guidance.surrogate import NEAR, Surrogate
from raylt.diffusion.rng import Draw, seed_of
from raylt.search.groups import grouped
from raylt.search.profile import standardised
from raylt.search.sampler import FIRST_GAMMA, default_startup, fixed_proposal
from raylt.search.space import DELTA, GAMMA, at_base
from raylt.spec import SweepSpec, dump_yaml, parse_spec

Row = dict[str, Any]
PRIOR_SD = {GAMMA: 0.5, DELTA: 0.3}


def from_prior(mean: float) -> Any:
    """Startup proposals near the base (or near the profile's bend), instead of anywhere in the space."""

    def fixed(spec: SweepSpec, number: int) -> Mapping[str, float] | None:
        known = fixed_proposal(spec, number)
        if known is not None or number >= default_startup(spec):
            return known
        draw = np.random.default_rng(seed_of(spec.search.seed, Draw.PROPOSAL, number))
        return {
            name: float(np.clip(draw.normal(mean, PRIOR_SD[GAMMA]), -1.5, 1.5))
            if name == GAMMA
            else float(np.clip(draw.normal(0, PRIOR_SD[DELTA]), -1, 1))
            for name in at_base(spec)
        }

    return fixed


def along_the_profile(spec: SweepSpec, number: int) -> Mapping[str, float] | None:
    """The first four proposals on a line: the base, both signs, and further."""
    line = (0.0, FIRST_GAMMA, 2 * FIRST_GAMMA, -FIRST_GAMMA)
    return {**at_base(spec), GAMMA: line[number]} if number < len(line) else None


@dataclass(frozen=True)
class Arm:
    what: str
    search: Mapping[str, Any]
    like: str  # the real arm whose preparation it needs
    fixed: Any = field(default=fixed_proposal)
    profile: str = ""  # another than its spec's
    has_few_groups: bool = False  # those of `groups: auto`, in place of one a block


def surrogate_arms() -> dict[str, Arm]:
    real = {name: Arm(what, keys, name) for name, (what, keys) in ARMS.items() if keys.get("base", "erk") == "erk"}
    guided, placebo = ARMS["similarity"][1], ARMS["shuffled"][1]
    return {
        **real,
        "gp": Arm("Gaussian process, gamma along the excess", {**guided, "sampler": "gp"}, "similarity"),
        "gp-gamma0": Arm("Gaussian process over the deltas alone", {"sampler": "gp", "pilots": 0}, "gamma0"),
        "nsga2": Arm("NSGA-II, gamma along the excess", {**guided, "sampler": "nsga2"}, "similarity"),
        "prior": Arm(
            "similarity, with startup proposals near the profile's bend", guided, "similarity", from_prior(FIRST_GAMMA)
        ),
        "prior-shuffled": Arm("prior, along a shuffled profile", placebo, "shuffled", from_prior(FIRST_GAMMA)),
        "prior-gamma0": Arm("gamma0, with startup proposals near the base", ARMS["gamma0"][1], "gamma0", from_prior(0.0)),
        "kappa": Arm("gamma along kappa as it is, not along its excess over the start", guided, "similarity", profile="kappa"),
        "excess and movement": Arm(
            "gamma along the mean of both profiles", guided, "similarity", profile="excess and movement"
        ),
        "gp-cost": Arm("Gaussian process, gamma along the FLOPs of a weight", {**ARMS["cost"][1], "sampler": "gp"}, "cost"),
        "loss": Arm("similarity, with loss as the one objective", {**guided, "objectives": ["loss"]}, "similarity"),
        "loss-rungs": Arm("loss, with rungs", {**guided, "objectives": ["loss"], "rungs": True}, "rungs"),
        "groups": Arm("similarity, with the blocks in the groups of `auto`", guided, "similarity", has_few_groups=True),
        "line": Arm(
            "similarity, with the first four proposals on a line along the profile", guided, "similarity", along_the_profile
        ),
    }


def add(found: Row, seeds: int, jobs: int) -> None:
    """Put the surrogate's quality, and every arm's searches on it, beside what is there of the real ones."""
    runs = {name: arm["real"]["runs"] for name, arm in found["arms"].items()}
    trials = len(runs["random"][0]["trials"])
    surrogate = _fitted(runs)
    found["surrogate"] = {"seeds": seeds, **surrogate.quality()}
    arms = surrogate_arms()
    with ProcessPoolExecutor(jobs, get_context("spawn"), _open, (runs, surrogate, trials)) as pool:
        work = [(name, seed) for seed in range(seeds) for name in arms]
        done = list(pool.map(_search, work, chunksize=4))
    searches = {name: [run for (of, _), run in zip(work, done, strict=True) if of == name] for name in arms}
    for name, arm in arms.items():
        entry = found["arms"].setdefault(name, {"what": arm.what, "search": dict(arm.search)})
        entry["surrogate"] = curves.summary(searches[name], searches["random"])


def limits(found: Row, num_bends: int) -> Row:
    """What there is to find: the lowest expected loss of many bends near the base, at any FLOPs and at the base's."""
    runs = {name: arm["real"]["runs"] for name, arm in found["arms"].items() if "real" in arm}
    world = World(_fitted(runs), runs, _spec({"trials": 0}, 0))
    draw = np.random.default_rng(0)
    bends = draw.normal(0, 0.6, (num_bends, len(GROUPS))).clip(-NEAR, NEAR)
    bends -= bends.mean(axis=1, keepdims=True)
    expected = np.array([world.surrogate.expected(bend)[1] for bend in bends]) * world.base_loss / world.base["expected"] - 1
    blocks = [blocks[0] for blocks in GROUPS.values()]
    flops = np.array([world.flops(dict(zip(blocks, bend, strict=True)), 3) for bend in bends]) / world.base["flops"] - 1
    cheap = np.where(flops <= 0, expected, np.inf)

    def at(index: Any) -> Row:
        bend = dict(zip(GROUPS, map(float, bends[index]), strict=True))
        return {"loss": float(expected[index]), "flops": float(flops[index]), "bend": bend}

    return {"bends": num_bends, "any": at(expected.argmin()), "at_base_flops": at(cheap.argmin())}


def _fitted(runs: Mapping[str, list[Row]]) -> Surrogate:
    return Surrogate.of_runs({name: mine for name, mine in runs.items() if ARMS[name][1].get("base", "erk") == "erk"})


_world: World
_trials: int
_runs: dict[str, list[Row]]


def _open(runs: dict[str, list[Row]], surrogate: Surrogate, trials: int) -> None:
    """What a process of the pool needs, once."""
    global _world, _trials, _runs
    _runs, _trials = runs, trials
    _world = World(surrogate, runs, _spec({"trials": 0}, 0))


def _spec(keys: Mapping[str, Any], seed: int) -> SweepSpec:
    return parse_spec(dump_yaml(spec_of("surrogate", seed, keys, quick=False)), "surrogate", ())


def _search(job: tuple[str, int]) -> Row:
    name, seed = job
    arm = surrogate_arms()[name]
    run = _runs[arm.like][seed % len(_runs[arm.like])]
    baselines = [_at_rung(row) for row in run["baselines"].values()]
    groups = _by_similarity(seed) if arm.has_few_groups else {group: [group] for group in GROUPS}
    patterns = {name: [block for member in members for block in GROUPS[member]] for name, members in groups.items()}
    spec = _spec({**arm.search, "trials": _trials, "groups": patterns}, seed)
    # An arm without pilots has nothing to bend by, as in a real sweep.
    known = _world.profile(arm.profile or spec.search.profile, seed) if spec.search.has_profile else dict.fromkeys(GROUPS, 0.0)
    means = {name: float(np.mean([known[member] for member in members])) for name, members in groups.items()}
    return search(spec, _world, seed, standardised(means), run["start_steps"], baselines, arm.fixed)


def _by_similarity(seed: int) -> Mapping[str, list[str]]:
    """What `search.groups: auto` would choose from a seed's excess."""
    return grouped(_world.profile("excess", seed))


def _at_rung(baseline: Row) -> Row:
    at_rung = {"round": 2, "loss": baseline["losses"][2], "broken": False, "flops": baseline["flops_by_round"][2]}
    return {"state": baseline["state"], "rounds": [at_rung]}
