"""Failed trials, asked once more: each the same TrialSpec under a new id. What failed stays in the ledger as it ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from raylt.document import failed_trials, next_free_id, stored_spec
from raylt.lease import Lease
from raylt.ledger import Ledger, existing
from raylt.resume import refuse_other_numbers
from raylt.store import FAILED, STAGES, Store, folder_of


def retry_failed(store: Store, name: str) -> dict[int, int]:
    """Ask every failed trial again, under the sweep's lease; returns old id -> new id. The next driver runs them.

    What the store remembers of stages that diverged is forgotten: they are trained again.

    Raises `InputError` where there is no such sweep, or an earlier raylt began it, `LeaseHeld` where a driver runs it.
    """
    existing(store, name)
    refuse_other_numbers(store, name)
    lease = Lease.acquire(store, name)
    try:
        ledger = Ledger(store, name, lease.check)
        free = next_free_id(stored_spec(store, name), ledger)
        again = {old: free + index for index, old in enumerate(failed_trials(ledger))}
        _forget_divergences(ledger, again)
        for old, new in again.items():
            ledger.ask(replace(ledger.asked[old], id=new, retry_of=old))
        return again
    finally:
        lease.release()


def _forget_divergences(ledger: Ledger, trials: Collection[int]) -> None:
    results = [ledger.results[number] for number in trials]
    for digest in {str(result["diverged"]) for result in results if result.get("diverged")}:
        ledger.store.delete(f"{folder_of(digest)}/{FAILED}")
    if any("diverged" not in result and "diverged" in str(result["cause"]) for result in results):
        _forget_by_owner(ledger.store, {f"{ledger.name}/{number}" for number in trials})


def _forget_by_owner(store: Store, owners: Collection[str]) -> None:
    """Results of an earlier raylt do not name the stage that diverged; the stage names the trial."""
    for file in store.all_files(STAGES):
        if file.path.endswith(f"/{FAILED}"):
            record = store.read_record(file.path)
            if record is not None and record.get("owner") in owners:
                store.delete(file.path)
