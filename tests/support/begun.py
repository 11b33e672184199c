"""A sweep as its driver begins it: the lock and the spec, with which every reader believes its files by their checksums."""

from __future__ import annotations

from typing import Any

from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import write_spec


def write_start(ledger: Ledger, spec: SweepSpec, **lock: Any) -> None:
    """Commit the lock of a sweep, with `lock` in it, and keep its spec."""
    yaml = dump_yaml(spec.dump())
    ledger.lock(SweepLock({"code_schema": CODE_SCHEMA, "digest": spec.digest, "spec": yaml, **lock}))
    write_spec(ledger.store, spec.name, yaml)
