"""The ledger read while others write it: what was written between two reads of one look is no damage."""

from __future__ import annotations

import pytest

from raylt.store import Ledger, Store
from raylt.store.damage import Damaged
from raylt.store.layout import LOCK_COPY, LOCK_FILE, asked_path, result_path
from raylt.store.ledger_files import read_lock, read_trial, require_lock
from raylt.store.sweep_lock import SweepLock
from tests.support.results import a_result
from tests.support.trials import a_trial

LOCK = {"code_schema": 2, "startup": 1}
ENDED = a_result()


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def between(monkeypatch, path: str, act) -> None:
    """`act`, once, right after somebody has read `path`."""
    really, waiting = Store.read, [act]

    def read(self, asked):
        data = really(self, asked)
        if asked == path and waiting:
            waiting.pop()()
        return data

    monkeypatch.setattr(Store, "read", read)


def test_a_sweep_that_is_begun_meanwhile_has_not_lost_its_lock(store, monkeypatch):
    ledger = Ledger(store, "s", lambda: None)
    between(monkeypatch, f"sweeps/s/{LOCK_FILE}", lambda: ledger.lock(SweepLock(LOCK)))
    assert read_lock(store, "s") == SweepLock(LOCK)
    store.delete(f"sweeps/s/{LOCK_FILE}")
    with pytest.raises(Damaged, match="it is not there; lost: what the sweep was started with"):
        read_lock(store, "s")


def test_a_trial_that_is_asked_and_ends_meanwhile_was_asked(store, monkeypatch):
    ledger = Ledger(store, "s", lambda: None)
    ledger.lock(SweepLock(LOCK))
    trial = a_trial(0, "dense", None, 0)

    def run() -> None:
        ledger.submit(trial)
        ledger.finish(0, ENDED)

    between(monkeypatch, asked_path("s", 0), run)
    assert read_trial(store, "s", 0, SweepLock(LOCK).origin) == trial
    store.delete(asked_path("s", 0))
    with pytest.raises(Damaged, match="though the trial has a result"):
        read_trial(store, "s", 0, SweepLock(LOCK).origin)
    assert store.read(result_path("s", 0)) is not None


def test_a_driver_that_died_before_the_copy_leaves_it_to_the_next(store):
    store.create_record(f"sweeps/s/{LOCK_FILE}", LOCK)
    ledger = Ledger(store, "s", lambda: None)
    ledger.keep_copy(SweepLock(LOCK))
    assert store.read_record(f"sweeps/s/{LOCK_COPY}") == LOCK


def test_a_sweep_whose_first_trial_is_asked_meanwhile_has_not_lost_its_lock(store, monkeypatch):
    """(simulation, seed 51785)"""
    ledger = Ledger(store, "s", lambda: None)

    def begin() -> None:
        ledger.lock(SweepLock(LOCK))
        ledger.submit(a_trial(0, "dense", None, 0))

    between(monkeypatch, f"sweeps/s/{LOCK_COPY}", begin)
    require_lock(store, "s")
    for name in (LOCK_FILE, LOCK_COPY):
        store.delete(f"sweeps/s/{name}")
    with pytest.raises(Damaged, match="though the sweep has trials"):
        require_lock(store, "s")
