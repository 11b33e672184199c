"""How alike two tickets are, layer by layer and block by block, beyond what chance and their common start give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raylt.diffusion.model import Layer, weight_name
from raylt.tensors import NamedTensors
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, top_k


@dataclass(frozen=True)
class Overlap:
    """Two masks of one or more layers: weights that both keep, what chance would give, and the most there could be."""

    both: float
    chance: float
    most: float

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.both + other.both, self.chance + other.chance, self.most + other.most)

    @property
    def kappa(self) -> float | None:
        """(o - e) / (min(k1, k2) - e): 0 for random masks, 1 for identical ones; None where chance alone gives all."""
        return (self.both - self.chance) / (self.most - self.chance) if self.most - self.chance > 1e-9 else None


def layer_overlap(a: Mask, b: Mask, layer: str) -> Overlap:
    """Overlap in one layer of n weights, of which the masks keep k1 and k2; by chance e = k1 k2 / n (hypergeometric mean)."""
    (k1, n), (k2, _) = a.counts[layer], b.counts[layer]
    return Overlap(int((a.layers[layer] & b.layers[layer]).sum()), k1 * k2 / n, min(k1, k2))


def pooled_kappa(a: Mask, b: Mask, layers: Sequence[Layer]) -> float | None:
    """kappa over several layers: sum(o - e) / sum(min(k1, k2) - e), after Cohen's kappa; chance is taken per layer."""
    return sum((layer_overlap(a, b, layer.name) for layer in layers), Overlap(0, 0, 0)).kappa


def kappa_between(tickets: Sequence[Mask], layers: Sequence[Layer]) -> float | None:
    """Mean pooled kappa over all pairs of independent tickets; None without a pair or without anything pruned."""
    return _mean([pooled_kappa(a, b, layers) for a, b in itertools.combinations(tickets, 2)])


def kappa_with_start(tickets: Sequence[Mask], start: NamedTensors, layers: Sequence[Layer]) -> float | None:
    """Mean pooled kappa between each ticket and the top-k of |rewind weights| at the same counts per layer.

    What two tickets share beyond this, training found; the rest they inherit from their common start.
    """
    found = []
    for ticket in tickets:
        counts = {layer.name: ticket.counts[layer.name][0] for layer in layers}
        inherited = top_k(magnitude(start, layers, Mask.dense(layers)), counts)
        found.append(pooled_kappa(ticket, inherited, layers))
    return _mean(found)


def movement(start: NamedTensors, trained: NamedTensors, layers: Sequence[Layer]) -> float | None:
    """||w_T - w_k|| / ||w_k|| over the prunable weights of some layers: how far training took them. Needs no pilots."""

    names = [weight_name(layer.name) for layer in layers]
    before = _norm([start[name] for name in names])
    return _norm([trained[name] - start[name] for name in names]) / before if before else None


def _norm(values: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values))


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
