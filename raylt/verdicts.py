"""What a confirmation says: means with intervals over fresh seeds, differences paired by seed, and the verdict, computed.

Works on the records of `results --json` alone. All intervals are two-sided 95 % Student t intervals of a mean over seeds.

- A ticket is `winning` in a number where it matches the dense model of the same training budget: the whole interval of its
  paired difference to dense lies below the dense model's own standard deviation from seed to seed; `not winning` where it
  lies above; else `undecided`. (So a wide interval of few seeds never wins.)
- A control is `worse` than its ticket where the whole interval of control - ticket lies above 0, `better` where it lies
  below; else `undecided`. So are other rules against the uniform one: at equal density (the same round), and at equal FLOPs
  (the uniform rule's number at a rule's FLOPs, on a straight line over log FLOPs between its rounds, seed by seed).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raylt.intervals import student_t

Record = Mapping[str, Any]
JUDGED = ("loss", "fid")  # lower is better
_SHOWN = (*JUDGED, "kid")


def confirmation(trials: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each budget, allocation, control and round, over its seeds; [] before anything was confirmed.

    `trials`: of `results --json`, with what a row is of: `train_steps`, `confirms`, `rule`, `control`, `round`.
    """
    ended, rows = _ended(trials), rows_of(trials)
    uniform = {(t["train_steps"], t["seed"]): t["rounds"] for t in ended if t["rule"] == "uniform" and t["control"] is None}
    return [_row(key, rows, uniform) for key in sorted(rows, key=_place)]


def _ended(trials: Sequence[Record]) -> list[Record]:
    return [trial for trial in trials if trial["protocol"] == "final" and trial["state"] == "COMPLETE"]


def rows_of(trials: Sequence[Record]) -> Rows:
    """(budget, confirmed trial, rule, control, round) -> seed -> its numbers; round 0 of the dense model alone."""
    rows: Rows = {}
    for trial in _ended(trials):
        for scored in trial["rounds"]:
            if scored["round"] > 0 or trial["kind"] == "dense":
                rows.setdefault(_row_of(trial, scored["round"]), {})[trial["seed"]] = scored
    return rows


Rows = dict[tuple[Any, ...], dict[int, Record]]  # row -> seed -> its round
Curves = Mapping[tuple[int, int], Sequence[Record]]  # budget, seed -> the rounds of the uniform rule
_KEYS = ("train_steps", "confirms", "rule", "control", "round")


def _row_of(trial: Record, index: int) -> tuple[Any, ...]:
    return trial["train_steps"], trial["confirms"], trial["rule"], trial["control"], index


def _place(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Budget by budget, the longest first; dense, then tickets by density, each followed by its controls."""
    steps, confirms, rule, control, index = row
    return -steps, rule is not None, index, confirms, control or ""


def _row(key: tuple[Any, ...], rows: Rows, uniform: Curves) -> dict[str, Any]:
    steps, confirms, rule, control, index = key
    mine = rows[key]
    dense = next((rounds for other, rounds in rows.items() if other[0] == steps and other[2] is None), {})
    row = {**dict(zip(_KEYS, key, strict=True)), "seeds": sorted(mine), "broken": sum(bool(r["broken"]) for r in mine.values())}
    ticket = rows.get((steps, confirms, rule, None, index), {})
    # a smaller dense net keeps all weights of its own: what it is about is the density of its ticket
    row["density"] = _mean_of(r["density"] for r in (ticket if control == "small-dense" else mine).values())
    row["flops"] = _mean_of(r["flops"] for r in mine.values())
    row |= {name: summary([r[name] for r in mine.values() if r[name] is not None]) for name in _SHOWN}
    if rule is not None:
        row["vs_dense"] = {name: _against_dense(name, mine, dense) for name in JUDGED}
    if control is not None:
        row["vs_ticket"] = {name: _against(name, mine, ticket) for name in JUDGED}
    elif rule not in (None, "uniform") and uniform:
        curves = {seed: rounds for (budget, seed), rounds in uniform.items() if budget == steps}
        same = {seed: r for seed, rounds in curves.items() for r in rounds if r["round"] == index}
        row["vs_uniform"] = {name: _against(name, mine, same) for name in JUDGED}
        row["vs_uniform_at_flops"] = {name: _against(name, mine, _at_flops(name, mine, curves)) for name in JUDGED}
    return row


def _at_flops(name: str, mine: Mapping[int, Record], curves: Mapping[int, Sequence[Record]]) -> dict[int, Record]:
    """Seed -> the number that a curve of rounds has at the FLOPs of `mine`; None outside of the curve."""
    return {seed: {name: _on_curve(name, scored["flops"], curves[seed])} for seed, scored in mine.items() if seed in curves}


def _on_curve(name: str, flops: float, rounds: Sequence[Record]) -> float | None:
    points = sorted((math.log(r["flops"]), r[name]) for r in rounds if r[name] is not None)
    x = math.log(flops)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= x <= x1:
            return float(y0 + (y1 - y0) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.0))
    return None


def summary(values: Sequence[float]) -> dict[str, float | int | None]:
    """n, mean, standard deviation and the ends of the mean's interval; None where there are too few values."""
    n = len(values)
    if n < 2:
        return {"n": n, "mean": values[0] if n else None, "sd": None, "low": None, "high": None}
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = student_t(n - 1) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def paired(name: str, mine: Mapping[int, Record], other: Mapping[int, Record]) -> dict[str, float | int | None]:
    """`summary` of mine - other over the seeds that both have."""
    both = [(mine[seed][name], other[seed][name]) for seed in sorted(mine.keys() & other.keys())]
    return summary([a - b for a, b in both if a is not None and b is not None])


def _against_dense(name: str, mine: Mapping[int, Record], dense: Mapping[int, Record]) -> dict[str, Any]:
    difference, spread = paired(name, mine, dense), summary([r[name] for r in dense.values() if r[name] is not None])["sd"]
    return {**difference, "margin": spread, "verdict": verdict(difference, spread, ("winning", "not winning"))}


def _against(name: str, mine: Mapping[int, Record], other: Mapping[int, Record]) -> dict[str, Any]:
    difference = paired(name, mine, other)
    return {**difference, "verdict": verdict(difference, 0.0, ("better", "worse"))}


def verdict(difference: Mapping[str, Any], margin: float | None, words: tuple[str, str]) -> str:
    """The first word where the whole interval lies below the margin, the second where above, else `undecided`."""
    if margin is None or difference["low"] is None:
        return "undecided"
    return words[0] if difference["high"] < margin else words[1] if difference["low"] > margin else "undecided"


def _mean_of(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
