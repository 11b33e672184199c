"""The ticket file: mask and rewind point, small and exact, loadable without running code; and the export to diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from torch import Tensor

from raylt.diffusion.tensors import NamedTensors, digest_of_tensors, gathered, metadata_of, pack, scattered, unpack
from raylt.diffusion.train import TrainState, noise_schedule
from raylt.diffusion.unet import Layer, build_unet, layers_of, load_parameters, parameters_of
from raylt.spec.canonical import digest_of
from raylt.spec.presets import UnetConfig
from raylt.ticket.mask import Mask

FORMAT = "raylt-ticket-2"
EARLIER = "raylt-ticket-1"  # whose masks are plain bits


@dataclass(frozen=True)
class Ticket:
    """A mask and the rewind point it is trained from. Pruned weights and moments of `start` are zero."""

    unet_config: UnetConfig
    mask: Mask
    start: TrainState

    def to_bytes(self) -> bytes:
        """`gaps/LAYER`: the mask; `w/NAME`, `m/NAME`, `v/NAME`: values, of pruned layers the kept ones alone, in C order.

        Moments are left out at step 0, where they are zero.
        """
        groups = {"w": self.start.weights}
        if self.start.step:
            groups |= {"m": self.start.first_moments, "v": self.start.second_moments}
        kept = {group: gathered(values, self.mask.of_weights) for group, values in groups.items()}
        return self._sealed({"rewind_step": str(self.start.step)}, kept)

    def to_seed_bytes(self, seed: int) -> bytes:
        """The mask, and a seed in place of values: `load_ticket` initialises the U-Net from it again.

        Raises `ValueError` where the rewind point is not what the U-Net of this seed begins with.
        """
        begins = self.mask.apply(parameters_of(build_unet(self.unet_config, seed)))
        if self.start.step or digest_of_tensors(begins) != self.init_sha256:
            raise ValueError(f"its rewind point, at step {self.start.step}, is not the initialisation of seed {seed}")
        of_seed = {"init_seed": str(seed), "init_sha256": self.init_sha256, "torch": torch.__version__}
        return self._sealed({"rewind_step": "0", **of_seed}, {})

    @property
    def init_sha256(self) -> str:
        """Over the names, shapes and bytes of the kept weights of the rewind point and the zeros between them."""
        return digest_of_tensors(self.mask.apply(self.start.weights))

    def _sealed(self, more: Mapping[str, str], values: Mapping[str, NamedTensors]) -> bytes:
        groups = {**self.mask.coded(), **values}
        metadata = {"format": FORMAT, "unet_config": json.dumps(dict(self.unet_config)), **more}
        return pack({**metadata, "sha256": _digest(metadata, groups)}, **groups)


def _digest(metadata: Mapping[str, str], groups: Mapping[str, NamedTensors]) -> str:
    """Of all that a file says."""
    about = {name: value for name, value in metadata.items() if name != "sha256"}
    return digest_of([about, {group: digest_of_tensors(tensors) for group, tensors in groups.items()}])


def load_ticket(path: Path) -> Ticket:
    """The ticket in a file: `read_ticket`. Raises `OSError` too."""
    data = path.read_bytes()
    try:
        return read_ticket(data)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def read_ticket(data: bytes) -> Ticket:
    """The ticket that `Ticket.to_bytes` or `to_seed_bytes` wrote; nothing in it is run.

    Raises `ValueError` where it is none, or where this version of torch initialises the U-Net of a seed otherwise.
    """
    try:
        groups, metadata = unpack(data), metadata_of(data)
        if metadata.get("format") not in (FORMAT, EARLIER):
            raise ValueError("its format is unknown")
        if metadata["format"] == FORMAT and metadata["sha256"] != _digest(metadata, groups):
            raise ValueError("it is damaged: its checksum is another")
        return _ticket_of(metadata, groups)
    except Exception as error:  # whatever a config, a tensor or a number of somebody else's file leads to
        cause = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"is no ticket file of raylt: {cause}") from error


def _ticket_of(metadata: Mapping[str, str], groups: Mapping[str, NamedTensors]) -> Ticket:
    config, step = json.loads(metadata["unet_config"]), int(metadata["rewind_step"])
    mask = Mask.decoded(groups, layers_of(config))
    if "init_seed" in metadata:
        weights = mask.apply(parameters_of(build_unet(config, int(metadata["init_seed"]))))
        ticket = Ticket(config, mask, TrainState.fresh(weights))
        if ticket.init_sha256 != metadata["init_sha256"]:
            raise ValueError(
                f"torch {torch.__version__} initialises it otherwise than torch {metadata['torch']}, which it was written with"
            )
        return ticket
    shapes = dict(build_unet(config).named_parameters())
    weights = _values(groups["w"], mask, shapes)
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    first, second = (_values(groups[name], mask, shapes) if name in groups else zeros for name in ("m", "v"))
    return Ticket(config, mask, TrainState(step, weights, first, second, weights, 0))


def _values(kept: NamedTensors, mask: Mask, shapes: Mapping[str, Tensor]) -> NamedTensors:
    """Whole tensors from the kept values. Raises `ValueError` for names, types or numbers of values that do not fit."""
    counts = {name: int(keep.sum()) for name, keep in mask.of_weights.items()}
    for name in kept.keys() | shapes.keys():
        expected = (counts[name],) if name in counts else tuple(shapes[name].shape)
        if kept[name].dtype != torch.float32 or kept[name].shape != expected:
            raise ValueError(f"{name} is {kept[name].dtype} of shape {tuple(kept[name].shape)}, not float32 of {expected}")
    return scattered(kept, mask.of_weights)


def export_pipeline(folder: Path, unet_config: UnetConfig, weights: NamedTensors, beta_schedule: str) -> None:
    """Write trained weights (the EMA, pruned weights zero) as a folder that `DDPMPipeline.from_pretrained` loads."""
    model = build_unet(unet_config, seed=0)
    load_parameters(model, weights)
    DDPMPipeline(model, noise_schedule(beta_schedule)).save_pretrained(folder)


def block_counts(mask: Mask, layers: list[Layer], blocks: list[str]) -> dict[str, tuple[int, int]]:
    """Block -> (kept, total), in the order of `blocks`."""
    by_block = {block: [mask.counts[layer.name] for layer in layers if layer.block == block] for block in blocks}
    return {block: (sum(kept for kept, _ in counts), sum(total for _, total in counts)) for block, counts in by_block.items()}
