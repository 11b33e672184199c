"""Features to measure FID and KID between."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def some_features(seed: int, num: int = 400, dims: int = 32, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated, float32 (num, dims): the mixing is the same for every seed."""
    mixing = np.random.default_rng(99).normal(size=(dims, dims))
    noise = np.random.default_rng(seed).normal(size=(num, dims))
    return torch.from_numpy((noise @ mixing) * scale + shift).float()
