"""Searches on the surrogate: raylt's proposer and rungs as they are, a draw from the surrogate in place of each training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guidance.arms import GROUPS
from guidance.surrogate import Surrogate
from raylt.diffusion.flops import count_flops
from raylt.diffusion.unet import layers_of
from raylt.search.cost_model import CostModel
from raylt.search.median_stopping import thresholds
from raylt.search.profile import standardised
from raylt.search.proposal import FixedProposal, Proposer
from raylt.search.sampler import default_startup, fixed_proposal
from raylt.search.space import offsets
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.trials import SEARCHED, Proposal, TrainingRequest
from raylt.store.results import COMPLETE, RoundResult, TicketSummary, TrialResult

Row = dict[str, Any]
NO_TICKET = TicketSummary("", {}, {}, 0, "", "", "", "")  # nobody trained one


def search(
    spec: SweepSpec, world: World, seed: int, profile: Mapping[str, float], start_steps: int, baselines: Sequence[Row],
    fixed: FixedProposal = fixed_proposal,
) -> Row:  # fmt: skip
    """One search of a spec on the surrogate. `seed`: of the noise; `profile`: group -> s_g."""
    draw = np.random.default_rng([seed, 7])
    proposer = Proposer(spec, default_startup(spec), fixed)
    history: list[tuple[TrialSpec, TrialResult]] = []
    rows: list[Row] = []
    for number in range(spec.search.trials):
        params, attrs = proposer.propose(number, history)
        bend = offsets(spec, params, profile)
        ended = [*map(as_result, baselines), *(result for _, result in history)]
        limits = thresholds(spec, ended, lambda rung, bend=bend: world.flops(bend, rung))
        trial = TrialSpec(number, "search", TrainingRequest(SEARCHED, 0), proposal=Proposal(params, bend, attrs, limits))
        rows.append(world.train(spec, trial, draw))
        history.append((trial, as_result(rows[-1])))
    return {"start_steps": start_steps, "reference": world.reference, "base": world.base, "trials": rows}


def as_result(row: Row) -> TrialResult:
    """What raylt's proposer and rungs look at, of a trial on the surrogate."""
    rounds = tuple(RoundResult.from_json(scored) for scored in row["rounds"])
    return TrialResult(row["state"], None, rounds, 0, NO_TICKET if row["state"] == COMPLETE else None)


class World:
    """The surrogate with what a trial costs, what the dense model's loss is, and the profiles that were measured."""

    def __init__(self, surrogate: Surrogate, runs: Mapping[str, Sequence[Row]], spec: SweepSpec) -> None:
        """`runs`: arm -> its real runs, one a training seed."""
        self.spec, self.surrogate, self.runs = spec, surrogate, runs
        self.flops = CostModel(spec, None).flops
        some = runs["similarity"]
        self.base_loss = float(np.mean([run["trials"][0]["loss"] for run in some]))
        self.rung_loss = float(np.mean([run["trials"][0]["losses"][2] for run in some]))
        at_base = dict.fromkeys((block for blocks in GROUPS.values() for block in blocks), 0.0)
        ratio = surrogate.expected(np.zeros(len(GROUPS)))[1]
        self.base = {"expected": ratio * self.base_loss, "flops": self.flops(at_base, 3)}
        self.reference = [float(np.mean([run["reference"][i] for run in some])) for i in range(2)]
        self.steps = some[0]["trials"][-1]["steps"]

    def profile(self, name: str, seed: int) -> dict[str, float]:
        """A profile as one of the training seeds has it, group by group; a shuffled one has another order for every seed."""
        run = self.runs["similarity"][seed % len(self.runs["similarity"])]
        if name in ("excess", "kappa"):
            return standardised({group: numbers[name] for group, numbers in run["blocks"].items()})
        if name == "movement":
            return standardised({group: math.log(numbers["movement"]) for group, numbers in run["blocks"].items()})
        if name == "excess and movement":
            both = [self.profile(part, seed) for part in ("excess", "movement")]
            return standardised({group: sum(values[group] for values in both) for group in GROUPS})
        if name == "shuffled":
            values = self.profile("excess", seed)
            order = np.random.default_rng([seed, 11]).permutation(list(values.values()))
            return dict(zip(values, map(float, order), strict=True))
        return standardised(self._of_shapes(name))

    def _of_shapes(self, name: str) -> dict[str, float]:
        """`size`: -log of a group's weights; `cost`: log of the FLOPs of one weight. Neither knows of training."""
        sizes, costs = dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)
        flops = count_flops(self.spec.unet_config).layers
        for layer in layers_of(self.spec.unet_config):
            for group, blocks in GROUPS.items():
                if layer.block in blocks:
                    sizes[group] += layer.size
                    costs[group] += flops[layer.name]
        known = {"size": lambda group: -math.log(sizes[group]), "cost": lambda group: math.log(costs[group] / sizes[group])}
        return {group: known[name](group) for group in GROUPS}

    def train(self, spec: SweepSpec, trial: TrialSpec, draw: np.random.Generator) -> Row:
        """A trial's result; where it does not pass its rung, half of its steps and no numbers."""
        bend = np.array([trial.proposal.offsets[blocks[0]] for blocks in GROUPS.values()])
        expected = self.surrogate.expected(bend) * (self.rung_loss, self.base_loss)
        at_rung, at_end = expected * np.exp(self.surrogate.draw(draw))
        rounds = [{"round": 2, "loss": at_rung, "broken": False, "flops": self.flops(trial.proposal.offsets, 2)}]
        if at_rung > trial.proposal.thresholds.get("2", float("inf")):
            return {"state": "PRUNED", "broken": None, "loss": None, "flops": None, "rounds": rounds, "steps": self.steps // 2}
        flops = self.flops(trial.proposal.offsets, 3)
        rounds.append({"round": 3, "loss": at_end, "broken": False, "flops": flops})
        return {
            "state": "COMPLETE",
            "broken": False,
            "loss": at_end,
            "flops": flops,
            "rounds": rounds,
            "steps": self.steps,
            "expected": expected[1],
        }
