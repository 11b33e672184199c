"""Searches on the surrogate: raylt's proposer and rungs as they are, a draw from the surrogate in place of each training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guidance.arms import GROUPS
from guidance.surrogate import Surrogate
from raylt.plan import SEARCHED, TrialSpec
from raylt.search.foresight import Foresight
from raylt.search.proposal import FixedProposal, Proposer
from raylt.search.rungs import thresholds
from raylt.search.sampler import default_startup, fixed_proposal
from raylt.search.space import offsets
from raylt.spec import SweepSpec

Row = dict[str, Any]


def search(
    spec: SweepSpec, world: World, seed: int, start_steps: int, baselines: Sequence[Row], fixed: FixedProposal = fixed_proposal
) -> Row:
    """One search of a spec on the surrogate. What differs from seed to seed: proposals, noise, and the profile."""
    draw = np.random.default_rng([seed, 7])
    proposer = Proposer(spec, default_startup(spec), fixed)
    profile = world.profile(spec.search.profile, seed)
    history: list[tuple[TrialSpec, Row]] = []
    for number in range(spec.search.trials):
        params, attrs = proposer.propose(number, history)
        bend = offsets(spec, params, profile)
        limits = thresholds(spec, [*baselines, *(result for _, result in history)])
        trial = TrialSpec(number, "search", SEARCHED, 0, params=params, offsets=bend, sampler_attrs=attrs, thresholds=limits)
        history.append((trial, world.train(spec, trial, draw)))
    return {"start_steps": start_steps, "reference": world.reference, "trials": [result for _, result in history]}


class World:
    """The surrogate with what a trial costs, what the dense model's loss is, and the profiles that were measured."""

    def __init__(self, surrogate: Surrogate, runs: Mapping[str, Sequence[Row]], spec: SweepSpec) -> None:
        """`runs`: arm -> its real runs, one a training seed."""
        self.surrogate, self.runs = surrogate, runs
        self.flops = Foresight(spec, None).flops
        some = runs["similarity"]
        self.base_loss = float(np.mean([run["trials"][0]["loss"] for run in some]))
        self.rung_loss = float(np.mean([run["trials"][0]["losses"][2] for run in some]))
        self.reference = [float(np.mean([run["reference"][i] for run in some])) for i in range(2)]
        self.steps = some[0]["trials"][-1]["steps"]

    def profile(self, name: str, seed: int) -> dict[str, float]:
        """The profile of one of the training seeds; where it is a placebo by shuffling, another order for every seed."""
        runs = self.runs[{"excess": "similarity", "shuffled": "similarity"}.get(name, name)]
        values: dict[str, float] = runs[seed % len(runs)]["profile"]
        if name != "shuffled":
            return values
        order = np.random.default_rng([seed, 11]).permutation(list(values.values()))
        return dict(zip(values, map(float, order), strict=True))

    def train(self, spec: SweepSpec, trial: TrialSpec, draw: np.random.Generator) -> Row:
        """A trial's result; where it does not pass its rung, half of its steps and no numbers."""
        bend = np.array([[trial.offsets[blocks[0]] for blocks in GROUPS.values()]])
        at_rung, at_end = self.surrogate.losses(bend, draw)[0] * (self.rung_loss, self.base_loss)
        rounds = [{"round": 2, "loss": at_rung, "broken": False}]
        if at_rung > trial.thresholds.get("2", float("inf")):
            return {"state": "PRUNED", "broken": None, "loss": None, "flops": None, "rounds": rounds, "steps": self.steps // 2}
        rounds.append({"round": 3, "loss": at_end, "broken": False})
        flops = self.flops(trial.offsets)
        return {"state": "COMPLETE", "broken": False, "loss": at_end, "flops": flops, "rounds": rounds, "steps": self.steps}
