"""A folder of pictures: what is read, what is left out or altered and how that is said, and which are held out."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raylt.diffusion import image_folder as folder_module
from raylt.diffusion.data import ImageSet, load_images
from raylt.errors import SpecError
from raylt.spec.sections import DataSpec


def picture(value: int, wide: bool = False) -> Image.Image:
    """Grey of `value` in its centre square of 8 pixels; red left and right of it where it is wide."""
    image = np.zeros((8, 16 if wide else 8, 3), np.uint8)
    image[:, :, 0] = 255
    image[:, 4 if wide else 0 :][:, :8] = value
    return Image.fromarray(image)


def write_images(folder: Path, count: int, wide: bool = False) -> None:
    """Pictures of the values 0..count - 1, in two folders."""
    for i in range(count):
        path = folder / f"sub{i % 2}" / f"{i // 2:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, wide).save(path)


def spec_of(path: Path, size: int | None = 8, channels: Any = "auto") -> DataSpec:
    return DataSpec(name="images", root=str(path), size=size, channels=channels)


def values_of(images: ImageSet) -> tuple[list[int], list[int]]:
    """Of single-coloured pictures: the values of the training images and of those held out."""
    return images.train_NCHW[:, 0, 0, 0].tolist(), images.test_NCHW[:, 0, 0, 0].tolist()


def all_values(images: ImageSet) -> list[int]:
    train, test = values_of(images)
    return sorted([*train, *test])


def notes_of(folder: Path, **keys: Any) -> dict[str, tuple[int, str]]:
    """What is said of a folder: reason -> (count, example); that everything is grey is left out."""
    notes = load_images(spec_of(folder, **keys)).notes
    return {note.what: (note.count, note.example) for note in notes if "grey, turned" not in note.what}


def refusal(data: DataSpec) -> str:
    with pytest.raises(SpecError) as caught:
        load_images(data)
    return str(caught.value)


def test_pictures_are_cropped_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    write_images(tmp_path, 30, wide=True)
    images = load_images(spec_of(tmp_path))
    assert images.train_NCHW.shape == (27, 3, 8, 8) and images.test_NCHW.shape == (3, 3, 8, 8)
    assert images.train_labels_N is None and images.test_labels_N is None
    assert all_values(images) == list(range(30))
    assert (images.train_NCHW == images.train_NCHW[:, :1, :1, :1]).all()  # the red is cropped away
    assert load_images(spec_of(tmp_path)).digest == images.digest
    assert load_images(spec_of(tmp_path, 4)).train_NCHW.shape == (27, 3, 4, 4)
    assert notes_of(tmp_path) == {"not square, cropped to their centre": (30, "sub0/000.png")}


class TestOrder:
    """Which are the first, and which are held out, follows from what the files hold."""

    @pytest.fixture
    def by_class(self, tmp_path: Path) -> Path:
        """Ten folders of sixty pictures, each of its own shade."""
        for label in range(10):
            (tmp_path / f"class{label}").mkdir()
            for i in range(60):
                x = np.full((4, 4), 20 * label, np.uint8)
                x[3, 3] = i
                Image.fromarray(x).save(tmp_path / f"class{label}/{i:02d}.bmp")
        return tmp_path

    def test_the_first_of_a_folder_sorted_by_class_are_of_all_classes(self, by_class: Path) -> None:
        images = load_images(spec_of(by_class, 4))
        for x_NCHW, first in ((images.train_NCHW, 100), (images.train_NCHW, 540), (images.test_NCHW, 60)):
            counts = (x_NCHW[:first, 0, 0, 0] // 20).bincount(minlength=10)
            expected = first / 10
            assert ((counts - expected).abs() <= 4 * expected**0.5).all(), counts
        assert len(images.test_NCHW) == 60

    def test_neither_names_nor_places_nor_the_file_system_decide(self, by_class: Path, tmp_path_factory, monkeypatch) -> None:
        digest = load_images(spec_of(by_class, 4)).digest
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        paths = sorted(by_class.rglob("*.bmp"))
        random.Random(1).shuffle(paths)
        for i, path in enumerate(paths):
            shutil.copy(path, elsewhere / f"{i}.BMP")
        assert load_images(spec_of(elsewhere, 4)).digest == digest

    def test_it_is_the_files_own_order(self, by_class: Path) -> None:
        """By SHA-256: a rule that no version of torch or numpy can change."""
        images = load_images(spec_of(by_class, 4))
        paths = sorted(by_class.rglob("*.bmp"), key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
        held_out = [int(np.asarray(Image.open(path))[3, 3]) for path in paths[9::10]]
        assert images.test_NCHW[:, 0, 3, 3].tolist() == held_out


class TestCopies:
    def test_copies_are_never_on_both_sides(self, tmp_path: Path) -> None:
        write_images(tmp_path, 40)
        shutil.copytree(tmp_path / "sub0", tmp_path / "again")
        for path in (tmp_path / "sub1").iterdir():  # other files that look the same
            Image.open(path).save(tmp_path / f"{path.stem}.bmp")
        images = load_images(spec_of(tmp_path))
        train, test = values_of(images)
        assert not set(train) & set(test)
        assert len(set(test)) == 4 and len(train) + len(test) == 80
        (note,) = [note for note in images.notes if "copies" in note.what]
        assert note.count == 40 and note.example

    def test_copies_do_not_count_as_images(self, tmp_path: Path) -> None:
        write_images(tmp_path, 19)
        shutil.copytree(tmp_path / "sub0", tmp_path / "again")
        assert "data.root: 19 images that differ in " in refusal(spec_of(tmp_path))


class TestLeftOut:
    def test_hidden_ones(self, tmp_path: Path) -> None:
        root = tmp_path / ".pictures"  # the root itself may be hidden
        write_images(root, 20)
        shutil.copytree(root / "sub0", root / "sub0/.ipynb_checkpoints")
        (root / ".cache/deeper").mkdir(parents=True)
        (root / ".cache/index.json").write_text("no picture")
        picture(99).save(root / ".cache/deeper/0.gif")
        (root / "._000.png").write_bytes(b"what macOS leaves")
        (root / ".DS_Store").write_bytes(b"and this")
        assert all_values(load_images(spec_of(root))) == list(range(20))
        assert notes_of(root) == {"left out: hidden, or in a hidden folder": (12, "._000.png")}

    def test_files_of_other_kinds(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        for name in ("a.heic", "b.HEIC", "labels.csv", "README"):
            (tmp_path / name).write_text("no picture")
        words = "left out: files of other kinds (2 .heic, 1 without a suffix, 1 .csv)"
        assert notes_of(tmp_path) == {words: (4, "README")}

    def test_links(self, tmp_path: Path) -> None:
        pictures, root = tmp_path / "pictures", tmp_path / "root"
        write_images(pictures, 20)
        root.mkdir()
        (root / "cats").symlink_to(pictures / "sub0")
        (root / "dogs").symlink_to(pictures / "sub1")
        (root / "loop").symlink_to(root)
        (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (root / "round.png").symlink_to("round.png")
        os.mkfifo(root / "pipe.png")  # reading it would wait for ever
        assert all_values(load_images(spec_of(root))) == list(range(20))
        assert notes_of(root) == {
            "left out: folders that are read already, by way of a link": (1, "loop"),
            "left out: links that lead nowhere": (2, "gone.png"),
            "left out: pipes, sockets or devices": (1, "pipe.png"),
        }

    def test_it_is_said_where_too_few_are_left(self, tmp_path: Path) -> None:
        write_images(tmp_path / ".thumbnails", 20)
        write_images(tmp_path, 3)
        (tmp_path / "a.heic").write_text("no picture")
        said = refusal(spec_of(tmp_path))
        assert said.startswith(
            f"data.root: 3 images in {tmp_path}; 20 left out: hidden, or in a hidden folder, such as .thumbnails/"
        )
        assert "; 1 left out: files of other kinds (1 .heic), such as a.heic (got" in said

    def test_names_that_no_terminal_should_see_are_escaped(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        (tmp_path / "\x1b[2J.heic").write_text("no picture")
        (note,) = [note for note in load_images(spec_of(tmp_path)).notes if "other kinds" in note.what]
        assert note.example == r"'\x1b[2J.heic'"
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b.png")).write_text("no picture")
        assert r"/\udcff\x1b.png' cannot be read" in refusal(spec_of(tmp_path))


def transparent(mode: str, hidden: int) -> Image.Image:
    """Black with a right half that nobody sees, whatever its colour."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, :4] = 255
    grey = np.zeros((8, 8), np.uint8)
    grey[:, 4:] = hidden
    rgba = Image.fromarray(np.dstack([grey, grey, grey, alpha]))
    if mode != "P":
        return rgba.convert(mode)
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, hidden, hidden, hidden])
    palette.paste(1, (4, 0, 8, 8))
    return palette


class TestConverted:
    @pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("RGBA", "webp"), ("LA", "png"), ("P", "png"), ("P", "gif")])
    def test_transparency_is_laid_on_white(self, mode: str, suffix: str, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        extra: dict[str, Any] = {"transparency": 1} if mode == "P" else {"lossless": True} if suffix == "webp" else {}
        for hidden in (0, 77, 255):
            transparent(mode, hidden).save(tmp_path / f"{hidden}.{suffix}", **extra)
        picture(40).convert("RGBA").save(tmp_path / "opaque.png")
        images = load_images(spec_of(tmp_path))
        every = torch.cat([images.train_NCHW, images.test_NCHW])
        halves = every[(every[:, 0, 0, 0] == 0) & (every[:, 0, 0, 7] == 255)]
        assert len(halves) == 3 and (halves == halves[:1]).all()
        assert (halves[0, :, :, :4] == 0).all() and (halves[0, :, :, 4:] == 255).all()
        assert notes_of(tmp_path)["with transparency, laid on white"] == (3, f"0.{suffix}")

    def test_every_kind_of_image_becomes_rgb(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        kinds = [
            ("L", "l.png"), ("P", "p.png"), ("RGBA", "a.webp"), ("CMYK", "c.jpg"), ("1", "b.png"), ("LA", "la.png"),
            ("RGB", "r.bmp"), ("P", "g.gif"), ("RGB", "t.TIFF"), ("RGB", "t.tif"),
        ]  # fmt: skip
        for mode, name in kinds:
            Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(tmp_path / name)
        images = load_images(spec_of(tmp_path))
        every = torch.cat([images.train_NCHW, images.test_NCHW])
        assert every.shape == (30, 3, 8, 8)
        assert int((every == 255).flatten(1).all(1).sum()) == len(kinds)
        assert notes_of(tmp_path)["in CMYK, turned to RGB"] == (1, "c.jpg")
        assert notes_of(tmp_path)["with fewer than 8 pixels a side, enlarged"] == (10, "a.webp")
        assert "with more than 8 pixels a side, scaled down" not in notes_of(tmp_path)
        Image.new("RGB", (9, 9)).save(tmp_path / "s.png")
        assert notes_of(tmp_path)["with more than 8 pixels a side, scaled down"] == (1, "s.png")

    def test_photos_are_turned_as_their_exif_data_say(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        image = np.zeros((16, 16, 3), np.uint8)
        image[:8] = 255
        exif = Image.Exif()
        exif[0x0112] = 3  # turned by 180 degrees
        Image.fromarray(image).save(tmp_path / "0.png", exif=exif)
        images = load_images(spec_of(tmp_path, 16))
        every = torch.cat([images.train_NCHW, images.test_NCHW])
        turned = (every[:, 0, :8] == 0).flatten(1).all(1) & (every[:, 0, 8:] == 255).flatten(1).all(1)
        assert int(turned.sum()) == 1
        assert notes_of(tmp_path, size=16)["turned, as their EXIF data say"] == (1, "0.png")

    def test_of_several_frames_the_first_is_taken(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        for suffix in ("gif", "png", "webp", "tiff"):
            extra = {"lossless": True} if suffix == "webp" else {}
            picture(200).save(tmp_path / f"a.{suffix}", save_all=True, append_images=[picture(100)], **extra)
        values = all_values(load_images(spec_of(tmp_path)))
        assert values.count(200) == 4 and values.count(100) == 0
        assert notes_of(tmp_path)["with several frames or pages, of which the first is taken"] == (4, "a.gif")

    def test_sixteen_bits_of_colour_are_cut_and_said(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        shutil.copy(_png_of_16_bits(tmp_path / "deep.png"), tmp_path / "sub0/deep.png")
        (tmp_path / "deep.png").unlink()
        assert notes_of(tmp_path) == {"with 16 bits a channel, cut to 8": (1, "sub0/deep.png")}


def _png_of_16_bits(path: Path) -> Path:
    """Pillow writes none: signature, IHDR (8 x 8, 16 bits, RGB), IDAT, IEND by hand."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">24H", *[40_000] * 24) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


class TestChannels:
    def test_grey_pictures_can_be_one_channel(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        three, one = load_images(spec_of(tmp_path)), load_images(spec_of(tmp_path, channels=1))
        assert one.train_NCHW.shape == (18, 1, 8, 8)
        assert torch.equal(one.train_NCHW.expand(-1, 3, -1, -1), three.train_NCHW)
        (hint,) = three.notes
        assert str(hint) == "20 grey, turned to RGB: all there are, so data.channels: 1 would do"
        assert one.notes == ()

    def test_what_is_recoloured_is_counted(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "sub0/red.png")
        (grey,) = load_images(spec_of(tmp_path)).notes
        assert (grey.count, grey.what) == (20, "grey, turned to RGB")
        images = load_images(spec_of(tmp_path, channels=1))
        assert [str(note) for note in images.notes] == ["1 in colour, turned to grey, such as sub0/red.png"]
        assert 76 in all_values(images)  # 0.299 * 255


class TestRefused:
    def test_unreadable_images_are_named(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        whole = (tmp_path / "sub0" / "001.png").read_bytes()
        (tmp_path / "broken.png").write_bytes(b"not a picture")
        (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "sixteen.png")
        messages = refusal(spec_of(tmp_path)).splitlines()
        assert len(messages) == 4 and all(message.startswith("data.root: ") for message in messages)
        names = ("broken.png", "half.png", "program.jpg", "sixteen.png")
        assert all(name in message for name, message in zip(names, messages, strict=True))
        assert "none of BMP, GIF, JPEG, PNG, TIFF, WEBP" in messages[0] and "none of" in messages[2]
        assert "more than 8 bits" in messages[3]
        assert " at 0x" not in "".join(messages)

    def test_too_few_images_or_none(self, tmp_path: Path) -> None:
        write_images(tmp_path, 19)
        assert "data.root: 19 images in " in refusal(spec_of(tmp_path))
        assert "data.root: no folder " in refusal(spec_of(tmp_path / "elsewhere"))
        assert "data.root: no folder " in refusal(spec_of(tmp_path / "sub0/000.png"))
        assert [line.partition(" (")[0] for line in refusal(DataSpec(name="images")).splitlines()] == [
            "data.root: is needed for a folder of images; the folder",
            "data.size: is needed for a folder of images; for example size: 32",
        ]

    def test_folders_that_cannot_be_looked_into(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_images(tmp_path, 40)
        real: Callable[[Any], Any] = os.scandir

        def scandir(path: Any) -> Any:
            if Path(path).name == "sub1":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(folder_module.os, "scandir", scandir)  # the tests' user may be root, whom nothing keeps out
        assert refusal(spec_of(tmp_path)) == (
            f"data.root: the folder {tmp_path}/sub1 cannot be read: Permission denied; make it readable, or take it out"
        )

    def test_a_picture_that_goes_away_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_images(tmp_path, 20)
        found = folder_module.find_pictures(tmp_path)
        monkeypatch.setattr(folder_module, "find_pictures", lambda root: found)
        (tmp_path / "sub1/003.png").unlink()
        assert refusal(spec_of(tmp_path)) == (
            f"data.root: {tmp_path}/sub1/003.png cannot be read as an image: No such file or directory; mend it or take it out"
        )

    def test_pictures_too_large_for_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_images(tmp_path, 20)
        Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        load_images(spec_of(tmp_path))  # up to twice as many Pillow only warns, which nobody here sees
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 190)
        assert "large.png cannot be read as an image: it has more than 380 pixels; mend it" in refusal(spec_of(tmp_path))

    def test_more_than_fits_into_memory(self, tmp_path: Path) -> None:
        write_images(tmp_path, 20)
        assert refusal(spec_of(tmp_path, 999_999)).startswith("data.size: 20 images of 3 x 999999 x 999999 need ")


def test_names_that_differ_in_case_alone_are_two_pictures(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    picture(100).save(tmp_path / "a.png")
    picture(101).save(tmp_path / "A.PNG")
    assert {100, 101} <= set(all_values(load_images(spec_of(tmp_path))))
