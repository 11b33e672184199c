"""U-Net presets as plain data: names a spec may use, without importing torch.

Each is a configuration of diffusers' `UNet2DModel`; channels and image size are filled in from the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UnetConfig = Mapping[str, Any]  # the arguments of diffusers' UNet2DModel


def _unet(channels: tuple[int, ...], layers_per_block: int, groups: int, attention_at: int | None = None) -> UnetConfig:
    def kind(level: int, side: str) -> str:
        return f"{'Attn' if level == attention_at else ''}{side}Block2D"

    levels = range(len(channels))
    return {
        "block_out_channels": list(channels),
        "layers_per_block": layers_per_block,
        "norm_num_groups": groups,
        "down_block_types": [kind(level, "Down") for level in levels],
        "up_block_types": [kind(level, "Up") for level in reversed(levels)],
        "add_attention": attention_at is not None,
    }


PRESETS: dict[str, UnetConfig] = {
    # 160 k weights: 8x8 digits are clear to the eye after 400 steps.
    "digits": _unet((16, 32), 1, 8),
    # 263 k weights, three levels: 16x16 and 32x32 images on a CPU.
    "tiny": _unet((16, 32, 32), 1, 8),
    # 620 k weights: large enough to keep some thousand weights at 99 % sparsity.
    "small": _unet((16, 32, 64), 1, 8),
    # Ho et al. 2020 (arXiv 2006.11239), appendix B: 35.7 M weights; attention at 16x16; dropout 0.1 for CIFAR-10.
    # The other values are those of google/ddpm-cifar10-32, which carries Ho's weights.
    "ddpm-cifar10": {
        **_unet((128, 256, 256, 256), 2, 32, attention_at=1),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "dropout": 0.1,
    },
}

# Of diffusers' UNet2DModel, where a config leaves them out: enough to know the blocks without torch.
_DEFAULT_DOWN = ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
_DEFAULT_UP = ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"]


def block_names(config: UnetConfig) -> list[str]:
    """The blocks of a U-Net (its top-level parts with prunable weights), in the order of the forward pass."""
    downs = config.get("down_block_types", _DEFAULT_DOWN)
    ups = config.get("up_block_types", _DEFAULT_UP)
    return [
        "conv_in",
        "time_embedding",
        *(f"down_blocks.{i}" for i in range(len(downs))),
        *(["mid_block"] if config.get("mid_block_type", "UNetMidBlock2D") is not None else []),
        *(f"up_blocks.{i}" for i in range(len(ups))),
        "conv_out",
    ]


def default_groups(blocks: list[str]) -> dict[str, list[str]]:
    """Group -> those of `blocks` on its side of the U-Net: down, mid (with the time embedding), up, ends."""
    groups: dict[str, list[str]] = {"down": [], "mid": [], "up": [], "ends": []}
    for block in blocks:
        side = block.split(".")[0].removesuffix("_blocks").removesuffix("_block")
        groups[side if side in groups else "mid" if block == "time_embedding" else "ends"].append(block)
    return {group: members for group, members in groups.items() if members}


def block_of(layer: str) -> str:
    """The block a layer belongs to, from the layer's module name: `down_blocks.0.resnets.0.conv1` -> `down_blocks.0`."""
    parts = layer.split(".")
    return ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0]
