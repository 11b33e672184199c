"""The benchmark of the search: its hypervolume, its steps, and the arms it compares."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from guidance import curves
from guidance.arms import ARMS, arm_specs, design_specs

from raylt.spec import dump_yaml, parse_spec

POINT = st.tuples(st.integers(0, 12), st.integers(0, 12))


@given(st.lists(POINT, max_size=8), st.tuples(st.integers(1, 10), st.integers(1, 10)))
def test_hypervolume_is_the_share_of_unit_squares_that_are_dominated(points, reference):
    width, height = reference
    squares = [(i, j) for i in range(width) for j in range(height)]
    dominated = sum(any(x <= i and y <= j for x, y in points) for i, j in squares)
    assert curves.hypervolume(points, reference) == pytest.approx(dominated / len(squares))


def run(*trials, start_steps=100):
    """A run of trials (loss, flops), 10 steps each; None: stopped."""
    rows = [
        {"state": "PRUNED" if t is None else "COMPLETE", "broken": False, "loss": t and t[0], "flops": t and t[1], "steps": 10}
        for t in trials
    ]
    return {"start_steps": start_steps, "reference": [10, 10], "trials": rows}


def test_a_curve_counts_what_came_before_and_what_was_stopped():
    steps, values = curves.curve(run((5, 5), None, (4, 8)))
    assert steps.tolist() == [110, 120, 130]
    assert values.tolist() == pytest.approx([0.25, 0.25, 0.27])


def test_steps_to_what_random_search_ends_with():
    random = [run((5, 5), (5, 5), (4, 4)), run((5, 5), (5, 5), (4, 4))]
    found = curves.against_random([run((4, 4), (5, 5), (5, 5))] * 2, random)
    assert (found["steps"], found["random_steps"], found["never"]) == (110, 130, 0)
    assert found["ratio"] == found["low"] == found["high"] == pytest.approx(110 / 130)
    never = curves.against_random([run((5, 5))] * 2, random)
    assert (never["ratio"], never["never"]) == (None, 1)


def test_intervals_are_of_the_mean():
    assert curves.interval([1.0, 1.0, 1.0]) == {"mean": 1.0, "half": 0.0}
    assert curves.interval([2.0])["half"] is None
    assert curves.interval(np.array([0.0, 2.0]))["half"] == pytest.approx(12.706, abs=1e-3)


def test_every_arm_and_design_is_a_valid_sweep_and_differs_from_the_others():
    specs = {**arm_specs([0, 1], 16, quick=False), **design_specs([0, 1], 24, quick=False)}
    parsed = {name: parse_spec(dump_yaml(spec), name, ()) for name, spec in specs.items()}
    assert {"similarity", "gamma0", "shuffled", "size", "movement", "random"} <= ARMS.keys()
    assert len({spec.digest for spec in parsed.values()}) == len(specs) == 2 * len(ARMS) + 3
