"""FID against its closed form and torch-fidelity; FID and KID against torch-fidelity from end to end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity import metric_fid

from raylt.diffusion.data import load_images
from raylt.spec.sections import DataSpec
from raylt.trial.features import INCEPTION_FILE, InceptionFeatures
from raylt.trial.fid import Statistics, fid, frechet_distance, statistics
from raylt.trial.kid import RealFeatures, kid
from tests.support.features import some_features as _features


def _closed_form(a: Statistics, b: Statistics) -> float:
    """By scipy's root of a matrix."""
    root_DD = scipy.linalg.sqrtm((a.covariance_DD @ b.covariance_DD).numpy())
    means = (a.mean_D - b.mean_D).square().sum()
    return float(means + a.covariance_DD.trace() + b.covariance_DD.trace() - 2 * np.real(np.trace(root_DD)))


def _theirs(features_ND: Tensor, real_ND: Tensor) -> float:
    both = [metric_fid.fid_features_to_statistics(x_ND.double()) for x_ND in (features_ND, real_ND)]
    return float(metric_fid.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])


def test_statistics_are_mean_and_covariance_in_fp64() -> None:
    features_ND = _features(0) + 1000  # fp32 sums would lose digits here
    found = statistics(features_ND)
    x_ND = features_ND.numpy().astype(np.float64)
    centred_ND = x_ND - x_ND.mean(0)
    assert found.num_images == 400
    assert found.mean_D.dtype == found.covariance_DD.dtype == torch.float64
    np.testing.assert_allclose(found.mean_D.numpy(), x_ND.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance_DD.numpy(), centred_ND.T @ centred_ND / 399, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (-3.0, 0.1)])
def test_fid_equals_the_closed_form(shift: float, scale: float) -> None:
    a, b = statistics(_features(1)), statistics(_features(2, 300, shift=shift, scale=scale))
    assert frechet_distance(a, b) == pytest.approx(_closed_form(a, b), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@given(
    num=st.integers(2, 80), real=st.integers(2, 80), dims=st.integers(1, 40), dead=st.integers(0, 3), seed=st.integers(0, 99)
)
def test_fid_equals_torch_fidelitys_for_any_numbers_of_images_and_dimensions(
    num: int, real: int, dims: int, dead: int, seed: int
) -> None:
    """Few or many images, full or singular covariances: a trace of a root has half the digits where that is singular."""
    x_ND, y_ND = _features(seed, num, dims, shift=0.5), _features(seed + 1, real, dims)
    x_ND[:, :dead], y_ND[:, :dead] = 1.0, 1.0
    expected = _theirs(x_ND, y_ND) if dims > 1 else _closed_form(statistics(x_ND), statistics(y_ND))
    assert fid(x_ND, statistics(y_ND)) == pytest.approx(expected, rel=1e-6, abs=1e-5 * dims)


@pytest.mark.parametrize("dead", [0, 2])
def test_every_way_to_the_eigenvalues_gives_one_distance(monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    """LAPACK's of a product, those of a device, and the small matrix of few images."""
    x_ND, y_ND = _features(1, 30, 32), _features(2, 300, 32, shift=0.3)
    y_ND[:, :dead] = 0.0
    real = statistics(y_ND)
    of_few, of_product = fid(x_ND, real), frechet_distance(statistics(x_ND), real)

    def no_factor(*_: object, **__: object) -> None:
        raise scipy.linalg.LinAlgError

    monkeypatch.setattr("scipy.linalg.eigvalsh", no_factor)
    of_device = frechet_distance(statistics(x_ND), real)
    expected = _theirs(x_ND, y_ND)
    assert [of_few, of_product, of_device] == pytest.approx([expected] * 3, rel=1e-7)
    torch.testing.assert_close(real.factor_DD @ real.factor_DD.T, real.covariance_DD)


def test_fid_of_known_gaussians() -> None:
    """Independent dimensions: the sum of (mean difference)^2 + (difference of standard deviations)^2."""
    a = Statistics(torch.tensor([0.0, 1.0]).double(), torch.diag(torch.tensor([1.0, 4.0])).double(), 10)
    b = Statistics(torch.tensor([3.0, 1.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double(), 10)
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 1, rel=1e-12)


@pytest.mark.parametrize("num", [20, 400])  # 20 images in 32 dimensions: a singular covariance
def test_fid_of_equal_sets_is_zero(num: int) -> None:
    features_ND = _features(3, num)
    assert 0 <= fid(features_ND, statistics(features_ND.flip(0))) < 1e-4


def test_fid_of_constant_features() -> None:
    for num in (3, 5):
        a, b = torch.zeros(num, 3), torch.full((5, 3), 2.0)
        assert fid(a, statistics(b)) == pytest.approx(12.0)
        assert fid(a, statistics(a)) == 0.0


def test_values_repeat_and_leave_random_state_and_streams_alone(capfd: pytest.CaptureFixture[str]) -> None:
    x_ND, y_ND = _features(8, 100, 8), _features(9, 100, 8)
    np.random.seed(1)
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state(legacy=True), torch.get_rng_state()
    first = fid(x_ND, statistics(y_ND)), kid(x_ND, RealFeatures(y_ND), 5, 50)
    np.random.rand(3)
    torch.rand(3)
    assert (fid(x_ND, statistics(y_ND)), kid(x_ND, RealFeatures(y_ND), 5, 50)) == first
    np.random.seed(1)
    torch.manual_seed(1)
    fid(x_ND, statistics(y_ND))
    kid(x_ND, RealFeatures(y_ND), 5, 50)
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
        kid(bad, RealFeatures(good))
    with pytest.raises(ValueError, match=r"^reference features of 2 of 50"):
        RealFeatures(bad)
    broken = Statistics(torch.full((4,), torch.nan).double(), torch.eye(4).double(), 50)
    for few_or_many in (good[:3], good):
        with pytest.raises(ValueError, match="not finite"):
            fid(few_or_many, broken)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(broken, statistics(good))


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="N of 2 or more"):
        statistics(torch.zeros(1, 4))
    for num in (3, 9):
        with pytest.raises(ValueError, match="4 and 5 dimensions"):
            fid(_features(0, num, 4), statistics(_features(0, 9, 5)))
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        kid(_features(0, 9, 4), RealFeatures(_features(0, 9, 5)))


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
    ours = {"fid": fid(train_ND, statistics(test_ND)), "kid": kid(train_ND, RealFeatures(test_ND))[0]}
    theirs = calculate_metrics(
        input1=_Images(train_NCHW), input2=_Images(test_NCHW), cuda=False, fid=True, kid=True, kid_subset_size=1000,
        feature_extractor_weights_path=str(root / INCEPTION_FILE), cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    print(f"\nFID and KID of 2000 and 2000 images of CIFAR-10: {ours}; torch-fidelity: {theirs}")
    assert 22 < ours["fid"] < 30
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
