"""Trials as tables: what a row says, which trials share a table, and in what order.

Wherever a FID stands, the features, samples and sampler behind it stand too: without them it is no number. A table has
trials of one protocol and one training budget: numbers of two do not compare, so nothing is sorted across them.
"""

from __future__ import annotations

from collections.abc import Sequence

from raylt.errors import InputError
from raylt.report.document import hours_of, steps_of
from raylt.report.fitted_table import FittedTable
from raylt.report.records import Similarity, Steps, SweepDocument, TrialRecord, value_of
from raylt.report.text import SortKey, hours_text, in_forward_order, shown
from raylt.spec.vocabulary import Protocol
from raylt.store.results import COMPLETE
from raylt.store.sweep_state import RANKED_KINDS

Row = list[str]

_OF_A_PROTOCOL = ("loss", "fid", "kid")  # the others are properties of a ticket, however it is scored
_UNITS = ("B", "kB", "MB", "GB")


def pareto_rows(results: SweepDocument) -> list[TrialRecord]:
    """The trials on the Pareto front, best in the first objective first."""
    first = results["objectives"][0]
    return sorted((t for t in results["trials"] if t["pareto"]), key=lambda trial: (value_of(trial, first), trial["id"]))


def protocol_text(results: SweepDocument, protocol: str) -> str:
    """What stands behind the FIDs of a protocol, in one line."""
    record = results["protocols"][protocol]
    reference = "all" if record["reference"] is None else record["reference"]
    spacing = f"{record['spacing']} " if record.get("spacing") else ""
    return (
        f"{record['features']} features, {record['samples']} samples, {record['sampler']} in {record['steps']} "
        f"{spacing}steps, against {reference} training images"
    )


def used_protocols(results: SweepDocument) -> list[str]:
    """The protocols that trials were scored under, the search's first; that one alone where there are none yet."""
    return sorted({trial["protocol"] for trial in results["trials"]}, reverse=True) or ["search"]


# --- which trials, and in what order --------------------------------------------------------------------------------


def selected(
    results: SweepDocument, *, protocol: Protocol | None = None, pareto: bool = False, sort: SortKey | None = None
) -> SweepDocument:
    """The document with the trials of one protocol, or of the front, alone; sorted within each protocol and budget.

    Raises `InputError` where that would sort across protocols.
    """
    if pareto and protocol == "final":
        raise InputError("--pareto is a front of the search's trials; it goes with --protocol search, or with none")
    trials = [t for t in results["trials"] if protocol in (None, t["protocol"]) and (t["pareto"] or not pareto)]
    chosen: SweepDocument = {**results, "trials": trials}
    if sort is None:
        return chosen
    if sort in _OF_A_PROTOCOL and len(used_protocols(chosen)) > 1:
        raise InputError(
            f"--sort {sort}: trials of the protocols search and final do not compare; choose with --protocol search, or with "
            "--protocol final, where each training budget is sorted by itself"
        )
    return {**results, "trials": [trial for _, _, group in comparable(chosen) for trial in in_order(group, sort)]}


def in_order(trials: Sequence[TrialRecord], key: str) -> list[TrialRecord]:
    """The smallest first, those without the number last."""
    return sorted(trials, key=lambda trial: (value_of(trial, key) is None, value_of(trial, key) or 0, trial["id"]))


def comparable(results: SweepDocument) -> list[tuple[str, int | None, list[TrialRecord]]]:
    """(protocol, training budget, its trials in their order): the search's first, then the longest budget of the final."""
    groups: dict[tuple[str, int | None], list[TrialRecord]] = {}
    for trial in results["trials"]:
        groups.setdefault((trial["protocol"], trial["train_steps"]), []).append(trial)
    in_turn = sorted(groups, key=lambda group: (group[0] == "final", -(group[1] or 0)))
    return [(protocol, steps, groups[protocol, steps]) for protocol, steps in in_turn]


# --- rows: what a trial shows, as text ------------------------------------------------------------------------------

TRIAL_HEADER = ["id", "kind", "rule", "state", "density", "loss", "FID", "FLOPs", "ticket", "Pareto"]
CONFIRMING_HEADER = ["id", "rule", "control", "of", "seed", *TRIAL_HEADER[3:8]]  # a dense model has no rule
_LEAST_TRIAL, _LEAST_CONFIRMING = (1, 8, 2, 4, 3, 7, 6, 9, 5), (4, 5, 9, 6, 3, 8, 1, 2, 7)  # left out first where it is narrow


def trial_row(trial: TrialRecord) -> Row:
    """The cells of `TRIAL_HEADER`. Trials of two protocols belong into two tables."""
    numbers = [state_text(trial), *(shown(trial[name]) for name in ("density", "loss", "fid")), flops_text(trial)]
    names = [str(trial["id"]), trial["kind"], trial["rule"] or "-"]
    return [*names, *numbers, bytes_text(trial["ticket_bytes"]), "*" if trial["pareto"] else ""]


def confirming_row(trial: TrialRecord) -> Row:
    """The cells of `CONFIRMING_HEADER`, of a trial that confirms another; `of` is the other's number."""
    names = [str(trial["id"]), trial["rule"] or "-", trial["control"] or "-", shown(trial["confirms"]), str(trial["seed"])]
    return [*names, *trial_row(trial)[3:8]]


def state_text(trial: TrialRecord) -> str:
    """A trial's state in a word; a complete one is `broken` where its network is dead, `over` where it costs too much."""
    if trial["state"] == "COMPLETE" and (trial["broken"] or trial.get("feasible") is False):
        return "broken" if trial["broken"] else "over"
    return "failed" if trial["state"] == "FAIL" else str(trial["state"]).lower()


def row_style(trial: TrialRecord) -> str:
    """How a trial's row stands out: on the front, or as one that is not ranked."""
    return "dim" if state_text(trial) != "complete" else "front" if trial["pareto"] else ""


def flops_text(trial: TrialRecord) -> str:
    """FLOPs as a share of the dense model's."""
    flops, dense = trial["flops"], trial["flops_dense"]
    return "-" if flops is None or not dense else f"{100 * flops / dense:.1f} %"


def bytes_text(value: float | None) -> str:
    """A size with a decimal unit."""
    if value is None:
        return "-"
    power = 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}"


def similarity_rows(results: SweepDocument) -> list[Row]:
    """The cells of `SIMILARITY_HEADER`, of every block, those kept dense with dashes."""
    similarity = results.get("similarity") or {}
    return [_similarity_row(block, similarity[block]) for block in in_forward_order(similarity)]


SIMILARITY_HEADER = [
    "block", "kappa", "±95 %", "kappa\nstart", "excess", "kappa\npartial", "kappa\nmovement", "z", "movement", "pairs",
]  # fmt: skip
_LEAST_SIMILARITY = (9, 8, 6, 5, 7, 3, 2, 4, 1)


def _similarity_row(block: str, numbers: Similarity) -> Row:
    def fixed(value: float | None, decimals: int = 3) -> str:
        return "-" if value is None else f"{value:.{decimals}f}"

    low, high = numbers.get("kappa_low"), numbers.get("kappa_high")
    kappas = [fixed(value_of(numbers, name)) for name in ("kappa_start", "excess", "kappa_partial", "kappa_movement")]
    reach = None if low is None or high is None else (high - low) / 2
    tail = [fixed(numbers.get("z"), 1), shown(numbers.get("movement"), 3), str(numbers.get("pairs") or 0)]
    return [block, fixed(numbers.get("kappa")), fixed(reach), *kappas, *tail]


COST_HEADER = ["id", "kind", "rule", "state", "asked", "trained", "shared", "hours"]
_LEAST_COST = (1, 2, 3, 6, 4, 5, 7)


def cost_row(trial: TrialRecord) -> Row:
    """The cells of `COST_HEADER`: training steps, and the hours of the stages that the trial made itself."""
    names = [str(trial["id"]), trial["kind"], trial["rule"] or "-", state_text(trial)]
    hours = None if trial["timing"] is None else trial["timing"]["hours"]
    return [*names, *_step_cells(trial["steps"]), "-" if hours is None else hours_text(3600 * hours)]


def _step_cells(steps: Steps | None) -> list[str]:
    if steps is None:
        return ["-"] * 3
    return [f"{steps['asked']:,}", f"{steps['trained']:,}", f"{steps['shared']:,}"]


def cost_text(trials: Sequence[TrialRecord]) -> str:
    """What trials cost together, in one line."""
    asked, trained, shared = _step_cells(steps_of(trials))
    hours = hours_text(3600 * hours_of(trials))
    return f"steps: {asked} asked, {trained} trained, {shared} shared; {hours} trial-hours"


def failures(trials: Sequence[TrialRecord]) -> list[str]:
    """One line a cause: which trials it ended."""
    causes: dict[str, list[str]] = {}
    for trial in trials:
        if trial["state"] == "FAIL":
            causes.setdefault(trial["error"] or "unknown cause", []).append(str(trial["id"]))
    return [f"trial{'s' if len(ids) > 1 else ''} {', '.join(ids)} failed: {cause}" for cause, ids in causes.items()]


# --- tables for a terminal ------------------------------------------------------------------------------------------


def trials_tables(results: SweepDocument, protocol: Protocol = "search") -> list[FittedTable]:
    """The trials of a protocol in tables that fit 80 columns: one of the search, one of each budget of the final."""
    if protocol == "search":
        return [_search_table(results, [trial for trial in results["trials"] if trial["protocol"] == "search"])]
    return [_final_table(results, steps, trials) for p, steps, trials in comparable(results) if p == "final"]


def why_no_front(results: SweepDocument) -> str:
    """Why a sweep that has ended ranks no ticket."""
    trials = [trial for trial in results["trials"] if trial["kind"] in RANKED_KINDS and trial["protocol"] == "search"]
    counts = {
        "are not complete": sum(trial["state"] != COMPLETE for trial in trials),
        "are broken": sum(bool(trial["broken"]) for trial in trials),
        "cost more than search.constraints allows": sum(trial["feasible"] is False and not trial["broken"] for trial in trials),
    }
    reasons = ", ".join(f"{num} {what}" for what, num in counts.items() if num)
    without_controls = ", and nothing is confirmed with controls" if results["confirmation"] else ""
    return f"no ticket is ranked{without_controls}: of {len(trials)} baselines and search trials, {reasons or 'none was asked'}"


def pareto_table(results: SweepDocument, sort: SortKey | None = None) -> FittedTable:
    """The Pareto front, best in the first objective first unless it is sorted otherwise, under the dense model."""
    dense = [trial for trial in results["trials"] if trial["kind"] == "dense" and trial["protocol"] == "search"]
    front = pareto_rows(results) if sort is None else in_order(pareto_rows(results), sort)
    title = _title(results, f"Pareto front in {', '.join(results['objectives'])}", "search")
    return _trials_table(results, title, "under the dense model (not ranked)" if dense else "", TRIAL_HEADER, [*dense, *front])


def _search_table(results: SweepDocument, trials: Sequence[TrialRecord]) -> FittedTable:
    notes = [*failures(trials), *(["* on the Pareto front"] if any(t["pareto"] for t in trials) else [])]
    title = _title(results, f"{len(trials)} trials", "search")
    return _trials_table(results, title, "\n".join(notes), TRIAL_HEADER, trials)


def _final_table(results: SweepDocument, steps: int | None, trials: Sequence[TrialRecord]) -> FittedTable:
    title = _title(results, f"{len(trials)} confirming trials, {steps} training steps", "final")
    return _trials_table(results, title, "\n".join(failures(trials)), CONFIRMING_HEADER, trials)


def _title(results: SweepDocument, what: str, protocol: str) -> str:
    return f"{results['name']} ({results['state']}): {what}\nFID ({protocol}): {protocol_text(results, protocol)}"


def _trials_table(results: SweepDocument, title: str, caption: str, header: Row, trials: Sequence[TrialRecord]) -> FittedTable:
    is_search = header is TRIAL_HEADER
    row_of, least = (trial_row, _LEAST_TRIAL) if is_search else (confirming_row, _LEAST_CONFIRMING)
    table = FittedTable(title, header, least, seen_by(results, "--csv"), caption)
    for trial in trials:
        table.add_row(row_of(trial), style={"front": "bold"}.get(row_style(trial), row_style(trial)))
    return table


def seen_by(results: SweepDocument, option: str) -> str:
    """Where to find what a table leaves out."""
    return f"`raylt results {results['name']} {option}` has them"


def cost_table(results: SweepDocument) -> FittedTable:
    """What each trial cost, and all together in the last row."""
    trials = results["trials"]
    table = FittedTable(
        f"{results['name']} ({results['state']}): cost of {len(trials)} trials", COST_HEADER, _LEAST_COST,
        seen_by(results, "--csv"), "training steps; hours of the stages that a trial made itself, by its last attempt at each",
    )  # fmt: skip
    for trial in trials:
        table.add_row(cost_row(trial), end_section=trial is trials[-1])
    total = _step_cells(steps_of(trials))
    table.add_row(["all", "", "", "", *total, hours_text(3600 * hours_of(trials))])
    return table


_SIMILARITY_NOTE = (
    "kappa 0: chance, 1: equal; start: with the largest weights of the start; excess: over that; partial: given it"
)


def similarity_table(results: SweepDocument) -> FittedTable:
    """Similarity of the pilots' masks, block by block."""
    title = f"{results['name']}: similarity of the pilots' masks"
    table = FittedTable(title, SIMILARITY_HEADER, _LEAST_SIMILARITY, seen_by(results, "--json"), _SIMILARITY_NOTE)
    for row in similarity_rows(results):
        table.add_row(row)
    return table
