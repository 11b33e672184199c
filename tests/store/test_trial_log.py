"""A trial's log: written through line by line, attempt after attempt, and followed while it grows."""

from __future__ import annotations

from raylt.store import Store, trial_log
from raylt.store.results import RoundResult
from raylt.store.trial_log import TrialLog, read_log


def test_each_line_is_in_the_store_at_once_and_attempts_follow_each_other(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    clock = iter([1000.0, 2000.0])
    monkeypatch.setattr(trial_log.time, "time", lambda: next(clock))
    first = TrialLog(store, "s", 7)
    first.trained(1, 200, 0.25)
    assert "round 1 step 200 training loss 0.2500\n" in "".join(read_log(store, "s", 7))
    second = TrialLog(store, "s", 7)
    second.scored(RoundResult(2, 0.125, 0.5, None, 0))
    text = "".join(read_log(store, "s", 7))
    assert text.index("training loss") < text.index("round 2 scored: density 0.125 loss 0.5 fid -")
    assert text.count("trial 7 starts on") == 2
    assert list(read_log(store, "s", 8)) == []


def test_a_failure_leaves_its_traceback(tmp_path):
    store = Store(str(tmp_path))
    log = TrialLog(store, "s", 0)
    try:
        raise RuntimeError("out of luck")
    except RuntimeError as error:
        log.failed(error)
    text = "".join(read_log(store, "s", 0))
    assert "Traceback (most recent call last)" in text
    assert text.endswith("RuntimeError: out of luck\n")


def test_following_yields_what_is_added_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_log, "POLL_S", 0)
    store = Store(str(tmp_path))
    log = TrialLog(store, "s", 0)
    looks = iter([False, False, True])

    def until() -> bool:
        log.say("another line")
        return next(looks)

    pieces = list(read_log(store, "s", 0, until=until))
    assert [piece.count("another line") for piece in pieces] == [1, 1, 1]


def test_a_store_that_cannot_be_written_does_not_end_the_trial(tmp_path):
    log = TrialLog(Store(str(tmp_path / "root")), "s", 0)
    (tmp_path / "root/sweeps").rename(tmp_path / "elsewhere")
    (tmp_path / "root/sweeps").write_text("in the way")
    log.say("lost")
