"""Randomness by index, not by stream: what happens at step s is a function of (seed, s).

So a run that was killed and resumed draws what the undisturbed run draws, wherever it was cut.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class Draw(IntEnum):
    """What a number is drawn for: streams of one seed never meet."""

    ORDER = 1
    STEP = 2
    HELD_OUT = 3
    SAMPLES = 4
    PROPOSAL = 5
    PROFILE = 6
    CRITERION = 7
    CONTROL = 8
    DROPOUT = 9
    ANCESTRAL = 10


def generator(seed: int, draw: Draw, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state depends on (seed, draw, index) alone."""
    return torch.Generator(device).manual_seed(seed_of(seed, draw, index))


def seed_dropout(seed: int, index: int, device: torch.device) -> None:
    """Seed the global generator of a device, which dropout draws from. (`torch.manual_seed` asks every backend there is.)"""
    state = seed_of(seed, Draw.DROPOUT, index)
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        torch.cuda.manual_seed(state)


def seed_of(seed: int, draw: Draw, index: int) -> int:
    state = np.random.SeedSequence([seed, int(draw), index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def batch_indices(seed: int, step: int, batch_size: int, num_images: int, device: torch.device | None = None) -> Tensor:
    """Indices of the images in batch `step`: positions of an endless walk through freshly shuffled epochs.

    An epoch's order goes to the device once, so a batch asks nothing of the host.
    """
    position, end, parts = step * batch_size, (step + 1) * batch_size, []
    while position < end:
        epoch, offset = divmod(position, num_images)
        taken = min(end - position, num_images - offset)
        parts.append(_epoch_order(seed, epoch, num_images, device)[offset : offset + taken])
        position += taken
    return torch.cat(parts)


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_images: int, device: torch.device | None) -> Tensor:
    return torch.randperm(num_images, generator=generator(seed, Draw.ORDER, epoch)).to(device)
