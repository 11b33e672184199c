"""What `raylt results --json` prints: the ledger in one document. Needs neither torch nor Ray nor MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from raylt.report.records import Counts, ProtocolRecord, RoundRecord, Similarity, Steps, SweepDocument, Timing, TrialRecord
from raylt.report.verdicts import confirmation
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.vocabulary import Protocol
from raylt.store import Ledger
from raylt.store.layout import RUNS_FILE
from raylt.store.results import COMPLETE, FAIL, NOT_SCORED, PRUNED, RUNNING, RoundResult, StepCounts, TrialResult
from raylt.store.results import Timing as StoredTiming
from raylt.store.sweep_state import RANKED_KINDS, groups_of, pareto_of, state_of

SCHEMA = 1
SIMILARITY_NUMBERS, _ROUND_NUMBERS = tuple(Similarity.__annotations__), tuple(RoundRecord.__annotations__)


def results(spec: SweepSpec, ledger: Ledger) -> SweepDocument:
    """Everything a sweep has found so far. Two runs of one spec differ in `steps`, `timing` and `mlflow_run_id` alone."""
    best = pareto_of(spec, ledger)
    runs = ledger.read(RUNS_FILE) or {}
    trials = [
        trial_record(trial, ledger.results.get(number), pareto=number in best, run_id=runs.get(str(number)))
        for number, trial in sorted(ledger.submitted.items())
    ]
    similarity = ledger.similarity()
    is_first_schema = ledger.code_schema == 1  # started before: its numbers are read as they were meant
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


def _similarity(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Similarity]:
    """Block or layer -> all its numbers, null where a sweep measured earlier lacks one."""
    places: dict[str, Similarity] = {}
    for place, stored in measured.items():
        numbers = cast(Similarity, {name: stored.get(name) for name in SIMILARITY_NUMBERS})
        kappa, inherited = numbers["kappa"], numbers["kappa_start"]
        if kappa is not None and inherited is not None:
            numbers["excess"] = kappa - inherited
        places[place] = numbers
    return places


def protocol_record(spec: SweepSpec, name: Protocol, is_first_schema: bool = False) -> ProtocolRecord:
    """What stands behind a FID. Sweeps of the first code schema sampled before there was a choice of spacing."""
    resolved = {**spec.protocol(name).model_dump(mode="json"), "reference": spec.metrics.reference}
    record = cast(ProtocolRecord, resolved)
    if is_first_schema:
        record.pop("spacing", None)
    return record


def trial_record(
    trial: TrialSpec, result: TrialResult | None, *, pareto: bool = False, run_id: str | None = None
) -> TrialRecord:
    """One trial of `results --json`; `raylt ticket --json` prints one too."""
    ticket = None if result is None else result.ticket
    scores = NOT_SCORED if result is None else result.scores
    has_rank = trial.kind in RANKED_KINDS and scores.loss is not None
    return {
        "id": trial.id,
        "kind": trial.kind,
        "rule": trial.training.rule,
        "control": trial.training.control,
        "seed": trial.training.seed,
        "state": RUNNING if result is None else result.state,
        "protocol": trial.protocol,
        "retry_of": trial.retry_of,
        "confirms": trial.confirms,
        "start_seed": trial.training.start_seed,
        "train_steps": trial.training.steps,
        "density": scores.density,
        "densities": None if ticket is None else ticket.densities,
        "kept": None if ticket is None else _counts(ticket.blocks),
        "layers": None if ticket is None else _counts(ticket.layers),
        "loss": scores.loss,
        "fid": scores.fid,
        "kid": scores.kid,
        "kid_sd": scores.kid_sd,
        "flops": scores.flops,
        "flops_dense": None if ticket is None else ticket.flops_dense,
        "ticket_bytes": scores.ticket_bytes,
        "broken": scores.broken,
        "ticket": None if ticket is None else ticket.digest,
        "feasible": result.is_feasible if result is not None and has_rank else None,
        "pareto": pareto,
        "rounds": [] if result is None else [_round_record(scored) for scored in result.rounds],
        "steps": None if result is None else _steps(result.steps),
        "params": dict(trial.proposal.params),
        "error": None if result is None else result.cause,
        "timing": None if result is None else _timing(result.timing),
        "mlflow_run_id": run_id,
    }


def _counts(kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    return {place: list(counts) for place, counts in kept.items()}


def _round_record(scored: RoundResult) -> RoundRecord:
    return cast(RoundRecord, {key: getattr(scored, key) for key in _ROUND_NUMBERS})


def _steps(counts: StepCounts | None) -> Steps | None:
    # in the order of the ledger's file, as earlier versions printed it
    return None if counts is None else {"asked": counts.asked, "shared": counts.shared, "trained": counts.trained}


def counts_of(states: Sequence[str]) -> Counts:
    return {
        "asked": len(states), "complete": states.count(COMPLETE), "pruned": states.count(PRUNED),
        "failed": states.count(FAIL), "running": states.count(RUNNING),
    }  # fmt: skip


def _timing(seconds: StoredTiming | None) -> Timing | None:
    """With `hours`: what a trial cost, as the time its worker was busy making stages that it found in no store.

    `stages_s`, not `wall_s`: stages outlive the attempt that made them, and who waits for another's stage computes nothing,
    so hours of trials add up. Not in it: steps that were lost to a kill, start-up, and statistics of the data set.
    """
    if seconds is None:
        return None
    return {"stages_s": seconds.stages_s, "wall_s": seconds.wall_s, "hours": round(seconds.stages_s / 3600, 6)}


def hours_of(trials: Sequence[TrialRecord]) -> float:
    """Of records of trials, together; those still at it, and those whose worker died for good, do not say."""
    return round(sum(trial["timing"]["hours"] for trial in trials if trial["timing"]), 6)


def steps_of(trials: Sequence[TrialRecord]) -> Steps:
    """Of records of trials, together."""
    counts = [trial["steps"] for trial in trials if trial["steps"]]
    return {
        "asked": sum(steps["asked"] for steps in counts),
        "trained": sum(steps["trained"] for steps in counts),
        "shared": sum(steps["shared"] for steps in counts),
    }
