"""The store: whole or absent, made once, remembered failures, damage noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from raylt.errors import Diverged, EnvironmentFailure, Fenced, InputError
from raylt.store import Output, Store

KEY = {"kind": "test", "value": 1}


def test_a_stage_is_made_once_and_then_found(tmp_path):
    store, calls = Store(str(tmp_path), owner="me"), []

    def compute(stage):
        calls.append(1)
        return Output({"x": 1.5}, {"a.bin": b"abc"})

    first, second = store.stage(KEY).make(compute), store.stage(KEY).make(compute)
    assert calls == [1]
    assert first == second
    assert (first.values, first.owner) == ({"x": 1.5}, "me")
    assert store.stage(KEY).read("a.bin") == b"abc"
    assert store.find(store.stage(KEY).digest).read_manifest().values["x"] == 1.5
    assert sorted(path.name for path in (tmp_path / store.stage(KEY).path).iterdir()) == ["a.bin", "key.json", "manifest.json"]


def test_another_key_is_another_stage_whatever_the_order_of_its_parts(tmp_path):
    store = Store(str(tmp_path))
    assert store.stage({"a": 1, "b": 2}).digest == store.stage({"b": 2, "a": 1}).digest
    assert store.stage({"a": 1}).digest != store.stage({"a": 2}).digest


def test_without_a_manifest_there_is_nothing_and_checkpoints_go_when_it_is_whole(tmp_path):
    store = Store(str(tmp_path))

    def dies(stage):
        stage.checkpoint("state", b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        store.stage(KEY).make(dies)
    assert store.stage(KEY).manifest() is None
    seen = []
    store.stage(KEY).make(lambda stage: (seen.append(stage.load_checkpoint("state")), Output())[1])
    assert seen == [b"half"]
    assert store.stage(KEY).load_checkpoint("state") is None


def test_divergence_is_remembered_other_errors_are_not(tmp_path):
    store = Store(str(tmp_path))

    def diverges(stage):
        raise Diverged("the loss is nan at step 3")

    for _ in range(2):
        with pytest.raises(Diverged, match="nan at step 3"):
            store.stage(KEY).make(diverges)
        diverges = lambda stage: pytest.fail("computed again")  # noqa: E731


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"abX"), lambda p: p.unlink()])
def test_damage_is_noticed(tmp_path, damage):
    store = Store(str(tmp_path))
    stage = store.stage(KEY)
    stage.make(lambda _: Output(files={"a.bin": b"abc"}))
    damage(tmp_path / stage.path / "a.bin")
    with pytest.raises(EnvironmentFailure, match=r"a\.bin is damaged: .*; lost: one stage, .*raylt store verify"):
        stage.read("a.bin")


def test_who_is_fenced_writes_nothing(tmp_path):
    def guard():
        raise Fenced("taken over")

    store = Store(str(tmp_path), guard=guard)
    with pytest.raises(Fenced):
        store.stage(KEY).make(lambda _: Output())
    with pytest.raises(Fenced):
        store.stage(KEY).checkpoint("state", b"x")
    assert not (tmp_path / "stages").exists()


def _slow_make(root: str, started: str) -> None:
    def compute(stage):
        Path(started).touch()
        time.sleep(60)
        return Output()

    Store(root).stage(KEY).make(compute)


def test_two_makers_do_the_work_once_and_a_dead_maker_lets_go(tmp_path):
    root, started = str(tmp_path / "root"), tmp_path / "started"
    maker = multiprocessing.get_context("spawn").Process(target=_slow_make, args=(root, str(started)))
    maker.start()
    while not started.exists():
        time.sleep(0.05)
    made = []
    waiter = threading.Thread(target=lambda: made.append(Store(root).stage(KEY).make(lambda _: Output({"by": "waiter"}))))
    waiter.start()
    time.sleep(0.5)
    assert made == []  # it waits while the other lives
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    waiter.join(timeout=20)
    assert made[0].values == {"by": "waiter"}


def test_a_write_is_atomic_for_readers(tmp_path):
    store, stop, torn = Store(str(tmp_path)), threading.Event(), []
    store.write("f", b"0" * 100_000)

    def read():
        while not stop.is_set():
            data = store.read("f")
            if data is None or len(set(data)) != 1 or len(data) != 100_000:
                torn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    for digit in range(60):
        store.write("f", bytes([48 + digit % 10]) * 100_000)
    stop.set()
    reader.join()
    assert torn == []
    assert store.names("") == ["f"]


def test_a_root_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match=r"storage\.root: no store at"):
        Store("nosuchscheme://x/y")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; a folder"):
        Store(str(tmp_path / "file"))
