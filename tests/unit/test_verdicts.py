"""Verdicts: intervals against textbook values, pairs by seed, and words that follow from the numbers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.verdicts import confirmation, paired, summary, verdict


def trial(number, seed, losses, *, rule=None, control=None, confirms=0, steps=100, broken=False, **changes):
    rounds = [
        {"round": i, "density": 1 / 2**i, "loss": x, "fid": 100 * x, "kid": x, "kid_sd": x / 9, "flops": 10, "broken": broken}
        for i, x in losses.items()
    ]
    kind = "control" if control else "baseline" if rule else "dense"
    return {
        "id": number, "kind": kind, "rule": rule, "control": control, "confirms": confirms, "train_steps": steps, "seed": seed,
        "state": "COMPLETE", "protocol": "final", "rounds": rounds, **changes,
    }  # fmt: skip


def row(rows, **wanted):
    [found] = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    return found


def test_the_interval_is_student_s():
    """Five values, by hand: mean 3, sd sqrt(2.5), t of 4 degrees 2.776445."""
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3.0 and found["sd"] == pytest.approx(2.5**0.5)
    assert found["high"] - 3.0 == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6) == 3.0 - found["low"]
    assert summary([2.0]) == {"n": 1, "mean": 2.0, "sd": None, "low": None, "high": None}
    assert summary([])["mean"] is None


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draw = random.Random(0)
    held = sum((s := summary([draw.gauss(1, 2) for _ in range(4)]))["low"] < 1 < s["high"] for _ in range(2000))
    assert 0.93 < held / 2000 < 0.97


def test_tickets_are_paired_with_the_dense_model_of_their_seed_and_budget():
    """Seeds differ by more than any ticket; paired, the ticket of .01 below dense wins and that of .5 above loses."""
    base = {1: 0.1, 2: 0.3, 3: 0.2}
    trials = [trial(s, s, {0: x}) for s, x in base.items()]
    trials += [
        trial(10 + s, s, {0: x, 1: x - 0.01 - 1e-4 * s, 2: x + 0.5 + 1e-4 * s}, rule="erk", confirms=4) for s, x in base.items()
    ]
    trials += [trial(20 + s, s, {0: 9 * x}, steps=50) for s, x in base.items()]  # another budget: not compared
    rows = confirmation(trials)
    assert [(r["train_steps"], r["rule"], r["round"]) for r in rows] == [
        (100, None, 0),
        (100, "erk", 1),
        (100, "erk", 2),
        (50, None, 0),
    ]
    better, worse = row(rows, round=1), row(rows, round=2)
    assert better["seeds"] == [1, 2, 3] and better["density"] == 0.5
    assert better["vs_dense"]["loss"]["mean"] == pytest.approx(-0.0102)
    assert better["vs_dense"]["loss"]["margin"] == pytest.approx(0.1)
    assert (better["vs_dense"]["loss"]["verdict"], worse["vs_dense"]["loss"]["verdict"]) == ("winning", "not winning")
    assert "vs_dense" not in rows[0] and "vs_ticket" not in better


def test_controls_are_compared_with_their_own_ticket():
    trials = [trial(s, s, {0: 0.1 + s}) for s in (1, 2, 3)]
    for rule, confirms, gain in (("erk", 4, 0.0), ("lamp", 5, 5.0)):
        trials += [trial(10 * confirms + s, s, {0: s, 1: s + gain}, rule=rule, confirms=confirms) for s in (1, 2, 3)]
        trials += [
            trial(100 * confirms + s, s, {0: s, 1: s + 1 + 0.01 * s}, rule=rule, confirms=confirms, control="reinit")
            for s in (1, 2, 3)
        ]
    rows = confirmation(trials)
    assert row(rows, rule="erk", control="reinit")["vs_ticket"]["loss"]["verdict"] == "worse"
    assert row(rows, rule="lamp", control="reinit")["vs_ticket"]["loss"]["verdict"] == "better"
    assert row(rows, rule="lamp", control="reinit")["vs_ticket"]["loss"]["mean"] == pytest.approx(-3.98)


def test_rules_are_compared_with_the_uniform_one_at_equal_density_and_at_equal_flops():
    """Uniform: loss 1 + log2 of (100 / FLOPs). The rule has twice the FLOPs at a density: better there, worse at its FLOPs."""

    def rounds(losses, flops):
        return [
            {"round": i, "density": 1 / 2**i, "loss": x, "fid": None, "kid": x, "kid_sd": 0.1, "flops": f, "broken": False}
            for i, (x, f) in enumerate(zip(losses, flops, strict=True))
        ]

    trials = [trial(s, s, {0: 1.0}) for s in (1, 2, 3)]
    for s in (1, 2, 3):
        own = {"seed": s, "losses": {0: 1.0}}
        trials.append(
            {**trial(10 + s, **own, rule="uniform", confirms=3), "rounds": rounds([1 + s, 2 + s, 3 + s], [100, 50, 25])}
        )
        found = [1 + s, 1.5 + s + 0.001 * s, 2.5 + s + 0.001 * s]
        trials.append({**trial(20 + s, **own, rule="erk", confirms=4), "rounds": rounds(found, [100, 90, 45])})
    found = row(confirmation(trials), rule="erk", round=2)
    assert found["vs_uniform"]["loss"]["mean"] == pytest.approx(-0.5 + 0.002)
    assert found["vs_uniform"]["loss"]["verdict"] == "better"
    at_45 = 2 + math.log2(50 / 45)
    assert found["vs_uniform_at_flops"]["loss"]["mean"] == pytest.approx(2.502 - at_45)
    assert found["vs_uniform_at_flops"]["loss"]["verdict"] == "worse"
    assert found["vs_uniform_at_flops"]["fid"]["verdict"] == "undecided"
    assert "vs_uniform" not in row(confirmation(trials), rule="uniform", round=1)


def test_beyond_the_uniform_curve_nothing_is_said():
    trials = [trial(s, s, {0: 1.0}) for s in (1, 2)]
    trials += [trial(10 + s, s, {0: 1.0, 1: 2.0}, rule="uniform", confirms=3) for s in (1, 2)]
    trials += [trial(20 + s, s, {0: 1.0, 1: 1.0 + s}, rule="erk", confirms=4) for s in (1, 2)]
    for t in trials[-2:]:
        t["rounds"][1]["flops"] = 5
    assert row(confirmation(trials), rule="erk", round=1)["vs_uniform_at_flops"]["loss"]["n"] == 0


def test_what_is_not_confirmed_or_failed_counts_nothing_and_lone_seeds_decide_nothing():
    trials = [trial(0, 1, {0: 0.1}), trial(1, 1, {0: 0.1, 1: 0.01}, rule="erk")]
    trials += [
        trial(2, 2, {0: 0.1, 1: 0.2}, rule="erk", state="FAIL"),
        trial(3, 3, {0: 0.1, 1: 0.2}, rule="erk", protocol="search"),
    ]
    found = row(confirmation(trials), rule="erk")
    assert found["seeds"] == [1] and found["vs_dense"]["loss"]["verdict"] == "undecided"
    assert confirmation([]) == []


def test_broken_tickets_are_counted():
    trials = [trial(s, s, {0: 0.1, 1: 0.8}, rule="erk", broken=s > 1) for s in (1, 2, 3)]
    assert row(confirmation(trials), rule="erk", round=1)["broken"] == 2


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_a_verdict_follows_from_the_interval(values, margin):
    found = summary(values)
    said = verdict(found, margin, ("below", "above"))
    assert (said == "below") == (found["high"] < margin) and (said == "above") == (found["low"] > margin)


def test_only_seeds_that_both_have_make_a_pair():
    mine, other = {1: {"fid": 3.0}, 2: {"fid": 5.0}, 4: {"fid": None}}, {2: {"fid": 1.0}, 3: {"fid": 0.0}, 4: {"fid": 1.0}}
    assert paired("fid", mine, other) == {"n": 1, "mean": 4.0, "sd": None, "low": None, "high": None}


def test_without_a_uniform_rule_nothing_is_compared_with_it():
    dense, erk = (trial(i, 7, {0: 1.0, 1: 0.9}, rule=rule) for i, rule in enumerate([None, "erk"]))
    alone = row(confirmation([dense, erk]), rule="erk")
    assert "vs_dense" in alone and not {"vs_uniform", "vs_uniform_at_flops"} & alone.keys()
    beside = row(confirmation([dense, erk, trial(2, 7, {0: 1.0, 1: 0.95}, rule="uniform")]), rule="erk")
    assert beside["vs_uniform"]["loss"]["mean"] == pytest.approx(-0.05)
