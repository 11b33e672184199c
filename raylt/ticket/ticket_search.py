"""What a lottery-ticket search is: the sweep's spec, its allocation, and what it has of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from raylt.diffusion.compute import Compute
from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer, layers_of
from raylt.spec import SweepSpec
from raylt.spec.presets import UnetConfig
from raylt.spec.sections import TrainSpec
from raylt.ticket.allocation import Allocation
from raylt.ticket.budget import LayerBudget, costs_of
from raylt.ticket.mask import Mask
from raylt.ticket.prune import Scores, top_k


@dataclass(frozen=True)
class TicketSearch:
    """One lottery-ticket search: the sweep's spec, and what this search has of its own."""

    spec: SweepSpec
    compute: Compute
    allocation: Allocation | None  # None: the dense model, round 0 alone
    seed: int  # orders batches, noise and timesteps
    start_seed: int | None = None  # of the initialisation; None: the sweep's `train.seed`
    steps: int | None = None  # the training budget; None: the sweep's `train.steps`
    rewinds_to: int | None = None  # None: the sweep's `ticket.rewind_step`
    smaller_unet: UnetConfig | None = None  # None: the sweep's U-Net

    @cached_property
    def train(self) -> TrainSpec:
        """How it trains: the sweep's `train`, with this search's initialisation and budget."""
        train = self.spec.train
        start_seed = train.seed if self.start_seed is None else self.start_seed
        return train.model_copy(update={"seed": start_seed, "steps": self.steps or train.steps})

    @property
    def rewind_step(self) -> int:
        return self.spec.ticket.rewind_step if self.rewinds_to is None else self.rewinds_to

    @cached_property
    def unet_config(self) -> UnetConfig:
        return self.spec.unet_config if self.smaller_unet is None else self.smaller_unet

    @cached_property
    def layers(self) -> list[Layer]:
        return layers_of(self.unet_config)

    @cached_property
    def costs(self) -> dict[str, int]:
        """Layer -> FLOPs of one weight; empty where `search.budget` counts weights."""
        return costs_of(self.spec)

    @property
    def num_rounds(self) -> int:
        """Trainings: one for the dense model, one after each pruning."""
        return 1 + (self.spec.ticket.rounds if self.allocation is not None else 0)

    def allocation_of(self, index: int) -> Allocation:
        """The rule of round `index`: uniform in the rounds that trials share."""
        assert self.allocation is not None
        return Allocation("uniform") if self.spec.ticket.is_shared(index) else self.allocation

    def cut(self, index: int, density: float, scores: Scores, dense_weights: NamedTensors) -> Mask:
        """The mask of round `index` at an overall density: the best scores of every layer, as many as the allocation says.

        Raises `InputError` where the density cannot be met.
        """
        budget = LayerBudget.among(self.layers, self.spec.ticket, scores, dense_weights, self.costs)
        return top_k(scores, self.allocation_of(index).at(density, budget))
