"""MLflow brought up to date from a store alone: what `raylt record` does, and a cluster's new head."""

from __future__ import annotations

import os
import shlex

from raylt.errors import MASK, EnvironmentFailure, InputError, RayltError, without_secrets
from raylt.spec.sections import TrackingSpec
from raylt.store import Lease, Ledger, Store
from raylt.store.ledger import existing
from raylt.store.sweep_state import is_complete, stored_spec, stored_yaml
from raylt.tracking.client import check as check_tracking
from raylt.tracking.runs import given_uri
from raylt.tracking.tracker import Recorder


def record_address(store: Store, name: str, given: str | None, option: str = "--uri ") -> str:
    """Where the record of a sweep in a store goes: what the user gave, else MLFLOW_TRACKING_URI, else the default.

    Raises `InputError` where the store's own spec names another place and the user none: a store is data, and whoever may
    write it must not have us write anywhere, or send a token there. The message has the `option` that confirms the place.
    """
    existing(store, name)
    uri, default = given or os.environ.get("MLFLOW_TRACKING_URI"), TrackingSpec().uri
    stored = stored_spec(store, name).tracking.uri
    if uri is None and stored != default:
        right = (
            "set MLFLOW_TRACKING_URI to it, with what *** stands for" if MASK in stored else f"{option}{shlex.quote(stored)}"
        )
        raise InputError(
            f"{name}: its spec in the store names {without_secrets(stored)} for the record, and a store's word sends nothing "
            f"anywhere; if you mean that place: {right}; for one in this folder: {option}{default}"
        )
    return given_uri(option.strip(" =") if given else "MLFLOW_TRACKING_URI", uri or default)


def record_sweep(store: Store, name: str, uri: str) -> int:
    """Show a sweep's ledger in MLflow at `uri`, under the sweep's lease; returns how many trials it has.

    Raises `InputError` where there is no such sweep, `LeaseHeld` where a driver runs it (and records it itself),
    `EnvironmentFailure` where MLflow does not take the record.
    """
    existing(store, name)
    spec = stored_spec(store, name)
    yaml = stored_yaml(store, name)
    check_tracking(uri)
    lease = Lease.acquire(store, name)
    try:
        ledger = Ledger(store, name, lease.check)
        state = "complete" if is_complete(spec, ledger) else "interrupted"
        Recorder(spec, ledger, yaml, uri).sync(state, {}, pictures=True)
        return len(ledger.submitted)
    except RayltError:
        raise
    except Exception as error:
        why = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        raise EnvironmentFailure(f"cannot record {name} in MLflow at {without_secrets(uri)} ({why})") from error
    finally:
        lease.release()
