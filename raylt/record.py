"""MLflow brought up to date from a store alone: what `raylt record` does, and a cluster's new head."""

from __future__ import annotations

from raylt.document import SPEC_FILE, is_complete, stored_spec
from raylt.errors import EnvironmentFailure, RayltError
from raylt.lease import Lease
from raylt.ledger import Ledger, existing
from raylt.masking import without_secrets
from raylt.runs import tracking_uri
from raylt.store import Store
from raylt.tracking import Recorder


def record_sweep(store: Store, name: str) -> int:
    """Show a sweep's ledger in MLflow, under the sweep's lease; returns how many trials it has.

    Raises `InputError` where there is no such sweep, `LeaseHeld` where a driver runs it (and records it itself),
    `EnvironmentFailure` where MLflow does not take the record.
    """
    existing(store, name)
    spec = stored_spec(store, name)
    yaml = (store.read(f"sweeps/{name}/{SPEC_FILE}") or b"").decode()
    uri = tracking_uri(spec)
    lease = Lease.acquire(store, name)
    try:
        ledger = Ledger(store, name, lease.check)
        state = "complete" if is_complete(spec, ledger) else "interrupted"
        Recorder(spec, ledger, yaml, uri).sync(state, {}, pictures=True)
        return len(ledger.asked)
    except RayltError:
        raise
    except Exception as error:
        why = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        raise EnvironmentFailure(f"cannot record {name} in MLflow at {without_secrets(uri)} ({why})") from error
    finally:
        lease.release()
