"""The lease: one driver, the dead replaced, the fenced stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raylt.errors import Fenced, LeaseHeld
from raylt.lease import STALE_AFTER_S, Holder, Lease, guard_for, has_stopped, lease_path, read_holder, request_stop
from raylt.ledger import Ledger
from raylt.plan import TrialSpec
from raylt.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def plant(store, **changes):
    store.write_json(lease_path("s"), asdict(replace(Holder.myself(4), **changes)))


def test_a_second_driver_is_told_who_holds_it(store):
    lease = Lease.acquire(store, "s")
    with pytest.raises(LeaseHeld, match=rf"pid {os.getpid()} on .+ since \d{{4}}-.+, last seen \d+ s ago") as error:
        Lease.acquire(store, "s")
    assert error.value.exit_code == 3
    lease.release()
    Lease.acquire(store, "s").release()


def _hold(root: str, ready: str) -> None:
    Lease.acquire(Store(root), "s")
    Path(ready).touch()
    time.sleep(60)


def test_a_dead_process_here_is_replaced_at_once(store, tmp_path):
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path), str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.05)
    with pytest.raises(LeaseHeld, match=f"pid {process.pid} "):
        Lease.acquire(store, "s")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lease = Lease.acquire(store, "s")
    assert lease.holder.epoch == 2
    lease.release()


def test_a_pid_that_was_reused_is_not_the_holder(store):
    plant(store, process_start=1.0)
    Lease.acquire(store, "s").release()


def test_elsewhere_the_heartbeat_decides(store):
    plant(store, machine="another", host="gpu7", pid=77)
    with pytest.raises(LeaseHeld, match="pid 77 on gpu7"):
        Lease.acquire(store, "s")
    plant(store, machine="another", heartbeat=time.time() - STALE_AFTER_S - 1)
    Lease.acquire(store, "s").release()


def test_whoever_lost_the_lease_can_write_nothing(store):
    lease = Lease.acquire(store, "s")
    ledger = Ledger(store, "s", lease.check)
    ledger.ask(TrialSpec(0, "dense", None, 0))
    plant(store)  # epoch 4: another driver took over
    with pytest.raises(Fenced, match="taken over by pid"):
        ledger.finish(0, {"state": "COMPLETE"})
    with pytest.raises(Fenced):
        guard_for(store, "s", 1)()
    guard_for(store, "s", 4)()
    lease.release()
    assert read_holder(store, "s").epoch == 4  # releasing did not take it back
    assert Ledger(store, "s").results == {}


def test_a_newcomer_that_took_the_same_epoch_fences_the_driver_too(store):
    lease = Lease.acquire(store, "s")
    store.write_json(lease_path("s"), asdict(Holder.myself(lease.holder.epoch)))  # its write was late, on a store without locks
    with pytest.raises(Fenced, match="taken over by pid"):
        lease.check()
    assert not lease.is_mine
    lease.release()
    assert not read_holder(store, "s").released


def test_a_result_is_written_once(store):
    ledger = Ledger(store, "s", lambda: None)
    ledger.ask(TrialSpec(0, "dense", None, 0, params={"gamma": 0.1}))
    ledger.finish(0, {"state": "COMPLETE", "loss": 1.0})
    ledger.finish(0, {"state": "FAIL", "loss": None})
    again = Ledger(store, "s")
    assert again.results[0]["loss"] == 1.0
    assert again.asked[0] == TrialSpec(0, "dense", None, 0, params={"gamma": 0.1})
    assert again.open_trials() == []


def test_an_asked_file_without_its_content_did_not_happen(store, tmp_path):
    ledger = Ledger(store, "s", lambda: None)
    ledger.ask(TrialSpec(0, "dense", None, 0))
    (tmp_path / "sweeps/s/trials/00001").mkdir()  # killed between folder and file
    assert sorted(Ledger(store, "s").asked) == [0]


def test_a_driver_hears_once_that_it_is_to_stop_and_its_successor_does_not(store, monkeypatch):
    monkeypatch.setattr("raylt.lease.LOOK_EVERY_S", 0.01)
    heard = []
    mine = Lease.acquire(store, "s", lambda: heard.append("first"))
    holder = request_stop(store, "s")
    assert holder == mine.holder
    assert not has_stopped(store, "s", holder)
    deadline = time.monotonic() + 20
    while not heard:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mine.release()
    assert has_stopped(store, "s", holder)
    assert request_stop(store, "s") is None
    second = Lease.acquire(store, "s", lambda: heard.append("second"))
    time.sleep(0.2)
    second.release()
    assert heard == ["first"]
