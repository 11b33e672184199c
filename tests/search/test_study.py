"""study.db is only a view: whatever happens to its file, the search goes on and the file comes back."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import optuna
import pytest

from raylt.background import Pace
from raylt.search.space import at_base
from raylt.search.study import StudyFile, StudyKeeper, _is_passing
from raylt.store import Ledger, Store
from tests.support.results import a_result
from tests.support.trials import a_trial

QUICK = Pace(between_s=0.01, first_retry_s=0.05, last_retry_s=0.1)


@pytest.fixture
def spec(tiny_spec):
    return tiny_spec()


@pytest.fixture
def ledger(tmp_path, spec):
    return Ledger(Store(str(tmp_path / "store")), spec.name, lambda: None)


def ask(ledger, spec, number):
    ledger.submit(a_trial(number, "search", "searched", 0, params={**at_base(spec), "gamma": number / 100}))


def end(ledger, number):
    ledger.finish(number, a_result(loss=0.1 * number, flops=1000 + number))


def numbers(path: Path, spec) -> list[tuple[int, str]]:
    try:
        study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{path}")
        return [(trial.user_attrs["raylt.trial"], trial.state.name) for trial in study.trials]
    except Exception:
        return []


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def delete(path: Path) -> None:
    path.unlink()


def scribble(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    """The study of another sweep of the same name."""
    path.unlink()
    study = optuna.create_study(study_name="tiny", storage=f"sqlite:///{path}", directions=["minimize"] * 2)
    study.ask()


@pytest.mark.parametrize("damage", [delete, scribble, empty])
def test_a_file_lost_while_the_sweep_runs_is_made_again(tmp_path, spec, ledger, caplog, damage):
    path, keeper = tmp_path / "study.db", StudyKeeper(spec, ledger, tmp_path / "study.db", QUICK)
    ask(ledger, spec, 5)
    keeper.sync_soon()
    wait_for(lambda: numbers(path, spec) == [(5, "RUNNING")])
    damage(path)
    end(ledger, 5)
    ask(ledger, spec, 6)
    keeper.sync_soon()
    wait_for(lambda: numbers(path, spec) == [(5, "COMPLETE"), (6, "RUNNING")])
    end(ledger, 6)
    keeper.close()
    assert numbers(path, spec) == [(5, "COMPLETE"), (6, "COMPLETE")]
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("damage", [delete, scribble, empty, foreign])
def test_a_file_lost_between_two_starts_is_made_again(tmp_path, spec, ledger, damage):
    path = tmp_path / "study.db"
    for number in (5, 6):
        ask(ledger, spec, number)
    end(ledger, 6)
    StudyKeeper(spec, ledger, path, QUICK).close()
    assert numbers(path, spec) == [(5, "RUNNING"), (6, "COMPLETE")]
    damage(path)
    end(ledger, 5)
    StudyKeeper(spec, ledger, path, QUICK).close()
    assert numbers(path, spec) == [(5, "COMPLETE"), (6, "COMPLETE")]


def test_a_place_that_takes_no_file_is_said_once(tmp_path, spec, ledger, caplog):
    path = tmp_path / "study.db"
    path.mkdir()  # as for a read-only folder: SQLite cannot open it
    keeper = StudyKeeper(spec, ledger, path, QUICK)
    for number in range(5, 9):
        ask(ledger, spec, number)
        keeper.sync_soon()
        time.sleep(0.1)
    path.rmdir()
    wait_for(lambda: len(numbers(path, spec)) == 4)  # tried again without being asked
    keeper.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "study.db" in caplog.text and "tried again" in caplog.text


def test_a_file_in_use_is_not_taken_for_a_broken_one(tmp_path):
    with sqlite3.connect(tmp_path / "a.db", timeout=0) as one, sqlite3.connect(tmp_path / "a.db", timeout=0) as other:
        one.execute("create table t (x)")
        one.execute("begin exclusive")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("insert into t values (1)")
        one.rollback()
        with pytest.raises(sqlite3.OperationalError) as missing:
            other.execute("select * from nothing")
    one.close()
    other.close()
    assert _is_passing(locked.value)
    assert not _is_passing(missing.value)


def test_a_file_is_read_once_and_each_trial_written_as_it_changes(tmp_path, spec, ledger):
    file = StudyFile(spec, tmp_path / "study.db")
    steps: list[int] = []
    for number in range(5, 9):
        ask(ledger, spec, number)
        file.sync(ledger, lambda: steps.append(1))
        end(ledger, number)
        file.sync(ledger, lambda: steps.append(1))
        file.sync(ledger, lambda: steps.append(1))
    file.close()
    assert len(steps) == 8
    assert [state for _, state in numbers(tmp_path / "study.db", spec)] == ["COMPLETE"] * 4
