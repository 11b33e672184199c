"""Where the weights stay: rules that give every layer its number of kept weights for any overall density.

Two kinds, one signature. Static rules (uniform, uniform+, ER, ERK) fix each layer's density at the search's final
density and are bent to a round's budget by one constant c alone: `logit(density_l) = c + logit(base_l) + offset_l`. So a
layer's density falls monotonically from round to round. Score rules (LAMP, global) let the surviving weights compete.

A density is a share of what the dense model's prunable weights cost: one each, so that every rule meets a budget of
weights exactly, `kept == round(density * total)`; or their FLOPs (`search.budget: flops`), which every rule stays within
and meets to less than one weight of the costliest layer. `keep_dense` layers stay whole and every other layer keeps
`min_kept` times its output channels, both counted in the budget; no layer exceeds its previous round's count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer
from raylt.errors import InputError
from raylt.spec.schema import matches
from raylt.spec.sections import TicketSpec
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, pooled_counts

CLIP = 1e-3  # base densities are kept this far from 0 and 1, where a logit has no end
LAST_KEEPS = 0.2  # of uniform+

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pruning:
    """What an allocation may look at: the layers, what the previous round left, and what the spec demands."""

    layers: Sequence[Layer]
    ticket: TicketSpec
    scores: Mapping[str, Tensor]  # by the criterion; below 0 where a weight is pruned already
    dense_weights: NamedTensors  # trained weights of round 0
    costs: Mapping[str, int] = field(default_factory=dict)  # layer -> FLOPs a weight; empty: the budget counts weights

    @cached_property
    def caps(self) -> dict[str, int]:
        """The most weights each layer can keep: those the previous round left."""
        return {layer.name: int((self.scores[layer.name] >= 0).sum()) for layer in self.layers}

    def floors(self, rule: str = "") -> dict[str, int]:
        """The fewest weights each layer keeps under a rule, as far as the previous round left them."""
        return {name: min(count, self.caps[name]) for name, count in least_kept(self.layers, self.ticket, [rule]).items()}

    @cached_property
    def free(self) -> list[Layer]:
        """The layers that are not kept dense."""
        return [layer for layer in self.layers if not matches(layer.name, self.ticket.keep_dense)]

    def budget(self, density: float) -> int:
        """What may be spent at an overall density: weights, or FLOPs."""
        return round(density * cost_of({layer.name: layer.size for layer in self.layers}, self.costs))

    def cost_of(self, counts: Mapping[str, int]) -> int:
        return cost_of(counts, self.costs)

    @property
    def final_free_density(self) -> float:
        """Density left to the free layers at the end, once the layers kept dense have taken theirs."""
        dense, free = ({la.name: la.size for la in self.layers if (la in self.free) == is_free} for is_free in (False, True))
        return (self.budget(self.ticket.final_density) - self.cost_of(dense)) / self.cost_of(free)

    def pooled_by_block(self, counts: Mapping[str, int], budget: int, floors: Mapping[str, int]) -> dict[str, int]:
        """As much in every block as `counts` has, but a block's layers compete: `ticket.scope: block`.

        What a block leaves of its FLOPs, less than one weight's, goes to the next.
        """
        pooled: dict[str, int] = {}
        left = budget - self.cost_of(counts)
        for block in dict.fromkeys(layer.block for layer in self.layers):
            names = [layer.name for layer in self.layers if layer.block == block]
            left += self.cost_of({name: counts[name] for name in names})
            own = pooled_counts({name: self.scores[name] for name in names}, left, floors, self.costs)
            left -= self.cost_of(own)
            pooled |= own
        return pooled


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


@dataclass(frozen=True)
class Allocation:
    """A rule, and for searched tickets the base it bends and the offset of each block's logit."""

    rule: str
    base: str = ""
    offsets: Mapping[str, float] = field(default_factory=dict)

    def at(self, density: float, pruning: Pruning) -> dict[str, int]:
        """Layer -> weights kept at an overall density. Raises `InputError` where the floors need more."""
        budget, floors = pruning.budget(density), pruning.floors(self.rule)
        if budget < pruning.cost_of(floors):
            least = smallest_density(pruning.layers, pruning.ticket, pruning.costs, [self.rule])
            raise InputError(f"density {density:g} is too small for {demands([self.rule])}; the smallest is {least:g}")
        counts = self._counts(pruning, budget, floors)
        return pruning.pooled_by_block(counts, budget, floors) if pruning.ticket.scope == "block" else counts

    def _counts(self, pruning: Pruning, budget: int, floors: Mapping[str, int]) -> dict[str, int]:
        if self.rule in SCORES:
            return pooled_counts(SCORES[self.rule](pruning.scores), budget, floors, pruning.costs)
        base = BASES[self.base or self.rule](pruning)
        logits = {layer.name: _logit(base[layer.name]) + self.offsets.get(layer.block, 0.0) for layer in pruning.free}
        return bend(pruning, logits, budget, floors)


def bend(pruning: Pruning, logits: Mapping[str, float], budget: int, floors: Mapping[str, int]) -> dict[str, int]:
    """Counts `n_l sigmoid(c + logit_l)`, clamped to floors and caps, with c such that they cost `budget`.

    What rounding leaves over goes to the largest fractions, earlier layers first.
    """
    names = [layer.name for layer in pruning.layers]
    low = np.array([floors[name] for name in names], dtype=np.float64)
    high = np.array([pruning.caps[name] for name in names], dtype=np.float64)
    size = np.array([layer.size for layer in pruning.layers], dtype=np.float64)
    cost = np.array([pruning.costs.get(name, 1) for name in names], dtype=np.float64)
    x = np.array([logits.get(name, 0.0) for name in names])

    def counts(c: float) -> Floats:
        share: Floats = np.clip(size / (1 + np.exp(-np.clip(c + x, -60, 60))), low, high)
        return share

    lower, upper = -120.0, 120.0
    for _ in range(200):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if (cost * counts(middle)).sum() < budget else (lower, middle)
    return dict(zip(names, _round(counts(upper), high, cost, budget), strict=True))


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


# --- static rules: density of every free layer at the final density ---------------------------------------------------
#
# Where these differ from what was published: they share out what the layers kept dense leave; earlier rounds bend the
# final round's densities instead of solving the rule anew, so that masks nest; and a layer that a rule fills or empties
# counts as 0.999 or 0.001 before it is bent (CLIP), which costs a full layer up to one weight in a thousand.


def uniform(pruning: Pruning) -> dict[str, float]:
    """The same density in every layer. For uniform+ too, whose first and last layer are floors (`least_kept`)."""
    return dict.fromkeys((layer.name for layer in pruning.free), pruning.final_free_density)


def erdos_renyi(pruning: Pruning) -> dict[str, float]:
    """ER: density proportional to (n_in + n_out) / (n_in n_out) (Mocanu et al. 2018, arXiv 1707.04780)."""
    return _solve_proportional(pruning, lambda shape: sum(shape[:2]) / math.prod(shape[:2]))


def erdos_renyi_kernel(pruning: Pruning) -> dict[str, float]:
    """ERK: ER with the kernel's dimensions, sum(shape) / prod(shape) (Evci et al. 2020, RigL, arXiv 1911.11134, section 3)."""
    return _solve_proportional(pruning, lambda shape: sum(shape) / math.prod(shape))


def _solve_proportional(pruning: Pruning, share: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """density_l = min(1, epsilon share_l), with epsilon solved again for the others whenever a layer reaches 1."""
    price = {layer.name: layer.size * pruning.costs.get(layer.name, 1) for layer in pruning.free}
    budget = pruning.final_free_density * sum(price.values())
    full: set[str] = set()
    while True:
        open_layers = [layer for layer in pruning.free if layer.name not in full]
        taken = sum(price[name] for name in full)
        epsilon = (
            (budget - taken) / sum(share(layer.shape) * price[layer.name] for layer in open_layers) if open_layers else 0.0
        )
        over = {layer.name for layer in open_layers if epsilon * share(layer.shape) > 1}
        if not over:
            return {layer.name: 1.0 if layer.name in full else max(epsilon, 0.0) * share(layer.shape) for layer in pruning.free}
        full |= over


def lamp_base(pruning: Pruning) -> dict[str, float]:
    """The densities LAMP gives |w| of the dense trained weights at the final density: a static base to bend.

    By magnitude whatever the criterion: it says how many weights a layer needs, the criterion which.
    """
    scores = lamp(magnitude(pruning.dense_weights, pruning.layers, Mask.dense(pruning.layers)))
    budget = pruning.budget(pruning.ticket.final_density)
    counts = pooled_counts(scores, budget, least_kept(pruning.layers, pruning.ticket), pruning.costs)
    return {layer.name: counts[layer.name] / layer.size for layer in pruning.free}


# --- score rules: the surviving weights compete -----------------------------------------------------------------------


def global_(scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """One threshold on the criterion over all layers.

    On |w|: Han et al. 2015 (arXiv 1506.02626), Frankle & Carbin 2019 for deep nets. SNIP and SynFlow are published so.
    """
    return scores


def lamp(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LAMP: w_u^2 / sum of w_v^2 over the weights of the layer at least as large (Lee et al. 2021, arXiv 2010.07611).

    It is defined on |w|. Under another criterion that one's scores take the place of |w|: the order within a layer stays,
    and layers are compared by what each would lose of its own sum of squares. Pruned weights stay below all others.
    """
    found = {}
    for name, score in scores.items():
        ranked = torch.sort(score.reshape(-1), descending=True, stable=True)
        squares = ranked.values.clamp(min=0).square()
        ratio = squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        own = torch.empty_like(ratio)
        own[ranked.indices] = torch.where(ranked.values < 0, ranked.values, ratio)
        found[name] = own.reshape(score.shape)
    return found


BASES: dict[str, Callable[[Pruning], dict[str, float]]] = {
    "uniform": uniform,
    "uniform+": uniform,  # Gale et al. 2019 (arXiv 1902.09574): first layer whole, at least 20 % of the last, else uniform
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "lamp": lamp_base,
}
SCORES: dict[str, Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]] = {"lamp": lamp, "global": global_}
