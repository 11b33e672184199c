"""Verdicts: intervals against textbook values, pairs by seed, and words that follow from the numbers."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.intervals import student_t
from raylt.report.verdicts import confirmation, paired, summary, verdict


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
    rows = confirmation(trials, "dense")
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


# --- the margin of winning ----------------------------------------------------------------------------------------------


def arms_of(numbers):
    """Trials of arm -> losses by seed; the arm `dense` is the dense model."""
    trials = [trial(seed, seed, {0: x}) for seed, x in enumerate(numbers["dense"])]
    for place, (name, losses) in enumerate(numbers.items()):
        if name != "dense":
            own = {"rule": name.partition("+")[0], "confirms": 1 + place, "control": name.partition("+")[2] or None}
            trials += [trial(100 * place + seed, seed, {0: 1.0, 1: x}, **own) for seed, x in enumerate(losses)]
    return trials


DENSE = [1.0, 1.2, 1.4, 1.1]
BETTER, NO_WORSE = [0.9, 1.0, 1.3, 0.8], [1.3, 1.1, 1.1, 1.1]
WORSE = [3.0, 1.0, 5.0, 9.0]


def test_the_margin_is_pooled_over_the_arms_that_do_not_fall_behind():
    numbers = {
        "dense": DENSE, "erk": BETTER, "lamp": NO_WORSE, "global": WORSE,
        "uniform": BETTER, "erk+reinit": [0.1, 0.9, 0.2, 0.5],  # the very numbers of another ticket; a control
    }  # fmt: skip
    found = row(confirmation(arms_of(numbers)), rule="lamp")["vs_dense"]
    variances = [statistics.variance(losses) for losses in (DENSE, BETTER, NO_WORSE)]
    assert found["loss"]["margin"] == pytest.approx(statistics.fmean(variances) ** 0.5)
    assert found["fid"]["margin"] == pytest.approx(100 * statistics.fmean(variances) ** 0.5)
    assert (found["loss"]["margin_of"], found["loss"]["margin_df"]) == ("pooled", 9)
    margins = {r["vs_dense"]["loss"]["margin"] for r in confirmation(arms_of(numbers)) if "vs_dense" in r}
    assert len(margins) == 1  # one for all of a budget
    alone = row(confirmation(arms_of({"dense": DENSE, "global": WORSE})), rule="global")["vs_dense"]["loss"]
    assert alone["margin"] == pytest.approx(statistics.stdev(DENSE)) and alone["margin_df"] == 3


def test_a_stated_margin_goes_before_an_estimate():
    trials = arms_of({"dense": DENSE, "erk": [x + 0.05 + 0.001 * i for i, x in enumerate(DENSE)]})
    for share, said in ((0.1, "winning"), (0.01, "not winning"), (0.044, "undecided")):
        for rule in ("pooled", "dense"):
            found = row(confirmation(trials, rule, {"loss": share, "fid": None}), rule="erk")["vs_dense"]
            assert found["loss"]["margin"] == pytest.approx(share * statistics.fmean(DENSE))
            assert (found["loss"]["verdict"], found["loss"]["margin_of"]) == (said, "stated")
            assert found["fid"].get("margin_of", "dense") == rule


def test_sweeps_begun_before_have_the_margin_they_had():
    """The dense model's own deviation, and nothing in a row that was not there."""
    found = row(confirmation(arms_of({"dense": DENSE, "erk": BETTER}), "dense"), rule="erk")["vs_dense"]["loss"]
    assert found.keys() == {"n", "mean", "sd", "low", "high", "margin", "verdict"}
    assert found["margin"] == pytest.approx(statistics.stdev(DENSE))


def drawn(seeds, alike, shift, times, arms=5):
    """times x arms x seeds: normal numbers of deviation 1, `alike` of their variance a seed's own; arm 1 is moved."""
    draw = np.random.default_rng(0)
    common, own = draw.normal(size=(times, 1, seeds)), draw.normal(size=(times, arms, seeds))
    numbers = alike**0.5 * common + (1 - alike) ** 0.5 * own
    numbers[:, 1] += shift
    return numbers


def wins(numbers, rule):
    """Whether arm 1 is called winning, of each of many confirmations at once: `confirmation` over again."""
    difference, seeds = numbers[:, 1] - numbers[:, 0], numbers.shape[2]
    high = difference.mean(1) + student_t(seeds - 1) * difference.std(1, ddof=1) / seeds**0.5
    holds = (numbers.mean(2) <= numbers[:, :1].mean(2)) & (rule == "pooled")
    holds[:, 0] = True
    pooled = (numbers.var(2, ddof=1) * holds).sum(1) / holds.sum(1)
    return high < (1.0 if rule == "stated" else pooled**0.5)


@pytest.mark.parametrize("rule", ["dense", "pooled"])
def test_the_simulation_is_of_the_verdicts(rule):
    names = ["dense", "erk", "lamp", "global", "er"]
    numbers = drawn(4, 0.7, 0.0, 40)
    said = wins(numbers, rule)
    assert 5 < said.sum() < 35
    for arms, won in zip(numbers, said, strict=True):
        found = row(confirmation(arms_of(dict(zip(names, arms.tolist(), strict=True))), rule), rule="erk")
        assert (found["vs_dense"]["loss"]["verdict"] == "winning") == won


CHANCES = {  # share of a seed's own -> seeds -> how often a ticket equal to dense wins: margin dense, pooled, stated at 1 sd
    0.0: {3: (0.08, 0.10, 0.12), 5: (0.20, 0.22, 0.23), 10: (0.49, 0.51, 0.52)},
    0.5: {3: (0.15, 0.16, 0.18), 5: (0.36, 0.38, 0.40), 10: (0.75, 0.77, 0.80)},
    0.9: {3: (0.45, 0.46, 0.53), 5: (0.84, 0.85, 0.96), 10: (0.99, 0.99, 1.00)},
}


@pytest.mark.parametrize("alike", CHANCES)
def test_how_often_a_ticket_equal_to_dense_wins(alike):
    """Seeds decide it: five where there were three. Pooling adds a little, a stated margin more."""
    for seeds, expected in CHANCES[alike].items():
        numbers = drawn(seeds, alike, 0.0, 20_000)
        found = [float(wins(numbers, rule).mean()) for rule in ("dense", "pooled", "stated")]
        assert found == pytest.approx(expected, abs=0.015), (alike, seeds, found)
        assert found[0] <= found[1] + 0.005 and found[1] <= found[2] + 0.005


@pytest.mark.parametrize("alike", CHANCES)
def test_how_often_a_ticket_that_is_worse_by_the_margin_wins(alike):
    """By 1 sd. It should be 2.5 %, and is where the margin is stated; an estimate adds its own error where seeds are alike."""
    for seeds in (3, 5, 10):
        numbers = drawn(seeds, alike, 1.0, 20_000)
        dense, pooled, stated = (float(wins(numbers, rule).mean()) for rule in ("dense", "pooled", "stated"))
        assert stated < 0.035
        assert max(dense, pooled) < 0.13 and pooled <= dense + 0.01
