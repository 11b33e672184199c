"""What a local folder asks of the disk, so that a power cut takes nothing that was said to be there."""

from __future__ import annotations

from raylt.store import Output, Store
from raylt.store.folders import Disk, LocalFolder


class Noted(Disk):
    """A disk that remembers which folders were synced."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def sync_folder(self, path: str) -> None:
        super().sync_folder(path)
        self.synced.append(path)


def test_a_folder_that_another_made_is_synced_into_its_parent(tmp_path):
    """Whoever made it may have died before it did so (simulation, seed 376)."""
    (tmp_path / "stages" / "2b").mkdir(parents=True)
    disk = Noted()
    folder = LocalFolder(str(tmp_path), disk)
    assert folder.create("stages/2b/key.json", b"1")
    assert {str(tmp_path), str(tmp_path / "stages"), str(tmp_path / "stages" / "2b")} <= set(disk.synced)
    disk.synced.clear()
    folder.replace("stages/2b/key.json", b"2")
    assert disk.synced == [str(tmp_path / "stages" / "2b")]  # the others are on the disk already


def test_a_folder_that_was_made_again_is_synced_again(tmp_path):
    disk = Noted()
    folder = LocalFolder(str(tmp_path), disk)
    folder.create("a/b/x", b"1")
    folder.delete_folder("a")
    disk.synced.clear()
    folder.create("a/b/x", b"1")
    assert {str(tmp_path), str(tmp_path / "a")} <= set(disk.synced)


def test_a_stage_that_another_made_is_synced_before_anything_rests_on_it(tmp_path):
    """Its maker may have died before it synced the manifest's entry (simulation, seed 50308)."""
    key = {"kind": "x"}
    made = Store(str(tmp_path)).stage(key)
    made.make(lambda stage: Output({"n": 1}))
    disk = Noted()
    found = Store(str(tmp_path), folder=LocalFolder(str(tmp_path), disk)).stage(key)
    assert found.make(lambda stage: Output({"n": 2})).values == {"n": 1}
    assert str(tmp_path / made.path) in disk.synced
