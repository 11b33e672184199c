"""Where the weights stay: rules that give every layer its number of kept weights for any overall density.

Two kinds, one signature. Static rules (uniform, uniform+, ER, ERK) fix each layer's density at the search's final
density and are bent to a round's budget by one constant c alone: `logit(density_l) = c + logit(base_l) + offset_l`. So a
layer's density falls monotonically from round to round. Score rules (LAMP, global) let the surviving weights compete.

A budget of weights is met exactly, `kept == round(density * total)`; every rule stays within a budget of FLOPs and meets it
to less than one weight of the costliest layer. The rules themselves are in `density_rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raylt.errors import InputError
from raylt.ticket.budget import LayerBudget, demands, smallest_density
from raylt.ticket.density_rules import BASES, SCORES
from raylt.ticket.prune import pooled_counts

CLIP = 1e-3  # base densities are kept this far from 0 and 1, where a logit has no end

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """A rule, and for searched tickets the base it bends and the offset of each block's logit."""

    rule: str
    base: str = ""
    offsets: Mapping[str, float] = field(default_factory=dict)

    def at(self, density: float, budget: LayerBudget) -> dict[str, int]:
        """Layer -> weights kept at an overall density. Raises `InputError` where the floors need more."""
        total, floors = budget.total(density), budget.floors(self.rule)
        if total < budget.cost_of(floors):
            least = smallest_density(budget.layers, budget.ticket, budget.costs, [self.rule])
            raise InputError(f"density {density:g} is too small for {demands([self.rule])}; the smallest is {least:g}")
        counts = self._counts(budget, total, floors)
        return budget.pooled_by_block(counts, total, floors) if budget.ticket.scope == "block" else counts

    def _counts(self, budget: LayerBudget, total: int, floors: Mapping[str, int]) -> dict[str, int]:
        if self.rule in SCORES:
            return pooled_counts(SCORES[self.rule](budget.scores), total, floors, budget.costs)
        base = BASES[self.base or self.rule](budget)
        logits = {layer.name: _logit(base[layer.name]) + self.offsets.get(layer.block, 0.0) for layer in budget.free}
        return bend(budget, logits, total, floors)


def bend(budget: LayerBudget, logits: Mapping[str, float], total: int, floors: Mapping[str, int]) -> dict[str, int]:
    """Counts `n_l sigmoid(c + logit_l)`, clamped to floors and caps, with c such that they cost `total`.

    What rounding leaves over goes to the largest fractions, earlier layers first.
    """
    names = [layer.name for layer in budget.layers]
    low = np.array([floors[name] for name in names], dtype=np.float64)
    high = np.array([budget.caps[name] for name in names], dtype=np.float64)
    size = np.array([layer.size for layer in budget.layers], dtype=np.float64)
    cost = np.array([budget.costs.get(name, 1) for name in names], dtype=np.float64)
    x = np.array([logits.get(name, 0.0) for name in names])

    def counts(c: float) -> Floats:
        share: Floats = np.clip(size / (1 + np.exp(-np.clip(c + x, -60, 60))), low, high)
        return share

    lower, upper = -120.0, 120.0
    for _ in range(200):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if (cost * counts(middle)).sum() < total else (lower, middle)
    return dict(zip(names, _round(counts(upper), high, cost, total), strict=True))


def _round(real: Floats, high: Floats, cost: Floats, budget: int) -> list[int]:
    """Whole numbers next to `real`, none above `high`, that cost `budget` or less by under one weight.

    One pass is enough: a layer that it leaves out either is at its cap or costs more than what is left.
    """
    whole = np.floor(real + 1e-9)
    left = budget - round((cost * whole).sum())
    for index in np.argsort(-(real - whole), kind="stable"):
        if whole[index] < high[index] and cost[index] <= left:
            whole[index] += 1
            left -= round(cost[index])
    return [int(count) for count in whole]


def _logit(density: float) -> float:
    clipped = min(max(density, CLIP), 1 - CLIP)
    return math.log(clipped / (1 - clipped))
