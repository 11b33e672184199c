"""KID against its definition, and against torch-fidelity's loop over subsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity import metric_kid

from raylt.trial import kid as module
from raylt.trial.kid import RealFeatures, kid
from tests.support.features import some_features as _features


def _kid(x_ND: Tensor, y_MD: Tensor, subsets: int = 100, subset_size: int = 1000) -> tuple[float, float | None]:
    return kid(x_ND, RealFeatures(y_MD), subsets, subset_size)


def _theirs(x_ND: Tensor, y_MD: Tensor, subsets: int, size: int) -> tuple[float, float]:
    numbers = metric_kid.kid_features_to_metric(
        x_ND.double(), y_MD.double(), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    return numbers[metric_kid.KEY_METRIC_KID_MEAN], numbers[metric_kid.KEY_METRIC_KID_STD]


@given(
    num=st.integers(2, 60), references=st.integers(2, 60), dims=st.integers(1, 20), size=st.integers(2, 60),
    subsets=st.integers(1, 12), block=st.integers(1, 70), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=200)
def test_kid_equals_torch_fidelitys_over_its_subsets(
    num: int, references: int, dims: int, size: int, subsets: int, block: int, seed: int
) -> None:
    """Many subsets of few images and few of many, in blocks of any size."""
    x_ND, y_MD = _features(seed, num, dims, scale=0.3), _features(seed + 1, references, dims, shift=0.2, scale=0.3)
    mean, sd = _theirs(x_ND, y_MD, subsets, min(size, num, references))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        ours = _kid(x_ND, y_MD, subsets, size)
    assert ours[0] == pytest.approx(mean, rel=1e-10, abs=1e-12)
    assert ours[1] is None or ours[1] == pytest.approx(sd, rel=1e-9, abs=1e-12)


def test_the_reference_s_own_sums_are_kept_for_each_number_of_images() -> None:
    real = RealFeatures(_features(5, 60, 8))
    pairs = [(_features(seed, num, 8), num) for num in (40, 50) for seed in (1, 2)]
    again = [kid(x_ND, real, 5, 30) for x_ND, _ in pairs]
    assert again == [_kid(x_ND, real.features_MD, 5, 30) for x_ND, _ in pairs]
    assert len(real._within) == 2


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
    mean, sd = _kid(x_ND, y_ND, subsets=3)
    assert mean == pytest.approx(expected, rel=1e-9)  # subsets of all 30 in another order
    assert sd is None


@pytest.mark.parametrize(("num", "references"), [(30, 60), (60, 30), (30, 30), (20, 60)])
def test_kid_has_no_standard_deviation_where_a_set_has_but_one_subset(num: int, references: int) -> None:
    """It would be the other set's alone: of 1000 samples in subsets of 1000, the reference's."""
    mean, sd = _kid(_features(4, num, 8), _features(5, references, 8), subsets=5, subset_size=30)
    assert np.isfinite(mean) and sd is None
    assert _kid(_features(4, 31, 8), _features(5, 60, 8), subsets=5, subset_size=30)[1] is not None


def test_kid_s_standard_deviation_is_that_of_its_subsets() -> None:
    """Of subsets of 30 of 60 images: as far apart as MMD^2 of subsets drawn independently of torch-fidelity."""
    x_ND, y_ND = _features(4, 60, 8), _features(5, 60, 8, shift=0.5)
    _, sd = _kid(x_ND, y_ND, subsets=100, subset_size=30)
    draw = np.random.default_rng(0)
    x, y = x_ND.double().numpy(), y_ND.double().numpy()
    values = [_mmd2(draw.permutation(x)[:30], draw.permutation(y)[:30]) for _ in range(60)]
    assert sd is not None and 0.7 < sd / np.std(values) < 1.4


def test_kid_is_unbiased() -> None:
    """Of two samples of one distribution: about 0, on both sides; of unlike ones: far above."""
    scale = 0.2
    pairs = [(_features(10 + s, 200, 8, scale=scale), _features(60 + s, 200, 8, scale=scale)) for s in range(40)]
    same = [_kid(a_ND, b_ND, 10, 150)[0] for a_ND, b_ND in pairs]
    error = np.std(same, ddof=1) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 3.5 * error
    assert min(same) < 0 < max(same)
    assert _kid(_features(1, 200, 8, scale=scale), _features(2, 200, 8, scale=scale, shift=1), 10, 150)[0] > 10 * max(same)


def test_kid_takes_subsets_no_larger_than_the_smaller_set() -> None:
    many, few = _features(6, 500, 8), _features(7, 40, 8)
    assert _kid(many, few, 5)[0] == pytest.approx(_kid(many, few, 5, subset_size=40)[0], rel=1e-12)
    assert np.isfinite(_kid(few, many, 5)[0])
