"""The two calls of a U-Net, its loss on a batch and its prediction, as the form of a training step has them.

Compiled, forward, loss and backward are one graph. Masks are no part of it: pruned weights are zero before and after a
step. So one graph serves all rounds and densities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from raylt.diffusion.compute import COMPILED, GRAPHED, Compute

MOST_GRAPHS = 1000  # of one function: one for each U-Net and batch size; beyond torch's own 8 it would raise
LossOf = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
Prediction = Callable[[nn.Module, Tensor, Tensor], Tensor]


@lru_cache(maxsize=4)
def loss_function(compute: Compute) -> LossOf:
    """(model, x_t (B, C, H, W), t (B), noise (B, C, H, W)) -> the simple loss |eps - eps_theta(x_t, t)|^2, its mean.

    Ho et al. 2020, arXiv 2006.11239, equation 14. Compiled on its first call for a U-Net and a batch, which takes a minute
    or so and needs a C++ compiler.
    """
    predict = _predict_as(compute)

    def loss_of(model: nn.Module, x_t_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        return nn.functional.mse_loss(predict(model, x_t_BCHW, t_B), noise_BCHW)

    return _in_form(loss_of, compute.form)


@lru_cache(maxsize=4)
def prediction_function(compute: Compute) -> Prediction:
    """(model, x_t (B, C, H, W), t, one or (B)) -> eps_theta(x_t, t), float32."""
    return _in_form(_predict_as(compute), compute.form)


def _predict_as(compute: Compute) -> Prediction:
    def predict(model: nn.Module, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        with compute.autocast():
            predicted_BCHW: Tensor = model(x_t_BCHW, t_B).sample
        return predicted_BCHW.float()

    return predict


def _in_form(function: Callable[..., Tensor], form: str) -> Callable[..., Tensor]:
    if form not in (COMPILED, GRAPHED):
        return function
    import torch._dynamo  # seconds

    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MOST_GRAPHS
    # diffusers asks for torch's version as it computes
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    if form == COMPILED:
        compiled: Callable[..., Tensor] = torch.compile(function, fullgraph=True, dynamic=False)
        return compiled
    return _replayed(torch.compile(function, fullgraph=True, dynamic=False, mode="reduce-overhead"))


def _replayed(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """CUDA writes each call's result where it wrote the last one's: it is copied out of there."""
    begin_step: Any = torch.compiler.cudagraph_mark_step_begin

    def called(*batch: Any) -> Tensor:
        begin_step()
        return compiled(*batch).clone()

    return called
