"""A folder of pictures as tensors: which files are pictures, how one is read, and which of them are held out.

Whatever is left out or altered is counted by reason. Order and split follow from what the files hold, not from their
names or places: classes sorted into folders come out mixed, and "the first N" are a uniform sample on every machine.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from raylt.diffusion.image_notes import Note, Tally
from raylt.errors import Problem, SpecError, in_units

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # by content: for an EPS, Pillow would start Ghostscript
MIN_IMAGES = 20  # that differ: two of them are held out
HELD_OUT_EVERY = 10
MAX_PROBLEMS = 10  # named at once
_ORIENTATION = 0x0112  # the tag of EXIF; 1 is upright
_COMMON_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa")


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, uint8, and what became of them on the way."""

    train_NCHW: Tensor
    test_NCHW: Tensor
    notes: tuple[Note, ...]


def read_folder(root: Path, channels: int, size: int) -> Folder:
    """Every picture below `root`, with 1 or 3 channels of size x size pixels; a tenth of those that differ is held out.

    Raises `SpecError` where there are too few, and with the first folders or pictures that cannot be read.
    """
    pictures = find_pictures(root)
    if len(pictures.paths) < MIN_IMAGES:
        raise SpecError([_too_few(root, f"{len(pictures.paths)} images", pictures.notes)])
    check_room(len(pictures.paths), channels, size)
    read = _Reading(root, pictures.paths, channels, size)
    train_N, test_N, copies = _split(read.x_NCHW, read.files)
    if len(copies) > len(pictures.paths) - MIN_IMAGES:
        raise SpecError([_too_few(root, f"{len(pictures.paths) - len(copies)} images that differ", pictures.notes)])
    if copies:
        what = "copies of others (equal once read), which are never on both sides of the split"
        read.tally.add(what, _named(pictures.paths[copies[0]], root), len(copies))
    return Folder(read.x_NCHW[train_N], read.x_NCHW[test_N], (*pictures.notes, *read.tally.notes))


def check_room(count: int, channels: int, size: int) -> None:
    """Raises `SpecError` where so many images do not fit into this machine's memory, twice: all, and in two parts."""
    need, free = 2 * count * channels * size**2, psutil.virtual_memory().available
    if need > free:
        what = f"{count:,} images of {channels} x {size} x {size} need {in_units(need)} of memory; {in_units(free)} are free"
        raise SpecError([Problem("data.size", what, "fewer pixels, fewer images, or a larger machine", size, has_given=True)])


# --- which files are pictures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    paths: list[Path]
    notes: tuple[Note, ...]


def find_pictures(root: Path) -> Found:
    """The pictures in and below a folder, through links too; hidden files and folders are left out, but for `root` itself.

    Raises `SpecError` where there is no such folder, and with the first folders that cannot be looked into.
    """
    search = _Search(root)
    if search.problems:
        raise SpecError(search.problems[:MAX_PROBLEMS])
    notes = list(search.tally.notes)
    if search.others:
        kinds = ", ".join(f"{count:,} {_plain(suffix) or 'without a suffix'}" for suffix, count in search.others.most_common(5))
        notes.append(Note(search.others.total(), f"left out: files of other kinds ({kinds})", search.other_example))
    return Found(search.paths, tuple(notes))


class _Search:
    """A walk through folders: each is entered once, whatever links lead to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.tally = root, Tally()
        self.paths: list[Path] = []
        self.problems: list[Problem] = []
        self.others: Counter[str] = Counter()
        self.other_example = ""
        self._entered: set[tuple[int, int]] = set()
        self._waiting = deque([root])
        while self._waiting:
            self._enter(self._waiting.popleft())

    def _enter(self, folder: Path) -> None:
        try:
            info = folder.stat()
            if (info.st_dev, info.st_ino) in self._entered:
                self.tally.add("left out: folders that are read already, by way of a link", _named(folder, self.root))
                return
            self._entered.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    self._take(entry)
        except OSError as error:
            self.problems.append(_no_folder(folder, self.root, error))

    def _take(self, entry: os.DirEntry[str]) -> None:
        path, suffix = Path(entry.path), Path(entry.name).suffix.lower()
        mode = _mode(entry)
        if entry.name.startswith("."):
            for hidden in _hidden_pictures(path, mode):
                self.tally.add("left out: hidden, or in a hidden folder", _named(hidden, self.root))
        elif mode is None and entry.is_symlink():
            self.tally.add("left out: links that lead nowhere", _named(path, self.root))
        elif mode is not None and stat.S_ISDIR(mode):
            self._waiting.append(path)
        elif suffix not in SUFFIXES:
            self.other_example = self.other_example or _named(path, self.root)
            self.others[suffix] += 1
        elif mode is not None and not stat.S_ISREG(mode):
            self.tally.add("left out: pipes, sockets or devices", _named(path, self.root))
        else:  # also where nothing could be learnt about it: reading it will say why
            self.paths.append(path)


def _mode(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_mode
    except OSError:
        return None


def _hidden_pictures(path: Path, mode: int | None) -> Iterator[Path]:
    if mode is None or not stat.S_ISDIR(mode):
        if path.suffix.lower() in SUFFIXES:
            yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names if Path(name).suffix.lower() in SUFFIXES)


# --- how one is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    x_CHW: Tensor
    sha256: str  # of the file
    is_grey: bool
    altered: list[str]


class _Reading:
    """All pictures: (N, channels, size, size) uint8 in the order of `paths`, the SHA-256 of their files, what was altered.

    Raises `SpecError` that names the first that cannot be read.
    """

    def __init__(self, root: Path, paths: list[Path], channels: int, size: int) -> None:
        self.x_NCHW = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
        self.files: list[str] = []
        self.tally = Tally()
        problems: list[Problem] = []
        recoloured: list[Path] = []
        for index, path in enumerate(paths):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice as many pixels it is an error
                    picture = _read_picture(path, channels, size)
            except Exception as error:
                problems.append(_unreadable(path, error))
                if len(problems) == MAX_PROBLEMS:
                    break
                continue
            self.x_NCHW[index] = picture.x_CHW
            self.files.append(picture.sha256)
            for what in picture.altered:
                self.tally.add(what, _named(path, root))
            if picture.is_grey == (channels == 3):
                recoloured.append(path)
        if problems:
            raise SpecError(problems)
        if recoloured:
            hint = ": all there are, so data.channels: 1 would do" if len(recoloured) == len(paths) else ""
            what = f"grey, turned to RGB{hint}" if channels == 3 else "in colour, turned to grey"
            self.tally.add(what, "" if hint else _named(recoloured[0], root), len(recoloured))


def _read_picture(path: Path, channels: int, size: int) -> _Picture:
    """One file: turned as its EXIF data say, laid on white where transparent, cropped to the centre square, resized."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
        if file.mode.startswith(("I", "F")):  # Pillow's conversion to RGB would clip 16 bits to white
            raise ValueError(f"it has more than 8 bits a channel (mode {file.mode})")
        altered = list(_conversions(file, size))
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if np.asarray(rgba)[..., 3].min() < 255:
                altered.append("with transparency, laid on white")
            image = Image.new("RGBA", rgba.size, "white")
            image.alpha_composite(rgba)
        square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    x_HWC = np.array(square, dtype=np.uint8)
    is_grey = bool((x_HWC == x_HWC[..., :1]).all())
    x_HWC = x_HWC if channels == 3 else np.array(square.convert("L"), dtype=np.uint8)[..., None]
    return _Picture(torch.from_numpy(x_HWC).permute(2, 0, 1), hashlib.sha256(data).hexdigest(), is_grey, altered)


def _conversions(file: Any, size: int) -> Iterator[str]:
    """What reading an opened picture will change of it, but for its colours."""
    if file.mode not in _COMMON_MODES:
        yield f"in {file.mode}, turned to RGB"
    if file.format in ("PNG", "TIFF") and any(";16" in str(tile.args) for tile in file.tile):
        yield "with 16 bits a channel, cut to 8"
    if getattr(file, "is_animated", False):
        yield "with several frames or pages, of which the first is taken"
    if file.getexif().get(_ORIENTATION) in range(2, 9):
        yield "turned, as their EXIF data say"
    if file.width != file.height:
        yield "not square, cropped to their centre"
    if min(file.size) < size:
        yield f"with fewer than {size} pixels a side, enlarged"
    if min(file.size) > size:
        yield f"with more than {size} pixels a side, scaled down"


# --- which are held out -------------------------------------------------------------------------------------------------


def _split(x_NCHW: Tensor, files: list[str]) -> tuple[list[int], list[int], list[int]]:
    """Positions of the training images and of those held out, both in the order of `files`; and those of copies.

    Of the images that differ every tenth is held out, and its copies with it.
    """
    ranks: dict[bytes, int] = {}
    sides: tuple[list[int], list[int]] = ([], [])
    copies = []
    for position in sorted(range(len(files)), key=files.__getitem__):
        content = hashlib.sha256(x_NCHW[position].numpy().tobytes()).digest()
        if content in ranks:
            copies.append(position)
        rank = ranks.setdefault(content, len(ranks))
        sides[rank % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(position)
    return *sides, copies


# --- in words -----------------------------------------------------------------------------------------------------------


def _named(path: Path, root: Path) -> str:
    """A path below `root`, on one line of any terminal."""
    return _plain(path.relative_to(root).as_posix())


def _plain(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _too_few(root: Path, what: str, notes: tuple[Note, ...]) -> Problem:
    besides = "".join(f"; {note}" for note in notes)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    expected = f"a folder with at least {MIN_IMAGES} images that differ ({kinds}), below it or in it"
    return Problem("data.root", f"{what} in {root}{besides}", expected, str(root), has_given=True)


def _no_folder(folder: Path, root: Path, error: OSError) -> Problem:
    if folder == root and isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Problem("data.root", f"no folder {root}", "a folder of images", str(root), has_given=True)
    what = f"the folder {_plain(str(folder))} cannot be read: {error.strerror or error}"
    return Problem("data.root", what, "make it readable, or take it out")


def _unreadable(path: Path, error: Exception) -> Problem:
    cause = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        cause = f"what it holds is none of {', '.join(_FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        cause = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    what = f"{_plain(str(path))} cannot be read as an image: {cause}"
    return Problem("data.root", what, "mend it or take it out")
