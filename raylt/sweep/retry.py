"""Trials once more. One that failed is submitted again: the same TrialSpec under a new id; what failed stays as it ended.

One whose stages are gone runs again under its own id, on what is left of them; a copy of the result that it had is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from raylt.errors import InputError
from raylt.report.text import spanned
from raylt.store import Lease, Ledger, Store
from raylt.store.ledger import existing
from raylt.store.ledger_files import missing_stages
from raylt.store.results import FAIL
from raylt.store.stages import FAILED, STAGES, folder_of
from raylt.store.sweep_state import failed_trials, next_free_id, stored_spec
from raylt.sweep.resume import refuse_other_numbers


class Retried(NamedTuple):
    """`again`: failed trials, old id -> new id. `reopened`: those that run again under their own."""

    again: dict[int, int]
    reopened: list[int]


def retry(store: Store, name: str, numbers: Collection[int] | None = None) -> Retried:
    """Ask trials again, under the sweep's lease: those given, or all that failed. The next driver runs them.

    What the store remembers of stages that diverged is forgotten: they are trained again.

    Raises `InputError` where there is no such sweep or trial, where there is nothing to do again, or an earlier raylt began it,
    `LeaseHeld` where a driver runs it.
    """
    existing(store, name)
    refuse_other_numbers(store, name)
    lease = Lease.acquire(store, name)
    try:
        ledger = Ledger(store, name, lease.check)
        failed = failed_trials(ledger)
        reopened = [] if numbers is None else sorted(set(numbers) - set(failed))
        for number in reopened:
            _refuse_to_reopen(ledger, number)
        free = next_free_id(stored_spec(store, name), ledger)
        chosen = [number for number in failed if numbers is None or number in numbers]
        again = {old: free + index for index, old in enumerate(chosen)}
        _forget_divergences(ledger, again)
        for old, new in again.items():
            ledger.submit(replace(ledger.submitted[old], id=new, retry_of=old))
        for number in reopened:
            ledger.reopen(number)
        return Retried(again, reopened)
    finally:
        lease.release()


def _refuse_to_reopen(ledger: Ledger, number: int) -> None:
    """Raises `InputError` where nothing of a trial that has not failed would be made again."""
    name = ledger.name
    if number not in ledger.submitted:
        raise InputError(f"{name} has no trial {number}; it has {spanned(ledger.submitted)}")
    if number not in ledger.results:
        raise InputError(f"trial {number} of {name} has not ended: the same `raylt sweep` command runs it")
    state = ledger.results.outcome(number)[0]
    if state == FAIL:
        once_more = max(n for n, trial in ledger.submitted.items() if trial.retry_of == number)
        raise InputError(f"trial {number} of {name} was submitted again, as {once_more}")
    if not missing_stages(ledger.store, ledger.results[number]):
        raise InputError(f"trial {number} of {name} is {state.lower()} and has all its stages: there is nothing to do again")


def _forget_divergences(ledger: Ledger, trials: Collection[int]) -> None:
    results = [ledger.results[number] for number in trials]
    for digest in {result.diverged for result in results if result.diverged is not None}:
        ledger.store.delete(f"{folder_of(digest)}/{FAILED}")
    if any(result.diverged is None and "diverged" in str(result.cause) for result in results):
        _forget_by_owner(ledger.store, {f"{ledger.name}/{number}" for number in trials})


def _forget_by_owner(store: Store, owners: Collection[str]) -> None:
    """Results of an earlier raylt do not name the stage that diverged; the stage names the trial."""
    for file in store.all_files(STAGES):
        if file.path.endswith(f"/{FAILED}"):
            record = store.read_record(file.path)
            if record is not None and record.get("owner") in owners:
                store.delete(file.path)
