"""One maker at a time where there are no locks: a real S3 server, makers that are killed, claims that go stale."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from raylt.errors import Fenced
from raylt.store import Output, Store, stage_lock
from raylt.store.stage_lock import CLAIM, Busy, Claim, read_claim

KEY = {"kind": "test", "value": 1}


@pytest.fixture
def s3_root(server, request) -> str:
    return server.root(f"b{abs(hash(request.node.name))}")


def _make_half(root: str, owner: str, started: str) -> None:
    """Makes half of the stage, and keeps a checkpoint of it; then sits there until it is killed."""

    def compute(stage):
        stage.checkpoint("state", b"half")
        Path(started).touch()
        time.sleep(120)
        return Output()

    Store(root, owner).stage(KEY).make(compute)


@pytest.fixture
def start_maker(tmp_path):
    """`start_maker(root, owner)`: a process on another node, as far as the store can tell, in the middle of the stage."""
    makers = []

    def start(root: str, owner: str) -> multiprocessing.Process:
        started = tmp_path / f"started-{len(makers)}"
        maker = multiprocessing.get_context("spawn").Process(target=_make_half, args=(root, owner, str(started)))
        maker.start()
        makers.append(maker)
        while not started.exists():
            assert maker.is_alive()
            time.sleep(0.02)
        return maker

    yield start
    for maker in makers:
        maker.kill()
        maker.join()


def finish(root: str, owner: str):
    """Go on with the stage; returns what was found of it, and its manifest."""
    found = []

    def compute(stage):
        found.append(stage.load_checkpoint("state"))
        return Output({"by": owner})

    return found, Store(root, owner).stage(KEY).make(compute)


def test_a_lost_nodes_trial_finds_its_checkpoint_at_once_wherever_it_goes_on(root, start_maker):
    maker = start_maker(root, "sweep/3")
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert read_claim(Store(root), Store(root).stage(KEY).path).owner == "sweep/3"
    began = time.monotonic()
    found, manifest = finish(root, "sweep/3")
    assert time.monotonic() - began < stage_lock.STALE_AFTER_S / 2
    assert (found, manifest.owner) == ([b"half"], "sweep/3")
    names = Store(root).names(Store(root).stage(KEY).path)
    assert names == ["key.json", "manifest.json"]  # no checkpoint, no claim


def test_another_trial_waits_for_a_living_maker_and_takes_over_from_a_dead_one(s3_root, start_maker, monkeypatch):
    monkeypatch.setattr(stage_lock, "STALE_AFTER_S", 3.0)
    monkeypatch.setattr(stage_lock, "POLL_S", 0.1)
    monkeypatch.setattr(stage_lock, "HEARTBEAT_EVERY_S", 0.5)
    store = Store(s3_root, "sweep/1")
    released, ended = threading.Event(), []

    def slow(stage):
        released.wait(60)
        return Output({"by": "first"})

    first = threading.Thread(target=lambda: store.stage(KEY).make(slow))
    first.start()
    while read_claim(store, store.stage(KEY).path) is None:
        time.sleep(0.02)
    waiter = threading.Thread(target=lambda: ended.append(finish(s3_root, "sweep/2")))
    waiter.start()
    time.sleep(5)
    assert ended == []  # longer than a claim lives: the heartbeat kept it
    released.set()
    waiter.join(30)
    first.join(30)
    assert ended[0][0] == [] and ended[0][1].values == {"by": "first"}  # it found the stage whole

    other = {**KEY, "value": 2}
    store.write_record(f"{store.stage(other).path}/{CLAIM}", asdict(Claim("sweep/9", "dead", time.time() + 3600)))
    began = time.monotonic()  # a clock that is an hour ahead does not keep a dead claim alive
    Store(s3_root, "sweep/2").stage(other).make(lambda stage: Output())
    assert 2.5 < time.monotonic() - began < 20


def test_a_maker_that_fails_lets_go_at_once_and_its_stage_remains_its(root):
    def fails(stage):
        stage.checkpoint("state", b"half")
        raise RuntimeError("no")

    store = Store(root, "sweep/1")
    with pytest.raises(RuntimeError, match="no"):
        store.stage(KEY).make(fails)
    assert read_claim(store, store.stage(KEY).path).owner == "sweep/1"
    began = time.monotonic()
    found, _ = finish(root, "sweep/2")
    assert found == [b"half"] and time.monotonic() - began < stage_lock.STALE_AFTER_S / 2


def test_several_makers_at_once_leave_one_whole_stage(root, monkeypatch):
    monkeypatch.setattr(stage_lock, "SETTLE_S", 1.0)  # on a loaded machine a thread may sleep for longer than 0.2 s
    made = []

    def compute(stage):
        made.append(1)
        time.sleep(0.3)
        return Output({"x": 1}, {"a": b"same"})

    manifests = []
    work = [lambda i=i: manifests.append(Store(root, f"sweep/{i}").stage(KEY).make(compute)) for i in range(4)]
    makers = [threading.Thread(target=make) for make in work]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [m.values for m in manifests] == [{"x": 1}] * 4
    assert Store(root).stage(KEY).read("a") == b"same"
    assert len(made) == 1


def test_who_may_not_wait_is_told(root, start_maker):
    start_maker(root, "sweep/1")
    with pytest.raises(Busy), Store(root, "gc").stage(KEY).sole_maker(wait=False):
        pytest.fail("two makers")


def test_a_waiter_whose_driver_is_gone_stops_waiting(root, start_maker):
    start_maker(root, "sweep/1")
    calls = []

    def guard():
        calls.append(1)
        if len(calls) > 1:
            raise Fenced("taken over")

    with pytest.raises(Fenced):
        Store(root, "sweep/2", guard).stage(KEY).make(lambda stage: pytest.fail("made"))


def test_a_claim_that_is_none_of_ours_holds_nobody_up(s3_root):
    store = Store(s3_root, "sweep/1")
    store.write_record(f"{store.stage(KEY).path}/{CLAIM}", {"something": "else"})
    assert store.stage(KEY).make(lambda stage: Output({"x": 1})).values == {"x": 1}
