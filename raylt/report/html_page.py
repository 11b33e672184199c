"""`raylt report`: one results document as one HTML page that needs nothing else, on a screen, in the dark, on paper.

What stands where, and every sentence, is in `templates/report.html.j2`; this file gathers what it is given. Everything is
escaped as it enters the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raylt.report.comparison_figures import allocations_png, confirmation_png
from raylt.report.confirmation_tables import budgets, interval, notes, sheets
from raylt.report.figures import pareto_png, similarity_heat_png, similarity_png
from raylt.report.fitted_table import justify
from raylt.report.records import SweepDocument, TrialRecord
from raylt.report.sample_grids import Grid, sample_grids
from raylt.report.tables import (
    SIMILARITY_HEADER,
    TRIAL_HEADER,
    failures,
    pareto_rows,
    protocol_text,
    row_style,
    similarity_rows,
    trial_row,
    used_protocols,
)
from raylt.report.text import shown, trial_name
from raylt.store import Ledger
from raylt.store.ledger_files import read_lock
from raylt.store.sweep_lock import NO_LOCK, SweepLock

Pictures = Mapping[str, bytes]
Row = list[str]


def sweep_page(results: SweepDocument, ledger: Ledger, spec_yaml: str, pictures: Pictures | None = None) -> str:
    """The page of a sweep, with what its store has: samples, versions."""
    return html_page(results, spec_yaml, read_lock(ledger.store, ledger.name), sample_grids(ledger, results), pictures)


def html_page(
    results: SweepDocument, spec_yaml: str, lock: SweepLock | None = None, grids: Sequence[Sequence[Grid]] = (),
    pictures: Pictures | None = None,
) -> str:  # fmt: skip
    """The whole sweep as one page.

    `lock`: what was resolved when it started; `grids`: lists of samples to show; `pictures`: where they are drawn already.
    """
    search = [trial for trial in results["trials"] if trial["protocol"] == "search"]
    counts = results["counts"]
    ended = ", ".join(f"{counts[key]} {key}" for key in ("complete", "pruned", "failed", "running") if counts[key])
    return _environment().get_template("report.html.j2").render(
        sweep=results, spec_yaml=spec_yaml, grids=grids, ended=ended or "none ended", failures=failures(results["trials"]),
        protocols={name: protocol_text(results, name) for name in ("search", "final") if name in used_protocols(results)},
        objectives=", ".join(results["objectives"]), notes=notes(results),
        budgets={steps: sheets(results, steps, interval) for steps in budgets(results)},
        trial_header=TRIAL_HEADER, front=_trial_rows(pareto_rows(results)), searched=_trial_rows(search),
        confirming=len(results["trials"]) - len(search),
        similarity_header=SIMILARITY_HEADER, similarity=similarity_rows(results),
        pictures=pictures or pictures_of(results), resolved=_resolved(lock or NO_LOCK),
    )  # fmt: skip


def pictures_of(results: SweepDocument) -> Pictures:
    """Name -> PNG bytes: the page's, which MLflow is given as files too."""
    drawn = {
        "pareto": pareto_png(results),
        "allocations": allocations_png(results),
        "similarity_heat": similarity_heat_png(results),
        "similarity": similarity_png(results),
    }
    return drawn | ({"confirmation": confirmation_png(results)} if results["confirmation"] else {})


def _resolved(lock: SweepLock) -> dict[str, str]:
    """What was resolved when the sweep started, in words."""
    how = lock.computed
    return {
        "Versions": ", ".join(f"{name} {version}" for name, version in lock.versions.items()),
        "Resolved": ""
        if how is None
        else f"precision {how.precision}, device {how.device}, threads {how.threads}, steps {how.form}",
    }


def _trial_rows(trials: Sequence[TrialRecord]) -> list[tuple[Row, str]]:
    """Each row with the class that it stands out by."""
    return [(trial_row(trial), row_style(trial)) for trial in trials]


# --- what the template calls ----------------------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    made = Environment(loader=PackageLoader("raylt.report"), autoescape=True, undefined=StrictUndefined)
    made.filters |= {"base64": _base64, "plain": _plain}
    made.globals |= {"kind": _kind, "shown": shown, "trial_name": trial_name}
    return made


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _plain(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """Rows of which none stands out."""
    return [(row, "") for row in rows]


def _kind(name: str, cell: str) -> Markup:
    """The class of a cell of column `name`."""
    kind = "number" if justify(name) == "right" else ""
    if name == "verdict":
        kind = "undecided" if cell in ("undecided", "-") else "decided"
    return Markup(f' class="{kind}"' if kind else "")
