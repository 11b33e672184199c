"""What an allocation will cost, before it is trained: counts follow from shapes, and for LAMP from the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from raylt.diffusion.compute import Compute
from raylt.diffusion.flops import count_flops
from raylt.diffusion.tensors import NamedTensors, unpack
from raylt.spec import SweepSpec
from raylt.spec.ceilings import violation
from raylt.spec.trials import SEARCHED
from raylt.store import Ledger
from raylt.store.layout import TRAINED
from raylt.ticket.allocation import Allocation
from raylt.ticket.budget import LayerBudget
from raylt.ticket.ticket_search import TicketSearch


class CostModel:
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
        search = TicketSearch(self.spec, Compute(), Allocation(SEARCHED, self.spec.search.base, offsets), 0)
        kept = {layer.name: layer.size for layer in search.layers}
        for r in range(1, index + 1):  # each round chooses among what the one before it left
            budget = LayerBudget(search.layers, ticket, kept, self._dense_weights, search.costs)
            kept = search.allocation_of(r).at(ticket.density_of(r), budget)
        return count_flops(self.spec.unet_config).of({layer.name: (kept[layer.name], layer.size) for layer in search.layers})

    @cached_property
    def _dense_weights(self) -> NamedTensors | None:
        """Of the trained dense model, which LAMP alone asks for; None where it failed."""
        if self.spec.search.base != "lamp" or self.ledger is None:
            return {}
        dense = self.ledger.complete("dense")
        if not dense:
            return None
        trained = self.ledger.store.find(dense[0][1].kept_ticket().final_stage)
        return unpack(trained.read(TRAINED))["weights"]
