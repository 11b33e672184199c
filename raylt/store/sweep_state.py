"""What a ledger says of its sweep: its spec, which trials finished and how, what is ranked, whether it is complete."""

from __future__ import annotations

from raylt.errors import SpecError
from raylt.spec import SweepSpec, TrialSpec, parse_spec, plan
from raylt.store.layout import SPEC_FILE
from raylt.store.lease import read_holder
from raylt.store.ledger import Ledger
from raylt.store.ledger_files import read_lock
from raylt.store.pareto import pareto_ids
from raylt.store.results import COMPLETE, FAIL, RUNNING, Measured, TrialResult
from raylt.store.seals import BadSeal, seal_yaml, unseal_yaml
from raylt.store.stages import Store
from raylt.store.sweep_lock import NO_LOCK

RANKED_KINDS = ("baseline", "search")  # pilots and the dense model are measured against, not ranked


def stored_spec(store: Store, name: str) -> SweepSpec:
    """The spec a sweep was last run with."""
    path = f"sweeps/{name}/{SPEC_FILE}"
    yaml, first_yaml = stored_yaml(store, name), (read_lock(store, name) or NO_LOCK).spec
    try:
        spec, then = (parse_spec(text, f"{store.root}/{path}", was_started=True) for text in (yaml, first_yaml or yaml))
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
        raise store.damaged(path, "it is not there, though the sweep was started")
    try:
        text, has_sum = unseal_yaml(data, path)
        if not has_sum and (read_lock(store, name) or NO_LOCK).is_sealed:
            raise BadSeal("its checksum is missing")
    except BadSeal as error:
        raise store.damaged(path, str(error)) from error
    return text


def groups_of(spec: SweepSpec, similarity: Measured) -> dict[str, list[str]] | None:
    """Group -> its blocks: the spec's, or those chosen with the profile; None until they are."""
    return similarity.get("groups") if spec.search.has_auto_groups else spec.groups


def is_ranked(trial: TrialSpec, result: TrialResult) -> bool:
    """Whether a trial competes: complete, alive, within the ceilings, of a kind that does, and scored as the others are."""
    is_candidate = trial.kind in RANKED_KINDS and not trial.is_confirmation
    return is_candidate and result.state == COMPLETE and not result.scores.broken and result.is_feasible


def pareto_of(spec: SweepSpec, ledger: Ledger) -> set[int]:
    """Ids of the trials on the Pareto front: of baselines and search trials that are complete and not broken."""
    return pareto_ids({
        number: [result.objective(name) for name in spec.search.objectives]
        for number, result in ledger.results.items()
        if is_ranked(ledger.submitted[number], result)
    })  # fmt: skip


def states_of(ledger: Ledger) -> dict[int, tuple[str, str | None]]:
    """Trial -> (state, cause), by id."""
    return {n: ledger.results.outcome(n) if n in ledger.results else (RUNNING, None) for n in sorted(ledger.submitted)}


def is_complete(spec: SweepSpec, ledger: Ledger) -> bool:
    """Every planned, every search and every confirming trial has been asked and has ended."""
    planned = [*plan(spec), *ledger.confirmations()]
    all_asked = ledger.num_searched >= spec.search.trials and all(item.trial.id in ledger.submitted for item in planned)
    return all_asked and not ledger.open_trials()


def next_free_id(spec: SweepSpec, ledger: Ledger) -> int:
    """An id that is neither asked nor planned."""
    planned = [item.trial.id for item in [*plan(spec), *ledger.confirmations()]]
    return 1 + max([*planned, *ledger.submitted])


def failed_trials(ledger: Ledger) -> list[int]:
    """The trials that failed and have not been submitted again, by id."""
    again = {trial.retry_of for trial in ledger.submitted.values()}
    return sorted(n for n in ledger.results if ledger.results.outcome(n)[0] == FAIL and n not in again)


def state_of(spec: SweepSpec, ledger: Ledger) -> str:
    """running (a driver lives) | complete | interrupted."""
    if is_complete(spec, ledger):
        return "complete"
    holder = read_holder(ledger.store, ledger.name)
    return "running" if holder is not None and holder.seems_alive else "interrupted"
