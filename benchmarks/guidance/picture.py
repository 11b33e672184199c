"""Hypervolume against training steps: real searches on the left, those on the surrogate on the right."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from guidance import curves

COLORS = {
    "similarity": "C0", "movement": "C2", "size": "C4", "shuffled": "C5", "gamma0": "C1", "random": "black",
    "cost": "darkgreen", "random-uniform": "0.6", "rungs": "C3", "gp": "C6", "gp-gamma0": "C8", "nsga2": "C9",
}  # fmt: skip


def hypervolume_png(found: Mapping[str, Any]) -> bytes:
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, arm in found["arms"].items():
        color = COLORS.get(name)
        if "real" in arm:
            runs = arm["real"]["runs"]
            grid = np.linspace(0, max(curves.curve(run)[0][-1] for run in runs), 200)
            values = curves.on_grid(runs, grid)
            left.plot(grid, np.where(values.min(0) > 0, values.mean(0), np.nan), color=color, label=name)
            left.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.08, linewidth=0)
        if "surrogate" in arm and name in COLORS:
            steps, mean, half = (np.array(arm["surrogate"]["curve"][key], dtype=float) for key in ("steps", "mean", "half"))
            right.plot(steps, np.where(mean > 0.2, mean, np.nan), color=color, label=name)
            right.fill_between(steps, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
    runs = found["arms"]["random"]["real"]["runs"]
    for rule, style in (("uniform", ":"), ("erk", "--"), ("lamp", "-."), ("global", (0, (1, 3)))):
        alone = [
            curves.hypervolume([(run["baselines"][rule]["loss"], run["baselines"][rule]["flops"])], tuple(run["reference"]))
            for run in runs
        ]
        left.axhline(float(np.mean(alone)), color="0.5", linestyle=style, linewidth=1, label=f"{rule} alone")
    left.set(
        title=f"real searches: mean and range of {len(runs)} seeds",
        xlabel="training steps",
        ylabel="hypervolume",
        ylim=(0.24, None),
    )
    seeds = found.get("surrogate", {}).get("seeds", 0)
    right.set(title=f"on the surrogate: mean and 95 % interval, {seeds} seeds", xlabel="training steps")
    for axes in (left, right):
        axes.legend(fontsize="x-small", ncols=2, loc="lower right")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
