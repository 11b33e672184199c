"""Which tickets' samples a report shows side by side, and their grids, read from the stages that results name."""

from __future__ import annotations

import logging
from typing import NamedTuple

from raylt.errors import EnvironmentFailure
from raylt.report.figures import small_grid_png
from raylt.report.records import SweepDocument, TrialRecord, value_of
from raylt.report.tables import comparable, pareto_rows
from raylt.store import Ledger
from raylt.store.results import COMPLETE
from raylt.store.stages import stage_of

log = logging.getLogger("raylt.report")

MOST = 24  # grids of one budget


class Grid(NamedTuple):
    """A trial's first samples. All trials sample from the same noise, so that grids compare image by image."""

    trial: TrialRecord
    density: float | None  # of the ticket it is about: a small dense model keeps all of its own weights
    png: bytes | None  # None: the store has them no more


def sample_grids(ledger: Ledger, results: SweepDocument) -> list[list[Grid]]:
    """One list a training budget: dense, tickets, their controls, all of the confirmation's first seed.

    Before anything was confirmed: the search's dense model and its Pareto front.
    """
    final = [trials for protocol, _, trials in comparable(results) if protocol == "final"]
    groups = [_of_first_seed(trials) for trials in final] or [_of_the_search(results)]
    return [
        [Grid(trial, _density(trial, results), _grid_png(ledger, trial["id"])) for trial in group[:MOST]]
        for group in groups
        if group
    ]


def _of_first_seed(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Dense first, then each ticket followed by its controls."""
    seed = min(trial["seed"] for trial in trials)
    complete = [trial for trial in trials if trial["seed"] == seed and trial["state"] == COMPLETE]
    return sorted(
        complete, key=lambda trial: (trial["rule"] is not None, trial["confirms"], trial["control"] or "", trial["id"])
    )


def _of_the_search(results: SweepDocument) -> list[TrialRecord]:
    dense = [t for t in results["trials"] if t["kind"] == "dense" and t["state"] == COMPLETE]
    return [*dense, *pareto_rows(results)]


def _density(trial: TrialRecord, results: SweepDocument) -> float | None:
    """Of a confirming trial, what its row of the confirmation is about; of the search's, its own."""
    if trial["protocol"] == "search":
        return trial["density"]
    keys = ("train_steps", "confirms", "control")
    rows = (row for row in results["confirmation"] if all(value_of(row, key) == value_of(trial, key) for key in keys))
    return next((row["density"] for row in rows if row["round"] == trial["rounds"][-1]["round"]), None)


def _grid_png(ledger: Ledger, number: int) -> bytes | None:
    from safetensors.numpy import load

    from raylt.store.layout import GRID

    result = ledger.results[number]
    try:
        stage = stage_of(ledger.store, result.stages, result.kept_ticket().sample_stage)
        return small_grid_png(load(stage.read(GRID))["images/first"])
    except EnvironmentFailure as error:  # collected as garbage
        log.warning("the report lacks the samples of trial %d: %s", number, error)
        return None
