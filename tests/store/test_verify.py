"""`raylt store verify --repair`: what it may delete, what it must not, and that a sweep goes on afterwards."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, replace

import pytest

from raylt.errors import Fenced, LeaseHeld
from raylt.report.document import results
from raylt.search.confirm import Request, confirm
from raylt.spec import TrialSpec, dump_yaml
from raylt.store import Lease, Ledger, Output, Store, index
from raylt.store import lease as lease_module
from raylt.store import ledger as ledger_module
from raylt.store.damage import Damaged
from raylt.store.layout import LOCK_COPY, LOCK_FILE, SIMILARITY_FILE, SPEC_FILE, asked_path, epoch_path, lease_path, result_path
from raylt.store.lease import Holder, guard_for, newest_epoch
from raylt.store.ledger import existing
from raylt.store.ledger_files import missing_trials
from raylt.store.repair import repair
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import next_free_id, stored_spec, write_spec
from raylt.store.verify import verify
from raylt.sweep import dispatch
from raylt.sweep.driver import _Driver
from tests.support import confirmed
from tests.support.begun import write_start
from tests.support.driving import drive
from tests.support.results import a_result
from tests.support.trials import a_trial

LOCK = {"code_schema": 2, "startup": 1}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 0.5)
    monkeypatch.setattr(lease_module, "WATCH_EVERY_S", 0.02)


def flip(store: Store, path: str) -> None:
    data = bytearray(store.read(path))
    data[len(data) // 2] ^= 1
    store.write(path, bytes(data))


def damaged(store: Store) -> list[str]:
    return [error.path for error in verify(store).damaged]


def test_a_damaged_epoch_is_found_mended_and_never_given_again(store, hasty):
    """Of a sweep that was not begun, too (simulation, seeds 278, 202)."""
    lease = Lease.acquire(store, "s", has_thread=False)
    holder = lease.holder
    store.delete(lease_path("s"))
    flip(store, epoch_path("s", 1))
    found = verify(store)
    assert [error.path for error in found.damaged] == [epoch_path("s", 1)]
    assert "is not known any more" in " ".join(repair(store, found))
    assert damaged(store) == [] and newest_epoch(store, "s") == 2
    with pytest.raises(Fenced):
        lease.check()
    with pytest.raises(Fenced):
        guard_for(store, "s", 1, holder.token)()


def test_an_epoch_that_lost_the_name_of_its_checksum_is_damaged(store):
    """(simulation, seed 51650)"""
    Lease.acquire(store, "s", has_thread=False).release()
    path = epoch_path("s", 1)
    store.write(path, store.read(path).replace(b'"sha256"', b'"sha257"'))
    assert damaged(store) == [path]


def test_mending_an_epoch_leaves_who_was_taken_for_dead_long_ago_fenced(store, hasty):
    """An epoch that is deleted would let the one before it write again."""
    first = Lease.acquire(store, "s", has_thread=False)
    first.check()
    second = replace(Holder.myself(2), machine="another")
    store.create_record(epoch_path("s", 2), asdict(second))
    flip(store, epoch_path("s", 2))
    repair(store, verify(store))
    with pytest.raises(Fenced):
        first.check()


def test_the_holder_of_a_damaged_epoch_is_not_taken_for_dead_while_it_gives_signs(store):
    lease = Lease.acquire(store, "s", has_thread=False)
    flip(store, epoch_path("s", 1))
    with pytest.raises(LeaseHeld):
        repair(store, verify(store))
    assert newest_epoch(store, "s") == 1
    store.write_record(lease_path("s"), asdict(replace(lease.holder, released=True)))


def begun(store: Store, spec) -> Ledger:
    ledger = Ledger(store, spec.name, lambda: None)
    write_spec(store, spec.name, dump_yaml(spec.dump()))
    ledger.lock(SweepLock(LOCK))
    return ledger


def test_a_stage_that_the_profile_needs_is_made_again(store, tiny_spec):
    """Else the sweep could never measure it (simulation, seed 420). A result that nothing needs stays as it is."""
    ledger = begun(store, tiny_spec())
    stage = store.stage({"kind": "train"})
    manifest = stage.make(lambda made: Output(files={"x": b"1234"}))
    for number, kind in enumerate(("dense", "baseline")):
        ledger.submit(a_trial(number, kind, None, 0))
        ledger.finish(number, a_result(stages={stage.digest: manifest.digest}))
    flip(store, f"{stage.path}/x")
    repair(store, verify(store))
    assert damaged(store) == []
    assert store.read(result_path("tiny", 0)) is None and store.read(result_path("tiny", 1)) is not None
    assert [trial.id for trial in Ledger(store, "tiny").open_trials()] == [0]


def test_a_stage_of_a_measured_sweep_takes_no_result_with_it(store, tiny_spec):
    ledger = begun(store, tiny_spec())
    stage = store.stage({"kind": "train"})
    manifest = stage.make(lambda made: Output(files={"x": b"1234"}))
    ledger.submit(a_trial(0, "dense", None, 0))
    ledger.finish(0, a_result(stages={stage.digest: manifest.digest}))
    ledger.create(SIMILARITY_FILE, {"profile": {}})
    flip(store, f"{stage.path}/x")
    repair(store, verify(store))
    assert damaged(store) == [] and store.read(result_path("tiny", 0)) is not None


def test_what_was_deleted_for_the_next_driver_is_written_by_a_driver_with_nothing_to_run(store, tiny_spec):
    """A complete sweep whose spec.yaml was mended stayed without one (simulation, seed 115)."""
    spec = tiny_spec()
    begun(store, spec)
    flip(store, f"sweeps/{spec.name}/{SPEC_FILE}")
    store.delete(f"sweeps/{spec.name}/{LOCK_COPY}")
    repair(store, verify(store))
    lease = Lease.acquire(store, spec.name, has_thread=False)
    store.delete(f"sweeps/{spec.name}/{LOCK_COPY}")
    _Driver(spec, store, lease, None, None, None)._restore(SweepLock(LOCK))
    assert damaged(store) == []
    lease.release()


def test_a_lock_that_is_lost_with_its_copy_is_said_and_stops_no_other_mending(store, tiny_spec):
    """(simulation, seed 1112)"""
    begun(store, tiny_spec()).submit(a_trial(0, "dense", None, 0))
    for name in (LOCK_FILE, LOCK_COPY):
        flip(store, f"sweeps/tiny/{name}")
    lines = repair(store, verify(store))
    assert any("cannot be restored" in line for line in lines)


def test_a_lock_under_which_nothing_was_submitted_goes(store, tiny_spec):
    """A power cut as the sweep was started left no copy either (simulation, seed 1003552)."""
    spec = tiny_spec()
    begun(store, spec)
    flip(store, f"sweeps/tiny/{LOCK_FILE}")
    store.delete(f"sweeps/tiny/{LOCK_COPY}")
    assert any("deleted, for nothing was submitted under it" in line for line in repair(store, verify(store)))
    assert damaged(store) == []
    begun(store, spec)
    assert damaged(store) == []


@pytest.mark.parametrize("folder", ["aa/x", "aa/" + 64 * "b", "aa/" + 64 * "a" + ".bak"])
def test_a_folder_put_aside_among_the_stages_hides_no_damage(store, folder):
    stage = store.stage({"kind": "train"})
    stage.make(lambda _: Output(files={"a.bin": b"x"}))
    flip(store, f"{stage.path}/a.bin")
    store.write(f"stages/{folder}/manifest.json", b"{}")
    assert [error.path for error in verify(store).damaged] == [f"{stage.path}/a.bin"]


def outcome(trial: TrialSpec) -> dict:
    loss = 0.1 + (trial.proposal.params or {}).get("gamma", 0.0) ** 2
    return {"rounds": [{"round": 0, "loss": loss, "broken": False, "flops": 1}]}


@pytest.mark.parametrize("lost", ["search", "baseline"])
def test_a_trial_that_was_deleted_whole_is_missed(store, tiny_spec, lost, monkeypatch):
    """It would be searched without: its number shows that it was there."""
    spec = tiny_spec(search={"trials": 3, "pilots": 0, "profile": "cost", "sampler": "random", "concurrency": 1})
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": {"down": -1.0, "mid": 0.0, "up": 1.0}})
    ledger = Ledger(store, spec.name, lambda: None)
    write_start(ledger, spec, startup=1)
    whole, _ = drive(spec, store.root, outcome)
    number = next(number for number, trial in whole.submitted.items() if trial.kind == lost)
    store.delete_folder(f"sweeps/{spec.name}/trials/{number:05d}")
    assert damaged(store) == [asked_path(spec.name, number)]
    with pytest.raises(Damaged, match=r"is not there, though later trials were submitted.*sets the trial aside"):
        Ledger(store, spec.name)
    assert f"set aside as {number:05d}.damaged" in " ".join(repair(store, verify(store)))
    assert damaged(store) == []
    again, _ = drive(spec, store.root, outcome)
    kept = [trial.proposal.params for trial in whole.submitted.values() if trial.is_search and trial.id != number]
    searched = [trial.proposal.params for trial in again.submitted.values() if trial.is_search]
    assert len(searched) == 3 and searched[: len(kept)] == kept
    if lost == "search":
        assert searched[-1] not in [trial.proposal.params for trial in whole.submitted.values() if trial.is_search]
    else:
        assert again.submitted[number] == whole.submitted[number]  # planned: submitted again as it was


def test_a_trial_that_is_planned_and_not_submitted_yet_is_not_missed(store, tiny_spec):
    """`raylt confirm` takes numbers, is stopped, and the search is extended meanwhile."""
    spec = tiny_spec()
    ledger = confirmed.begun(store.root, spec)
    planned = confirm(spec, ledger, Request(top=1, seeds=2))
    confirmed.end(spec, ledger, a_trial(next_free_id(spec, ledger), "search", "searched", 0, params={"gamma": 0.25}))
    assert missing_trials(ledger.submitted) == [item.trial.id for item in planned]
    assert damaged(store) == []
    assert Ledger(store, spec.name).confirmations() == planned


FOREIGN = ["trials/00003/asked.json", "trials/00003/result.json", "trials/00005", "similarity.json", "spec.yaml", "index"]


@pytest.mark.parametrize("own", FOREIGN)
def test_what_another_sweep_of_the_same_name_wrote_is_not_believed(tmp_path, tiny_spec, own, monkeypatch):
    """Two stores that are merged, or one that is restored from the wrong backup: the paths are the same."""
    monkeypatch.setattr(ledger_module, "PART", 2)
    monkeypatch.setattr(index, "PART", 2)
    store, spec = Store(str(tmp_path / "ours")), tiny_spec()
    confirmed.begun(tmp_path / "ours", spec)
    confirmed.begun(tmp_path / "theirs", tiny_spec(train={"seed": 7}))
    assert damaged(store) == []
    before = results(stored_spec(store, "tiny"), existing(store, "tiny"))
    there, here = (tmp_path / root / "sweeps/tiny" / own for root in ("theirs", "ours"))
    (shutil.copytree if there.is_dir() else shutil.copy)(there, here, **({"dirs_exist_ok": True} if there.is_dir() else {}))
    if own == "index":
        for result in here.parent.glob("trials/*/result.json"):  # the sizes are those that their index has noted
            shutil.copy(tmp_path / "theirs" / result.relative_to(tmp_path / "ours"), result)
        here = here.parent / "trials"
    found = damaged(store)
    assert found and all((tmp_path / "ours" / path).is_relative_to(here) or "index/" in path for path in found)
    with contextlib.suppress(Damaged):
        assert results(stored_spec(store, "tiny"), existing(store, "tiny")) == before  # from the index, which is whole


def test_where_the_lock_is_anothers_the_trials_are_left_alone(tmp_path, tiny_spec):
    store, spec = Store(str(tmp_path / "ours")), tiny_spec()
    confirmed.begun(tmp_path / "ours", spec)
    confirmed.begun(tmp_path / "theirs", tiny_spec(train={"seed": 7}))
    own = {name: store.read(f"sweeps/tiny/{name}") for name in (LOCK_FILE, LOCK_COPY)}
    for name in own:
        shutil.copy(tmp_path / "theirs/sweeps/tiny" / name, tmp_path / "ours/sweeps/tiny" / name)
    before = store.all_files("sweeps/tiny/trials")
    found = verify(store)
    assert [error.path for error in found.damaged] == [f"sweeps/tiny/{LOCK_FILE}"]
    (line,) = repair(store, found)
    assert "left as it is: it is whole, and so is its copy, but the trials are another sweep's" in line
    assert store.all_files("sweeps/tiny/trials") == before
    for name, data in own.items():
        store.write(f"sweeps/tiny/{name}", data)
    assert damaged(store) == []


@pytest.mark.parametrize("own", ["mlflow.json", "similarity.json", "trials", "lease", "trials/00004"])
def test_a_folder_in_a_files_place_and_a_file_in_a_folders_are_found_and_mended(tmp_path, tiny_spec, own):
    store = Store(str(tmp_path))
    ledger = confirmed.begun(tmp_path, tiny_spec())
    ledger.write("mlflow.json", {"ledger": "x"})
    Lease.acquire(store, "tiny", has_thread=False).release()
    path = tmp_path / "sweeps/tiny" / own
    if own == "trials/00004":
        path.rename(path.with_name("004"))
    elif path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        (path / "x").mkdir(parents=True)
    assert len(damaged(store)) == 1
    if own != "lease":
        with pytest.raises(Damaged):
            Ledger(store, "tiny").read(own)
    repair(store, verify(store))
    assert damaged(store) == []
    Lease.acquire(store, "tiny", has_thread=False).release()
    Ledger(store, "tiny").read(own.partition("/")[0] if "." in own else SIMILARITY_FILE)
