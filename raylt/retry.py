"""Failed trials, asked once more: each the same TrialSpec under a new id. What failed stays in the ledger as it ended."""

from __future__ import annotations

from dataclasses import replace

from raylt.document import failed_trials, next_free_id, stored_spec
from raylt.lease import Lease
from raylt.ledger import Ledger, existing
from raylt.store import Store


def retry_failed(store: Store, name: str) -> dict[int, int]:
    """Ask every failed trial again, under the sweep's lease; returns old id -> new id. The next driver runs them.

    Raises `InputError` where there is no such sweep, `LeaseHeld` where a driver runs it.
    """
    existing(store, name)
    lease = Lease.acquire(store, name)
    try:
        ledger = Ledger(store, name, lease.check)
        free = next_free_id(stored_spec(store, name), ledger)
        again = {old: free + index for index, old in enumerate(failed_trials(ledger))}
        for old, new in again.items():
            ledger.ask(replace(ledger.asked[old], id=new, retry_of=old))
        return again
    finally:
        lease.release()
