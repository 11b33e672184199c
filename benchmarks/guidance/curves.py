"""Hypervolume against training steps, and how soon an arm has what random search ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raylt.intervals import CONFIDENCE
from raylt.report import verdicts

Run = Mapping[str, Any]  # start_steps, reference; trials: state, broken, loss, flops, steps
Point = tuple[float, float]
Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
GRID = 80  # points of a curve


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The share of the box between the origin and `reference` that the points dominate, where less is better in both."""
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area / (reference[0] * reference[1])


def points_of(trials: Iterable[Mapping[str, Any]]) -> list[Point]:
    """(loss, FLOPs) of those that are ranked: complete and alive."""
    return [(t["loss"], t["flops"]) for t in trials if t["state"] == "COMPLETE" and not t["broken"]]


def curve(run: Run) -> tuple[Floats, Floats]:
    """Training steps after each trial, and the hypervolume by then."""
    trials, reference = run["trials"], tuple(run["reference"])
    steps = run["start_steps"] + np.cumsum([t["steps"] for t in trials])
    values = [hypervolume(points_of(trials[: n + 1]), reference) for n in range(len(trials))]
    return steps.astype(np.float64), np.array(values)


def chosen(run: Run, most_flops: float = float("inf")) -> Mapping[str, Any] | None:
    """The trial that a user would take: of those that cost no more than `most_flops`, the one with the lowest loss."""
    alive = [t for t in run["trials"] if t["state"] == "COMPLETE" and not t["broken"] and t["flops"] <= most_flops]
    return min(alive, key=lambda trial: trial["loss"], default=None)


def on_grid(runs: Sequence[Run], grid: Floats) -> Floats:
    """Hypervolume of each run (rows) by the steps of `grid`; 0 before its first trial has ended."""
    rows = []
    for steps, values in map(curve, runs):
        found = np.searchsorted(steps, grid, side="right") - 1
        rows.append(np.where(found >= 0, values[np.maximum(found, 0)], 0.0))
    return np.array(rows)


def steps_to(mean: Floats, grid: Floats, target: float) -> float:
    """The first steps of `grid` at which a mean curve has reached `target`; infinite where it never does."""
    reached = np.flatnonzero(mean >= target - 1e-12)
    return float(grid[reached[0]]) if len(reached) else float("inf")


def against_random(arm: Sequence[Run], random: Sequence[Run]) -> dict[str, Any]:
    """Steps of an arm to the hypervolume that random search ends with, mean curve against mean curve, paired by seed.

    `ratio` is by the steps of random search in all; its interval comes from resampling seeds (percentiles; Efron & Tibshirani
    1993). None where the arm's mean curve does not get there.
    """
    grid = np.unique(np.concatenate([curve(run)[0] for run in [*arm, *random]]))
    mine, theirs = on_grid(arm, grid), on_grid(random, grid)
    total = float(np.mean([curve(run)[0][-1] for run in random]))

    def reach(seeds: npt.NDArray[np.int64]) -> float:
        return steps_to(mine[seeds].mean(0), grid, float(theirs[seeds].mean(0)[-1]))

    # Not scipy's bootstrap: its percentiles interpolate, and between two infinities there is no number.
    draw, num = np.random.default_rng(0), len(arm)
    resampled = sorted(reach(draw.integers(0, num, num)) / total for _ in range(RESAMPLES))
    low, high = (resampled[round(q * (RESAMPLES - 1))] for q in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    steps = reach(np.arange(num))
    return {
        "steps": finite(steps), "ratio": finite(steps / total), "low": finite(low), "high": finite(high),
        "random_steps": total, "never": float(np.mean(np.isinf(resampled))),
    }  # fmt: skip


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def summary(runs: Sequence[Run], random: Sequence[Run]) -> dict[str, Any]:
    """An arm in numbers: its mean curve and where it ends, with intervals of the mean over seeds; and against random search."""
    ends = [curve(run)[1][-1] for run in runs]
    steps = np.mean([curve(run)[0] for run in runs], axis=0)
    grid = np.linspace(0, max(curve(run)[0][-1] for run in [*runs, *random]), GRID)
    values = on_grid(runs, grid)
    return {
        "hypervolume": interval(ends),
        # what the chosen are worth without the noise they were chosen by
        "chosen": interval([_gain(run, chosen(run)) for run in runs]),
        "chosen_at_base_flops": interval([_gain(run, chosen(run, run["base"]["flops"])) for run in runs]),
        "steps": float(steps[-1]),
        "curve": {
            "steps": grid.tolist(),
            "mean": values.mean(0).tolist(),
            "half": [interval(column)["half"] for column in values.T],
        },
        "against_random": against_random(runs, random),
    }


def _gain(run: Run, trial: Mapping[str, Any] | None) -> float:
    """Change of the expected loss against the base's, which is what is left where nothing was found."""
    return 0.0 if trial is None else float(trial["expected"] / run["base"]["expected"] - 1)


def interval(values: Iterable[float]) -> dict[str, float | None]:
    """Mean, and half the width of its interval, as raylt has it."""
    found = verdicts.summary([float(value) for value in values])
    half = None if found["high"] is None else (found["high"] - found["low"]) / 2
    return {"mean": found["mean"], "half": half}
