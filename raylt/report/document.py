"""What `raylt results --json` prints: the ledger in one document. Needs neither torch nor Ray nor MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylt.report.verdicts import confirmation
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.ceilings import is_feasible
from raylt.store import Ledger
from raylt.store.layout import RUNS_FILE, SIMILARITY_FILE
from raylt.store.ledger_files import COMPLETE, FAIL, PRUNED, RUNNING, Result
from raylt.store.sweep_state import RANKED_KINDS, groups_of, pareto_of, state_of

SCHEMA = 1

# Of a block and of a layer. Sweeps measured by an earlier raylt have the first four alone.
SIMILARITY_NUMBERS = (
    "kappa", "kappa_start", "movement", "pairs", "kappa_low", "kappa_high", "excess", "kappa_partial", "kappa_movement", "z",
    "jaccard", "jaccard_chance",
)  # fmt: skip

_NUMBERS = (
    "density",
    "densities",
    "kept",
    "layers",
    "loss",
    "fid",
    "kid",
    "kid_sd",
    "flops",
    "flops_dense",
    "ticket_bytes",
    "broken",
    "ticket",
)
_ROUND_NUMBERS = ("round", "density", "fid", "kid", "kid_sd", "loss", "flops", "broken")


def results(spec: SweepSpec, ledger: Ledger) -> dict[str, Any]:
    """Everything a sweep has found so far. Two runs of one spec differ in `steps`, `timing` and `mlflow_run_id` alone."""
    best = pareto_of(spec, ledger)
    runs = ledger.read(RUNS_FILE) or {}
    trials = [
        trial_record(trial, ledger.results.get(number), pareto=number in best, run_id=runs.get(str(number)))
        for number, trial in sorted(ledger.asked.items())
    ]
    similarity = ledger.read(SIMILARITY_FILE) or {}
    is_first_schema = ledger.code_schema == 1  # begun before: its numbers are read as they were meant
    return {
        "schema": SCHEMA,
        "name": ledger.name,
        "digest": spec.digest,
        "state": state_of(spec, ledger),
        "objectives": list(spec.search.objectives),
        "protocols": {name: protocol_record(spec, name, is_first_schema) for name in ("search", "final")},
        "counts": counts_of([trial["state"] for trial in trials]),
        "steps": steps_of(trials),
        "similarity": _similarity(similarity.get("blocks", {})),
        "similarity_layers": _similarity(similarity.get("layers", {})),
        "groups": groups_of(spec, similarity),
        "confirmation": confirmation(trials, "dense" if is_first_schema else "pooled", spec.confirm.margin.model_dump()),
        "trials": trials,
    }


def _similarity(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Block or layer -> all its numbers, null where a sweep measured earlier lacks one."""
    places = {place: {name: numbers.get(name) for name in SIMILARITY_NUMBERS} for place, numbers in measured.items()}
    for numbers in places.values():
        kappa, inherited = numbers["kappa"], numbers["kappa_start"]
        if kappa is not None and inherited is not None:
            numbers["excess"] = kappa - inherited
    return places


def protocol_record(spec: SweepSpec, name: Any, is_first_schema: bool = False) -> dict[str, Any]:
    """What stands behind a FID. Sweeps of the first code schema sampled before there was a choice of spacing."""
    known = {**spec.protocol(name).model_dump(mode="json"), "reference": spec.metrics.reference}
    return {key: value for key, value in known.items() if not (is_first_schema and key == "spacing")}


def trial_record(trial: TrialSpec, result: Result | None, *, pareto: bool = False, run_id: str | None = None) -> dict[str, Any]:
    """One trial of `results --json`; `raylt ticket --json` prints one too."""
    known = result or {}
    rounds = [{key: r.get(key) for key in _ROUND_NUMBERS} for r in known.get("rounds", [])]
    return {
        "id": trial.id,
        "kind": trial.kind,
        "rule": trial.rule,
        "control": trial.control,
        "seed": trial.seed,
        "state": known.get("state", RUNNING),
        "protocol": trial.protocol,
        "retry_of": trial.retry_of,
        "confirms": trial.confirms,
        "start_seed": trial.start_seed,
        "train_steps": trial.steps,
        **{name: known.get(name) for name in _NUMBERS},
        "feasible": is_feasible(known) if trial.kind in RANKED_KINDS and known.get("loss") is not None else None,
        "pareto": pareto,
        "rounds": rounds,
        "steps": known.get("steps"),
        "params": dict(trial.params),
        "error": known.get("cause"),
        "timing": _timing(known.get("timing")),
        "mlflow_run_id": run_id,
    }


def counts_of(states: Sequence[str]) -> dict[str, int]:
    names = {"complete": COMPLETE, "pruned": PRUNED, "failed": FAIL, "running": RUNNING}
    return {"asked": len(states), **{name: states.count(state) for name, state in names.items()}}


def _timing(known: dict[str, float] | None) -> dict[str, float | None] | None:
    """With `hours`: what a trial cost, as the time its worker was busy making stages that it found in no store.

    `stages_s`, not `wall_s`: stages outlive the attempt that made them, and who waits for another's stage computes nothing,
    so hours of trials add up. Not in it: steps that were lost to a kill, start-up, and statistics of the data set. null of
    sweeps whose raylt did not keep it.
    """
    stages_s = (known or {}).get("stages_s")
    return None if known is None else {**known, "hours": None if stages_s is None else round(stages_s / 3600, 6)}


def hours_of(trials: Sequence[Mapping[str, Any]]) -> float:
    """Of records of trials, together; those still at it, and those whose worker died for good, do not say."""
    return round(sum((trial["timing"] or {}).get("hours") or 0.0 for trial in trials), 6)


def steps_of(trials: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of records of trials, together."""
    return {key: sum(trial["steps"][key] for trial in trials if trial["steps"]) for key in ("asked", "trained", "shared")}
