"""What `raylt results --json` prints: the ledger in one document. Needs neither torch nor Ray nor MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raylt.ceilings import is_feasible
from raylt.errors import SpecError
from raylt.lease import read_holder
from raylt.ledger import Ledger
from raylt.ledgerfiles import COMPLETE, FAIL, PRUNED, RUNNING, Result, is_sealed, read_lock
from raylt.pareto import pareto_ids
from raylt.plan import TrialSpec, plan
from raylt.seals import BadSeal, seal_yaml, unseal_yaml
from raylt.spec import SweepSpec
from raylt.specfile import parse_spec
from raylt.store import Store
from raylt.verdicts import confirmation

SCHEMA = 1
RANKED_KINDS = ("baseline", "search")  # pilots and the dense model are measured against, not ranked
SPEC_FILE, SIMILARITY_FILE, RUNS_FILE = "spec.yaml", "similarity.json", "mlflow.json"

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


def stored_spec(store: Store, name: str) -> SweepSpec:
    """The spec a sweep was last run with."""
    path = f"sweeps/{name}/{SPEC_FILE}"
    yaml, begun = stored_yaml(store, name), (read_lock(store, name) or {}).get("spec")
    try:
        spec, then = (parse_spec(text, f"{store.root}/{path}", was_begun=True) for text in (yaml, begun or yaml))
    except SpecError as error:
        why = f"it is no spec that this raylt reads ({str(error).splitlines()[0]})"
        raise store.damaged(path, why) from error
    if spec.digest != then.digest:
        raise store.damaged(path, "it is of another sweep of this name")
    return spec


def write_spec(store: Store, name: str, yaml: str) -> None:
    """Keep the spec that a sweep is run with: what `stored_yaml` reads."""
    path = f"sweeps/{name}/{SPEC_FILE}"
    store.write(path, seal_yaml(yaml, path))


def stored_yaml(store: Store, name: str) -> str:
    """That spec's text. Raises `Damaged`."""
    path = f"sweeps/{name}/{SPEC_FILE}"
    data = store.read(path)
    if data is None:
        raise store.damaged(path, "it is not there, though the sweep was begun")
    try:
        text, has_sum = unseal_yaml(data, path)
        if not has_sum and is_sealed(read_lock(store, name)):
            raise BadSeal("its checksum is missing")
    except BadSeal as error:
        raise store.damaged(path, str(error)) from error
    return text


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


def groups_of(spec: SweepSpec, similarity: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Group -> its blocks: the spec's, or those chosen with the profile; None until they are."""
    return similarity.get("groups") if spec.search.has_auto_groups else spec.groups


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


def is_ranked(trial: TrialSpec, result: Result) -> bool:
    """Whether a trial competes: complete, alive, within the ceilings, of a kind that does, and scored as the others are."""
    is_candidate = trial.kind in RANKED_KINDS and not trial.is_confirmation
    return is_candidate and result["state"] == COMPLETE and not result["broken"] and is_feasible(result)


def pareto_of(spec: SweepSpec, ledger: Ledger) -> set[int]:
    """Ids of the trials on the Pareto front: of baselines and search trials that are complete and not broken."""
    candidates = [(number, result) for number, result in ledger.results.items() if is_ranked(ledger.asked[number], result)]
    return pareto_ids(spec.search.objectives, candidates)


def states_of(ledger: Ledger) -> dict[int, tuple[str, str | None]]:
    """Trial -> (state, cause), by id."""
    return {n: ledger.results.ending(n) if n in ledger.results else (RUNNING, None) for n in sorted(ledger.asked)}


def counts_of(states: Sequence[str]) -> dict[str, int]:
    names = {"complete": COMPLETE, "pruned": PRUNED, "failed": FAIL, "running": RUNNING}
    return {"asked": len(states), **{name: states.count(state) for name, state in names.items()}}


def is_complete(spec: SweepSpec, ledger: Ledger) -> bool:
    """Every planned, every search and every confirming trial has been asked and has ended."""
    planned = [*plan(spec), *ledger.confirmations()]
    all_asked = ledger.num_searched >= spec.search.trials and all(item.trial.id in ledger.asked for item in planned)
    return all_asked and not ledger.open_trials()


def next_free_id(spec: SweepSpec, ledger: Ledger) -> int:
    """An id that is neither asked nor planned."""
    planned = [item.trial.id for item in [*plan(spec), *ledger.confirmations()]]
    return 1 + max([*planned, *ledger.asked])


def failed_trials(ledger: Ledger) -> list[int]:
    """The trials that failed and have not been asked again, by id."""
    again = {trial.retry_of for trial in ledger.asked.values()}
    return sorted(n for n in ledger.results if ledger.results.ending(n)[0] == FAIL and n not in again)


def state_of(spec: SweepSpec, ledger: Ledger) -> str:
    """running (a driver lives) | complete | interrupted."""
    if is_complete(spec, ledger):
        return "complete"
    holder = read_holder(ledger.store, ledger.name)
    return "running" if holder is not None and holder.seems_alive else "interrupted"


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
