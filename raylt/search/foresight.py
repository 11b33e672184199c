"""What an allocation will cost, before it is trained: counts follow from shapes, and for LAMP from the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch

from raylt.diffusion.model import layers_of
from raylt.ledger import Ledger
from raylt.metrics.flops import count_flops, weight_costs
from raylt.plan import SEARCHED
from raylt.spec import SweepSpec
from raylt.tensors import NamedTensors, unpack
from raylt.ticket.allocation import Allocation, Pruning
from raylt.ticket.find import TRAINED


class Foresight:
    """Says what proposals will cost, so that none is trained that would break the FLOPs ceiling.

    It looks at a round as if all weights were there to choose from. Where earlier rounds left fewer of a layer,
    or layers of a block compete (`ticket.scope: block`), the ticket may differ a little: its own count decides in the end.
    """

    def __init__(self, spec: SweepSpec, ledger: Ledger | None) -> None:
        """`ledger`: where the dense model is found, for base LAMP alone."""
        self.spec, self.ledger = spec, ledger

    def excess(self, offsets: Mapping[str, float]) -> float:
        """By how much of `search.constraints.flops` a bend of the base lies above it; 0 or less where it keeps it."""
        ceiling = self.spec.search.constraints.flops
        if ceiling is None:
            return 0.0
        return self.flops(offsets, self.spec.ticket.rounds) / count_flops(self.spec.unet_config).dense / ceiling - 1

    def flops(self, offsets: Mapping[str, float], index: int) -> int:
        """FLOPs of one forward pass of one image at round `index`; `offsets`: block -> what its logits gain.

        0 over LAMP where the dense model failed, which nothing can be foreseen of.
        """
        if self._dense_weights is None:
            return 0
        rule = Allocation(SEARCHED, self.spec.search.base, offsets)
        counts = rule.at(self.spec.ticket.density_of(index), self._pruning)
        sizes = {layer.name: layer.size for layer in self._pruning.layers}
        return count_flops(self.spec.unet_config).of_counts({name: (kept, sizes[name]) for name, kept in counts.items()})

    @cached_property
    def _pruning(self) -> Pruning:
        layers, ticket = layers_of(self.spec.unet_config), self.spec.ticket.model_copy(update={"scope": "layer"})
        all_there = {layer.name: torch.ones(layer.shape) for layer in layers}
        return Pruning(layers, ticket, all_there, self._dense_weights or {}, weight_costs(self.spec))

    @cached_property
    def _dense_weights(self) -> NamedTensors | None:
        """Of the trained dense model, which LAMP alone asks for; None where it failed."""
        if self.spec.search.base != "lamp" or self.ledger is None:
            return {}
        dense = self.ledger.complete("dense")
        return unpack(self.ledger.store.find(dense[0][1]["final_stage"]).read(TRAINED))["weights"] if dense else None
