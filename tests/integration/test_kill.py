"""A sweep that was killed, and the same command again; the one story that `make test` tells with real Ray."""

from __future__ import annotations

from tests.support.sweeping import (
    comparable,
    eventually,
    values_only,
)


def test_the_same_command_again_changes_nothing(finished, document):
    before, record, study = finished.files("*/**/*.json"), finished.record(), finished.study()
    processes, steps = finished.ray_processes(), finished.steps()
    assert processes
    done = finished.run()
    assert (done.code, finished.results()) == (0, document)
    assert finished.ray_processes() == processes  # nothing was to be done, so it was not even started
    after = finished.files("*/**/*.json")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert all(name.startswith("sweeps/tiny/lease") for name in changed), changed
    assert (finished.record(), finished.study(), finished.steps()) == (record, study, steps)


def test_a_changed_identity_is_refused(finished):
    before = finished.files()
    done = finished.run("--set", "train.steps=13")
    assert done.code == 2
    assert "train.steps: 12 -> 13" in done.err
    assert "--new" in done.err
    assert "Traceback" not in done.err
    assert finished.files() == before


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(finished, document, new_sweep):
    sweep = new_sweep()
    killed = sweep.start("tiny.yaml")
    eventually(lambda: sweep.is_finished(3) or killed.poll() is not None, "trial 3 ends")
    killed.kill()
    killed.wait()
    assert not sweep.is_finished(7)
    assert sweep.results()["state"] == "interrupted"
    done = sweep.run()
    assert done.code == 0, done.err
    assert comparable(sweep.results()) == comparable(document)
    assert sweep.study() == finished.study()
    assert values_only(sweep.record()) == values_only(finished.record())
    assert set(sweep.steps()) == set(finished.steps())
