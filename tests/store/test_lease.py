"""The lease: one driver, the dead replaced, the fenced stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from raylt.errors import Fenced, LeaseHeld
from raylt.store import Lease, Ledger, Store
from raylt.store import lease as lease_module
from raylt.store.layout import epoch_path, lease_path
from raylt.store.lease import Holder, guard_for, has_stopped, read_holder, request_stop
from raylt.store.processes import Life
from tests.support.results import a_result
from tests.support.trials import a_trial


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def plant(store, epoch=4, **changes) -> Holder:
    """Another driver's lease, as it would lie in the store."""
    holder = replace(Holder.myself(epoch), **changes)
    store.create_record(epoch_path("s", epoch), asdict(holder))
    store.write_record(lease_path("s"), asdict(holder))
    return holder


@pytest.fixture
def hasty(monkeypatch):
    """A minute of silence takes half a second."""
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 0.5)
    monkeypatch.setattr(lease_module, "WATCH_EVERY_S", 0.02)


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
    plant(store, start_ticks=1)
    Lease.acquire(store, "s").release()


def test_a_step_of_the_clock_does_not_make_a_living_driver_look_dead(store, monkeypatch):
    """What psutil says of a process's start is the kernel's ticks beside the clock, so it moves with the clock."""
    lease = Lease.acquire(store, "s")
    really = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: really(process) + 3600)
    with pytest.raises(LeaseHeld, match=f"pid {os.getpid()} "):
        Lease.acquire(store, "s")
    lease.release()


@pytest.mark.parametrize("skew_s", [-3600, -61, 0, 61, 3600])
def test_elsewhere_signs_of_life_decide_whatever_the_clocks_say(store, hasty, skew_s):
    """A living driver is never replaced, a dead one within a minute, however wrong its host's clock is."""
    there = plant(store, machine="another", host="gpu7", pid=77, heartbeat=time.time() + skew_s)
    lives = threading.Event()

    def beat():
        while not lives.wait(0.1):
            store.write_record(lease_path("s"), asdict(replace(there, heartbeat=time.time() + skew_s)))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(LeaseHeld, match="pid 77 on gpu7"):
        Lease.acquire(store, "s")
    lives.set()
    thread.join()
    began = time.monotonic()
    lease = Lease.acquire(store, "s")
    assert lease.holder.epoch == 5 and time.monotonic() - began >= 0.5
    lease.release()


def test_a_newcomer_says_what_it_waits_for(store, hasty, caplog):
    plant(store, machine="another", host="gpu7", pid=77)
    Lease.acquire(store, "s").release()
    assert "was driven by pid 77 on gpu7" in caplog.text


def test_a_stopped_driver_is_replaced_after_a_minute_and_fenced_when_it_goes_on(store, tmp_path, hasty):
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path), str(ready)))
    process.start()
    while not ready.exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        stopped = read_holder(store, "s")
        while stopped.life is not Life.STOPPED:
            time.sleep(0.01)
        assert f"kill -CONT {process.pid}" in str(stopped)
        lease = Lease.acquire(store, "s")
        assert lease.holder.epoch == 2
        with pytest.raises(Fenced):
            guard_for(store, "s", 1, stopped.token)()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    lease.release()


def test_an_epoch_has_one_holder_however_many_want_it(root):
    """On a local folder and on S3: ten newcomers, one lease."""
    held, refused = [], []

    def want():
        try:
            held.append(Lease.acquire(Store(root), "s"))
        except (LeaseHeld, Fenced) as error:
            refused.append(error)

    threads = [threading.Thread(target=want) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 9
    held[0].check()
    held[0].release()


def test_who_looked_before_another_came_does_not_take_the_next_epoch(store, monkeypatch):
    """Nobody holds the sweep, says the first look; by the second, another has its first epoch."""
    really, looks = lease_module.read_holder, []

    def looks_too_early(store, name):
        if looks:
            return really(store, name)
        looks.append(plant(store, 1))
        return None

    monkeypatch.setattr(lease_module, "read_holder", looks_too_early)
    with pytest.raises(LeaseHeld, match="being driven by pid"):
        Lease.acquire(store, "s")


def test_a_lease_of_an_earlier_raylt_is_heeded_and_then_replaced(store):
    """It has no files of epochs, and no ticks."""
    old = {key: value for key, value in asdict(Holder.myself(4)).items() if key != "start_ticks"}
    store.write("sweeps/s/lease.json", json.dumps(old).encode())
    with pytest.raises(LeaseHeld):
        Lease.acquire(store, "s")
    store.write("sweeps/s/lease.json", json.dumps({**old, "released": True}).encode())
    lease = Lease.acquire(store, "s")
    assert lease.holder.epoch == 5
    lease.check()
    lease.release()


def test_whoever_lost_the_lease_can_write_nothing(store):
    lease = Lease.acquire(store, "s")
    ledger = Ledger(store, "s", lease.check)
    ledger.submit(a_trial(0, "dense", None, 0))
    other = plant(store, 2)
    with pytest.raises(Fenced, match="taken over by pid"):
        ledger.finish(0, a_result())
    with pytest.raises(Fenced):
        guard_for(store, "s", 1, lease.holder.token)()
    guard_for(store, "s", 2, other.token)()
    lease.release()
    assert read_holder(store, "s") == other  # releasing did not take it back
    assert Ledger(store, "s").results == {}


def test_workers_are_guarded_by_the_token_too(store):
    lease = Lease.acquire(store, "s")
    with pytest.raises(Fenced):
        guard_for(store, "s", 1, "another's")()
    lease.release()


def test_a_late_sign_of_life_is_not_the_new_holders(store):
    lease = Lease.acquire(store, "s")
    other = plant(store, 2)
    store.write_record(lease_path("s"), asdict(lease.holder))  # a PUT that took its time
    assert read_holder(store, "s") == other
    lease.release()


def test_what_is_committed_stays_though_its_writer_checked_the_lease_before(store):
    """The check of the lease and the write are two steps; between them another driver may finish the trial."""
    lease = Lease.acquire(store, "s", has_thread=False)
    late = Ledger(store, "s", lease.check)
    late.submit(a_trial(0, "dense", None, 0))
    really = store.create_record

    def stopped_before_writing(path, record, sweep):
        store.create_record = really
        other = plant(store, 2)
        second = Ledger(Store(store.root), "s", guard_for(store, "s", 2, other.token))
        second.finish(0, a_result())
        return really(path, record, sweep)

    store.create_record = stopped_before_writing
    with pytest.raises(Fenced):
        late.finish(0, a_result(state="FAIL"))
    assert Ledger(Store(store.root), "s").results[0].state == "COMPLETE"


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b"{", b"null", b'{"epoch": "1"}'])
def test_a_stop_request_that_says_nothing_neither_stops_nor_starves_the_heartbeat(store, monkeypatch, content):
    monkeypatch.setattr(lease_module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(lease_module, "HEARTBEAT_EVERY_S", 0.05)
    heard = []
    lease = Lease.acquire(store, "s", lambda: heard.append(1))
    store.write("sweeps/s/stop.json", content)
    before = read_holder(store, "s").heartbeat
    deadline = time.monotonic() + 20
    while read_holder(store, "s").heartbeat <= before:
        assert time.monotonic() < deadline, "no more signs of life"
        time.sleep(0.02)
    assert heard == []
    lease.release()


def test_a_result_is_written_once(store):
    ledger = Ledger(store, "s", lambda: None)
    ledger.submit(a_trial(0, "dense", None, 0, params={"gamma": 0.1}))
    ledger.finish(0, a_result(loss=1.0))
    ledger.finish(0, a_result(state="FAIL"))
    again = Ledger(store, "s")
    assert again.results[0].scores.loss == 1.0
    assert again.submitted[0] == a_trial(0, "dense", None, 0, params={"gamma": 0.1})
    assert again.open_trials() == []


def test_an_asked_file_without_its_content_did_not_happen(store, tmp_path):
    ledger = Ledger(store, "s", lambda: None)
    ledger.submit(a_trial(0, "dense", None, 0))
    (tmp_path / "sweeps/s/trials/00001").mkdir()  # killed between folder and file
    assert sorted(Ledger(store, "s").submitted) == [0]


def test_a_driver_hears_once_that_it_is_to_stop_and_its_successor_does_not(store, monkeypatch):
    monkeypatch.setattr("raylt.store.lease.LOOK_EVERY_S", 0.01)
    heard = []
    mine = Lease.acquire(store, "s", lambda: heard.append("first"))
    holder = request_stop(store, "s")
    assert (holder.epoch, holder.token) == (1, mine.holder.token)
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
