"""What one round may spend, and what each layer may keep of it: budget, caps and floors.

A density is a share of what the dense model's prunable weights cost: one each, or their FLOPs (`search.budget: flops`).
`keep_dense` layers stay whole and every other layer keeps `min_kept` times its output channels, both counted in the budget;
no layer exceeds its previous round's count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from raylt.diffusion.flops import weight_costs
from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer
from raylt.spec import SweepSpec
from raylt.spec.schema import matches
from raylt.spec.sections import TicketSpec
from raylt.ticket.prune import Scores, pooled_counts

LAST_KEEPS = 0.2  # of uniform+


@dataclass(frozen=True)
class LayerBudget:
    """What an allocation may look at: the layers, what the previous round left, and what the spec demands."""

    layers: Sequence[Layer]
    ticket: TicketSpec
    caps: Mapping[str, int]  # the most weights each layer can keep: those the previous round left
    dense_weights: NamedTensors  # trained weights of round 0; base LAMP alone looks at them
    costs: Mapping[str, int] = field(default_factory=dict)  # layer -> FLOPs a weight; empty: the budget counts weights
    scores: Scores = field(default_factory=dict)  # where weights compete: score rules, and `scope: block`

    @staticmethod
    def among(
        layers: Sequence[Layer], ticket: TicketSpec, scores: Scores, dense_weights: NamedTensors,
        costs: Mapping[str, int] | None = None,
    ) -> LayerBudget:  # fmt: skip
        """Of the weights that have a score; below 0 stands what is pruned already."""
        caps = {layer.name: int((scores[layer.name] >= 0).sum()) for layer in layers}
        return LayerBudget(layers, ticket, caps, dense_weights, costs or {}, scores)

    def floors(self, rule: str = "") -> dict[str, int]:
        """The fewest weights each layer keeps under a rule, as far as the previous round left them."""
        return {name: min(count, self.caps[name]) for name, count in least_kept(self.layers, self.ticket, [rule]).items()}

    @cached_property
    def free(self) -> list[Layer]:
        """The layers that are not kept dense."""
        return [layer for layer in self.layers if not matches(layer.name, self.ticket.keep_dense)]

    def total(self, density: float) -> int:
        """What may be spent at an overall density: weights, or FLOPs."""
        return round(density * cost_of({layer.name: layer.size for layer in self.layers}, self.costs))

    def cost_of(self, counts: Mapping[str, int]) -> int:
        return cost_of(counts, self.costs)

    @property
    def final_free_density(self) -> float:
        """Density left to the free layers at the end, once the layers kept dense have taken theirs."""
        dense, free = ({la.name: la.size for la in self.layers if (la in self.free) == is_free} for is_free in (False, True))
        return (self.total(self.ticket.final_density) - self.cost_of(dense)) / self.cost_of(free)

    def pooled_by_block(self, counts: Mapping[str, int], total: int, floors: Mapping[str, int]) -> dict[str, int]:
        """As much in every block as `counts` has, but a block's layers compete: `ticket.scope: block`.

        What a block leaves of its FLOPs, less than one weight's, goes to the next.
        """
        pooled: dict[str, int] = {}
        left = total - self.cost_of(counts)
        for block in dict.fromkeys(layer.block for layer in self.layers):
            names = [layer.name for layer in self.layers if layer.block == block]
            left += self.cost_of({name: counts[name] for name in names})
            kept = pooled_counts({name: self.scores[name] for name in names}, left, floors, self.costs)
            left -= self.cost_of(kept)
            pooled |= kept
        return pooled


def costs_of(spec: SweepSpec) -> dict[str, int]:
    """Layer -> FLOPs of one weight; empty where `search.budget` counts weights."""
    return weight_costs(spec.unet_config) if spec.search.budget == "flops" else {}


def cost_of(counts: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """What so many weights of each layer cost: FLOPs, or 1 each where `costs` is empty."""
    return sum(count * costs.get(name, 1) for name, count in counts.items())


def least_kept(layers: Sequence[Layer], ticket: TicketSpec, rules: Collection[str] = ()) -> dict[str, int]:
    """The fewest weights of each layer: all where kept dense, else `min_kept` per output channel; and what a rule demands.

    uniform+ keeps the first layer whole and 20 % of the last.
    """
    least = {
        layer.name: layer.size
        if matches(layer.name, ticket.keep_dense)
        else min(layer.size, ticket.min_kept * layer.num_outputs)
        for layer in layers
    }
    if "uniform+" in rules:
        first, last = layers[0], layers[-1]
        least[last.name] = max(least[last.name], math.ceil(LAST_KEEPS * last.size))
        least[first.name] = first.size
    return least


def demands(rules: Collection[str]) -> str:
    """What `least_kept` follows from, in words."""
    return "keep_dense, min_kept and uniform+" if "uniform+" in rules else "keep_dense and min_kept"


def smallest_density(
    layers: Sequence[Layer], ticket: TicketSpec, costs: Mapping[str, int] | None = None, rules: Collection[str] = ()
) -> float:
    """The smallest overall density that leaves `keep_dense`, `min_kept` and the rules theirs, rounded up to six digits."""
    total = cost_of({layer.name: layer.size for layer in layers}, costs or {})
    least = cost_of(least_kept(layers, ticket, rules), costs or {})
    density = round(least / total, 6)
    return density if round(density * total) >= least else min(1.0, round(density + 1e-6, 6))
