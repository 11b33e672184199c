"""Where the weights stay: rules that give every layer its number of kept weights for any overall density.

Two kinds, one signature. Static rules (uniform, ER, ERK) fix each layer's density at the search's final density and
are bent to a round's budget by one constant c alone: `logit(density_l) = c + logit(base_l) + offset_l`. So a layer's
density falls monotonically from round to round. Score rules (LAMP, global) let the surviving weights compete.

Every rule meets the budget exactly, `kept == round(density * total)`; `keep_dense` layers stay whole and every other
layer keeps `min_kept` times its output channels, both counted in the budget; no layer exceeds its previous round's count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raylt.diffusion.model import Layer
from raylt.errors import InputError
from raylt.spec import TicketSpec, matches
from raylt.tensors import NamedTensors
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, pooled_counts

CLIP = 1e-3  # base densities are kept this far from 0 and 1, where a logit has no end

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pruning:
    """What an allocation may look at: the layers, what the previous round left, and what the spec demands."""

    layers: Sequence[Layer]
    ticket: TicketSpec
    previous: Mask
    weights: NamedTensors  # trained weights of the previous round
    dense_weights: NamedTensors  # trained weights of round 0

    @cached_property
    def floors(self) -> dict[str, int]:
        """The fewest weights each layer keeps: all where kept dense, else min_kept per output channel."""
        return {layer.name: min(_floor(layer, self.ticket), self.previous.counts[layer.name][0]) for layer in self.layers}

    @cached_property
    def caps(self) -> dict[str, int]:
        return {layer.name: self.previous.counts[layer.name][0] for layer in self.layers}

    @cached_property
    def free(self) -> list[Layer]:
        """The layers that are not kept dense."""
        return [layer for layer in self.layers if not matches(layer.name, self.ticket.keep_dense)]

    @property
    def total(self) -> int:
        return sum(layer.size for layer in self.layers)

    def pooled_by_block(self, counts: Mapping[str, int], scores: Mapping[str, Tensor]) -> dict[str, int]:
        """The same number in every block, but a block's layers compete: `ticket.scope: block`."""
        pooled: dict[str, int] = {}
        for block in dict.fromkeys(layer.block for layer in self.layers):
            names = [layer.name for layer in self.layers if layer.block == block]
            own = {name: scores[name] for name in names}
            pooled |= pooled_counts(own, sum(counts[name] for name in names), {name: self.floors[name] for name in names})
        return pooled

    @property
    def final_free_density(self) -> float:
        """Density left to the free layers at the end, once the layers kept dense have taken theirs."""
        free = sum(layer.size for layer in self.free)
        return (round(self.ticket.final_density * self.total) - (self.total - free)) / free


def _floor(layer: Layer, ticket: TicketSpec) -> int:
    whole = matches(layer.name, ticket.keep_dense)
    return layer.size if whole else min(layer.size, ticket.min_kept * layer.num_outputs)


def smallest_density(layers: Sequence[Layer], ticket: TicketSpec) -> float:
    """The smallest overall density that leaves `keep_dense` and `min_kept` their weights."""
    return sum(_floor(layer, ticket) for layer in layers) / sum(layer.size for layer in layers)


@dataclass(frozen=True)
class Allocation:
    """A rule, and for searched tickets the base it bends and the offset of each block's logit."""

    rule: str
    base: str = ""
    offsets: Mapping[str, float] = field(default_factory=dict)

    def at(self, density: float, pruning: Pruning) -> dict[str, int]:
        """Layer -> weights kept at an overall density. Raises `InputError` where the floors need more."""
        kept = round(density * pruning.total)
        if kept < sum(pruning.floors.values()):
            least = smallest_density(pruning.layers, pruning.ticket)
            raise InputError(f"density {density:g} is too small for keep_dense and min_kept; the smallest is {least:.6f}")
        if self.rule in SCORES:
            scores = SCORES[self.rule](pruning)
            return pooled_counts(scores, kept, pruning.floors)
        base = BASES[self.base or self.rule](pruning)
        logits = {layer.name: _logit(base[layer.name]) + self.offsets.get(layer.block, 0.0) for layer in pruning.free}
        return bend(pruning, logits, kept)


def bend(pruning: Pruning, logits: Mapping[str, float], kept: int) -> dict[str, int]:
    """Counts `n_l sigmoid(c + logit_l)`, clamped to floors and caps, with c such that they add up to `kept` exactly.

    What rounding leaves over goes to the largest fractions, earlier layers first.
    """
    names = [layer.name for layer in pruning.layers]
    low = np.array([pruning.floors[name] for name in names], dtype=np.float64)
    high = np.array([pruning.caps[name] for name in names], dtype=np.float64)
    size = np.array([layer.size for layer in pruning.layers], dtype=np.float64)
    x = np.array([logits.get(name, 0.0) for name in names])

    def counts(c: float) -> Floats:
        share: Floats = np.clip(size / (1 + np.exp(-np.clip(c + x, -60, 60))), low, high)
        return share

    lower, upper = -120.0, 120.0
    for _ in range(200):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if counts(middle).sum() < kept else (lower, middle)
    return dict(zip(names, _round(counts(upper), high, kept), strict=True))


def _round(real: Floats, high: Floats, kept: int) -> list[int]:
    """Whole numbers next to `real`, none above `high`, that add up to `kept`: the largest remainders are rounded up."""
    whole = np.floor(real + 1e-9)
    order = np.argsort(-(real - whole), kind="stable")
    missing = round(kept - whole.sum())
    while missing:
        step = 1 if missing > 0 else -1
        for index in order if step > 0 else order[::-1]:
            if missing and 0 <= whole[index] + step <= high[index] and (step > 0 or whole[index] > 0):
                whole[index] += step
                missing -= step
    return [int(count) for count in whole]


def _logit(density: float) -> float:
    clipped = min(max(density, CLIP), 1 - CLIP)
    return math.log(clipped / (1 - clipped))


# --- static rules: density of every free layer at the final density ---------------------------------------------------


def uniform(pruning: Pruning) -> dict[str, float]:
    """The same density in every layer."""
    return dict.fromkeys((layer.name for layer in pruning.free), pruning.final_free_density)


def uniform_plus(pruning: Pruning) -> dict[str, float]:
    """First layer whole, at least 20 % of the last, the rest uniform (Gale et al. 2019, arXiv 1902.09574)."""
    special = {pruning.layers[0].name: 1.0, pruning.layers[-1].name: 0.2}
    return {name: max(density, special.get(name, 0.0)) for name, density in uniform(pruning).items()}


def erdos_renyi(pruning: Pruning) -> dict[str, float]:
    """ER: density proportional to (n_in + n_out) / (n_in n_out) (Mocanu et al. 2018, arXiv 1707.04780)."""
    return _solve_proportional(pruning, lambda shape: sum(shape[:2]) / math.prod(shape[:2]))


def erdos_renyi_kernel(pruning: Pruning) -> dict[str, float]:
    """ERK: ER with the kernel's dimensions, sum(shape) / prod(shape) (Evci et al. 2020, RigL, arXiv 1911.11134, eq. 3)."""
    return _solve_proportional(pruning, lambda shape: sum(shape) / math.prod(shape))


def _solve_proportional(pruning: Pruning, share: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """density_l = min(1, epsilon share_l), with epsilon solved again for the others whenever a layer reaches 1."""
    budget = pruning.final_free_density * sum(layer.size for layer in pruning.free)
    full: set[str] = set()
    while True:
        open_layers = [layer for layer in pruning.free if layer.name not in full]
        taken = sum(layer.size for layer in pruning.free if layer.name in full)
        epsilon = (budget - taken) / sum(share(layer.shape) * layer.size for layer in open_layers) if open_layers else 0.0
        over = {layer.name for layer in open_layers if epsilon * share(layer.shape) > 1}
        if not over:
            return {layer.name: 1.0 if layer.name in full else max(epsilon, 0.0) * share(layer.shape) for layer in pruning.free}
        full |= over


def lamp_base(pruning: Pruning) -> dict[str, float]:
    """The densities LAMP gives the dense trained weights at the final density: a static base to bend."""
    dense = Mask.dense(pruning.layers)
    scores = _lamp_scores(magnitude(pruning.dense_weights, pruning.layers, dense))
    kept = round(pruning.ticket.final_density * pruning.total)
    counts = pooled_counts(scores, kept, {layer.name: _floor(layer, pruning.ticket) for layer in pruning.layers})
    return {layer.name: counts[layer.name] / layer.size for layer in pruning.free}


# --- score rules: the surviving weights compete -----------------------------------------------------------------------


def global_magnitude(pruning: Pruning) -> dict[str, Tensor]:
    """One threshold on |w| over all layers (Han et al. 2015, arXiv 1506.02626; Frankle & Carbin 2019 for deep nets)."""
    return magnitude(pruning.weights, pruning.layers, pruning.previous)


def lamp(pruning: Pruning) -> dict[str, Tensor]:
    """LAMP scores of the surviving weights (Lee et al. 2021, arXiv 2010.07611, eq. 4)."""
    return _lamp_scores(magnitude(pruning.weights, pruning.layers, pruning.previous))


def _lamp_scores(magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w_u^2 / sum of w_v^2 over the weights of the layer at least as large; pruned weights stay below all others."""
    scores = {}
    for name, magnitude_ in magnitudes.items():
        flat = magnitude_.reshape(-1)
        ranked = torch.sort(flat, descending=True, stable=True)
        squares = ranked.values.clamp(min=0).square()
        ratio = squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        score = torch.empty_like(flat)
        score[ranked.indices] = torch.where(ranked.values < 0, ranked.values, ratio)
        scores[name] = score.reshape(magnitude_.shape)
    return scores


BASES: dict[str, Callable[[Pruning], dict[str, float]]] = {
    "uniform": uniform,
    "uniform+": uniform_plus,
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "lamp": lamp_base,
}
SCORES: dict[str, Callable[[Pruning], dict[str, Tensor]]] = {"lamp": lamp, "global": global_magnitude}
