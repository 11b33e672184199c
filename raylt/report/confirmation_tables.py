"""What a confirmation says, as tables: one of each number and training budget, never two protocols or budgets in one.

The loss, the FID, and comparisons of controls with their tickets, of rules with the uniform one: each fits a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raylt.report.fitted_table import FittedTable
from raylt.report.records import ConfirmationRow, Difference, Judged, Summary, SweepDocument, value_of
from raylt.report.tables import protocol_text, seen_by
from raylt.report.text import shown

Row = list[str]
Written = Callable[[Summary, str], str]  # a summary with its interval as text; "+" as the sign of a difference

NUMBERS: dict[Judged, str] = {"loss": "loss", "fid": "FID"}
HEADERS = {
    "loss": ["rule", "density", "n", "loss", "- dense", "verdict", "FLOPs"],
    "fid": ["rule", "density", "n", "FID", "- dense", "verdict", "KID (sd)"],
}
COMPARISONS = {  # key of a row: what it compares, and a note
    "vs_ticket": ("Controls against their tickets", ""),
    "vs_uniform": ("Rules against the uniform one, at equal density", ""),
    "vs_uniform_at_flops": (
        "Rules against the uniform one, at equal FLOPs",
        "Against the uniform rule's number at those FLOPs, between two of its rounds; - where it has no round on one side.",
    ),
}
_WINNING = {  # whose margin: what it is
    "dense": "winning: the whole interval lies below the dense model's own standard deviation from seed to seed; not winning: "
    "above it.",
    "pooled": "winning: the whole interval lies below the margin; not winning: above it. The margin is the standard deviation "
    "from seed to seed, pooled over the dense model and the tickets that are on average no worse.",
    "stated": "winning: the whole interval lies below the margin that confirm.margin states; not winning: above it.",
}


def budgets(results: SweepDocument) -> list[int]:
    """The training budgets that were confirmed, in steps, the longest first."""
    return sorted({row["train_steps"] for row in results["confirmation"]}, reverse=True)


def rows_at(results: SweepDocument, steps: int) -> list[ConfirmationRow]:
    """The rows of one budget: dense, then tickets from dense to sparse, each followed by its controls."""
    return [row for row in results["confirmation"] if row["train_steps"] == steps]


def name_of(row: ConfirmationRow) -> str:
    """The rule of a ticket, a searched one with its trial's number."""
    rule = row["rule"] or "dense"
    return f"{rule} {row['confirms']}" if rule == "searched" else rule


def label_of(row: ConfirmationRow) -> str:
    """A ticket's name; a control's under it, or with it where the ticket has no row of its own."""
    if row["control"] is None:
        return name_of(row)
    has_ticket = row["vs_ticket"]["loss"]["n"] > 0
    return f"  {row['control']}" if has_ticket else f"{name_of(row)} {row['control']}"


def notes(results: SweepDocument) -> list[str]:
    """How to read the tables, in a few lines."""
    kinds = {margin_of(against) for row in results["confirmation"] for against in row.get("vs_dense", {}).values()}
    return [
        "n: seeds (broken ones). Intervals: 95 % of a mean over seeds (Student t). Differences are paired by seed.",
        *(text for kind, text in _WINNING.items() if kind in kinds),
        "better, worse: the whole interval lies below 0, above 0. undecided: neither, or too few seeds.",
        "small-dense: a whole U-Net, made smaller to the FLOPs of the ticket whose density its row has.",
    ]


def margin_of(against: Difference) -> str:
    """What a margin is of: `pooled` over arms, `stated` in the spec, or `dense`, of sweeps started before."""
    return str(against.get("margin_of", "dense"))


# --- cells ----------------------------------------------------------------------------------------------------------


def cells(name: Judged, row: ConfirmationRow, rows: Sequence[ConfirmationRow], written: Written) -> Row:
    """The cells of `HEADERS[name]`."""
    broken = f" ({row['broken']})" if name == "loss" and row["broken"] else ""
    against = row.get("vs_dense", {}).get(name)
    last = _flops(row, rows) if name == "loss" else _kid(row["kid"])
    numbers = [shown(row["density"], 3), f"{row[name]['n']}{broken}", written(row[name], "")]
    return [label_of(row), *numbers, *difference(against, written), last]


def comparison_header(key: str) -> Row:
    other = key.removeprefix("vs_").partition("_")[0]
    differences = [part for title in NUMBERS.values() for part in (f"{title} - {other}", "verdict")]
    return ["rule", "density", *(["control"] if key == "vs_ticket" else []), *differences]


def comparison_cells(key: str, row: ConfirmationRow, written: Written) -> Row:
    """The cells of `comparison_header`, of a row that has the comparison."""
    names = [name_of(row), shown(row["density"], 3), *([row["control"] or ""] if key == "vs_ticket" else [])]
    return [*names, *(cell for name in NUMBERS for cell in difference(value_of(row, key)[name], written))]


def difference(against: Difference | None, written: Written) -> Row:
    """A paired difference and its verdict; dashes where there is nothing to compare with."""
    return ["-", "-"] if against is None else [written(against, "+"), against["verdict"]]


def plus_minus(summary: Summary, sign: str) -> str:
    """A mean and half its interval: as many decimals as the interval has to say; the mean alone of one seed."""
    mean, high = summary["mean"], summary["high"]
    if mean is None:
        return "-"
    if high is None:
        return f"{mean:{sign}.4g}"
    decimals = _decimals(high - mean)
    return f"{mean:{sign}.{decimals}f} ± {high - mean:.{decimals}f}"


def interval(summary: Summary, sign: str) -> str:
    """A mean and the ends of its interval: `0.0907 [0.0889, 0.0925]`."""
    mean, low, high = (summary[key] for key in ("mean", "low", "high"))
    if mean is None or high is None:
        return plus_minus(summary, sign)
    decimals = _decimals(high - mean)
    return f"{mean:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"


def _decimals(error: float) -> int:
    """Those that show two digits of an error; one where it is so small that two would fill a terminal."""
    two = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    return two if two <= 4 else min(6, max(4, two - 1))


def _kid(summary: Summary) -> str:
    mean, sd = summary["mean"], summary["sd"]
    if mean is None or sd is None:
        return shown(mean, 3)
    decimals = _decimals(sd)
    return f"{mean:.{decimals}f} ({sd:.{decimals}f})"


def _flops(row: ConfirmationRow, rows: Sequence[ConfirmationRow]) -> str:
    """FLOPs as a share of the dense model's."""
    dense = next((other["flops"] for other in rows if other["rule"] is None), None)
    return "-" if row["flops"] is None or not dense else f"{100 * row['flops'] / dense:.1f} %"


def margin_text(name: Judged, rows: Sequence[ConfirmationRow]) -> str:
    """The margin of `winning`, in words; nothing where it is not known."""
    against = next((row["vs_dense"][name] for row in rows if "vs_dense" in row), None)
    margin = None if against is None else against.get("margin")
    if against is None or margin is None:
        return ""
    behind = f", of {against['margin_df']} degrees of freedom" if margin_of(against) == "pooled" else ""
    what = "The dense model's standard deviation from seed to seed" if margin_of(against) == "dense" else "Margin"
    return f"{what}: {shown(margin, 3)}{behind}."


# --- tables ---------------------------------------------------------------------------------------------------------


class Sheet(NamedTuple):
    """A table before it is drawn, in a terminal or on a page."""

    title: str
    note: str
    header: Row
    body: list[Row]


def sheets(results: SweepDocument, steps: int, written: Written) -> list[Sheet]:
    """Every table of one training budget: the loss, the FID, and the comparisons that have anything to compare."""
    rows = rows_at(results, steps)
    behind = f"FID (final): {protocol_text(results, 'final')}"
    titles: dict[Judged, str] = {"loss": "Loss", "fid": behind}
    numbers = [
        Sheet(title, margin_text(name, rows), HEADERS[name], [cells(name, row, rows, written) for row in rows])
        for name, title in titles.items()
    ]
    compared = [_compared(key, rows, behind, written) for key in COMPARISONS]
    return [*numbers, *(sheet for sheet in compared if sheet.body)]


def _compared(key: str, rows: Sequence[ConfirmationRow], behind: str, written: Written) -> Sheet:
    title, note = COMPARISONS[key]
    body = [comparison_cells(key, row, written) for row in rows if key in row]
    return Sheet(f"{title}. {behind}", note, comparison_header(key), body)


def confirmation_tables(results: SweepDocument) -> list[FittedTable]:
    """Every table, for a terminal: one training budget after the other."""
    tables = [_drawn(results, steps, sheet) for steps in budgets(results) for sheet in sheets(results, steps, plus_minus)]
    if tables:
        tables[-1].caption = "\n".join(notes(results))
    return tables


def _drawn(results: SweepDocument, steps: int, sheet: Sheet) -> FittedTable:
    """Where it is narrow, a table of numbers keeps its verdicts longest; one of comparisons loses the FID's first."""
    title = f"{results['name']}: confirmed at {steps} training steps\n{sheet.title}"
    last = len(sheet.header) - 1
    least_first = (last, 2, last - 2, 3, 1, last - 1) if sheet.header in HEADERS.values() else (last, *range(last - 1, 0, -1))
    table = FittedTable(title, sheet.header, least_first, seen_by(results, "--json"), sheet.note)
    for row in sheet.body:
        table.add_row(row)
    return table
