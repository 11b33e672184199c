"""Data sets: what is loaded, how it is scaled, and what is said where it cannot be had."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.diffusion.data import ImageSet, data_root, flipped_where, load_images, resize, to_float, to_uint8
from raylt.errors import SpecError
from raylt.spec.sections import DataSpec

# Seen equal in several processes: it is part of the stages' keys, so a change makes every store start again.
DIGITS_DIGEST = "f70896925b299d5a1cbbd3740212c3feafb0b1e48c5314015c4fd41cea8a931f"


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images(DataSpec())


def test_digits_shapes_and_range(digits: ImageSet) -> None:
    assert digits.train_NCHW.shape == (1437, 1, 8, 8)
    assert digits.test_NCHW.shape == (360, 1, 8, 8)
    assert digits.train_NCHW.dtype == digits.test_NCHW.dtype == torch.uint8
    assert digits.train_labels_N is not None and digits.train_labels_N.dtype == torch.int64
    assert set(digits.train_NCHW.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}


def test_digits_are_split_into_disjoint_parts_with_equal_shares_of_every_class(digits: ImageSet) -> None:
    from sklearn.datasets import load_digits

    both = torch.cat([digits.train_NCHW, digits.test_NCHW]).flatten(1).numpy()
    whole = np.rint(load_digits().images * (255 / 16)).astype(np.uint8).reshape(1797, 64)
    assert sorted(map(bytes, both)) == sorted(map(bytes, whole))  # each image once, so no image is in both parts
    assert digits.train_labels_N is not None and digits.test_labels_N is not None
    train_K, test_K = digits.train_labels_N.bincount(), digits.test_labels_N.bincount()
    assert ((test_K - (train_K + test_K) * 360 / 1797).abs() <= 1).all()


def test_digits_labels_belong_to_their_images(digits: ImageSet) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    label_of = dict(zip((bytes(x) for x in source.images.astype(np.uint8).reshape(1797, 64)), source.target, strict=True))
    levels = torch.round(digits.test_NCHW.float() * 16 / 255).to(torch.uint8).flatten(1).numpy()
    assert digits.test_labels_N is not None
    assert [label_of[bytes(x)] for x in levels] == digits.test_labels_N.tolist()


def test_digest_is_that_of_other_processes_and_tells_data_apart(digits: ImageSet) -> None:
    assert digits.digest == DIGITS_DIGEST
    fields = (digits.train_NCHW.clone(), digits.test_NCHW, digits.train_labels_N, digits.test_labels_N)
    assert ImageSet(*fields).digest == DIGITS_DIGEST
    fields[0][0, 0, 0, 0] += 1
    assert ImageSet(*fields).digest != DIGITS_DIGEST
    assert ImageSet(digits.train_NCHW.reshape(1437, 1, 4, 16), *fields[1:]).digest != DIGITS_DIGEST
    assert ImageSet(digits.train_NCHW, digits.test_NCHW).digest != DIGITS_DIGEST


def test_float_round_trip_over_every_value() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert to_float(x).dtype == torch.float32
    assert to_float(x).min() == -1 and to_float(x).max() == 1
    assert torch.equal(to_uint8(to_float(x)), x)
    assert to_uint8(torch.tensor([-7.0, -1.0, 0.9999, 1.0, 3.0])).tolist() == [0, 0, 255, 255, 255]


def _resize_by_hand(x_HW: np.ndarray, size: int) -> np.ndarray:
    """The rule as FORMATS states it, in numpy: pad to the next multiple, average down, half to even."""
    original = x_HW.shape[0]
    padded_size = next(multiple for multiple in range(size, original + size, size) if multiple >= original)
    canvas = np.zeros((padded_size, padded_size), np.int64)
    start = (padded_size - original) // 2
    canvas[start : start + original, start : start + original] = x_HW
    k = padded_size // size
    out = np.empty((size, size), np.uint8)
    for i in range(size):
        for j in range(size):
            total = int(canvas[i * k : (i + 1) * k, j * k : (j + 1) * k].sum())
            quotient, rest = divmod(total, k * k)
            out[i, j] = quotient + (2 * rest > k * k or (2 * rest == k * k and quotient % 2 == 1))
    return out


@settings(max_examples=60)
@given(original=st.integers(1, 20), size=st.integers(1, 24), seed=st.integers(0, 2**16), top=st.sampled_from([3, 255]))
def test_resize_equals_the_rule_by_hand(original: int, size: int, seed: int, top: int) -> None:
    x_NCHW = np.random.default_rng(seed).integers(0, top + 1, (2, 3, original, original), dtype=np.uint8)
    got = resize(torch.from_numpy(x_NCHW), size).numpy()
    assert got.shape == (2, 3, size, size) and got.dtype == np.uint8
    for n in range(2):
        for c in range(3):
            assert np.array_equal(got[n, c], _resize_by_hand(x_NCHW[n, c], size))


def test_resize_pads_28_to_32_before_it_averages() -> None:
    white = torch.full((5000, 1, 28, 28), 255, dtype=torch.uint8)  # more than one chunk
    small = resize(white, 16)
    assert small.shape == (5000, 1, 16, 16)
    assert (small[:, :, 1:15, 1:15] == 255).all() and small.sum() == 5000 * 14 * 14 * 255
    assert torch.equal(resize(white, 28), white)
    with pytest.raises(ValueError, match="not square"):
        resize(white[:, :, :14], 7)


def test_digits_at_another_size(digits: ImageSet) -> None:
    small, large = load_images(DataSpec(size=4)), load_images(DataSpec(size=12))
    assert small.train_NCHW.shape == (1437, 1, 4, 4)
    assert torch.equal(large.test_NCHW[:, :, 2:10, 2:10], digits.test_NCHW)
    assert small.digest != digits.digest != large.digest


def test_root_is_the_specs_else_the_environments_else_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("RAYLT_DATA", raising=False)
    assert data_root(DataSpec(name="mnist")) == Path("/home/someone/.cache/raylt/data")
    monkeypatch.setenv("RAYLT_DATA", "/data")
    assert data_root(DataSpec(name="mnist")) == Path("/data")
    assert data_root(DataSpec(name="mnist", root="~/mine")) == Path("/home/someone/mine")


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw"), ("cifar100", "cifar-100-python")]
)
def test_missing_data_says_where_it_looked_and_what_to_do(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(SpecError) as caught:
        load_images(DataSpec.model_validate({"name": name, "root": str(tmp_path)}))
    (problem,) = caught.value.problems
    assert problem.key == "data.root" and problem.given == str(tmp_path)
    assert str(tmp_path / folder) in problem.what and "cannot be downloaded" in problem.what
    assert "RAYLT_DATA" in problem.expected and "\n" not in str(problem)


def test_damaged_data_is_told_from_missing_data(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{kind}-ubyte").write_bytes(b"\0\0")
    with pytest.raises(SpecError, match=r"data\.root: mnist in .*/MNIST/raw cannot be read .*; delete that folder"):
        load_images(DataSpec(name="mnist", root=str(tmp_path)))


def test_an_unusable_root_is_a_spec_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"^data\.root: cifar10 "):
        load_images(DataSpec(name="cifar10", root=str(tmp_path / "file")))


@pytest.mark.parametrize(("size", "words"), [(8, []), (4, []), (12, ["1,797 of 8 pixels a side, bordered with black to 12"])])
def test_a_border_is_said(size: int, words: list[str]) -> None:
    assert [str(note) for note in load_images(DataSpec(size=size)).notes if "border" in note.what] == words


def test_a_border_that_is_averaged_is_said() -> None:
    (note,) = [note for note in load_images(DataSpec(size=5)).notes if "border" in note.what]
    assert str(note) == "1,797 of 8 pixels a side, bordered with black to 10, then averaged to 5"


def test_held_out_images_of_a_standard_set_that_are_trained_on_are_counted_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NCHW = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 28, 28)
    train_NCHW, test_NCHW = x_NCHW[:30], torch.cat([x_NCHW[27:], x_NCHW[29:30]])
    monkeypatch.setattr("raylt.diffusion.data._load_torchvision", lambda data: ImageSet(train_NCHW, test_NCHW))
    images = load_images(DataSpec(name="mnist"))
    assert (images.train_NCHW.shape, images.test_NCHW.shape) == ((30, 1, 28, 28), (14, 1, 28, 28))
    assert [(note.count, note.what.partition(";")[0]) for note in images.notes] == [
        (4, "held-out images also in the training set")
    ]


def test_what_does_not_fit_into_memory_is_refused_by_its_key() -> None:
    with pytest.raises(SpecError, match=r"^data\.size: 1,797 images of 1 x 999999 x 999999 need .* of memory; .* are free"):
        load_images(DataSpec(size=999_999))


@pytest.mark.slow
@pytest.mark.skipif("RAYLT_TEST_DATA" not in os.environ, reason="RAYLT_TEST_DATA names no folder with torchvision's data sets")
@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [("mnist", 16, (1, 16, 16)), ("fashion-mnist", None, (1, 28, 28)), ("cifar10", None, (3, 32, 32))],
)
def test_real_data(name: str, size: int | None, shape: tuple[int, int, int]) -> None:
    root = os.environ["RAYLT_TEST_DATA"]
    images = load_images(DataSpec.model_validate({"name": name, "root": root, "size": size}))
    num_train = 50_000 if name == "cifar10" else 60_000
    assert images.train_NCHW.shape == (num_train, *shape) and images.test_NCHW.shape == (10_000, *shape)
    assert images.test_labels_N is not None and images.test_labels_N.bincount().shape == (10,)
    for labels_N in (images.test_labels_N[:512], images.test_labels_N[:5000]):  # "the first N" stand for all of them
        expected = len(labels_N) / 10
        assert ((labels_N.bincount(minlength=10) - expected).abs() < 4.5 * (0.9 * expected) ** 0.5).all()


def test_images_are_mirrored_where_that_is_said():
    x_BCHW = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    for flip_B in itertools.product([False, True], repeat=2):
        expected = torch.stack([x.flip(-1) if flip else x for x, flip in zip(x_BCHW, flip_B, strict=True)])
        assert torch.equal(flipped_where(torch.tensor(flip_B), x_BCHW), expected)
