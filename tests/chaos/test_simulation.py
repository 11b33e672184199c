"""Simulated sweeps under simulated faults: nothing is lost, made twice or believed. And what the simulation would see."""

from __future__ import annotations

import gc
import itertools
import time

import pytest

from tests.chaos.simulation.planted import DEFECTS
from tests.chaos.simulation.run import Record, describe, outcomes, quiet_outcome_of
from tests.chaos.simulation.simulate import outcome_of

SHORT_S, LONG = 20.0, 5000
BOUND = 500  # runs within which a planted defect must be seen


@pytest.fixture(autouse=True, scope="module")
def _without_the_modules_in_the_way():
    """Half the time would go into looking for garbage among all that is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_short_run():
    began = time.monotonic()
    seeds = itertools.takewhile(lambda seed: seed < 300 and time.monotonic() - began < SHORT_S, itertools.count())
    record, wrong = Record(0), []
    for outcome in map(quiet_outcome_of, seeds):
        record.add(outcome)
        if outcome.found:
            wrong.append(describe(outcome))
    assert record.runs >= 10 and record.faults
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_long_run():
    wrong = [describe(outcome) for outcome in outcomes(range(1_000_000, 1_000_000 + LONG), 2) if outcome.found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_a_seed_decides_everything(seed):
    first, second = outcome_of(seed, traced=True), outcome_of(seed, traced=True)
    assert first.trace == second.trace
    assert len(first.trace) > 500


def test_without_faults_nothing_is_found():
    for storage in ("disk", "disk without links", "nfs", "nfs without locks", "bucket"):
        outcome = outcome_of(5, faults=0, storage=storage)
        assert not outcome.found and not outcome.struck and outcome.document


RARE = ("written in place",)  # a run in thousands sees it: its seeds shift with every change of order


QUICK = ("no folder sync", "no fence", "manifests replaced", "foreign errors")  # one of each finding; the others are slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in DEFECTS if name not in RARE]
)
def test_a_planted_defect_is_seen(name):
    defect = DEFECTS[name]
    seeds = range(defect.first, defect.first + BOUND)
    assert any(defect.is_seen(seed) for seed in seeds), f"{name} was not seen in {BOUND} runs"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RARE)
def test_a_planted_defect_that_is_seen_rarely(name):
    defect = DEFECTS[name]
    assert any(defect.is_seen(seed) for seed in range(defect.first, defect.first + 40 * BOUND)), name
