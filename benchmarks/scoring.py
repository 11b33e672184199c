"""What scoring a round costs, beside torch-fidelity and scipy. Rows of `benchmarks/price.py`."""

from __future__ import annotations

import io

import numpy as np
import scipy.linalg
import torch
from pairs import Row, compared
from torch import Tensor
from torch_fidelity import metric_fid, metric_kid
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from raylt.trial.features import InceptionFeatures, load_inception
from raylt.trial.fid import Statistics, fid, frechet_distance, statistics
from raylt.trial.kid import RealFeatures, kid

INCEPTION_IMAGES = 48  # one batch of torch-fidelity's, three of ours


def features(num: int, dims: int, seed: int) -> Tensor:
    """Float32 (num, dims): correlated, and cut at 0, as a ReLU leaves them."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=torch.Generator().manual_seed(0)) / dims**0.5
    return (torch.randn(num, dims, generator=draw) @ mixing).relu() * (1 + 0.02 * seed)


def kid_rows(quick: bool) -> list[Row]:
    """The reference's own sums are kept, as a worker keeps them from its first score on. Equal to 1e-12."""
    sets = [(1000, 1437, 64, 0.03), *([] if quick else [(1000, 10_000, 2048, 0.2), (5000, 10_000, 2048, 0.2)])]
    rows = []
    for num, references, dims, goal in sets:
        x_ND, y_MD = features(num, dims, 1), features(references, dims, 2)
        real = RealFeatures(y_MD)

        def theirs(x_ND: Tensor = x_ND, y_MD: Tensor = y_MD) -> float:
            both = x_ND.double(), y_MD.double()
            found = metric_kid.kid_features_to_metric(*both, kid_subsets=100, kid_subset_size=1000, verbose=False)
            return float(found[metric_kid.KEY_METRIC_KID_MEAN])

        assert abs(kid(x_ND, real)[0] - theirs()) < 1e-12
        part = f"KID of {num:,} images against {references:,}, {dims} dimensions"
        rows.append(compared(part, goal, lambda x=x_ND, real=real: kid(x, real), theirs, 7 if dims < 2048 else 3))
    return rows


def fid_rows(quick: bool) -> list[Row]:
    """Equal to 1e-6 of the distance."""
    dims, turns = (256, 1) if quick else (2048, 5)
    real = statistics(features(20_000, dims, 2))
    their_real = {"mu": real.mean_D.numpy(), "sigma": real.covariance_DD.numpy()}
    _ = real.factor_DD  # a worker has it from its first score on
    rows = []
    for num, to_sqrtm in ((10_000, 1 / 8), (1000, 1 / 50)):
        x_ND = features(num, dims, 1)
        of_x = statistics(x_ND)

        def theirs(x_ND: Tensor = x_ND) -> float:
            found = metric_fid.fid_statistics_to_metric(
                metric_fid.fid_features_to_statistics(x_ND.double()), their_real, verbose=False
            )
            return float(found[metric_fid.KEY_METRIC_FID])

        def by_sqrtm(of_x: Statistics = of_x) -> float:
            root = scipy.linalg.sqrtm(of_x.covariance_DD.numpy() @ real.covariance_DD.numpy())
            traces = float(of_x.covariance_DD.trace() + real.covariance_DD.trace())
            return float((of_x.mean_D - real.mean_D).square().sum()) + traces - 2 * float(np.real(np.trace(root)))

        def ours(x_ND: Tensor = x_ND) -> float:
            return fid(x_ND, real)

        assert abs(ours() / theirs() - 1) < 1e-6 and abs(ours() / by_sqrtm() - 1) < 1e-6
        rows.append(compared(f"FID of {num:,} images, with statistics", 1 / 2, ours, theirs, turns))
        if num > dims:
            rows.append(
                compared(
                    "Fréchet distance of statistics, sqrtm", to_sqrtm, lambda s=of_x: frechet_distance(s, real), by_sqrtm, turns
                )
            )
        else:
            rows.append(compared(f"FID of {num:,} images, sqrtm without statistics", to_sqrtm, ours, by_sqrtm, turns))
    return rows


def feature_rows() -> list[Row]:
    """Of real weights ($RAYLT_INCEPTION, or torch's cache). Equal to 1e-5."""
    state = load_inception()
    ours = InceptionFeatures("cpu", state)
    file = io.BytesIO()
    rest = {
        f"{name.removesuffix('running_var')}num_batches_tracked": torch.tensor(0) for name in state if "running_var" in name
    }
    torch.save({**state, **rest, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, file)
    file.seek(0)
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], file)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (INCEPTION_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=draw)

    def plain() -> Tensor:
        with torch.inference_mode():
            return theirs(images)[0]

    assert float((ours(images) - plain()).abs().max()) < 1e-5
    part = f"Inception features of {INCEPTION_IMAGES} images"
    return [compared(part, 1 / 1.5, lambda: ours(images), plain, 5)]
