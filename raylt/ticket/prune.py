"""Scores of weights, and the masks that keep the highest: exact counts, a stated tie rule, never a revival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raylt.diffusion.unet import Layer, weight_name
from raylt.ticket.mask import Mask

PRUNED = -1.0  # below every score: what is pruned stays pruned

Scores = dict[str, Tensor]  # layer -> scores of its weight's shape


def magnitude(weights: Mapping[str, Tensor], layers: Sequence[Layer], within: Mask) -> Scores:
    """|w| of each layer (Han et al. 2015, arXiv 1506.02626), in float64; pruned weights score below all others."""
    return {
        layer.name: torch.where(within.layers[layer.name], weights[weight_name(layer.name)].double().abs(), PRUNED)
        for layer in layers
    }


def top_k(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mask:
    """Keep the `counts[layer]` highest scores of each layer. Of equal scores the earlier in C order is kept.

    Raises ValueError where a layer has fewer candidates than its count.
    """
    return Mask({name: _top_k(name, score, counts[name]) for name, score in scores.items()})


def _top_k(name: str, score: Tensor, count: int) -> Tensor:
    flat = score.reshape(-1)
    if count > int((flat >= 0).sum()):
        raise ValueError(f"{name}: {count} weights to keep, {int((flat >= 0).sum())} are left")
    keep = torch.zeros(flat.numel(), dtype=torch.bool)
    keep[torch.sort(flat, descending=True, stable=True).indices[:count]] = True
    return keep.reshape(score.shape)


def pooled_counts(
    scores: Mapping[str, Tensor], budget: int, floors: Mapping[str, int], costs: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many weights each layer keeps when the survivors of all layers compete, each layer sure of its floor.

    Every layer's `floors[layer]` best are in. The other survivors follow from the highest score on, as far as `budget`
    goes: one threshold for all layers. A weight takes `costs[layer]` of the budget, 1 by default. Of equal scores the
    earlier layer's, then the earlier in C order, is kept.
    """
    names = list(scores)
    prices = [(costs or {}).get(name, 1) for name in names]
    rest = []
    for name in names:
        ranked = torch.sort(scores[name].reshape(-1), descending=True, stable=True).values
        rest.append(ranked[floors[name] : int((ranked >= 0).sum())])
    owner = torch.repeat_interleave(torch.tensor([competing.numel() for competing in rest]))
    order = torch.sort(torch.cat(rest), descending=True, stable=True).indices
    spent = torch.tensor(prices)[owner[order]].cumsum(0)
    left = budget - sum(price * floors[name] for name, price in zip(names, prices, strict=True))
    won = torch.bincount(owner[order[spent <= left]], minlength=len(names)).tolist()
    return {name: floors[name] + won[index] for index, name in enumerate(names)}
