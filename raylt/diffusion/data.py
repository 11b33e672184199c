"""Data sets as uint8 tensors, whole in memory: torchvision's, scikit-learn's digits, or a folder of images."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from raylt.diffusion.image_folder import check_room, read_folder
from raylt.diffusion.image_notes import Note
from raylt.errors import Problem, SpecError
from raylt.spec.sections import DataSpec

DIGITS_TEST = 360  # of the 1797 digits of scikit-learn
# What torchvision raises for files that are missing, cut off or not to be had; anything else is a fault of ours.
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, AssertionError, TypeError, LookupError, zlib.error)

# data set -> (class in torchvision.datasets, where it keeps its files under data.root)
_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set: images as uint8, 0..255, and their classes as int64 (None where it has none).

    `notes` say what was left out or altered on the way; they are no part of what the set is.
    """

    train_NCHW: Tensor
    test_NCHW: Tensor
    train_labels_N: Tensor | None = None
    test_labels_N: Tensor | None = None
    notes: tuple[Note, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the shapes and bytes of all four tensors: equal for equal data, on every machine."""
        hasher = hashlib.sha256()
        for tensor in (self.train_NCHW, self.test_NCHW, self.train_labels_N, self.test_labels_N):
            if tensor is None:
                hasher.update(b"none;")
            else:
                hasher.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                hasher.update(tensor.detach().cpu().contiguous().numpy().data)
        return hasher.hexdigest()


def load_images(data: DataSpec) -> ImageSet:
    """The data set that a spec names, at the size that it names. Raises `SpecError` where it cannot be had."""
    if data.name == "images":
        return _load_folder(data)
    loaded = _load_digits() if data.name == "digits" else _load_torchvision(data)
    channels, size = data.shape
    check_room(len(loaded.train_NCHW) + len(loaded.test_NCHW), channels, size)
    train_NCHW, test_NCHW = resize(loaded.train_NCHW, size), resize(loaded.test_NCHW, size)
    notes = (*_border_notes(loaded, size), *_twin_notes(train_NCHW, test_NCHW))
    return ImageSet(train_NCHW, test_NCHW, loaded.train_labels_N, loaded.test_labels_N, notes)


def _border_notes(loaded: ImageSet, size: int) -> Iterator[Note]:
    """What `resize` does that a smaller size does not say by itself."""
    original = loaded.train_NCHW.shape[-1]
    padded = -(-original // size) * size
    if padded != original:
        count = len(loaded.train_NCHW) + len(loaded.test_NCHW)
        averaged = f", then averaged to {size}" if padded != size else ""
        yield Note(count, f"of {original} pixels a side, bordered with black to {padded}{averaged}")


def _twin_notes(train_NCHW: Tensor, test_NCHW: Tensor) -> Iterator[Note]:
    """Said and not mended: a standard data set without some of its images is another, and compares with nothing published."""
    train = {hashlib.sha256(x.tobytes()).digest() for x in train_NCHW.numpy()}
    twins = sum(hashlib.sha256(x.tobytes()).digest() in train for x in test_NCHW.numpy())
    if twins:
        yield Note(twins, "held-out images also in the training set; left as they are, since the set is a standard one")


def data_root(data: DataSpec) -> Path:
    """Where torchvision keeps its data sets: `data.root`, else `$RAYLT_DATA`, else `~/.cache/raylt/data`."""
    return Path(data.root or os.environ.get("RAYLT_DATA") or "~/.cache/raylt/data").expanduser()


def to_float(x_uint8: Tensor) -> Tensor:
    """uint8, 0..255 -> float32, -1..1 (Ho et al. 2020, arXiv 2006.11239, section 3.3). Any shape."""
    return x_uint8.float().div_(127.5).sub_(1)


def flipped_where(flip_B: Tensor, x_BCHW: Tensor) -> Tensor:
    """The images, mirrored left to right where `flip_B` says so. (`torch.where` on bytes takes four times as long.)"""
    both_2BCHW = torch.stack((x_BCHW, x_BCHW.flip(-1)), dim=1).flatten(0, 1)
    return both_2BCHW.index_select(0, 2 * torch.arange(len(x_BCHW), device=x_BCHW.device) + flip_B)


def to_uint8(x_float: Tensor) -> Tensor:
    """Float, -1..1 -> uint8: clamped, then rounded to the nearest. Any shape. NaN gives any value: check before."""
    return ((x_float.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def resize(x_NCHW: Tensor, size: int) -> Tensor:
    """Square uint8 images -> uint8 images of `size` pixels: pad to the next multiple of `size`, average down.

    The border is black (0) and centred; where its width is odd, the further pixel is at the bottom and right. The
    mean of each block is exact, and rounded half to even. MNIST at 16: 28 is padded to 32, then 2x2 means.
    """
    original = x_NCHW.shape[-1]
    if x_NCHW.shape[-2] != original:
        raise ValueError(f"images of {x_NCHW.shape[-2]}x{original} pixels are not square")
    factor = -(-original // size)
    missing = factor * size - original
    before, after = missing // 2, missing - missing // 2
    padded_NCHW = pad(x_NCHW, (before, after, before, after))
    if factor == 1:
        return padded_NCHW
    return torch.cat([_average(chunk, factor) for chunk in torch.split(padded_NCHW, 4096)])


def _average(x_NCHW: Tensor, factor: int) -> Tensor:
    """uint8 -> uint8: the mean of every block of factor x factor pixels, rounded half to even."""
    num, channels, height, width = x_NCHW.shape
    blocks = x_NCHW.reshape(num, channels, height // factor, factor, width // factor, factor)
    return (blocks.sum((3, 5), dtype=torch.int64).double() / factor**2).round().to(torch.uint8)


def _load_digits() -> ImageSet:
    """scikit-learn's 1797 handwritten digits, 8x8, 0..16 scaled to 0..255; 1437 train, 360 test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    split = train_test_split(x_NHW, digits.target, test_size=DIGITS_TEST, stratify=digits.target, random_state=0)
    train_NHW, test_NHW, train_labels_N, test_labels_N = (torch.from_numpy(np.ascontiguousarray(part)) for part in split)
    return ImageSet(train_NHW[:, None], test_NHW[:, None], train_labels_N.long(), test_labels_N.long())


def _load_torchvision(data: DataSpec) -> ImageSet:
    """What lies under `data.root`; else download it there, one process at a time."""
    root = data_root(data)
    try:
        try:
            return _read_torchvision(data.name, root, download=False)
        except _UNREADABLE:
            # Another process on this machine may be downloading it just now: wait for it, then look again.
            with _download_lock(root, data.name):
                return _read_torchvision(data.name, root, download=True)
    except _UNREADABLE as error:
        raise SpecError([_missing(data.name, root, error)]) from error


def _read_torchvision(name: str, root: Path, download: bool) -> ImageSet:
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, _TORCHVISION[name][0])
    train, test = (dataset(str(root), train=is_train, download=download) for is_train in (True, False))
    return ImageSet(_images_of(train), _images_of(test), _labels_of(train), _labels_of(test))


def _images_of(dataset: Any) -> Tensor:
    """(N, H, W) or (N, H, W, C) uint8, as torchvision holds it -> (N, C, H, W)."""
    x = torch.as_tensor(dataset.data)
    return x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()


def _labels_of(dataset: Any) -> Tensor:
    return torch.as_tensor(dataset.targets, dtype=torch.int64)


@contextlib.contextmanager
def _download_lock(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / f".{name}.lock"):
        yield


def _missing(name: str, root: Path, error: Exception) -> Problem:
    """What to tell who names a data set that is neither there nor to be downloaded."""
    folder = root / _TORCHVISION[name][1]
    cause = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    with contextlib.suppress(OSError):
        if any(folder.iterdir()):
            what = f"{name} in {folder} cannot be read ({cause})"
            expected = "delete that folder to have it downloaded again, or name another root"
            return Problem("data.root", what, expected, str(root), has_given=True)
    what = f"{name} is not in {folder} and cannot be downloaded ({cause})"
    expected = f"the folder that holds {folder.relative_to(root)}, here or in $RAYLT_DATA, or a machine with internet"
    return Problem("data.root", what, expected, str(root), has_given=True)


def _load_folder(data: DataSpec) -> ImageSet:
    """The pictures below `data.root`. Their folders' names are no labels."""
    if data.root is None or data.size is None:
        what = "is needed for a folder of images"
        problems = [] if data.root is not None else [Problem("data.root", what, "the folder")]
        raise SpecError(problems + ([] if data.size is not None else [Problem("data.size", what, "for example size: 32")]))
    folder = read_folder(data_root(data), *data.shape)
    return ImageSet(folder.train_NCHW, folder.test_NCHW, notes=folder.notes)
