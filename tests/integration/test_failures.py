"""Trials, workers and a Ray that fail: what the sweep makes of it. With real Ray."""

from __future__ import annotations

import json
import re

import psutil
import pytest

from tests.support import sabotage
from tests.support.sabotage import DIE, HOLD
from tests.support.sweeping import (
    HOPELESS,
    NAME,
    comparable,
    eventually,
)


def test_trials_that_fail_leave_the_others_alone(new_sweep):
    sweep = new_sweep(search={"trials": 4})
    done = sweep.run(plan={4: DIE, 5: "OutOfMemoryError", 6: "MemoryError", 7: "RuntimeError"})
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    found = sweep.results()
    assert (found["state"], found["counts"]["complete"], found["counts"]["failed"]) == ("complete", 5, 4)
    causes = {trial["id"]: trial["error"] for trial in found["trials"] if trial["state"] == "FAIL"}
    deaths = (sweep.folder / "deaths-4").read_text().split()
    assert len(deaths) == len(set(deaths)) == 3
    assert causes.pop(4).startswith("the worker died 3 times: its process ended unexpectedly")
    assert causes == {
        5: "OutOfMemoryError: planned for trial 5",
        6: "MemoryError: planned for trial 6",
        7: "RuntimeError: planned for trial 7",
    }
    assert [len(found["trials"][number]["rounds"]) for number in (5, 6, 7)] == [2, 2, 2]  # those before the error
    assert found["trials"][8]["state"] == "COMPLETE"

    log = sweep.read("logs", NAME, "7")
    assert "Traceback" in log
    assert log.endswith("RuntimeError: planned for trial 7\n")
    assert sweep.read("logs", NAME, "4").count("starts on") == 3
    status, record = sweep.read("status", NAME), sweep.record()
    for trial in found["trials"]:
        run = record[f"{trial['id']:04d}-{trial['kind']}"]
        failed = trial["state"] == "FAIL"
        assert run["status"] == ("FAILED" if failed else "FINISHED")
        assert (run["tags"]["raylt.state"], run["tags"].get("raylt.cause")) == (trial["state"], trial["error"])
        assert not failed or any(re.match(rf" *{trial['id']} .*FAIL", line) for line in status.splitlines())
        assert not failed or trial["error"] in status
    assert record[NAME]["status"] == "FINISHED"
    assert [row[1] for row in sweep.study()] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_a_worker_whose_gpu_is_lost_takes_no_other_trial_along(new_sweep):
    """Each attempt has a process of its own, and no later trial is given one of these."""
    sweep = new_sweep(search={"trials": 0, "pilots": 1, "baselines": ["erk"], "concurrency": 1})
    done = sweep.run(plan={1: "AcceleratorError"})
    assert done.code == 1 and "Traceback" not in done.err, done.err
    found = sweep.results()
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found["trials"][1]["error"] == "the worker died 3 times: the GPU was lost: planned for trial 1"
    lost, later = (set(re.findall(r"starts on .*, pid (\d+)", sweep.read("logs", NAME, number))) for number in ("1", "2"))
    assert len(lost) == 3 and not lost & later


def test_one_cause_five_times_in_a_row_stops_the_sweep_and_fewer_do_not(new_sweep):
    sweep = new_sweep(**HOPELESS)
    done = sweep.run()
    assert done.code == 3
    assert "Traceback" not in done.err
    found = sweep.results()
    causes = {trial["error"] for trial in found["trials"] if trial["state"] == "FAIL"}
    assert len(causes) == 1
    cause = causes.pop()
    assert re.match(r"training diverged: the loss is (nan|inf) at step \d+", cause)
    assert done.err.splitlines()[-1] == f"stopped: five trials in a row failed with one cause: {cause}"
    assert found["state"] == "interrupted"
    assert 5 <= found["counts"]["failed"] < 8
    assert cause in sweep.read("status", NAME)
    assert {run["tags"].get("raylt.cause") for run in sweep.record().values() if run["status"] == "FAILED"} == {cause}

    before = sweep.files("sweeps/tiny/**/*")
    few = ("search.trials=0", "search.baselines=[]", "train.seed=1")
    done = sweep.run("--new", *(word for key in few for word in ("--set", key)))
    assert done.code == 1, done.err
    found = sweep.results("tiny-2")
    assert (found["state"], found["counts"]["failed"], len(found["trials"])) == ("complete", 3, 3)
    assert sweep.files("sweeps/tiny/**/*") == before


@pytest.mark.slow
@pytest.mark.parametrize("part", ["raylet/raylet", "gcs/gcs_server"])
def test_a_ray_that_is_gone_ends_the_sweep_in_words_and_loses_nothing(new_sweep, finished, part):
    """Ray itself waits for ever for a raylet that was killed, and ends the driver with exit code 1 after its GCS was."""
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={4: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 4).exists() or driver.poll() is not None, "trial 4 is at work")
    (process,) = [
        child for child in psutil.Process(driver.pid).children(recursive=True) if "".join(child.cmdline()[:1]).endswith(part)
    ]
    process.kill()
    done = sweep.end(driver)
    sabotage.let_go(sweep.folder, 4)
    assert done.code == 3 and "Traceback" not in done.err, done.err
    assert "stopped: Ray no longer answers" in done.err and part.split("/")[0] in done.err.lower()
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]
    assert sweep.run().code == 0
    assert comparable(sweep.results()) == comparable(finished.results())
