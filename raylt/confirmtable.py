"""What a confirmation says, as tables: one of each number and training budget, never two protocols or budgets in one.

The loss, the FID, and how far controls are from their tickets: three tables a budget, so that each fits a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from raylt.figures import shown
from raylt.report import justify, new_table, protocol_text

Record = Mapping[str, Any]
Row = list[str]
Written = Callable[[Record, str], str]  # a summary with its interval as text; "+" as the sign of a difference

NUMBERS = {"loss": "loss", "fid": "FID"}
HEADERS = {
    "loss": ["rule", "density", "n", "loss", "- dense", "verdict", "FLOPs"],
    "fid": ["rule", "density", "n", "FID", "- dense", "verdict", "KID (sd)"],
}
CONTROLS_HEADER = ["rule", "density", "control", "loss - ticket", "verdict", "FID - ticket", "verdict"]
NOTES = (
    "n: seeds (broken ones). Intervals: 95 % of a mean over seeds (Student t). - dense, - ticket: differences, paired by seed.",
    "winning: the whole interval lies below the dense model's own standard deviation from seed to seed; not winning: above it.",
    "better, worse: the whole interval lies below 0, above 0. undecided: neither, or too few seeds.",
    "small-dense: a whole U-Net, made smaller to the FLOPs of the ticket whose density its row has.",
)


def budgets(results: Record) -> list[int]:
    """The training budgets that were confirmed, in steps, the longest first."""
    return sorted({row["train_steps"] for row in results["confirmation"]}, reverse=True)


def rows_at(results: Record, steps: int) -> list[Record]:
    """The rows of one budget: dense, then tickets from dense to sparse, each followed by its controls."""
    return [row for row in results["confirmation"] if row["train_steps"] == steps]


def ticket_of(row: Record, rows: Sequence[Record]) -> Record:
    """The row of the ticket that a control is compared with; itself for any other, and where that one has no row yet."""
    keys = ("confirms", "rule", "round")
    return next((other for other in rows if other["control"] is None and all(other[k] == row[k] for k in keys)), row)


def density_of(row: Record, rows: Sequence[Record]) -> float | None:
    """The density a row is about. A small dense model keeps all of its own weights: its is that of the ticket beside it."""
    ticket = ticket_of(row, rows)
    return None if ticket["control"] == "small-dense" else ticket["density"]


def name_of(row: Record) -> str:
    """The rule of a ticket, a searched one with its trial's number."""
    rule = row["rule"] or "dense"
    return f"{rule} {row['confirms']}" if rule == "searched" else rule


def label_of(row: Record, rows: Sequence[Record]) -> str:
    """A ticket's name; a control's under it, or with it where the ticket has no row of its own."""
    if row["control"] is None:
        return name_of(row)
    return f"  {row['control']}" if ticket_of(row, rows) is not row else f"{name_of(row)} {row['control']}"


# --- cells ----------------------------------------------------------------------------------------------------------


def cells(name: str, row: Record, rows: Sequence[Record], written: Written | None = None) -> Row:
    """The cells of `HEADERS[name]`; means as `plus_minus`, unless they are to be written otherwise."""
    written = written or plus_minus
    broken = f" ({row['broken']})" if name == "loss" and row["broken"] else ""
    against = row.get("vs_dense", {}).get(name)
    last = _flops(row, rows) if name == "loss" else _kid(row["kid"])
    numbers = [shown(density_of(row, rows), 3), f"{row[name]['n']}{broken}", written(row[name], "")]
    return [label_of(row, rows), *numbers, *difference(against, written), last]


def control_cells(row: Record, rows: Sequence[Record]) -> Row:
    """The cells of `CONTROLS_HEADER`, of a control."""
    differences = [cell for name in NUMBERS for cell in difference(row["vs_ticket"][name], plus_minus)]
    return [name_of(row), shown(density_of(row, rows), 3), row["control"], *differences]


def difference(against: Record | None, written: Written) -> Row:
    """A paired difference and its verdict; dashes where there is nothing to compare with."""
    return ["-", "-"] if against is None else [written(against, "+"), against["verdict"]]


def plus_minus(summary: Record, sign: str) -> str:
    """A mean and half its interval: as many decimals as the interval has to say; the mean alone of one seed."""
    mean, high = summary["mean"], summary["high"]
    if mean is None:
        return "-"
    if high is None:
        return f"{mean:{sign}.4g}"
    decimals = _decimals(high - mean)
    return f"{mean:{sign}.{decimals}f} ± {high - mean:.{decimals}f}"


def interval(summary: Record, sign: str) -> str:
    """A mean and the ends of its interval: `0.0907 [0.0889, 0.0925]`."""
    mean, low, high = (summary[key] for key in ("mean", "low", "high"))
    if mean is None or high is None:
        return plus_minus(summary, sign)
    decimals = _decimals(high - mean)
    return f"{mean:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"


def _decimals(error: float) -> int:
    """Two digits of an error."""
    return min(6, max(0, 1 - math.floor(math.log10(error)))) if error > 0 else 4


def _kid(summary: Record) -> str:
    mean, sd = summary["mean"], summary["sd"]
    if mean is None or sd is None:
        return shown(mean, 3)
    decimals = _decimals(sd)
    return f"{mean:.{decimals}f} ({sd:.{decimals}f})"


def _flops(row: Record, rows: Sequence[Record]) -> str:
    """FLOPs as a share of the dense model's."""
    dense = next((other["flops"] for other in rows if other["rule"] is None), None)
    return "-" if row["flops"] is None or not dense else f"{100 * row['flops'] / dense:.1f} %"


def margin_text(name: str, rows: Sequence[Record]) -> str:
    """The margin of `winning`, in words; nothing where it is not known."""
    dense = next((row for row in rows if row["rule"] is None), None)
    sd = dense[name]["sd"] if dense else None
    return "" if sd is None else f"The dense model's standard deviation from seed to seed: {shown(sd, 3)}."


# --- tables for a terminal ------------------------------------------------------------------------------------------


def confirmation_tables(results: Record) -> list[Table]:
    """Every table, of at most 80 columns: the loss, the FID and the controls, one training budget after the other."""
    tables = []
    for steps in budgets(results):
        rows = rows_at(results, steps)
        tables += [_number_table(results, name, steps, rows) for name in NUMBERS]
        if any(row["control"] for row in rows):
            tables.append(_controls_table(results, steps, rows))
    if tables:
        tables[-1].caption = Text("\n".join(NOTES))
    return tables


def _number_table(results: Record, name: str, steps: int, rows: Sequence[Record]) -> Table:
    title = f"{results['name']}: {NUMBERS[name]} after {steps} training steps, confirmed on fresh seeds"
    title += _fid_behind(results) if name == "fid" else ""
    return _filled(title, margin_text(name, rows), HEADERS[name], [cells(name, row, rows) for row in rows])


def _controls_table(results: Record, steps: int, rows: Sequence[Record]) -> Table:
    title = f"{results['name']}: controls against their tickets after {steps} training steps{_fid_behind(results)}"
    return _filled(title, "", CONTROLS_HEADER, [control_cells(row, rows) for row in rows if row["control"]])


def _fid_behind(results: Record) -> str:
    return f"\nFID (final): {protocol_text(results, 'final')}"


def _filled(title: str, caption: str, header: Row, body: Sequence[Row]) -> Table:
    table = new_table(title, caption)
    for name in header:
        table.add_column(Text(name), justify=justify(name), overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))
    return table
