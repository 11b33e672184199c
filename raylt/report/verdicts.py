"""What a confirmation says: means with intervals over fresh seeds, differences paired by seed, and the verdict, computed.

Works on the records of `results --json` alone. All intervals are two-sided 95 % Student t intervals of a mean over seeds.

- A ticket is `winning` in a number where it matches the dense model of the same training budget: the whole interval of its
  paired difference to dense lies below a margin; `not winning` where it lies above; else `undecided`. (So a wide interval of
  few seeds never wins.) The margin is what the spec states, a share of the dense model's mean; else the standard deviation
  from seed to seed, pooled over the arms of that budget (`_pooled`). Sweeps started before have the dense model's own.
- A control is `worse` than its ticket where the whole interval of control - ticket lies above 0, `better` where it lies
  below; else `undecided`. So are other rules against the uniform one: at equal density (the same round), and at equal FLOPs
  (the uniform rule's number at a rule's FLOPs, on a straight line over log FLOPs between its rounds, seed by seed).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from raylt.intervals import student_t
from raylt.report.records import JUDGED, ConfirmationRow, Difference, Judged, RoundRecord, Summary, TrialRecord

Record = Mapping[str, Any]
MarginRule = Literal["pooled", "dense"]  # over arms; of the dense model alone, as sweeps started before have it


class Margin(NamedTuple):
    """By how much a ticket may lie above dense and still match it. `df`: the degrees of freedom of an estimate."""

    value: float | None
    of: Literal["pooled", "dense", "stated"]
    df: int | None = None


def confirmation(
    trials: Sequence[TrialRecord], rule: MarginRule = "pooled", stated: Mapping[str, float | None] | None = None
) -> list[ConfirmationRow]:
    """One row for each budget, allocation, control and round, over its seeds; [] before anything was confirmed.

    `trials`: of `results --json`, with what a row is of: `train_steps`, `confirms`, `rule`, `control`, `round`. `stated`:
    number -> margin, as a share of the dense model's mean; it goes before `rule`.
    """
    ended, rows = _complete(trials), rows_of(trials)
    uniform = {(t["train_steps"], t["seed"]): t["rounds"] for t in ended if t["rule"] == "uniform" and t["control"] is None}
    margins = {
        (steps, name): _margin(name, steps, rows, rule, (stated or {}).get(name))
        for steps in {r[0] for r in rows}
        for name in JUDGED
    }
    return [_row(key, rows, uniform, margins) for key in sorted(rows, key=_place)]


def _complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial["protocol"] == "final" and trial["state"] == "COMPLETE"]


def rows_of(trials: Sequence[TrialRecord]) -> Rows:
    """(budget, confirmed trial, rule, control, round) -> seed -> its numbers; round 0 of the dense model alone."""
    rows: Rows = {}
    for trial in _complete(trials):
        for scored in trial["rounds"]:
            if scored["round"] > 0 or trial["kind"] == "dense":
                rows.setdefault(_row_of(trial, scored["round"]), {})[trial["seed"]] = scored
    return rows


Rows = dict[tuple[Any, ...], dict[int, Record]]  # row -> seed -> its round
Curves = Mapping[tuple[int | None, int], Sequence[RoundRecord]]  # budget, seed -> the rounds of the uniform rule


def _row_of(trial: TrialRecord, index: int) -> tuple[Any, ...]:
    return trial["train_steps"], trial["confirms"], trial["rule"], trial["control"], index


def _place(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Budget by budget, the longest first; dense, then tickets by density, each followed by its controls."""
    steps, confirms, rule, control, index = row
    return -steps, rule is not None, index, confirms, control or ""


def _row(key: tuple[Any, ...], rows: Rows, uniform: Curves, margins: Mapping[tuple[int, Judged], Margin]) -> ConfirmationRow:
    steps, confirms, rule, control, index = key
    scores, dense = rows[key], _dense(rows, steps)
    ticket = rows.get((steps, confirms, rule, None, index), {})
    # a smaller dense net keeps all weights of its own: what it is about is the density of its ticket
    of_density = ticket if control == "small-dense" else scores
    row: ConfirmationRow = {
        "train_steps": steps, "confirms": confirms, "rule": rule, "control": control, "round": index, "seeds": sorted(scores),
        "broken": sum(bool(r["broken"]) for r in scores.values()),
        "density": _mean_of(r["density"] for r in of_density.values()),
        "flops": _mean_of(r["flops"] for r in scores.values()),
        "loss": summary(_values("loss", scores)),
        "fid": summary(_values("fid", scores)),
        "kid": summary(_values("kid", scores)),
    }  # fmt: skip
    if rule is not None:
        row["vs_dense"] = {name: _against_dense(name, scores, dense, margins[steps, name]) for name in JUDGED}
    if control is not None:
        row["vs_ticket"] = {name: _against(name, scores, ticket) for name in JUDGED}
    elif rule not in (None, "uniform") and uniform:
        curves = {seed: rounds for (budget, seed), rounds in uniform.items() if budget == steps}
        same = {seed: r for seed, rounds in curves.items() for r in rounds if r["round"] == index}
        row["vs_uniform"] = {name: _against(name, scores, same) for name in JUDGED}
        row["vs_uniform_at_flops"] = {name: _against(name, scores, _at_flops(name, scores, curves)) for name in JUDGED}
    return row


def _dense(rows: Rows, steps: int) -> Mapping[int, Record]:
    """Seed -> the dense model's numbers at a budget."""
    return next((rounds for key, rounds in rows.items() if key[0] == steps and key[2] is None), {})


def _margin(name: str, steps: int, rows: Rows, rule: MarginRule, share: float | None) -> Margin:
    dense = _values(name, _dense(rows, steps))
    if share is not None:
        return Margin(share * statistics.fmean(dense) if dense else None, "stated")
    if rule == "dense":
        return Margin(summary(dense)["sd"], "dense", max(0, len(dense) - 1))
    return _pooled(name, steps, rows)


def _pooled(name: str, steps: int, rows: Rows) -> Margin:
    """sqrt(sum of (n - 1) s^2 / sum of (n - 1)) over the dense model and the tickets that are on average no worse than it.

    Those that fall behind spread more, and would widen the margin that they are judged by. Mean and variance of normal numbers
    are independent, so that choosing by the mean does not bend the estimate. Tickets of equal numbers (shared rounds) count
    once. The arms share seeds: where a seed moves all of them alike they know less than their degrees of freedom say.
    """
    dense = _dense(rows, steps)
    arms = {tuple(_values(name, dense))}
    for (budget, _, rule, control, _), scores in rows.items():
        difference = paired(name, scores, dense)["mean"]
        if budget == steps and rule is not None and control is None and difference is not None and difference <= 0:
            arms.add(tuple(_values(name, scores)))
    repeated = [arm for arm in sorted(arms) if len(arm) > 1]  # in one order: sums of floats depend on it
    df = sum(len(arm) - 1 for arm in repeated)
    squares = sum((len(arm) - 1) * statistics.variance(arm) for arm in repeated)
    return Margin(math.sqrt(squares / df) if df else None, "pooled", df)


def _values(name: str, rounds: Mapping[int, Record]) -> list[float]:
    """One number of each seed, without those that have none."""
    return [rounds[seed][name] for seed in sorted(rounds) if rounds[seed][name] is not None]


def _at_flops(name: str, scores: Mapping[int, Record], curves: Mapping[int, Sequence[Record]]) -> dict[int, Record]:
    """Seed -> the number that a curve of rounds has at the FLOPs of `mine`; None outside of the curve."""
    return {seed: {name: _on_curve(name, scored["flops"], curves[seed])} for seed, scored in scores.items() if seed in curves}


def _on_curve(name: str, flops: float, rounds: Sequence[Record]) -> float | None:
    points = sorted((math.log(r["flops"]), r[name]) for r in rounds if r[name] is not None)
    x = math.log(flops)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= x <= x1:
            return float(y0 + (y1 - y0) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.0))
    return None


def summary(values: Sequence[float]) -> Summary:
    """n, mean, standard deviation and the ends of the mean's interval; None where there are too few values."""
    n = len(values)
    if n < 2:
        return {"n": n, "mean": values[0] if n else None, "sd": None, "low": None, "high": None}
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = student_t(n - 1) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def paired(name: str, scores: Mapping[int, Record], other: Mapping[int, Record]) -> Summary:
    """`summary` of mine - other over the seeds that both have."""
    both = [(scores[seed][name], other[seed][name]) for seed in sorted(scores.keys() & other.keys())]
    return summary([a - b for a, b in both if a is not None and b is not None])


def _against_dense(name: str, scores: Mapping[int, Record], dense: Mapping[int, Record], margin: Margin) -> Difference:
    difference = paired(name, scores, dense)
    judged = verdict(difference, margin.value, ("winning", "not winning"))
    if margin.of == "dense":
        return cast(Difference, {**difference, "margin": margin.value, "verdict": judged})
    band = {"margin": margin.value, "margin_of": margin.of, "margin_df": margin.df}
    return cast(Difference, {**difference, **band, "verdict": judged})


def _against(name: str, scores: Mapping[int, Record], other: Mapping[int, Record]) -> Difference:
    difference = paired(name, scores, other)
    return cast(Difference, {**difference, "verdict": verdict(difference, 0.0, ("better", "worse"))})


def verdict(difference: Summary, margin: float | None, words: tuple[str, str]) -> str:
    """The first word where the whole interval lies below the margin, the second where above, else `undecided`."""
    low, high = difference["low"], difference["high"]
    if margin is None or low is None or high is None:
        return "undecided"
    return words[0] if high < margin else words[1] if low > margin else "undecided"


def _mean_of(values: Any) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None
