"""The pictures that set tickets side by side, as PNG bytes: a confirmation against density, and allocations.

As in `figures`: only `Figure` objects, every function copes with what a sweep lacks, the same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylt.report.confirmation_tables import budgets, name_of, rows_at
from raylt.report.figures import heat_map, new_figure, png_of
from raylt.report.records import JUDGED, ConfirmationRow, Judged, SweepDocument, TrialRecord, value_of
from raylt.report.text import axis_label, in_forward_order, shown, trial_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 150  # these are read on paper as well
DODGE, WIDEST = 1.035, 1.35  # from one series to the next, and from first to last: intervals at one density stand side by side
LOG_FROM_RATIO = 8.0  # numbers that spread over more than this are drawn on a log axis
MOST_ROWS = 40  # trials in allocations.png
_CONTROLS = {"reinit": "^", "shuffled": "v", "random": "X", "small-dense": "D"}


def confirmation_png(results: SweepDocument) -> bytes:
    """Loss and FID against density, one column a training budget: tickets with intervals, their controls, dense as a band.

    A ticket's colour is its allocation's and its controls'; hollow: broken on some seed.
    """
    columns = budgets(results)
    figure, axes = new_figure(2, max(1, len(columns)), width=2.2 + 4.4 * max(1, len(columns)), height=8.4, dpi=DPI)
    colors = _colors(results["confirmation"])
    for column, steps in enumerate(columns):
        rows = rows_at(results, steps)
        for row, name in enumerate(JUDGED):
            _draw(axes[row, column], name, rows, colors)
        axes[0, column].set_title(f"{steps} training steps", fontsize="medium")
        axes[1, column].set_xlabel("density (log)")
    for row, name in enumerate(JUDGED):
        axes[row, 0].set_ylabel(axis_label(name, results, "final"))
    figure.suptitle(
        f"{results['name']}: confirmed on fresh seeds\nmean and 95 % interval (hollow: broken on some seed)", fontsize="medium"
    )
    _legend(figure, colors, {row["control"] for row in results["confirmation"]})
    return png_of(figure)


def _colors(rows: Sequence[ConfirmationRow]) -> dict[str, str]:
    """Ticket -> its colour: those that have controls first, so that they stand out the same wherever they are."""
    names = list(dict.fromkeys([*(name_of(r) for r in rows if r["control"]), *(name_of(r) for r in rows if r["rule"])]))
    return {name: f"C{index % 10}" for index, name in enumerate(names)}


def _draw(axes: Axes, name: Judged, rows: Sequence[ConfirmationRow], colors: Mapping[str, str]) -> None:
    """One number of one budget against density."""
    drawn = [row for row in rows if row[name]["mean"] is not None and row["density"] is not None]
    series = list(dict.fromkeys((name_of(row), row["control"]) for row in drawn if row["rule"]))
    dodge = min(DODGE, WIDEST ** (1 / max(1, len(series))))
    for index, (ticket, control) in enumerate(series):
        points = [row for row in drawn if row["rule"] and (name_of(row), row["control"]) == (ticket, control)]
        shift = dodge ** (index - (len(series) - 1) / 2)
        _draw_series(axes, name, points, [shift * (row["density"] or math.nan) for row in points], colors[ticket], control)
    for dense in (row for row in drawn if row["rule"] is None):
        mean, sd = dense[name]["mean"], dense[name]["sd"]
        assert mean is not None  # `known` has it
        axes.axhline(mean, color="black", linewidth=1, zorder=1)
        if sd is not None:
            axes.axhspan(mean - sd, mean + sd, color="black", alpha=0.12, linewidth=0, zorder=0)
    _scale(axes, name, drawn)


def _draw_series(
    axes: Axes, name: Judged, rows: Sequence[ConfirmationRow], x: Sequence[float], color: str, control: str | None
) -> None:
    """A ticket at its densities as a line, a control of it as marks."""
    means = np.array([row[name]["mean"] for row in rows])
    reach = np.array([(row[name]["high"] or row[name]["mean"]) for row in rows]) - means  # 0 of one seed
    marker, line = ("o", "-") if control is None else (_CONTROLS.get(control, "P"), ":")
    axes.errorbar(x, means, reach, fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.6)
    axes.plot(x, means, line, color=color, linewidth=1.2 if control is None else 0.8)
    faces = ["none" if row["broken"] else color for row in rows]
    axes.scatter(x, means, s=26, marker=marker, facecolors=faces, edgecolors=color, zorder=3)


def _scale(axes: Axes, name: Judged, drawn: Sequence[ConfirmationRow]) -> None:
    """Axes that show every mean; the interval of a few seeds may be cut off, lest it press all else into a line."""
    axes.grid(alpha=0.25)
    densities = sorted({row["density"] for row in drawn if row["rule"] and row["density"] is not None}, reverse=True)
    if not densities:
        axes.text(0.5, 0.5, "no number yet", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    axes.set_xlim(densities[0] * 1.4, densities[-1] / 1.4)  # sparser to the right
    axes.set_xticks(densities, [shown(density, 2) for density in densities])
    axes.set_xticks([], minor=True)
    means = [mean for row in drawn if (mean := row[name]["mean"]) is not None]
    if min(means) > 0 and max(means) / min(means) > LOG_FROM_RATIO:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(means) / 1.5, max(means) * 1.5)
    else:
        room = 0.35 * (max(means) - min(means)) or 0.1 * abs(means[0]) or 1.0
        low = min(means) - room
        axes.set_ylim(max(0.0, low) if min(means) >= 0 else low, max(means) + room)


def _legend(figure: Figure, colors: Mapping[str, str], controls: set[str | None]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used = [control for control in _CONTROLS if control in controls]
    handles = [
        Patch(color="black", alpha=0.25, label="dense: mean ± sd of seeds"),
        *(Line2D([], [], color=color, marker="o", label=name) for name, color in colors.items()),
        *(Line2D([], [], color="0.4", marker=_CONTROLS[c], linestyle=":", label=f"control: {c}") for c in used),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize="small")


def allocations_png(results: SweepDocument) -> bytes:
    """Density of every block (columns) under baselines and the Pareto front (rows, best first) in one heat map."""
    from matplotlib.colors import LogNorm

    trials = allocated(results)
    blocks = in_forward_order({block for trial in trials for block in trial["densities"] or {}})
    figure, axes = new_figure(1, 1, width=max(6.0, 0.8 * len(blocks) + 4.0), height=1.8 + 0.32 * max(2, len(trials)), dpi=DPI)
    heat = axes[0, 0]
    heat.set_title(f"{results['name']}: density of each block, by allocation (* on the Pareto front)", fontsize="medium")
    if trials:
        kept = [trial["densities"] or {} for trial in trials]
        values = np.array([[densities.get(block, math.nan) for block in blocks] for densities in kept], dtype=np.float64)
        lowest = min(values[values > 0], default=0.1)  # black holes are empty
        heat_map(heat, values, lambda density: shown(density, 2), cmap="viridis", norm=LogNorm(min(lowest, 0.5), 1.0))
        heat.set_xticks(range(len(blocks)), blocks, rotation=35, ha="right", fontsize="small")
        heat.set_yticks(range(len(trials)), [_allocation_label(trial) for trial in trials], fontsize="small")
    else:
        heat.set_axis_off()
        heat.text(0.5, 0.5, "no allocation yet", ha="center", transform=heat.transAxes)
    return png_of(figure)


def allocated(results: SweepDocument) -> list[TrialRecord]:
    """The trials whose allocations are compared: baselines and the Pareto front of the search, best first."""
    first = results["objectives"][0]
    ranked = [t for t in results["trials"] if t["protocol"] == "search" and (t["kind"] == "baseline" or t["pareto"])]
    with_ticket = [trial for trial in ranked if trial["densities"]]

    def place(trial: TrialRecord) -> tuple[bool, bool, float, int]:
        value = value_of(trial, first)
        return not trial["pareto"], value is None, value or 0, trial["id"]

    return sorted(with_ticket, key=place)[:MOST_ROWS]


def _allocation_label(trial: TrialRecord) -> str:
    star = " *" if trial["pareto"] else ""
    return f"{trial_name(trial)} ({trial['rule']}), overall {shown(trial['density'], 3)}{star}"
