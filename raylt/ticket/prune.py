"""Scores of weights, and the masks that keep the highest: exact counts, a stated tie rule, never a revival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raylt.diffusion.unet import Layer, weight_name
from raylt.ticket.mask import Mask

PRUNED = -1.0  # below every score: what is pruned stays pruned

Values = npt.NDArray[np.floating]
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
    left = int((flat >= 0).sum())
    if count > left:
        raise ValueError(f"{name}: {count} weights to keep, {left} are left")
    if bool(flat.isnan().any()):
        raise ValueError(f"{name}: a score is not a number")
    if count == 0:
        return torch.zeros(score.shape, dtype=torch.bool)
    least = float(np.partition(flat.numpy(), -count)[-count])  # of those to keep: selection, not a sort of all
    keep = flat > least
    equal = torch.nonzero(flat == least).flatten()
    keep[equal[: count - int(keep.sum())]] = True
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
    rest = [_without_best(scores[name], floors[name]) for name in names]
    left = budget - sum(price * floors[name] for name, price in zip(names, prices, strict=True))
    won = _bought(rest, prices, left)
    return {name: floors[name] + won[index] for index, name in enumerate(names)}


def _without_best(score: Tensor, num: int) -> Values:
    """The scores of a layer's survivors but for the `num` best, in any order."""
    flat = score.reshape(-1).numpy()
    survivors = flat[flat >= 0]
    return np.partition(survivors, len(survivors) - num)[: len(survivors) - num] if num else survivors


def _bought(pools: list[Values], prices: Sequence[int], left: int) -> list[int]:
    """Of each pool, how many values are had for `left`, from the highest of all on, each at its pool's price.

    By selection: what lies above a pivot is either too dear, and then the rest of the pools need not be looked at, or is had
    whole. Equal values are had pool after pool.
    """
    counts = [0] * len(pools)
    while any(map(len, pools)):
        pivot = _middle(pools)
        above = [pool[pool > pivot] for pool in pools]
        cost = sum(len(pool) * price for pool, price in zip(above, prices, strict=True))
        if cost > left:
            pools = above
            continue
        left -= cost
        counts = [count + len(pool) for count, pool in zip(counts, above, strict=True)]
        for index, (pool, price) in enumerate(zip(pools, prices, strict=True)):
            equal = int((pool == pivot).sum())
            affordable = min(equal, left // price)
            counts[index], left = counts[index] + affordable, left - affordable * price
            if affordable < equal:
                return counts
        pools = [pool[pool < pivot] for pool in pools]
    return counts


def _middle(pools: Sequence[Values]) -> float:
    """About the median of all: of a thousand of them."""
    step = max(1, sum(map(len, pools)) // 1000)
    some = np.concatenate([pool[::step] for pool in pools])
    return float(np.partition(some, len(some) // 2)[len(some) // 2])
