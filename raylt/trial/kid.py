"""Kernel Inception distance between two sets of features, over torch-fidelity's subsets, each kernel value computed once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from raylt.trial.fid import check_features

SUBSETS, SUBSET_SIZE = 100, 1000
SEED = 2020  # torch-fidelity's, so that its values come out
BLOCK = 2048  # images on either side of the kernel values at hand: 32 MB


class RealFeatures:
    """The reference's features (M, D), and the sums over its own kernel values: they are the same for all tickets."""

    def __init__(self, features_MD: Tensor) -> None:
        check_features(features_MD, "reference features")
        self.features_MD = features_MD.detach()
        self._within: dict[tuple[int, int, int], Tensor] = {}

    def within(self, num_images: int, subsets: int, size: int) -> Tensor:
        """(S): per subset, the sum over its pairs. `num_images`: those of the other set, which decide the draws."""
        asked = num_images, subsets, size
        if asked not in self._within:
            _, of_y = _subsets(num_images, len(self.features_MD), subsets, size)
            self._within[asked] = _within(self.features_MD, of_y.to(self.features_MD.device))
        return self._within[asked]


def kid(
    features_ND: Tensor, real: RealFeatures, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> tuple[float, float | None]:
    """(mean, standard deviation) over subsets of the unbiased MMD^2 with the cubic kernel (x.y / D + 1)^3.

    Binkowski et al. 2018 (arXiv 1801.01401), section 4.

    Subsets are drawn anew for each call from torch-fidelity's fixed seed, so equal features give an equal value; at
    most as large as the smaller set. In fp64. Below 0 by chance where the two sets are alike. The deviation is that of one
    subset of `subset_size` images, no standard error of the mean; None where a set has but one such subset, itself: then it
    would be the other set's alone. Raises `ValueError` for NaN, for fewer than 2 features and for unlike ones.

    The sum over a subset's pairs is s K s^T, with s the row of 0 and 1 that chooses it: so 100 subsets cost one kernel.
    """
    check_features(features_ND, "features")
    x_ND, y_MD = features_ND.detach(), real.features_MD
    if x_ND.shape[1] != y_MD.shape[1]:
        raise ValueError(f"KID between features of {x_ND.shape[1]} and {y_MD.shape[1]} dimensions")
    smaller = min(len(x_ND), len(y_MD))
    size = min(subset_size, smaller)
    of_x, of_y = (of.to(x_ND.device) for of in _subsets(len(x_ND), len(y_MD), subsets, size))
    within_S = _within(x_ND, of_x) + real.within(len(x_ND), subsets, size)
    values_S = within_S / (size * (size - 1)) - 2 * _between(x_ND, of_x, y_MD, of_y) / size**2
    return float(values_S.mean()), float(values_S.std(correction=0)) if smaller > subset_size else None


@lru_cache(maxsize=2)
def _subsets(num_x: int, num_y: int, subsets: int, size: int) -> tuple[Tensor, Tensor]:
    """Two of (S, size): the indices that torch-fidelity draws, in its order."""
    draw = np.random.RandomState(SEED)
    pairs = [[draw.choice(num, size, replace=False) for num in (num_x, num_y)] for _ in range(subsets)]
    of_x, of_y = (torch.from_numpy(np.stack(indices)) for indices in zip(*pairs, strict=True))
    return of_x, of_y


def _kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    one = torch.ones((), dtype=torch.float64, device=x_ND.device)
    base_NM = torch.addmm(one, x_ND.double(), y_MD.double().T, alpha=1 / x_ND.shape[1])
    return base_NM * base_NM * base_NM


def _within(x_ND: Tensor, subsets: Tensor) -> Tensor:
    """(S): per subset, the sum of the kernel over ordered pairs of two different images."""
    if subsets.numel() * subsets.shape[1] < len(x_ND) ** 2:  # so many images that the subsets share few pairs
        return torch.stack([_kernel(x_ND[s], x_ND[s]).fill_diagonal_(0).sum() for s in subsets])
    chosen_SN = _rows(subsets, x_ND)
    total_S = chosen_SN.new_zeros(len(subsets))
    for first in range(0, len(x_ND), BLOCK):
        rows = slice(first, first + BLOCK)
        for second in range(first, len(x_ND), BLOCK):  # the kernel is symmetric
            columns = slice(second, second + BLOCK)
            kernel = _kernel(x_ND[rows], x_ND[columns])
            if first == second:
                kernel.fill_diagonal_(0)
            sums_S = ((chosen_SN[:, rows] @ kernel) * chosen_SN[:, columns]).sum(1)
            total_S += sums_S if first == second else 2 * sums_S
    return total_S


def _between(x_ND: Tensor, of_x: Tensor, y_MD: Tensor, of_y: Tensor) -> Tensor:
    """(S): per subset, the sum of the kernel over pairs of one image of each set."""
    if of_x.numel() * of_x.shape[1] < len(x_ND) * len(y_MD):
        return torch.stack([_kernel(x_ND[s], y_MD[t]).sum() for s, t in zip(of_x, of_y, strict=True)])
    of_x_SN, of_y_SM = _rows(of_x, x_ND), _rows(of_y, y_MD)
    total_S = of_x_SN.new_zeros(len(of_x))
    for first in range(0, len(x_ND), BLOCK):
        rows = slice(first, first + BLOCK)
        for second in range(0, len(y_MD), BLOCK):
            columns = slice(second, second + BLOCK)
            total_S += ((of_x_SN[:, rows] @ _kernel(x_ND[rows], y_MD[columns])) * of_y_SM[:, columns]).sum(1)
    return total_S


def _rows(subsets: Tensor, x_ND: Tensor) -> Tensor:
    """(S, N) of 0 and 1, where `x_ND` is."""
    rows_SN = torch.zeros(len(subsets), len(x_ND), dtype=torch.float64, device=x_ND.device)
    return rows_SN.scatter_(1, subsets, 1)
