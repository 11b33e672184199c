"""FID and KID against their closed forms, and against torch-fidelity from end to end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from raylt.diffusion.data import load_images
from raylt.spec.sections import DataSpec
from raylt.trial.features import INCEPTION_FILE, InceptionFeatures
from raylt.trial.fid import Statistics, fid, kid, statistics


def _features(seed: int, num: int = 400, dims: int = 32, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated features: the mixing is the same for every seed."""
    mixing = np.random.default_rng(99).normal(size=(dims, dims))
    noise = np.random.default_rng(seed).normal(size=(num, dims))
    return torch.from_numpy((noise @ mixing) * scale + shift).float()


def test_statistics_are_mean_and_covariance_in_fp64() -> None:
    features_ND = _features(0) + 1000  # fp32 sums would lose digits here
    found = statistics(features_ND)
    x_ND = features_ND.numpy().astype(np.float64)
    centred_ND = x_ND - x_ND.mean(0)
    assert found.num_images == 400
    assert found.mean_D.dtype == found.covariance_DD.dtype == np.float64
    np.testing.assert_allclose(found.mean_D, x_ND.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance_DD, centred_ND.T @ centred_ND / 399, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (-3.0, 0.1)])
def test_fid_equals_the_closed_form(shift: float, scale: float) -> None:
    a, b = statistics(_features(1)), statistics(_features(2, 300, shift=shift, scale=scale))
    root_DD = scipy.linalg.sqrtm(a.covariance_DD @ b.covariance_DD)
    expected = np.sum((a.mean_D - b.mean_D) ** 2) + np.trace(a.covariance_DD + b.covariance_DD - 2 * np.real(root_DD))
    assert fid(a, b) == pytest.approx(expected, rel=1e-8)
    assert fid(b, a) == pytest.approx(fid(a, b), rel=1e-9)


def test_fid_of_known_gaussians() -> None:
    """Independent dimensions: the sum of (mean difference)^2 + (difference of standard deviations)^2."""
    a = Statistics(np.array([0.0, 1.0]), np.diag([1.0, 4.0]), 10)
    b = Statistics(np.array([3.0, 1.0]), np.diag([4.0, 9.0]), 10)
    assert fid(a, b) == pytest.approx(9 + 1 + 1, rel=1e-12)


@pytest.mark.parametrize("num", [20, 400])  # 20 images in 32 dimensions: a singular covariance
def test_fid_of_equal_sets_is_zero(num: int) -> None:
    features_ND = _features(3, num)
    assert 0 <= fid(statistics(features_ND), statistics(features_ND.flip(0))) < 1e-4


def test_fid_of_constant_features() -> None:
    a, b = statistics(torch.zeros(5, 3)), statistics(torch.full((5, 3), 2.0))
    assert fid(a, b) == pytest.approx(12.0)
    assert fid(a, a) == 0.0


def _mmd2(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Unbiased MMD^2 (Gretton et al. 2012, equation 3) with the kernel (x.y / D + 1)^3, term by term."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x_ND), len(y_ND)
    within_x = sum(kernel(x_ND[i], x_ND[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y_ND[i], y_ND[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(x, y) for x in x_ND for y in y_ND) / (n * m)


def test_kid_equals_the_definition() -> None:
    x_ND, y_ND = _features(4, 30, 8), _features(5, 30, 8, shift=0.5)
    expected = _mmd2(x_ND.double().numpy(), y_ND.double().numpy())
    mean, sd = kid(x_ND, y_ND, subsets=3)
    assert mean == pytest.approx(expected, rel=1e-9)  # subsets of all 30 in another order
    assert sd is None


@pytest.mark.parametrize(("num", "references"), [(30, 60), (60, 30), (30, 30), (20, 60)])
def test_kid_has_no_standard_deviation_where_a_set_has_but_one_subset(num: int, references: int) -> None:
    """It would be the other set's alone: of 1000 samples in subsets of 1000, the reference's."""
    mean, sd = kid(_features(4, num, 8), _features(5, references, 8), subsets=5, subset_size=30)
    assert np.isfinite(mean) and sd is None
    assert kid(_features(4, 31, 8), _features(5, 60, 8), subsets=5, subset_size=30)[1] is not None


def test_kid_s_standard_deviation_is_that_of_its_subsets() -> None:
    """Of subsets of 30 of 60 images: as far apart as MMD^2 of subsets drawn independently of torch-fidelity."""
    x_ND, y_ND = _features(4, 60, 8), _features(5, 60, 8, shift=0.5)
    _, sd = kid(x_ND, y_ND, subsets=100, subset_size=30)
    draw = np.random.default_rng(0)
    x, y = x_ND.double().numpy(), y_ND.double().numpy()
    values = [_mmd2(draw.permutation(x)[:30], draw.permutation(y)[:30]) for _ in range(60)]
    assert sd is not None and 0.7 < sd / np.std(values) < 1.4


def test_kid_is_unbiased() -> None:
    """Of two samples of one distribution: about 0, on both sides; of unlike ones: far above."""
    scale = 0.2
    pairs = [(_features(10 + s, 200, 8, scale=scale), _features(60 + s, 200, 8, scale=scale)) for s in range(40)]
    same = [kid(a_ND, b_ND, 10, 150)[0] for a_ND, b_ND in pairs]
    error = np.std(same, ddof=1) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 3.5 * error
    assert min(same) < 0 < max(same)
    assert kid(_features(1, 200, 8, scale=scale), _features(2, 200, 8, scale=scale, shift=1), 10, 150)[0] > 10 * max(same)


def test_kid_takes_subsets_no_larger_than_the_smaller_set() -> None:
    many, few = _features(6, 500, 8), _features(7, 40, 8)
    assert kid(many, few, 5)[0] == pytest.approx(kid(many, few, 5, subset_size=40)[0], rel=1e-12)
    assert np.isfinite(kid(few, many, 5)[0])


def test_values_repeat_and_leave_random_state_and_streams_alone(capfd: pytest.CaptureFixture[str]) -> None:
    x_ND, y_ND = _features(8, 100, 8), _features(9, 100, 8)
    np.random.seed(1)
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state(legacy=True), torch.get_rng_state()
    first = fid(statistics(x_ND), statistics(y_ND)), kid(x_ND, y_ND, 5, 50)
    np.random.rand(3)
    torch.rand(3)
    assert (fid(statistics(x_ND), statistics(y_ND)), kid(x_ND, y_ND, 5, 50)) == first
    np.random.seed(1)
    torch.manual_seed(1)
    fid(statistics(x_ND), statistics(y_ND))
    kid(x_ND, y_ND, 5, 50)
    after = np.random.get_state(legacy=True)
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, after, strict=True))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


def test_features_that_are_not_finite_are_refused() -> None:
    good, bad = _features(0, 50, 4), _features(1, 50, 4)
    bad[3, 1], bad[7, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="features of 2 of 50 images are not finite"):
        statistics(bad)
    with pytest.raises(ValueError, match=r"^features of 2 of 50"):
        kid(bad, good)
    with pytest.raises(ValueError, match=r"^reference features of 2 of 50"):
        kid(good, bad)
    broken = Statistics(np.full(4, np.nan), np.eye(4), 50)
    with pytest.raises(ValueError, match="not finite"):
        fid(statistics(good), broken)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="N of 2 or more"):
        statistics(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        fid(statistics(_features(0, 9, 4)), statistics(_features(0, 9, 5)))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        kid(_features(0, 9, 4), _features(0, 9, 5))


class _Images(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images_NCHW: Tensor) -> None:
        self.images_NCHW = images_NCHW

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> Tensor:
        return self.images_NCHW[index]


@pytest.mark.slow
@pytest.mark.timeout(7200)  # 8000 images through Inception: 3 to 10 a second on one core
@pytest.mark.skipif("RAYLT_TEST_DATA" not in os.environ, reason="RAYLT_TEST_DATA names no folder with CIFAR-10 and Inception")
def test_cifar10_equals_torch_fidelity() -> None:
    from torch_fidelity import calculate_metrics

    root = Path(os.environ["RAYLT_TEST_DATA"])
    images = load_images(DataSpec(name="cifar10", root=str(root)))
    train_NCHW, test_NCHW = images.train_NCHW[:2000], images.test_NCHW[:2000]
    extractor = InceptionFeatures("cpu", root / INCEPTION_FILE)
    train_ND, test_ND = extractor(train_NCHW), extractor(test_NCHW)
    ours = {"fid": fid(statistics(train_ND), statistics(test_ND)), "kid": kid(train_ND, test_ND)[0]}
    theirs = calculate_metrics(
        input1=_Images(train_NCHW), input2=_Images(test_NCHW), cuda=False, fid=True, kid=True, kid_subset_size=1000,
        feature_extractor_weights_path=str(root / INCEPTION_FILE), cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    print(f"\nFID and KID of 2000 and 2000 images of CIFAR-10: {ours}; torch-fidelity: {theirs}")
    assert 22 < ours["fid"] < 30
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
