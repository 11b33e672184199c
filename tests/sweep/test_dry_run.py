"""What a dry run says a sweep will ask for: by hand for the tiny sweep; what is left of one that has begun; and its hours.

That it is what real sweeps do, stands in tests/integration/test_results.py and test_confirm.py.
"""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.search.confirm import Request, confirm
from raylt.spec import plan
from raylt.spec.trials import SEARCHED, Planned
from raylt.store import Ledger, Store
from raylt.sweep.completed_trainings import completed_trainings
from raylt.sweep.dry_run import all_trials, describe_cost, held_here, makespan_s, work_of
from raylt.sweep.step_time import Speed, _seconds_per_image
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from tests.support.confirmed import begun, end
from tests.support.results import a_result
from tests.support.trials import a_trial


def trials_of(spec, ledger):
    return [item.trial for item in all_trials(spec, ledger)]


def unbegun(tmp_path) -> Ledger:
    return Ledger(Store(str(tmp_path)), "tiny")


def left_of(spec, ledger):
    still_open = [trial for trial in trials_of(spec, ledger) if trial.id not in ledger.results]
    made = completed_trainings(spec, ledger, Inputs(load_images(spec.data)), Compute(), still_open)
    return len(still_open), work_of(spec, still_open, made).distinct


def test_the_tiny_sweep_by_hand(tiny_spec, tmp_path):
    spec = tiny_spec()  # 12 steps, rewound to 2; two rounds, the first shared; ERK is a baseline and the first proposal
    work = work_of(spec, trials_of(spec, unbegun(tmp_path)))
    assert (work.asked.trainings, work.asked.steps) == (1 + 7 * 3, 12 + 7 * (2 + 3 * 10))
    rounds = 2 + 2 + 5  # dense and uniform of each seed's, then uniform twice, ERK and two proposals
    assert (work.distinct.trainings, work.distinct.steps) == (rounds, 2 + 10 * rounds)
    assert (work.asked.samples, work.distinct.samples) == (22 * 80, rounds * 80)


@pytest.mark.parametrize(
    ("changes", "rounds"),
    [
        ({"search": {"base": "uniform"}}, 9),  # the first proposal is the uniform pilot in place of ERK
        ({"search": {"base": "lamp"}}, 10),  # no baseline: a rule of its own
        ({"search": {"base": "lamp", "baselines": ["uniform", "lamp"]}}, 10),  # as a base it is static
        ({"ticket": {"shared_rounds": 0}}, 2 + 2 + 2 + 3 * 2),
        ({"search": {"pilots": 0, "profile": "size", "trials": 0}}, 1 + 2 + 1),
    ],
)
def test_what_trials_share(tiny_spec, tmp_path, changes, rounds):
    spec = tiny_spec(**changes)
    assert work_of(spec, trials_of(spec, unbegun(tmp_path))).distinct.trainings == rounds


def test_what_is_left_is_without_what_ended_trials_did(tiny_spec, tmp_path):
    spec = tiny_spec()
    ledger = begun(tmp_path, spec)  # its one search trial is ERK
    number, left = left_of(spec, ledger)
    assert (number, left.trainings, left.steps, left.samples) == (2, 2, 20, 160)
    ledger.submit(a_trial(6, "search", "searched", 0, params={"gamma": 0.5}))
    assert left_of(spec, ledger) == (number, left)
    assert "160 samples; a training that has started counts whole" in "\n".join(lines(spec, ledger))
    ledger.finish(6, a_result(state="FAIL", rounds=[{"round": r, "fid": None, "loss": None} for r in (0, 1)]))
    assert left_of(spec, ledger)[0] == 1
    ledger.submit(a_trial(7, "search", "searched", 0, params={"gamma": 0.5}, retry_of=6))  # once more, with what failed
    number, left = left_of(spec, ledger)
    assert (number, left.trainings) == (2, 2)


def test_what_a_trial_under_way_has_made_is_not_left(tiny_spec, warm_root):
    """Nor what any other search made in the same store; looking makes nothing."""
    spec = tiny_spec()
    ledger = Ledger(Store(str(warm_root)), "tiny")
    assert left_of(spec, ledger)[1] == work_of(spec, trials_of(spec, ledger)).distinct
    bench = TrialContext(spec, Compute(), Inputs(load_images(spec.data)))
    run = iter(TrialRun(plan(spec)[4].trial, bench, Store(str(warm_root), owner="other/4")))  # ERK
    for trained in (1, 2, 3):
        next(run)
        left = left_of(spec, ledger)[1]
        assert (left.trainings, left.steps) == (9 - trained, 10 * (9 - trained))
        assert left.samples == 80 * (9 - trained + 1)  # whether the last one is scored is not looked at
    before = sorted(warm_root.rglob("*"))
    assert "left     8 trials, 6 trainings, 60 training steps, 560 samples" in lines(spec, ledger)
    assert sorted(warm_root.rglob("*")) == before


def test_a_confirmation_that_was_planned_counts(tiny_spec, tmp_path):
    changes = {"steps": [9], "controls": ["reinit", "shuffled"], "control_rounds": [1, 2]}
    spec = tiny_spec(confirm=changes, search={"trials": 1, "baselines": ["erk"]})
    ledger = begun(tmp_path, spec)
    items = confirm(spec, ledger, Request(top=1, seeds=1))
    assert [item.trial.kind for item in items] == ["dense", "baseline", "search", "control", "control"]
    number, left = left_of(spec, ledger)
    # the start, dense, two rounds of the ticket, since the finalist is ERK itself; two of reinit from step 0, two of shuffled
    assert (number, left.trainings, left.steps) == (5, 7, 2 + 3 * 7 + 2 * 9 + 2 * 7)
    assert left.samples == 7 * spec.protocol("final").samples
    end(spec, ledger, items[0].trial)
    number, left = left_of(spec, ledger)
    assert (number, left.trainings, left.steps) == (4, 6, 2 * 7 + 2 * 9 + 2 * 7)


def test_a_finished_sweep_is_given_no_time(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 1})
    said = lines(spec, begun(tmp_path, spec))
    assert [line.split()[0] for line in said] == ["asked", "distinct", "left"]
    assert said[-1].startswith("left     0 trials")


def test_hours_heed_who_waits_for_whom(tiny_spec):
    planned = plan(tiny_spec())
    seconds = {0: 10.0, 1: 20.0, 2: 30.0, 3: 0.0, 4: 10.0}  # dense; pilots; uniform after pilot 1; ERK after dense
    assert [makespan_s(planned, seconds, n) for n in (1, 2, 3, 9)] == [70, 40, 30, 30]
    assert makespan_s([], {}, 1) == 0
    dense_first = [
        Planned(a_trial(0, "dense", None, 0), ()),
        *(Planned(a_trial(n, "pilot", "erk", 0), (0,)) for n in (1, 2)),
    ]
    assert makespan_s(dense_first, dict.fromkeys(range(3), 5.0), 3) == 10


def test_proposals_wait_for_those_they_know(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 6, "concurrency": 3})
    trials = all_trials(spec, unbegun(tmp_path))
    assert [item.after[-1] for item in trials[5:]] == [4, 4, 4, 5, 6, 7]
    free = all_trials(tiny_spec(search={"trials": 6, "concurrency": 3, "repeatable": False}), unbegun(tmp_path))
    assert {item.after[-1] for item in free[5:]} == {4}
    seconds = {item.trial.id: 1.0 for item in trials}
    assert makespan_s(trials, seconds, 3) == 3 + 2  # dense and a pilot, the other pilot and ERK, the uniform one; six by three


def by_looking_through_all(trials, seconds, at_once):
    """`makespan_s` in its plainest form, and too slow for many trials."""
    waiting, busy, now = list(trials), {}, 0.0
    while waiting or busy:
        unended = {item.trial.id for item in waiting} | set(busy)
        ready = [item for item in waiting if not unended.intersection(item.after)]
        if ready and len(busy) < at_once:
            waiting.remove(ready[0])
            busy[ready[0].trial.id] = now + seconds[ready[0].trial.id]
        else:
            first = min(busy, key=busy.__getitem__)
            now = busy.pop(first)
    return now


@st.composite
def waiting_trials(draw):
    trials = []
    for number in range(draw(st.integers(0, 12))):
        before = st.lists(st.integers(0, number - 1), unique=True) if number else st.just([])
        after = draw(st.one_of(before, st.integers(0, number).map(range)))
        trials.append(Planned(a_trial(number, "search", SEARCHED, 0), after))
    return trials


@given(waiting_trials(), st.integers(0, 2**32), st.integers(1, 4))
def test_hours_of_any_trials(trials, seed, at_once):
    draw = random.Random(seed)  # no two end at once: then either may be the next
    seconds = {item.trial.id: draw.random() for item in trials}
    assert makespan_s(trials, seconds, at_once) == by_looking_through_all(trials, seconds, at_once)


def test_fewer_trials_than_there_are_already(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 2})
    ledger, inputs = begun(tmp_path, spec), Inputs(load_images(spec.data))
    warning = "warning: search.trials is 0, but the sweep has 1 search trial already; they stay in it"
    assert warning in describe_cost(tiny_spec(search={"trials": 0}), ledger, inputs, Compute())
    assert warning not in describe_cost(spec, ledger, inputs, Compute())


def test_a_slow_machine_is_measured_with_smaller_batches():
    began = time.monotonic()
    per_image, batch = _seconds_per_image(lambda size: time.sleep(0.02 * size), 128, time.monotonic)
    assert time.monotonic() - began < 20
    assert batch < 128 and 0.02 <= per_image < 0.1
    assert _seconds_per_image(lambda size: None if size < 128 else time.sleep(0.3), 128, time.monotonic)[1] == 128


def test_what_others_take_of_a_machine_makes_no_step_longer():
    """Each step waits for ten times as long as it computes, as on a machine with that many processes for each core."""

    def step(size):
        busy_until = time.thread_time() + 0.005
        while time.thread_time() < busy_until:
            pass
        time.sleep(0.05)

    per_image, batch = _seconds_per_image(step, 1, time.thread_time)
    assert batch == 1 and 0.005 <= per_image < 0.0075


def lines(spec, ledger) -> list[str]:
    return describe_cost(spec, ledger, Inputs(load_images(spec.data)), Compute())


@pytest.mark.parametrize(
    ("resources", "device", "held"),
    [
        ({"cpus": 2}, "cpu", 2), ({"cpus": 5}, "cpu", 0), ({"gpus": 0}, "cpu", 4), ({"gpus": 1}, "cpu", 0),
        ({"gpus": 0.5}, "cuda", 4), ({"gpus": 3}, "cuda", 0), ({}, "cuda", 2),
    ],
)  # fmt: skip
def test_what_a_machine_holds_at_once(tiny_spec, monkeypatch, resources, device, held):
    """Of 4 CPUs and, where there are any, 2 GPUs."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert held_here(tiny_spec(resources=resources), Compute(device)) == held


def test_in_words(tiny_spec, tmp_path, monkeypatch):
    monkeypatch.setattr("raylt.sweep.dry_run.measure_step_time", lambda *_: Speed(step_s=100.0, image_s=1.0, batch=2))
    monkeypatch.setattr("raylt.sweep.dry_run.os.cpu_count", lambda: 3)
    spec = tiny_spec(search={"rungs": True}, resources={"cpus": 2})
    said = {line.split()[0]: line for line in lines(spec, unbegun(tmp_path))}
    assert "left" not in said
    assert said["asked"] == "asked    at most 8 trials, 22 trainings, 236 training steps, 1,760 samples"
    assert said["distinct"].startswith("distinct at most 9 trainings, 92 training steps, 720 samples")
    assert said["speed"].startswith("speed    100 s a step (from batches of 2), 1 s a denoised image: measured here, on cpu")
    held_out = len(load_images(spec.data).test_NCHW)
    to_train, to_denoise = 92 * 100 / 3600, 9 * (80 * 2 + 8 * held_out) / 3600
    assert f"at most {to_train + to_denoise:.2g}, one trial after another: {to_train:.2g} to train" in said["hours"]
    assert "that of trial n knows the trials up to n - 2" in said["search"]
    assert said["machine"].startswith("machine  holds 1 trial at once (3 CPUs, 2 a trial): at most ")
    monkeypatch.undo()
    assert " ms a step" in "\n".join(lines(tiny_spec(), unbegun(tmp_path)))
    assert list(tmp_path.iterdir()) == []
