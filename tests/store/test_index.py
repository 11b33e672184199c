"""The index of ended trials is a cache: it saves reading, and whatever becomes of it, what the files say is what is read."""

from __future__ import annotations

import shutil

import pytest

from raylt.store import Ledger, Store, index, ledger
from raylt.store.index import Part, part_path
from raylt.store.layout import asked_path, result_path
from raylt.store.repair import repair
from raylt.store.results import COMPLETE, FAIL
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import states_of
from raylt.store.verify import verify
from tests.support.results import a_result
from tests.support.trials import a_trial

PART, TRIALS = 5, 13  # two parts, and a tail of three


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(index, "PART", PART)
    monkeypatch.setattr(ledger, "PART", PART)


def result_of(number, **changes):
    cause = "it broke" if number == 3 else None
    ended = {"state": FAIL if cause else COMPLETE, "cause": cause, "time_ms": 1000 + number, "loss": number / 7}
    return a_result(**{**ended, **changes})


@pytest.fixture
def store(tmp_path, tiny_spec) -> Store:
    from raylt.spec import dump_yaml
    from raylt.store.sweep_state import write_spec

    store = Store(str(tmp_path))
    driver = Ledger(store, "tiny", lambda: None)
    yaml = dump_yaml(tiny_spec().dump())
    write_spec(store, "tiny", yaml)
    driver.lock(SweepLock({"code_schema": CODE_SCHEMA, "spec": yaml}))
    for number in range(TRIALS):
        driver.submit(a_trial(number, "search", "searched", 0, params={"gamma": number / 10}))
    for number in (*range(1, TRIALS), 0):  # a part is written when its last trial ends, whichever that is
        driver.finish(number, result_of(number))
    return store


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The paths that a store was asked to read."""
    found: list[str] = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path: (found.append(path), read(self, path))[1])
    return found


def said(store):
    known = Ledger(store, "tiny")
    return dict(known.submitted), dict(known.results.items()), states_of(known), known.open_trials(), known.num_searched


def without_index(store, tmp_path_factory):
    """What the files alone say."""
    copy = tmp_path_factory.mktemp("copy") / "store"
    shutil.copytree(store.root, copy)
    shutil.rmtree(copy / "sweeps/tiny/index", ignore_errors=True)
    return said(Store(str(copy)))


def test_ended_trials_are_read_from_parts_alone_and_the_tail_from_its_files(store, reads, tmp_path_factory):
    assert store.names("sweeps/tiny/index") == ["00000.part", "00005.part"]
    found = Ledger(store, "tiny")
    of_trials = [path for path in reads if "/trials/" in path]
    assert len(of_trials) == 2 * (TRIALS - 2 * PART)
    assert states_of(found)[3] == (FAIL, "it broke")
    assert len(reads) == len(of_trials) + 2 + 1  # parts, and the lock
    assert said(store) == without_index(store, tmp_path_factory)


def test_a_result_is_unpacked_once_it_is_looked_at_and_stays_the_same_object(store):
    found = Ledger(store, "tiny")
    assert found.results[7] == result_of(7)
    assert found.results[7] is found.results[7]
    view = found.view()
    del found.results[7]
    assert view.results[7] == result_of(7)


@pytest.mark.parametrize("damage", ["lost", "cut", "flip", "empty", "of another place", "other bytes"])
def test_an_index_that_is_not_whole_is_not_believed(store, damage, tmp_path_factory):
    right = without_index(store, tmp_path_factory)
    path = part_path("tiny", 0)
    data = store.read(path)
    flipped = data[:200] + bytes([data[200] ^ 1]) + data[201:]
    others = {"cut": data[:-9], "flip": flipped, "empty": b"", "other bytes": b"{}"}
    store.delete(path) if damage == "lost" else store.write(path, others.get(damage, store.read(part_path("tiny", 5))))
    assert said(store) == right
    found = verify(store)
    assert [error.path for error in found.damaged] == ([] if damage == "lost" else [path])
    repair(store, found)
    assert verify(store).damaged == []
    assert said(store) == right


@pytest.mark.parametrize("file", [asked_path, result_path])
def test_a_file_that_is_gone_or_another_is_seen_behind_an_index(store, file):
    path = file("tiny", 6)
    data = store.read(path)
    store.write(path, data[:-20])
    with pytest.raises(Exception, match="is damaged"):
        Ledger(store, "tiny")
    store.delete(path)
    if file is result_path:
        assert [trial.id for trial in Ledger(store, "tiny").open_trials()] == [6]
    else:
        with pytest.raises(Exception, match="is damaged"):
            Ledger(store, "tiny")


def test_a_digit_changed_behind_an_index_moves_no_number_and_verify_names_it(store):
    path = result_path("tiny", 6)
    right = said(store)
    store.write(path, store.read(path).replace(b"0.857142", b"0.157142"))
    assert said(store) == right
    found = verify(store)
    assert [error.path for error in found.damaged] == [path]
    repair(store, found)  # and the trial runs again, though the index had its result
    assert [trial.id for trial in Ledger(store, "tiny").open_trials()] == [6]
    driver = Ledger(store, "tiny", lambda: None)
    driver.finish(6, result_of(6, loss=0.75))
    assert Ledger(store, "tiny").results[6].scores.loss == 0.75
    assert "00005.part" in store.names("sweeps/tiny/index")
    assert verify(store).damaged == []


def test_a_part_that_contradicts_the_files_is_named(store):
    other = Part.of(
        [(a_trial(n, "search", "searched", 0, params={"gamma": n / 10}), result_of(n, loss=9)) for n in range(PART)]
    )
    store.write(part_path("tiny", 0), other.dump(part_path("tiny", 0)))
    assert [error.path for error in verify(store).damaged] == [part_path("tiny", 0)]


def test_a_driver_makes_the_parts_that_are_away(store):
    store.delete_folder("sweeps/tiny/index")
    driver = Ledger(store, "tiny", lambda: None)
    driver.submit(a_trial(TRIALS, "search", "searched", 0))
    driver.finish(TRIALS, result_of(TRIALS))
    assert store.names("sweeps/tiny/index") == ["00000.part", "00005.part"]
