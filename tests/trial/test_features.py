"""Features for FID: the small classifier of digits, and Inception with whatever weights there are."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from raylt.diffusion.data import ImageSet, load_images, to_float
from raylt.diffusion.tensors import pack, unpack
from raylt.errors import EnvironmentFailure, InputError
from raylt.spec.sections import DataSpec
from raylt.trial.features import CnnFeatures, FeatureExtractor, InceptionFeatures, SmallCnn, train_small_cnn
from raylt.trial.fid import fid, statistics
from raylt.trial.kid import RealFeatures, kid


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataSpec())


@pytest.fixture(scope="module")
def state(digits: ImageSet) -> dict[str, Tensor]:
    return train_small_cnn(digits, seed=0, epochs=10)


def _noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# --- the small classifier ---------------------------------------------------------------------------------------------


def test_classifier_knows_its_digits(digits: ImageSet, state: dict[str, Tensor]) -> None:
    model = SmallCnn()
    model.load_state_dict(state)
    with torch.no_grad():
        found_N = model(to_float(digits.test_NCHW)).argmax(1)
    assert (found_N == digits.test_labels_N).float().mean() > 0.97


def test_fid_over_its_features_tells_digits_from_noise(digits: ImageSet, state: dict[str, Tensor]) -> None:
    extractor = CnnFeatures(state, "digits-cnn", "cpu")
    train_ND, test_ND = extractor(digits.train_NCHW), extractor(digits.test_NCHW)
    noise_ND = extractor(_noise(1000, 1, 8, 8))
    assert train_ND.shape == (1437, extractor.dims) and train_ND.dtype == torch.float32
    assert (train_ND >= 0).all() and (train_ND.amax(0) > 0).sum() >= 16  # after a ReLU; most units live
    real = statistics(train_ND)
    floor, far = fid(test_ND, real), fid(noise_ND, real)
    assert 10 < floor < 60
    assert far > 20 * floor
    features = RealFeatures(train_ND)
    assert kid(noise_ND, features, 10)[0] > 20 * abs(kid(test_ND, features, 10)[0])


def test_training_repeats_bit_for_bit_and_leaves_the_random_state_alone(digits: ImageSet) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_small_cnn(digits, seed=3, epochs=1)
    CnnFeatures(first, "digits-cnn", "cpu")
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    second, other = train_small_cnn(digits, seed=3, epochs=1), train_small_cnn(digits, seed=4, epochs=1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    untrained = train_small_cnn(digits, seed=3, epochs=0)
    assert not torch.equal(first["conv1.weight"], untrained["conv1.weight"])


def test_classifier_survives_the_store_and_batches_do_not_matter(digits: ImageSet, state: dict[str, Tensor]) -> None:
    extractor = CnnFeatures(state, "digits-cnn", "cpu")
    again = CnnFeatures(unpack(pack(state=state))["state"], "digits-cnn", torch.device("cpu"))
    assert isinstance(extractor, FeatureExtractor)
    assert (extractor.name, extractor.dims) == ("digits-cnn", 64)
    assert extractor.digest == again.digest and len(extractor.digest) == 64
    x_NCHW = digits.test_NCHW[:123]
    whole_ND = extractor(x_NCHW)
    assert torch.equal(whole_ND, again(x_NCHW))
    torch.testing.assert_close(whole_ND, torch.cat([extractor(part) for part in x_NCHW.split(17)]))
    assert extractor(x_NCHW[:0]).shape == (0, 64)
    changed = {**state, "out.bias": state["out.bias"] + 1}
    assert CnnFeatures(changed, "digits-cnn", "cpu").digest != extractor.digest


@pytest.mark.parametrize("size", [8, 16, 28])
def test_classifier_takes_every_size_it_is_used_for(size: int) -> None:
    labels_N = torch.arange(40) % 10
    images = ImageSet(_noise(40, 1, size, size), _noise(40, 1, size, size), labels_N, labels_N)
    extractor = CnnFeatures(train_small_cnn(images, 0, 1), "mnist-cnn", "cpu")
    assert extractor(images.test_NCHW).shape == (40, 64)


def test_classifier_sees_at_most_20_000_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylt.trial.features.CNN_IMAGES", 64)
    labels_N = torch.arange(100) % 10
    images = ImageSet(_noise(100, 1, 8, 8), _noise(2, 1, 8, 8), labels_N, labels_N[:2])
    head = ImageSet(images.train_NCHW[:64], images.test_NCHW, labels_N[:64], labels_N[:2])
    first, second = train_small_cnn(images, 0, 1), train_small_cnn(head, 0, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_classifier_refuses_what_it_cannot_learn_from(digits: ImageSet, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="grey images with labels"):
        train_small_cnn(ImageSet(digits.train_NCHW, digits.test_NCHW), 0, 1)
    with pytest.raises(InputError, match="grey images with labels"):
        train_small_cnn(ImageSet(_noise(4, 3, 8, 8), _noise(4, 3, 8, 8), torch.zeros(4), torch.zeros(4)), 0, 1)
    extractor = CnnFeatures(state, "digits-cnn", "cpu")
    for wrong in (_noise(4, 3, 8, 8), _noise(1, 8, 8), torch.zeros(4, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"expected uint8 of shape \(N, 1, H, W\)"):
            extractor(wrong)


# --- Inception, with random weights: its own are not at hand everywhere -------------------------------------------------


@pytest.fixture(scope="module")
def inception_state() -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = dict(FeatureExtractorInceptionV3("inception", ["2048"]).state_dict())
        norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
        for norm in norms:  # those of a trained one are no identity
            for name, low in (("running_mean", -0.5), ("running_var", 0.5), ("weight", 0.5), ("bias", -0.5)):
                state[norm + name] = low + torch.rand_like(state[norm + name])
        return state


@pytest.fixture(scope="module")
def inception_file(inception_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state, path)
    return path


def test_inception_gives_torch_fidelitys_features(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLT_INCEPTION", str(inception_file))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    extractor = InceptionFeatures(torch.device("cpu"))
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(extractor, FeatureExtractor) and (extractor.name, extractor.dims) == ("inception", 2048)
    grey_NCHW = _noise(2, 1, 8, 8)
    features_ND = extractor(grey_NCHW)
    reference = FeatureExtractorInceptionV3("inception", ["2048"], str(inception_file))
    (expected_ND,) = reference(grey_NCHW.repeat(1, 3, 1, 1))
    assert features_ND.shape == (2, 2048) and features_ND.dtype == torch.float32 and not features_ND.requires_grad
    torch.testing.assert_close(features_ND, expected_ND)
    with pytest.raises(ValueError, match="1 or 3, H, W"):
        extractor(_noise(2, 2, 8, 8))


def test_inception_digest_is_that_of_the_features_alone(inception_state: dict[str, Tensor], inception_file: Path) -> None:
    def digest(**changes: Tensor) -> str:
        path = inception_file.with_name("changed.pth")
        torch.save({**inception_state, **changes}, path)
        return InceptionFeatures("cpu", path).digest

    ours = InceptionFeatures("cpu", inception_file).digest
    no_classifier = {name: torch.zeros_like(inception_state[name]) for name in ("fc.weight", "fc.bias")}
    counter = {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(7)}
    assert len(ours) == 64 and digest(**no_classifier, **counter) == ours
    for name in ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.bn.running_mean"):
        assert digest(**{name: inception_state[name] + 1}) != ours


def test_inception_that_is_missing_or_no_inception_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLT_INCEPTION", str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match=r"RAYLT_INCEPTION: .*nowhere\.pth \(no such file\); the file weights-inception-2015"):
        InceptionFeatures("cpu")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"conv": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(InputError, match=f"{name} .*; the file weights-inception-2015"):
            InceptionFeatures("cpu", tmp_path / name)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_inception_runs_no_code_of_the_file(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write(_Bomb(tmp_path / "exploded"), bomb)
        with pytest.raises(InputError, match="no usable Inception weights"):
            InceptionFeatures("cpu", bomb)
    assert not (tmp_path / "exploded").exists()


def test_without_file_and_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.delenv("RAYLT_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(EnvironmentFailure, match=r"no network.*set RAYLT_INCEPTION to the file weights-.* internet once"):
        InceptionFeatures("cpu")


def test_weights_in_torchs_cache_are_found(tmp_path: Path, inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYLT_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_file)
    assert InceptionFeatures("cpu").digest == InceptionFeatures("cpu", inception_file).digest
