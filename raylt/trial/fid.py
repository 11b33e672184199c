"""Frechet Inception distance and kernel Inception distance between two sets of features, by torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_fidelity import metric_fid, metric_kid

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian that FID compares: mean (D) and covariance (D, D), both fp64, of so many images' features."""

    mean_D: Float64
    covariance_DD: Float64
    num_images: int


def statistics(features_ND: Tensor) -> Statistics:
    """Mean and covariance (N - 1 in the denominator) in fp64. Raises `ValueError` for N < 2 and for NaN."""
    _check_features(features_ND, "features")
    numbers = metric_fid.fid_features_to_statistics(features_ND.detach().cpu().double())
    return Statistics(numbers["mu"], np.atleast_2d(numbers["sigma"]), len(features_ND))


def fid(a: Statistics, b: Statistics) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, arXiv 1706.08500, equation 6), never below 0.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). Biased upwards for few images: compare values
    of equal N only. Raises `ValueError` for statistics of unlike features or that are not finite.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise ValueError(f"FID between features of {len(a.mean_D)} and {len(b.mean_D)} dimensions")
    if not all(np.isfinite(x).all() for x in (a.mean_D, a.covariance_DD, b.mean_D, b.covariance_DD)):
        raise ValueError("FID of statistics that are not finite")
    stats_a, stats_b = ({"mu": s.mean_D, "sigma": s.covariance_DD} for s in (a, b))
    value = metric_fid.fid_statistics_to_metric(stats_a, stats_b, verbose=False)[metric_fid.KEY_METRIC_FID]
    return max(0.0, float(value))


def kid(features_ND: Tensor, reference_ND: Tensor, subsets: int = 100, subset_size: int = 1000) -> tuple[float, float | None]:
    """(mean, standard deviation) over subsets of the unbiased MMD^2 with the cubic kernel.

    Binkowski et al. 2018 (arXiv 1801.01401), section 4.

    Subsets are drawn anew for each call from torch-fidelity's fixed seed, so equal features give an equal value; at
    most as large as the smaller set. In fp64. Below 0 by chance where the two sets are alike. The deviation is that of one
    subset of `subset_size` images, no standard error of the mean; None where a set has but one such subset, itself: then it
    would be the other set's alone. Raises `ValueError` for NaN, for fewer than 2 features and for unlike ones.
    """
    _check_features(features_ND, "features")
    _check_features(reference_ND, "reference features")
    if features_ND.shape[1] != reference_ND.shape[1]:
        raise ValueError(f"KID between features of {features_ND.shape[1]} and {reference_ND.shape[1]} dimensions")
    smaller = min(len(features_ND), len(reference_ND))
    numbers = metric_kid.kid_features_to_metric(
        features_ND.detach().cpu().double(),
        reference_ND.detach().cpu().double(),
        kid_subsets=subsets,
        kid_subset_size=min(subset_size, smaller),
        verbose=False,
    )
    deviation = float(numbers[metric_kid.KEY_METRIC_KID_STD]) if smaller > subset_size else None
    return float(numbers[metric_kid.KEY_METRIC_KID_MEAN]), deviation


def _check_features(features_ND: Tensor, what: str) -> None:
    if features_ND.dim() != 2 or len(features_ND) < 2:
        raise ValueError(f"{what} of shape {tuple(features_ND.shape)}: FID and KID need (N, D) with N of 2 or more")
    num_bad = int((~torch.isfinite(features_ND)).any(dim=1).sum())
    if num_bad:
        raise ValueError(f"{what} of {num_bad} of {len(features_ND)} images are not finite: FID and KID have no value")
