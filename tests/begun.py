"""A sweep as its driver begins it: the lock and the spec, with which every reader believes its files by their checksums."""

from __future__ import annotations

from typing import Any

from raylt.ledger import Ledger
from raylt.spec import SweepSpec
from raylt.specfile import dump_yaml
from raylt.store import CODE_SCHEMA
from raylt.sweepstate import write_spec


def write_begun(ledger: Ledger, spec: SweepSpec, **lock: Any) -> None:
    """Commit the lock of a sweep, with `lock` in it, and keep its spec."""
    yaml = dump_yaml(spec.dump())
    ledger.lock({"code_schema": CODE_SCHEMA, "digest": spec.digest, "spec": yaml, **lock})
    write_spec(ledger.store, spec.name, yaml)
