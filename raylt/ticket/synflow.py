"""SynFlow's surrogate of a U-Net: the sum over all paths of the products of |weights|, and each weight's part of it.

R = 1^T prod |theta_l| 1 (Tanaka et al. 2020, arXiv 2006.05467) is written for a chain of layers. For diffusers' U-Net:
weights are replaced by their absolute values and biases by 0; normalisations, activations and dropout by the identity; the
image and the timestep's embedding are all ones. Skip connections add paths. So a layer that paths can go around may be
emptied, which the paper proves impossible in a chain alone; `min_kept` is the guard. Attention would not be linear, and with
equal tokens its softmax would leave queries and keys no score: it is replaced by the sum of its three projections.

In float64, since a path is a product of dozens of weights. On the CPU, so that a mask made twice is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import PRUNABLE_TYPES, Layer, build_unet, weight_name
from raylt.spec.presets import UnetConfig
from raylt.ticket.mask import Mask

_NOT_LINEAR = (nn.GroupNorm, nn.LayerNorm, RMSNorm, nn.SiLU, nn.ReLU, nn.GELU, nn.Mish, nn.Dropout)


class SynapticFlow:
    """The surrogate of one network at given weights, asked for scores under one mask after another."""

    def __init__(self, unet_config: UnetConfig, weights: NamedTensors, layers: Sequence[Layer]) -> None:
        self.model = build_unet(unet_config, seed=0).double()
        linearise(self.model)
        self.parameters = dict(self.model.named_parameters())
        self.sizes = {weight_name(layer.name): weights[weight_name(layer.name)].double().abs() for layer in layers}
        self.ones = torch.ones(
            1, *(unet_config[key] for key in ("in_channels", "sample_size", "sample_size")), dtype=torch.float64
        )

    def total(self, mask: Mask) -> Tensor:
        """R of the weights that a mask keeps."""
        with torch.no_grad():
            for name, value in mask.apply(self.sizes).items():
                self.parameters[name].copy_(value)
        total: Tensor = self.model(self.ones, 1).sample.sum()
        return total

    def scores(self, mask: Mask) -> dict[str, Tensor]:
        """Layer -> |theta| dR/d|theta|: how much of R flows through each weight. 0 where it is pruned or leads nowhere."""
        names = list(mask.layers)
        wanted = [self.parameters[weight_name(name)] for name in names]
        flow = torch.autograd.grad(self.total(mask), wanted, materialize_grads=True)
        return {name: w.detach() * gradient for name, w, gradient in zip(names, wanted, flow, strict=True)}


def linearise(model: UNet2DModel) -> None:
    """Make a U-Net in place the network that R is read from; its weights are still to be set."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _NOT_LINEAR):
                setattr(module, name, nn.Identity())
        if isinstance(module, PRUNABLE_TYPES) and module.bias is not None:
            module.bias.data.zero_()
        if isinstance(module, Attention):
            module.set_processor(_SumOfProjections())
    model.time_proj = _Ones(model.time_embedding.linear_1.in_features)


class _Ones(nn.Module):
    """In place of the sinusoids of a timestep."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, t_B: Tensor) -> Tensor:
        return torch.ones(len(t_B), self.dims, dtype=torch.float64)


class _SumOfProjections:
    """In place of attention's products."""

    def __call__(
        self, attention: Any, hidden_BCHW: Tensor, encoder_hidden_states: None = None, attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As diffusers calls it. (It warns of arguments that are not named here.)"""
        tokens_BNC = hidden_BCHW.flatten(2).transpose(1, 2)
        mixed_BNC = attention.to_out[0](attention.to_q(tokens_BNC) + attention.to_k(tokens_BNC) + attention.to_v(tokens_BNC))
        mixed_BCHW = mixed_BNC.transpose(1, 2).reshape(hidden_BCHW.shape)
        residual = hidden_BCHW if attention.residual_connection else 0
        output_BCHW: Tensor = (mixed_BCHW + residual) / attention.rescale_output_factor
        return output_BCHW
