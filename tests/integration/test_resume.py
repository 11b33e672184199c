"""`raylt sweep`, typed again: after every kind of end, with more trials, with other trials stopped. With real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import psutil
import pytest

from tests.conftest import TINY
from tests.support import sabotage
from tests.support.sabotage import HOLD
from tests.support.sweeping import (
    BLOCKS,
    KEPT_DENSE,
    KINDS,
    NAME,
    comparable,
    eventually,
    values_only,
)


def test_study_and_mlflow_come_back_from_the_ledger_and_more_trials_extend_it(finished, document, new_sweep):
    sweep = new_sweep(record=False)
    shutil.rmtree(sweep.folder / "raylt-data")
    shutil.copytree(finished.folder / "raylt-data", sweep.folder / "raylt-data")
    (sweep.ledger / "study.db").unlink()
    assert sweep.run().code == 0
    assert sweep.record() == finished.record()
    assert sweep.study() == finished.study()
    assert not sweep.steps()
    again = sweep.results()
    assert comparable(again) == comparable(document)
    for old, new in zip(document["trials"], again["trials"], strict=True):
        assert (old["steps"], old["timing"]) == (new["steps"], new["timing"])
        assert old["mlflow_run_id"] != new["mlflow_run_id"]

    before = sweep.files("sweeps/*/trials/*/*.json")
    assert sweep.run("--set", "search.trials=4").code == 0
    extended = sweep.results()
    assert [trial["kind"] for trial in extended["trials"]] == [*KINDS, "search"]
    assert extended["counts"]["complete"] == 9
    assert before.items() <= sweep.files("sweeps/*/trials/*/*.json").items()
    free = ("pareto",)  # a new trial may beat an old one
    for old, new in zip(again["trials"], extended["trials"][:8], strict=True):
        assert {k: v for k, v in old.items() if k not in free} == {k: v for k, v in new.items() if k not in free}
    assert len(sweep.steps()) == extended["trials"][8]["steps"]["trained"] == 10
    assert [name for name in sweep.record() if name not in finished.record()] == ["0008-search"]
    assert len(sweep.study()) == 4


def test_a_sweep_that_was_disturbed_ends_as_one_that_was_not(finished, document, new_sweep):
    sweep = new_sweep()
    first = sweep.start("tiny.yaml", plan={2: HOLD, 6: HOLD})

    def held_worker(trial: int, driver: subprocess.Popen) -> int:
        flag = sabotage.held(sweep.folder, trial)
        eventually(lambda: flag.exists() or driver.poll() is not None, f"trial {trial} is at work")
        assert driver.poll() is None, sweep.end(driver).err
        pid = int(flag.read_text())
        flag.unlink()
        return pid

    # a second driver, while the first holds the lease
    worker = held_worker(2, first)
    lease = json.loads((sweep.ledger / "lease.json").read_text())
    done = sweep.run()
    assert done.code == 3
    assert f"pid {first.pid} on {lease['host']} since {lease['since']}" in done.err
    assert len(done.err.splitlines()) == 1
    assert json.loads((sweep.ledger / "lease.json").read_text())["token"] == lease["token"]
    assert first.poll() is None
    assert sweep.results()["state"] == "running"
    assert f"pid {first.pid}" in sweep.read("status", NAME)

    # kill -9 of a worker in the middle of a round
    assert not sweep.is_finished(2)
    os.kill(worker, signal.SIGKILL)
    sabotage.let_go(sweep.folder, 2)
    eventually(lambda: sweep.is_finished(2) or first.poll() is not None, "the trial whose worker was killed ends")
    assert json.loads((sweep.ledger / "trials/00002/result.json").read_text())["state"] == "COMPLETE"

    # Ctrl-C in the driver's terminal, while a worker is in the middle of a step and will not end it
    worker = held_worker(6, first)
    os.killpg(first.pid, signal.SIGINT)
    done = sweep.end(first)
    assert done.code == 130
    assert "the same command resumes from here" in done.out
    assert "Traceback" not in done.err
    eventually(lambda: not psutil.pid_exists(worker), "the worker is gone")
    stopped = sweep.results()
    assert (stopped["state"], stopped["trials"][6]["state"]) == ("interrupted", "RUNNING")
    assert sweep.record()[NAME]["status"] == "KILLED"

    # SIGTERM, and the step ends
    second = sweep.start("tiny.yaml", plan={6: HOLD})
    held_worker(6, second)
    second.send_signal(signal.SIGTERM)
    sabotage.let_go(sweep.folder, 6)
    done = sweep.end(second)
    assert done.code == 143
    assert "Traceback" not in done.err

    # its hours are over
    done = sweep.run("--max-hours", "0.003", plan={6: HOLD})
    assert (done.code, sweep.results()["state"]) == (3, "interrupted")
    assert "stopped: the 0.003 hours of --max-hours are over; the same command resumes from here" in done.out
    assert "Traceback" not in done.err
    assert sweep.record()[NAME]["status"] == "KILLED"

    done = sweep.run("--max-hours", "5")
    assert done.code == 0, done.err
    assert "--max-hours" not in done.out
    assert comparable(sweep.results()) == comparable(document)
    assert values_only(sweep.record()) == values_only(finished.record())
    assert sweep.study() == finished.study()
    assert set(sweep.steps()) == set(finished.steps())
    again = (sweep.steps() - finished.steps()).total()
    assert again <= 4 * TINY["train"]["checkpoint_every"] * TINY["search"]["concurrency"]


def assert_a_kill_changes_nothing(whole, sweep, *, after, last):
    """Run one to its end; kill the other once trial `after` has ended, before `last` has, and run it again. Its document."""
    done = whole.run()
    assert done.code == 0, done.err
    killed = sweep.start("tiny.yaml")
    eventually(lambda: sweep.is_finished(after) or killed.poll() is not None, f"trial {after} ends")
    killed.kill()
    killed.wait()
    assert not sweep.is_finished(last)
    done = sweep.run()
    assert done.code == 0, done.err
    document = sweep.results()
    assert comparable(document) == comparable(whole.results())
    assert sweep.study() == whole.study()
    assert values_only(sweep.record()) == values_only(whole.record())
    return document


@pytest.mark.slow  # two more sweeps: kills are tried above, and who is stopped in search/test_median_stopping.py
def test_a_guided_sweep_with_rungs_that_was_killed_ends_as_one_that_was_not(new_sweep):
    search = {"rungs": True, "objectives": ["loss"], "trials": 5, "concurrency": 1}  # loss alone: more of them are stopped
    changes = {"ticket": {"rounds": 3}, "search": search}
    whole, sweep = new_sweep(**changes), new_sweep(**changes)
    document = assert_a_kill_changes_nothing(whole, sweep, after=6, last=9)
    assert document["counts"]["pruned"] > 0
    for trial in document["trials"]:
        if trial["state"] == "PRUNED":
            assert len(trial["rounds"]) == 3
            assert trial["error"].startswith("stopped at round 2: loss ")
            assert not trial["pareto"]


@pytest.mark.slow  # two more sweeps: what decides is tried in sweep/test_dispatch.py, search/test_profile.py
def test_a_sweep_with_auto_groups_that_was_killed_ends_as_one_that_was_not(new_sweep):
    changes = {"search": {"groups": "auto", "profile": "movement", "pilots": 0, "baselines": [], "trials": 4}}
    whole, sweep = new_sweep(**changes), new_sweep(**changes)
    assert "groups   chosen from the profile once the dense training has ended" in whole.run("--dry-run").out
    document = assert_a_kill_changes_nothing(whole, sweep, after=1, last=4)
    assert sorted(block for blocks in document["groups"].values() for block in blocks) == sorted(BLOCKS - KEPT_DENSE)
    names = {f"delta/{group}" for group in document["groups"]}
    shown = whole.record()[NAME]["params"]
    assert {group: json.loads(shown[f"group/{group}"]) for group in document["groups"]} == document["groups"]
    assert [set(trial["params"]) for trial in document["trials"]] == [set()] + [{"gamma"} | names] * 4
