"""The ticket file: mask and rewind point, small and exact, loadable without running code; and the export to diffusers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers import DDPMPipeline
from safetensors import safe_open

from raylt.diffusion.tensors import NamedTensors, gathered, pack, scattered, unpack
from raylt.diffusion.train import TrainState, noise_schedule
from raylt.diffusion.unet import Layer, build_unet, layers_of, load_parameters
from raylt.spec.presets import UnetConfig
from raylt.ticket.mask import Mask

FORMAT = "raylt-ticket-1"


@dataclass(frozen=True)
class Ticket:
    """A mask and the rewind point it is trained from. Pruned weights and moments of `start` are zero."""

    unet_config: UnetConfig
    mask: Mask
    start: TrainState

    def to_bytes(self) -> bytes:
        """`mask/LAYER`: bits; `w/NAME`, `m/NAME`, `v/NAME`: values, of pruned layers the kept ones alone, in C order.

        Moments are left out at step 0, where they are zero.
        """
        groups = {"w": self.start.weights}
        if self.start.step:
            groups |= {"m": self.start.first_moments, "v": self.start.second_moments}
        kept = {group: gathered(values, self.mask.of_weights) for group, values in groups.items()}
        metadata = {"format": FORMAT, "unet_config": json.dumps(dict(self.unet_config)), "rewind_step": str(self.start.step)}
        return pack(metadata, mask=self.mask.pack(), **kept)


def load_ticket(path: Path) -> Ticket:
    """The ticket in a file that `Ticket.to_bytes` made. Raises ValueError where it is none."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no ticket file of raylt")
    config, step = json.loads(metadata["unet_config"]), int(metadata["rewind_step"])
    groups = unpack(path.read_bytes())
    mask = Mask.unpack(groups["mask"], layers_of(config))
    weights = scattered(groups["w"], mask.of_weights)
    zeros = {name: value.new_zeros(value.shape) for name, value in weights.items()}
    first, second = (scattered(groups[g], mask.of_weights) if g in groups else zeros for g in ("m", "v"))
    return Ticket(config, mask, TrainState(step, weights, first, second, weights, 0))


def export_pipeline(folder: Path, unet_config: UnetConfig, weights: NamedTensors, beta_schedule: str) -> None:
    """Write trained weights (the EMA, pruned weights zero) as a folder that `DDPMPipeline.from_pretrained` loads."""
    model = build_unet(unet_config, seed=0)
    load_parameters(model, weights)
    DDPMPipeline(model, noise_schedule(beta_schedule)).save_pretrained(folder)


def block_counts(mask: Mask, layers: list[Layer], blocks: list[str]) -> dict[str, tuple[int, int]]:
    """Block -> (kept, total), in the order of `blocks`."""
    by_block = {block: [mask.counts[layer.name] for layer in layers if layer.block == block] for block in blocks}
    return {block: (sum(kept for kept, _ in counts), sum(total for _, total in counts)) for block, counts in by_block.items()}
