"""Frechet Inception distance between two sets of features, in fp64, on the device where they are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import scipy.linalg
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian that FID compares: mean (D) and covariance (D, D), both fp64, of so many images' features."""

    mean_D: Tensor
    covariance_DD: Tensor
    num_images: int

    @cached_property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.mean_D).all()) and bool(torch.isfinite(self.covariance_DD).all())

    @cached_property
    def factor_DD(self) -> Tensor:
        """A matrix F with F F^T the covariance: Cholesky's, or the symmetric root where a dimension never varies."""
        factor_DD: Tensor
        factor_DD, failed = torch.linalg.cholesky_ex(self.covariance_DD)
        if bool(failed):
            values_D, vectors_DD = torch.linalg.eigh(self.covariance_DD)
            factor_DD = (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.T
        return factor_DD


def statistics(features_ND: Tensor) -> Statistics:
    """Mean and covariance (N - 1 in the denominator) in fp64. Raises `ValueError` for N < 2 and for NaN."""
    mean_D, scaled_ND = _centred(features_ND)
    return Statistics(mean_D, _products(scaled_ND.T), len(scaled_ND))


def fid(features_ND: Tensor, real: Statistics) -> float:
    """Frechet distance (Heusel et al. 2017, arXiv 1706.08500, equation 6) of features to the reference's, never below 0.

    |mean - mean_real|^2 + tr(cov + cov_real - 2 (cov cov_real)^(1/2)). Biased upwards for few images: compare values
    of equal N only. Raises `ValueError` for N < 2, for features of other dimensions and for what is not finite.

    Up to as many images as dimensions, the eigenvalues of cov cov_real that are not 0 come from an N x N matrix: those
    of (X F)(X F)^T, where X are the centred features, X^T X = cov, F F^T = cov_real.
    """
    if len(features_ND) > features_ND.shape[1]:
        return frechet_distance(statistics(features_ND), real)
    mean_D, scaled_ND = _centred(features_ND)
    _check_fit(mean_D, real)
    eigenvalues_N = torch.linalg.eigvalsh(_products(scaled_ND @ real.factor_DD))
    return _distance(mean_D - real.mean_D, scaled_ND.square().sum() + real.covariance_DD.trace(), eigenvalues_N)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The same of two Gaussians."""
    _check_fit(a.mean_D, b)
    _check_finite(a)
    return _distance(a.mean_D - b.mean_D, a.covariance_DD.trace() + b.covariance_DD.trace(), _eigenvalues(a, b))


def _eigenvalues(a: Statistics, b: Statistics) -> Tensor:
    """(D): those of cov_a cov_b, which F^T cov_a F has too."""
    if a.covariance_DD.device.type == "cpu":
        with suppress(scipy.linalg.LinAlgError):  # no Cholesky factor; else LAPACK uses that F is triangular
            both = a.covariance_DD.numpy(), b.covariance_DD.numpy()
            return torch.from_numpy(scipy.linalg.eigvalsh(*both, type=2, driver="gv", check_finite=False))
    eigenvalues_D: Tensor = torch.linalg.eigvalsh(b.factor_DD.T @ a.covariance_DD @ b.factor_DD)
    return eigenvalues_D


def _centred(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, X): X^T X is the covariance."""
    check_features(features_ND, "features")
    x_ND = features_ND.detach().double()
    mean_D = x_ND.mean(0)
    return mean_D, (x_ND - mean_D) / (len(x_ND) - 1) ** 0.5


def _products(rows_RC: Tensor) -> Tensor:
    """(R, R): each row times each."""
    if rows_RC.device.type != "cpu":
        return rows_RC @ rows_RC.T
    rows = rows_RC.numpy()
    return torch.from_numpy(rows @ rows.T)  # numpy sees that it is symmetric, and computes half of it


def _distance(difference_D: Tensor, traces: Tensor, eigenvalues: Tensor) -> float:
    root_trace = eigenvalues.clamp(min=0).sqrt().sum()  # below 0 by rounding
    return max(0.0, float(difference_D.square().sum() + traces - 2 * root_trace))


def _check_fit(mean_D: Tensor, real: Statistics) -> None:
    if mean_D.shape != real.mean_D.shape:
        raise ValueError(f"FID between features of {len(mean_D)} and {len(real.mean_D)} dimensions")
    _check_finite(real)


def _check_finite(of: Statistics) -> None:
    if not of.is_finite:
        raise ValueError("FID of statistics that are not finite")


def check_features(features_ND: Tensor, what: str) -> None:
    """Raises `ValueError` for what FID and KID have no value of."""
    if features_ND.dim() != 2 or len(features_ND) < 2:
        raise ValueError(f"{what} of shape {tuple(features_ND.shape)}: FID and KID need (N, D) with N of 2 or more")
    num_bad = int((~torch.isfinite(features_ND)).any(dim=1).sum())
    if num_bad:
        raise ValueError(f"{what} of {num_bad} of {len(features_ND)} images are not finite: FID and KID have no value")
