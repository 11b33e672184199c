"""A sweep that is told to stop: by its terminal, before it began, from elsewhere. With real Ray."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from tests.support import sabotage
from tests.support.sabotage import HOLD
from tests.support.sweeping import (
    NAME,
    eventually,
)


@pytest.mark.slow
def test_the_end_of_a_terminal_is_as_gentle_as_sigterm(new_sweep):
    """SIGHUP to the driver and to all that it has started, as the kernel sends it."""
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={2: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 2).exists() or driver.poll() is not None, "trial 2 is at work")
    assert driver.poll() is None, sweep.end(driver).err
    for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
        process.send_signal(signal.SIGHUP)
    sabotage.let_go(sweep.folder, 2)
    done = sweep.end(driver)
    assert done.code == 143 and "Traceback" not in done.err, done.err
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]
    assert sweep.results()["counts"]["failed"] == 0


def test_an_interrupt_before_anything_began_is_one(new_sweep):
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml")
    eventually(lambda: driver.poll() is not None or sweep.ray_processes(), "Ray is about to start")
    os.killpg(driver.pid, signal.SIGINT)
    done = sweep.end(driver)
    where = "runs on this machine (no cluster is named, and there is no ./cluster.yaml)\n"
    assert (done.code, done.err) == (130, where)
    assert json.loads((sweep.ledger / "lease.json").read_text())["released"]


def test_a_sweep_is_stopped_from_elsewhere_and_its_trials_logs_say_what_they_did(new_sweep):
    sweep = new_sweep()
    driver = sweep.start("tiny.yaml", plan={0: HOLD})
    eventually(lambda: sabotage.held(sweep.folder, 0).exists() or driver.poll() is not None, "trial 0 is at work")
    stopper = sweep.start(NAME, command="stop")
    sabotage.let_go(sweep.folder, 0)
    done, stopped = sweep.end(driver), sweep.end(stopper)
    assert (done.code, stopped.code) == (143, 0)
    assert f"pid {driver.pid}" in stopped.err
    assert "resumes from here" in stopped.out
    assert sweep.results()["state"] == "interrupted"
    assert "nobody drives it" in sweep.read("stop", NAME)
    assert "round 0 step 4 training loss" in sweep.read("logs", NAME, "0", "-f")
    missing = sweep.end(sweep.start(NAME, "99", command="logs"))
    assert (missing.code, missing.err.count("\n")) == (2, 1)
