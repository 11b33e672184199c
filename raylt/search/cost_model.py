"""What an allocation will cost, before it is trained: counts follow from shapes, and for LAMP from the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from raylt.diffusion.flops import count_flops, weight_costs
from raylt.diffusion.tensors import NamedTensors, unpack
from raylt.diffusion.train import Compute
from raylt.diffusion.unet import Layer, layers_of
from raylt.spec import SweepSpec
from raylt.spec.ceilings import violation
from raylt.spec.trials import SEARCHED
from raylt.store import Ledger
from raylt.store.layout import TRAINED
from raylt.ticket.allocation import Allocation, Pruning
from raylt.ticket.find import TicketSearch, allocation_of


class Foresight:
    """Says what proposals will cost, so that none is trained that would break the FLOPs ceiling.

    Exact but for `ticket.scope: block`, under which the layers of a block compete: there the ticket's own count decides.
    """

    def __init__(self, spec: SweepSpec, ledger: Ledger | None) -> None:
        """`ledger`: where the dense model is found, for base LAMP alone."""
        self.spec, self.ledger = spec, ledger

    def violation(self, offsets: Mapping[str, float]) -> float:
        """By how much of `search.constraints.flops` a bend of the base lies above it; 0 or less where it keeps it."""
        ceiling = self.spec.search.constraints.flops
        if ceiling is None:
            return 0.0
        return violation(self.flops(offsets, self.spec.ticket.rounds) / count_flops(self.spec.unet_config).dense, ceiling)

    def flops(self, offsets: Mapping[str, float], index: int) -> int:
        """FLOPs of one forward pass of one image at round `index`; `offsets`: block -> what its logits gain.

        0 over LAMP where the dense model failed, which nothing can be foreseen of.
        """
        if self._dense_weights is None:
            return 0
        ticket = self.spec.ticket.model_copy(update={"scope": "layer"})
        rule = Allocation(SEARCHED, self.spec.search.base, offsets)
        search = TicketSearch(self.spec, Compute(), rule, 0)
        kept = {layer.name: layer.size for layer in self._layers}
        for r in range(1, index + 1):  # each round chooses among what the one before it left
            left = {layer.name: _scores(layer, kept[layer.name]) for layer in self._layers}
            pruning = Pruning(self._layers, ticket, left, self._dense_weights, self._costs)
            kept = allocation_of(search, r).at(ticket.density_of(r), pruning)
        counts = {layer.name: (kept[layer.name], layer.size) for layer in self._layers}
        return count_flops(self.spec.unet_config).of(counts)

    @cached_property
    def _layers(self) -> list[Layer]:
        return layers_of(self.spec.unet_config)

    @cached_property
    def _costs(self) -> dict[str, int]:
        return weight_costs(self.spec)

    @cached_property
    def _dense_weights(self) -> NamedTensors | None:
        """Of the trained dense model, which LAMP alone asks for; None where it failed."""
        if self.spec.search.base != "lamp" or self.ledger is None:
            return {}
        dense = self.ledger.complete("dense")
        return unpack(self.ledger.store.find(dense[0][1]["final_stage"]).read(TRAINED))["weights"] if dense else None


def _scores(layer: Layer, kept: int) -> torch.Tensor:
    """Scores of a layer of which so many weights are left: which ones does not matter to a static rule."""
    scores = torch.full((layer.size,), -1.0)
    scores[:kept] = 1.0
    return scores
