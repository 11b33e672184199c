"""FLOPs: per layer against the textbook formula, in all against torch's counter, and what a mask saves."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raylt.diffusion.flops import count_flops
from raylt.diffusion.unet import build_unet, layers_of
from raylt.spec.presets import PRESETS
from raylt.ticket.mask import Mask


def config_of(preset, size, channels):
    return {**PRESETS[preset], "sample_size": size, "in_channels": channels, "out_channels": channels}


def test_the_paper_s_unet_has_the_known_size_and_cost():
    config = config_of("ddpm-cifar10", 32, 3)
    assert sum(p.numel() for p in build_unet(config).parameters()) == 35_746_307  # Ho et al. 2020: 35.7 M
    flops = count_flops(config)
    assert flops.dense / 2 == pytest.approx(6.2e9, rel=0.02)  # multiply-adds, as the field quotes them
    assert sum(flops.layers.values()) < flops.dense  # attention's products belong to no layer


def test_layers_follow_the_formula_and_real_tensors_agree():
    config = config_of("digits", 8, 1)
    flops, model, sizes = count_flops(config), build_unet(config, 0), {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(lambda m, i, out, name=name: sizes.__setitem__(name, out.shape))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    assert flops.dense == counter.get_total_flops()
    for layer in layers_of(config):
        positions = math.prod(sizes[layer.name][2:])
        assert flops.layers[layer.name] == 2 * layer.size * positions


def test_a_mask_saves_its_layers_share():
    config = config_of("digits", 8, 1)
    flops, layers = count_flops(config), layers_of(config)
    assert flops.of(Mask.dense(layers).counts) == flops.dense
    halves = {layer.name: torch.zeros(layer.shape, dtype=torch.bool) for layer in layers}
    for keep in halves.values():
        keep.view(-1)[::2] = True
    odd = sum(f / layer.size * 0.5 for layer, f in zip(layers, flops.layers.values(), strict=True) if layer.size % 2)
    assert flops.of(Mask(halves).counts) == pytest.approx(flops.dense / 2 + odd, rel=1e-6)
