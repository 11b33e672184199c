"""Single numbers of similarity, asked of masks alone: what `Comparison` says of all at once is checked against them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer
from raylt.ticket.mask import Mask
from raylt.ticket.overlap import compare, inherited, mean, pooled, refuse_nested


def pooled_kappa(a: Mask, b: Mask, layers: Sequence[Layer]) -> float | None:
    """kappa of two tickets over several layers: sum(o - e) / sum(min(k1, k2) - e). Raises `NestedMasks`."""
    refuse_nested([a, b])
    return pooled(compare(a, b, layers), layers).kappa


def kappa_between(tickets: Sequence[Mask], layers: Sequence[Layer]) -> float | None:
    """Mean pooled kappa over all pairs of independent tickets; None without a pair or without anything pruned.

    Raises `NestedMasks`.
    """
    refuse_nested(tickets)
    return mean(pooled(compare(a, b, layers), layers).kappa for a, b in itertools.combinations(tickets, 2))


def kappa_with_start(tickets: Sequence[Mask], start: NamedTensors, layers: Sequence[Layer]) -> float | None:
    """Mean pooled kappa between each ticket and the top-k of |rewind weights| at the same counts per layer.

    What two tickets share beyond this, training found; the rest they inherit from their common start.
    """
    return mean(pooled(compare(ticket, inherited(ticket, start, layers), layers), layers).kappa for ticket in tickets)
