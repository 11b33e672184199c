"""Images and Inception weights by way of the store: what comes out is what went in, once per node, and nothing else."""

from __future__ import annotations

import io
import os
import shutil
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torchvision.datasets import CIFAR10

from raylt.cluster.place import Place
from raylt.diffusion.data import ImageSet
from raylt.errors import EnvironmentFailure, InputError, SpecError
from raylt.spec.sections import StorageSpec
from raylt.store import Output, Store
from raylt.store.filesystem import Files
from raylt.store.stages import CODE_SCHEMA
from raylt.sweep.driver import describe_sweep, run_sweep
from raylt.sweep.single import run_ticket
from raylt.trial import inputs
from raylt.trial.features import InceptionFeatures, load_inception
from raylt.trial.inputs import FILE, InputDigests, Inputs, gather, get
from tests.diffusion.test_image_folder import write_images
from tests.trial.test_features import inception_file, inception_state  # noqa: F401  (fixtures)


@pytest.fixture
def s3_root(server, request, tmp_path, monkeypatch) -> str:
    """A bucket; and a home, and so a node cache, for this test alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return server.root(f"b{abs(hash(request.node.name))}")


def some_images(seed: int = 0, labels: bool = True) -> ImageSet:
    draw = torch.Generator().manual_seed(seed)
    train, test = (torch.randint(0, 256, (n, 1, 8, 8), generator=draw, dtype=torch.uint8) for n in (30, 10))
    return ImageSet(train, test, torch.arange(30) % 10, torch.arange(10)) if labels else ImageSet(train, test)


@pytest.mark.parametrize("labels", [True, False])
def test_images_come_back_as_they_were(tmp_path, labels):
    store, images = Store(str(tmp_path)), some_images(labels=labels)
    Inputs(images).put(store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    Inputs(images).put(store)
    found = get(Inputs(images).digests, store)
    assert found.images.digest == images.digest
    assert (found.images.train_labels_N is None) == (not labels)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before  # one copy, made once
    with pytest.raises(EnvironmentFailure, match=r"the sweep's images are not in the store .*; `raylt sweep` again"):
        get(InputDigests("0" * 64, None), store)


def test_inception_from_the_store_gives_the_same_features_and_digest(tmp_path, inception_file):  # noqa: F811
    store, state = Store(str(tmp_path)), load_inception(inception_file)
    Inputs(some_images(), state).put(store)
    found = get(Inputs(some_images(), state).digests, store)
    ours, theirs = InceptionFeatures("cpu", inception_file), InceptionFeatures("cpu", found.inception)
    assert ours.digest == theirs.digest == Inputs(some_images(), state).digests.inception
    assert torch.equal(ours(some_images().test_NCHW[:2]), theirs(some_images().test_NCHW[:2]))
    assert not any(path.suffix in (".pth", ".pt", ".pkl") for path in tmp_path.rglob("*"))


def test_the_digest_of_inception_is_what_it_was(inception_file):  # noqa: F811
    """It is in the keys of reference stages that lie in users' stores."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from raylt.diffusion.tensors import digest_of_tensors

    whole = FeatureExtractorInceptionV3("inception", ["2048"], str(inception_file)).state_dict()
    kept = {k: v for k, v in whole.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    assert InceptionFeatures("cpu", inception_file).digest == digest_of_tensors(kept)


def test_a_node_fetches_once_for_all_its_actors(s3_root, tmp_path, monkeypatch):
    images, reads, original = some_images(), [], Files.read
    Inputs(images).put(Store(s3_root))

    def read(self, path):
        if path.endswith(FILE):
            reads.append(path)
        return original(self, path)

    monkeypatch.setattr(Files, "read", read)
    found: list[Inputs] = []
    actors = [threading.Thread(target=lambda: found.append(get(Inputs(images).digests, Store(s3_root)))) for _ in range(4)]
    for actor in actors:
        actor.start()
    for actor in actors:
        actor.join()
    assert [f.images.digest for f in found] == [images.digest] * 4
    assert len(reads) == 1

    (cached,) = (path for path in (tmp_path / "home/.cache/raylt/inputs").iterdir() if not path.suffix)
    cached.write_bytes(cached.read_bytes()[:-1])  # a node's cache is not trusted either
    assert get(Inputs(images).digests, Store(s3_root)).images.digest == images.digest
    assert len(reads) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="root may write everywhere, which this rests on")
def test_a_node_that_cannot_keep_a_cache_reads_from_the_store(s3_root, tmp_path):
    Inputs(some_images()).put(Store(s3_root))
    (tmp_path / "home").write_text("not a folder")
    assert get(Inputs(some_images()).digests, Store(s3_root)).images.digest == some_images().digest


def test_a_stage_that_holds_other_images_than_its_key_says_is_refused(tmp_path):
    store, images = Store(str(tmp_path)), some_images()
    stage = store.stage({"kind": "images", "sha256": images.digest})
    stage.make(lambda _: Output(files={FILE: inputs._pack_images(some_images(1))}))
    with pytest.raises(EnvironmentFailure, match="holds other images or weights than it says"):
        get(Inputs(images).digests, store)


# --- a head that has lost its data set ----------------------------------------------------------------------------------


class TestResume:
    @pytest.fixture
    def store(self, tmp_path) -> Store:
        return Store(str(tmp_path / "root"))

    @pytest.fixture
    def folder_spec(self, tiny_spec, tmp_path) -> Any:
        """A sweep on a folder of 24 images."""
        write_images(tmp_path / "pictures", 24)
        return tiny_spec(data={"name": "images", "root": str(tmp_path / "pictures"), "size": 8}, metrics={"reference": None})

    def test_the_store_has_what_the_machine_lost(self, folder_spec, store, tmp_path, monkeypatch, inception_file):  # noqa: F811
        monkeypatch.setenv("RAYLT_INCEPTION", str(inception_file))
        first = gather(folder_spec, store, None)
        first.put(store)
        shutil.rmtree(tmp_path / "pictures")
        monkeypatch.setenv("RAYLT_INCEPTION", "/nowhere.pth")
        assert gather(folder_spec, store, first.digests).digests == first.digests
        with pytest.raises(SpecError, match="no folder"):  # a new sweep cannot begin here
            gather(folder_spec, store, None)

    def test_a_sweep_goes_on_from_its_own_images_and_says_so(
        self, folder_spec, store, tmp_path, monkeypatch, inception_file  # noqa: F811
    ):  # fmt: skip
        """The folder may hold others by now, or be read otherwise by another raylt: as the first that mixed their order."""
        monkeypatch.setenv("RAYLT_INCEPTION", str(inception_file))
        now = gather(folder_spec, store, None)
        order_N = torch.arange(len(now.images.train_NCHW)).flip(0)
        began = Inputs(ImageSet(now.images.train_NCHW[order_N], now.images.test_NCHW), now.inception)
        began.put(store)
        (tmp_path / "pictures/sub0/000.png").write_bytes(b"damaged since")
        found = gather(folder_spec, store, began.digests)
        assert found.digests == began.digests != now.digests
        assert [str(note) for note in found.images.notes] == [
            "24 images as they were when the sweep began, kept in its store; data.root is not looked at (--new would)"
        ]

    def test_a_sweep_whose_images_are_nowhere_is_refused_with_the_reason(
        self, folder_spec, tmp_path, monkeypatch, inception_file  # noqa: F811
    ):  # fmt: skip
        monkeypatch.setenv("RAYLT_INCEPTION", str(inception_file))
        spec = folder_spec.model_copy(update={"storage": StorageSpec(root=str(tmp_path / "root"))})
        lock = {"code_schema": CODE_SCHEMA, "data_sha256": "0" * 64, "inception_sha256": None}
        Store(spec.storage.root).write_record("sweeps/tiny/spec.lock.json", lock)
        with pytest.raises(InputError) as refused:
            run_sweep(spec, Place("told"), Console(file=io.StringIO()))
        assert str(refused.value) == (
            "the images are not those that sweep tiny began with (data.root holds others, or this raylt reads them otherwise, "
            "and the store has no copy); restore them, or use --new"
        )

    @pytest.fixture
    def _no_inception(self, monkeypatch) -> None:
        monkeypatch.setattr(inputs, "load_inception", lambda: {"weight": torch.ones(3)})
        monkeypatch.setattr(inputs, "InceptionFeatures", lambda *_: None)

    @pytest.mark.usefixtures("_no_inception")
    def test_what_became_of_the_images_is_said_before_and_at_the_start(self, folder_spec, tmp_path, monkeypatch):
        shutil.copytree(tmp_path / "pictures/sub0", tmp_path / "pictures/.ipynb_checkpoints")
        (tmp_path / "pictures/a.heic").write_text("of another kind")
        train = folder_spec.train.model_copy(update={"batch_size": 23})
        spec = folder_spec.model_copy(update={"storage": StorageSpec(root=str(tmp_path / "root")), "train": train})
        said = [
            "data     12 left out: hidden, or in a hidden folder, such as .ipynb_checkpoints/000.png",
            "data     1 left out: files of other kinds (1 .heic), such as a.heic",
            "data     24 grey, turned to RGB: all there are, so data.channels: 1 would do",
            "data     a batch of 23 has images twice: there are 22 to train on",
        ]
        assert [line for line in describe_sweep(spec) if line in said] == said

        def no_ray(*_: object) -> None:
            raise EnvironmentFailure("this test starts no Ray")

        monkeypatch.setattr("raylt.sweep.driver.ray_runtime.connected", no_ray)
        out = io.StringIO()
        with pytest.raises(EnvironmentFailure, match="starts no Ray"):
            run_sweep(spec, Place("told"), Console(file=out, width=60))
        assert [line for line in out.getvalue().splitlines() if line in said] == said

        def no_bench(*_: object) -> None:
            raise EnvironmentFailure("this test trains nothing")

        monkeypatch.setattr("raylt.sweep.single.TrialContext.open", no_bench)
        out = io.StringIO()
        with pytest.raises(EnvironmentFailure, match="trains nothing"):
            run_ticket(spec, "uniform", None, Console(file=out, width=60))
        assert out.getvalue().splitlines() == said

    def test_a_torchvision_data_set_is_not_downloaded_again(self, tiny_spec, store, tmp_path, monkeypatch):
        spec = tiny_spec(data={"name": "cifar10", "root": str(tmp_path)}, metrics={"search": {"features": "inception"}})
        began = Inputs(some_images(), {"weight": torch.ones(3)})
        began.put(store)
        monkeypatch.setattr(CIFAR10, "download", lambda self: pytest.fail("downloads"))
        assert gather(spec, store, began.digests).images.digest == began.images.digest

    def test_a_store_without_them_falls_back_on_the_machine(self, folder_spec, store, monkeypatch, inception_file):  # noqa: F811
        monkeypatch.setenv("RAYLT_INCEPTION", str(inception_file))
        first = gather(folder_spec, store, None)  # as begun by a raylt that put nothing into the store
        assert gather(folder_spec, store, replace(first.digests, inception=None)).digests == first.digests
