"""diffusers' UNet2DModel: how raylt builds it, and which of its weights can be pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from raylt.diffusion.tensors import NamedTensors
from raylt.spec.canonical import canonical
from raylt.spec.presets import UnetConfig, block_of

PRUNABLE_TYPES = (nn.Conv2d, nn.Linear)  # by type: GroupNorm's gains are called `weight` too


@dataclass(frozen=True)
class Layer:
    """A prunable layer: its module name, its block and the shape of its weight (outputs first)."""

    name: str
    shape: tuple[int, ...]

    @property
    def block(self) -> str:
        return block_of(self.name)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_outputs(self) -> int:
        return self.shape[0]


def build_unet(config: UnetConfig, seed: int | None = None) -> UNet2DModel:
    """A U-Net on the CPU, initialised from `seed` alone; None: on the meta device, shapes only.

    What diffusers raises for a config it cannot build, it raises here; `unet_rehearsal.py` says it before anything starts.
    """
    if seed is None:
        with torch.device("meta"):
            return UNet2DModel(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**config)


def prunable_layers(model: nn.Module) -> list[Layer]:
    """The layers whose weights may be pruned, in module order."""
    prunable = ((name, module) for name, module in model.named_modules() if isinstance(module, PRUNABLE_TYPES))
    return [Layer(name, tuple(module.weight.shape)) for name, module in prunable]


def layers_of(config: UnetConfig) -> list[Layer]:
    """The prunable layers of the U-Net that `config` describes."""
    return list(_layers_of(canonical(dict(config))))


@lru_cache(maxsize=16)
def _layers_of(config_json: bytes) -> tuple[Layer, ...]:
    return tuple(prunable_layers(build_unet(json.loads(config_json))))


def parameters_of(model: nn.Module) -> NamedTensors:
    """A copy of every parameter, on the CPU, by name. (This U-Net has no buffers.)"""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def load_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set every parameter from `values`; the names must agree exactly."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


def weight_name(layer: str) -> str:
    """Name of the parameter that a layer's mask covers."""
    return f"{layer}.weight"
