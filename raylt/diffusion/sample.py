"""Sampling from fixed seeds, and the held-out denoising loss: what a trained U-Net is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import to_float, to_uint8
from raylt.diffusion.network import prediction_function
from raylt.diffusion.rng import Draw, generator
from raylt.diffusion.train import NUM_TIMESTEPS, add_noise, noise_schedule
from raylt.spec.vocabulary import Protocol, Spacing

# One seed for all tickets: differences between tickets are far quieter than their FIDs. Another one for a confirmation,
# which would else be judged on the very noise that the search chose its finalists by.
NOISE_SEEDS: dict[Protocol, int] = {"search": 0, "final": 1}
CHUNK_VALUES = 1_000_000  # pixels of one sampling batch
HELD_OUT_IMAGES = 512
LEAST_FRESH_IMAGES = 128  # fewer would make a confirmation's loss noisier than images that the search has seen
HELD_OUT_DRAWS = 8  # noise levels per held-out image


def scheduler_of(sampler: str, beta_schedule: str, spacing: Spacing | None = None) -> Any:
    """diffusers' scheduler of a named sampler: DDIM (2010.02502, eta 0), DPM-Solver++ (2211.01095) or DDPM (2006.11239).

    `spacing`: which timesteps DDIM visits.
    """
    if sampler == "ddim":
        spaced = spacing or "leading"
        return DDIMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule=beta_schedule, timestep_spacing=spaced)
    if sampler == "ddpm":
        # Ho et al. sample CIFAR-10 with the larger of their two variances.
        return DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule=beta_schedule, variance_type="fixed_large")
    clipped = {"lambda_min_clipped": -5.1} if beta_schedule == "squaredcos_cap_v2" else {}  # its last steps have no signal
    return DPMSolverMultistepScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule=beta_schedule, **clipped)


def chunk_size(shape_CHW: Sequence[int]) -> int:
    """Images sampled together. Part of what a sample is: noise is drawn per chunk."""
    return max(1, min(250, CHUNK_VALUES // math.prod(shape_CHW)))


@dataclass(frozen=True)
class Sampling:
    """How images are sampled: what decides them, beside the model."""

    sampler: str
    steps: int
    beta_schedule: str
    compute: Compute
    spacing: Spacing | None = None
    protocol: Protocol = "search"  # whose noise


@torch.no_grad()
def sample_chunk(model: nn.Module, shape_CHW: tuple[int, int, int], index: int, count: int, how: Sampling) -> Tensor:
    """Chunk `index` of the images that every ticket of this shape starts from the same noise: `count` of them, uint8 NCHW.

    The noise they start from comes from a CPU generator, so that it is the same on every device; each protocol has its own.
    What DDPM adds at every step is drawn on the device: a thousand times the noise would come from a CPU more slowly than
    a GPU takes its steps.
    """
    seed = NOISE_SEEDS[how.protocol]
    draw = generator(seed, Draw.SAMPLES, index)
    scheduler = scheduler_of(how.sampler, how.beta_schedule, how.spacing)
    scheduler.set_timesteps(how.steps)
    extra = {"generator": generator(seed, Draw.ANCESTRAL, index, how.compute.device)} if how.sampler == "ddpm" else {}
    x_NCHW = torch.randn((chunk_size(shape_CHW), *shape_CHW), generator=draw)[:count].to(how.compute.device)
    x_NCHW, predict = x_NCHW * scheduler.init_noise_sigma, prediction_function(how.compute)
    for t in scheduler.timesteps[: how.steps]:  # diffusers' trailing has one too many for some: 61 steps end at timestep -1
        noise_NCHW = predict(model, x_NCHW, t.to(how.compute.device))
        x_NCHW = scheduler.step(noise_NCHW, t, x_NCHW, **extra).prev_sample
    return to_uint8(x_NCHW).cpu()


def held_out_part(num_held_out: int, protocol: Protocol) -> slice:
    """Which of the held-out images a protocol's loss is measured on.

    The search's are the first; a confirmation's the next, none of which the search has seen, where enough are left: else
    the search's again, under noise of its own.
    """
    is_fresh = protocol == "final" and num_held_out >= HELD_OUT_IMAGES + LEAST_FRESH_IMAGES
    first = HELD_OUT_IMAGES if is_fresh else 0
    return slice(first, min(num_held_out, first + HELD_OUT_IMAGES))


@torch.no_grad()
def held_out_loss(
    model: nn.Module, test_NCHW: Tensor, beta_schedule: str, compute: Compute, protocol: Protocol = "search"
) -> tuple[float, float]:
    """The denoising loss on held-out images, and what predicting zero gives on the same noise.

    Images, noise and timesteps are fixed for a protocol: each image at `HELD_OUT_DRAWS` timesteps, one from each equal part
    of 0..T, so that tickets are compared on the same questions.
    """
    device = torch.device(compute.device)
    draw = generator(NOISE_SEEDS[protocol], Draw.HELD_OUT, 0)
    x0_NCHW = to_float(test_NCHW[held_out_part(len(test_NCHW), protocol)])
    alpha_bars_T = noise_schedule(beta_schedule).alphas_cumprod
    width = NUM_TIMESTEPS // HELD_OUT_DRAWS
    predict = prediction_function(compute)
    total, zero = torch.zeros(2, dtype=torch.float64, device=device)
    for part in range(HELD_OUT_DRAWS):
        t_N = part * width + torch.randint(width, (len(x0_NCHW),), generator=draw)
        noise_NCHW = torch.randn(x0_NCHW.shape, generator=draw)
        x_t_NCHW = add_noise(x0_NCHW, noise_NCHW, alpha_bars_T[t_N])
        on_device = (tensor.to(device) for tensor in (x_t_NCHW, t_N, noise_NCHW))
        for x_BCHW, t_B, noise_BCHW in _batches(chunk_size(x0_NCHW.shape[1:]), *on_device):
            total += (predict(model, x_BCHW, t_B) - noise_BCHW).double().square().sum()
            zero += noise_BCHW.double().square().sum()
    values = HELD_OUT_DRAWS * x0_NCHW.numel()
    return float(total) / values, float(zero) / values


def _batches(size: int, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
