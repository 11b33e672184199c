"""FLOPs of one forward pass of one image: theoretical, since no common hardware skips single weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from raylt.diffusion.unet import build_unet, layers_of
from raylt.spec.canonical import canonical
from raylt.spec.presets import UnetConfig


@dataclass(frozen=True)
class Flops:
    """FLOPs of the dense model: in all, and of each prunable layer. A multiply-add counts as 2."""

    dense: int
    layers: Mapping[str, int]

    def of(self, counts: Mapping[str, tuple[int, int]]) -> int:
        """FLOPs where every pruned weight's multiply-adds are left out: those of a layer times its density.

        `counts`: layer -> weights (kept, in all).
        """
        saved = sum(flops * (1 - kept / total) for (kept, total), flops in ((counts[n], f) for n, f in self.layers.items()))
        return round(self.dense - saved)


def count_flops(config: UnetConfig) -> Flops:
    """FLOPs of the U-Net that `config` describes, by `torch.utils.flop_counter` on shapes alone."""
    return _count(canonical(dict(config)))


def weight_costs(config: UnetConfig) -> dict[str, int]:
    """Layer -> FLOPs of one weight: 2 for every position it is applied at."""
    flops = count_flops(config).layers
    return {layer.name: flops[layer.name] // layer.size for layer in layers_of(config)}


@lru_cache(maxsize=16)
def _count(config_json: bytes) -> Flops:
    config = json.loads(config_json)
    model = build_unet(config)
    size, channels = config["sample_size"], config["in_channels"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, channels, size, size, device="meta"), torch.empty(1, dtype=torch.long, device="meta"))
    by_module = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return Flops(counter.get_total_flops(), {layer.name: by_module[layer.name] for layer in layers_of(config)})


LEAST_CHANNELS = 4  # of a U-Net's first level: its timestep embedding needs two frequencies


def narrower_unet(config: UnetConfig, flops: float) -> UnetConfig:
    """`config` with fewer channels in every level, of FLOPs as near to `flops` as whole channels come.

    The levels keep their ratio to within one channel; the norms keep as many groups as divide all of them, at most those of
    `config`. Where attention splits its channels into heads, they are whole heads. Never below `LEAST_CHANNELS`.
    """
    full = list(config["block_out_channels"])
    step = _head_dim(config)

    def at(width: int) -> UnetConfig:
        """The U-Net whose widest level has `width * step` channels."""
        ratio = width * step / max(full)
        channels = [max(LEAST_CHANNELS, step, round(c * ratio / step) * step) for c in full]
        groups = math.gcd(*channels, config.get("norm_num_groups") or 32)
        return {**config, "block_out_channels": channels, "norm_num_groups": groups}

    lower, upper = 1, max(full) // step
    while lower < upper:  # the widest of at most `flops`, or the narrowest there is
        middle = (lower + upper + 1) // 2
        lower, upper = (middle, upper) if count_flops(at(middle)).dense <= flops else (lower, middle - 1)
    candidates = [at(width) for width in (lower, min(lower + 1, max(full) // step))]
    return min(candidates, key=lambda c: abs(math.log(count_flops(c).dense / flops)))


def _head_dim(config: UnetConfig) -> int:
    """Channels come in multiples of this: of an attention head, where there is attention."""
    kinds = [*config["down_block_types"], *config["up_block_types"]]
    has_attention = config.get("add_attention", True) or any("Attn" in kind for kind in kinds)
    return (config.get("attention_head_dim", 8) or 1) if has_attention else 1
