"""What every trial reads and none makes: the images, and Inception's weights. The driver puts them into the store, once.

A worker's node has neither data set nor internet. It takes both from the store: from a local one as they lie there, from
any other through a cache of the node's own, so that its actors fetch them once. A sweep that was started goes on from them,
whatever has become of its data set.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import filelock

from raylt.diffusion.data import ImageSet, load_images
from raylt.diffusion.image_notes import Note
from raylt.diffusion.tensors import NamedTensors, digest_of_tensors, pack, unpack
from raylt.errors import Problem, SpecError, StoreFailure, as_yaml_value
from raylt.spec import SweepSpec
from raylt.store import Output, Stage, Store
from raylt.store.folders import replace_file
from raylt.trial.features import InceptionFeatures, load_inception

FILE = "tensors.safetensors"
IMAGES, INCEPTION = "images", "inception"  # kinds of stages


@dataclass(frozen=True)
class InputDigests:
    """Where a sweep's inputs are: the SHA-256 of what they hold."""

    images: str
    inception: str | None


@dataclass(frozen=True)
class Inputs:
    images: ImageSet
    inception: NamedTensors | None = None  # what decides Inception's features; None where others are used

    @cached_property
    def digests(self) -> InputDigests:
        return InputDigests(self.images.digest, None if self.inception is None else digest_of_tensors(self.inception))

    def put(self, store: Store) -> None:
        """Into the store, where they are not there yet."""
        _stage(store, IMAGES, self.digests.images).make(lambda _: Output(files={FILE: _pack_images(self.images)}))
        inception = self.inception
        if inception is not None and self.digests.inception is not None:
            stage = _stage(store, INCEPTION, self.digests.inception)
            stage.make(lambda _: Output(files={FILE: pack(weights=inception)}))


def gather(spec: SweepSpec, store: Store, started_with: InputDigests | None, stored_images: bool = False) -> Inputs:
    """The inputs of a sweep: those it has used so far (`started_with`) where the store has them, else this machine's.

    `stored_images`: the store's alone, since `data.root` is not the user's word. Raises `SpecError` or `EnvironmentFailure`
    where they are to be had nowhere.
    """
    images = _images_at_start(spec, store, started_with)
    if images is None and stored_images:
        what = f"is not given, and the store lacks the sweep's images; its spec there names {as_yaml_value(spec.data.root)}"
        raise SpecError([Problem("data.root", what, "--set data.root=FOLDER", file="--set")])
    if images is None:
        images = load_images(spec.data)
    if spec.protocol("search").features != "inception":
        return Inputs(images)
    inception = None
    if started_with is not None and started_with.inception is not None:
        inception = _inception(_stage(store, INCEPTION, started_with.inception))
    if inception is None:
        inception = load_inception()
        InceptionFeatures("cpu", inception)  # does the file hold a whole network?
    return Inputs(images, inception)


def _images_at_start(spec: SweepSpec, store: Store, started_with: InputDigests | None) -> ImageSet | None:
    """A sweep's own images from its store. A folder may hold others by now, so it is said that nobody looks there."""
    images = None if started_with is None else _images(_stage(store, IMAGES, started_with.images))
    if images is None or spec.data.name != "images":
        return images
    count = len(images.train_NCHW) + len(images.test_NCHW)
    what = "images as they were when the sweep began, kept in its store; data.root is not looked at (--new would)"
    return replace(images, notes=(Note(count, what),))


def get(digests: InputDigests, store: Store) -> Inputs:
    """The inputs, from the store. Raises `StoreFailure` where it lacks them or has others under their name."""
    images = _images(_stage(store, IMAGES, digests.images))
    inception = None if digests.inception is None else _inception(_stage(store, INCEPTION, digests.inception))
    if images is None or (digests.inception is not None and inception is None):
        what = "images" if images is None else "Inception weights"
        raise StoreFailure(f"the sweep's {what} are not in the store {store.root}; `raylt sweep` again puts them there")
    loaded = Inputs(images, inception)
    if loaded.digests != digests:
        raise StoreFailure(f"the store {store.root} holds other images or weights than it says; empty its stages")
    return loaded


def _stage(store: Store, kind: str, sha256: str) -> Stage:
    return store.stage({"kind": kind, "sha256": sha256})


def _pack_images(images: ImageSet) -> bytes:
    labels = {"train": images.train_labels_N, "test": images.test_labels_N}
    return pack(
        images={"train": images.train_NCHW, "test": images.test_NCHW},
        labels={name: label for name, label in labels.items() if label is not None},
    )


def _images(stage: Stage) -> ImageSet | None:
    data = _fetched(stage)
    if data is None:
        return None
    groups = unpack(data)
    labels = groups.get("labels", {})
    return ImageSet(groups["images"]["train"], groups["images"]["test"], labels.get("train"), labels.get("test"))


def _inception(stage: Stage) -> NamedTensors | None:
    data = _fetched(stage)
    return None if data is None else unpack(data)["weights"]


def _fetched(stage: Stage) -> bytes | None:
    """The stage's file, by way of the node's cache where the store is elsewhere; None where the stage is not whole."""
    manifest = stage.manifest()
    if manifest is None:
        return None
    sha256 = str(manifest.files[FILE]["sha256"])
    if stage.store.is_local or not re.fullmatch("[0-9a-f]{64}", sha256):  # a file's name below: it must be no path
        return stage.read(FILE)
    cached = Path.home() / ".cache" / "raylt" / "inputs" / sha256
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cached.with_suffix(".lock")):  # the node's other actors want it now, too
            data = cached.read_bytes() if cached.exists() else None
            if data is None or hashlib.sha256(data).hexdigest() != sha256:
                data = stage.read(FILE)
                replace_file(cached, data)
            return data
    except OSError:
        return stage.read(FILE)  # a node without room for a cache
