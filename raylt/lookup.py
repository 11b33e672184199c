"""Where a name leads: a sweep's spec, its ledger, its results document. What the command line and `raylt.results` share.

Imports are inside the functions: `raylt --help` and `raylt validate` answer at once.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylt.ledger import Ledger
    from raylt.spec import SweepSpec
    from raylt.store import Store


def load(source: str | None, overrides: list[str] | None) -> SweepSpec:
    """The spec, with the store that RAYLT_ROOT names where it is set."""
    from raylt.specfile import load_spec

    overrides = list(overrides or [])
    if "RAYLT_ROOT" in os.environ:
        overrides.append(f"storage.root={json.dumps(os.environ['RAYLT_ROOT'])}")
    return load_spec(source, overrides)


def find_results(name: str, root: str | None) -> tuple[SweepSpec, Ledger, dict[str, Any]]:
    from raylt.document import results as document_of
    from raylt.document import stored_spec
    from raylt.ledger import existing

    store, name = find_sweep(name, root)
    ledger = existing(store, name)
    spec = stored_spec(store, name)
    return spec, ledger, document_of(spec, ledger)


def find_sweep(name: str, root: str | None) -> tuple[Store, str]:
    """The store and the sweep's name, from a name or a spec file."""
    from raylt.store import Store

    default = root or os.environ.get("RAYLT_ROOT")
    if is_file(name):
        spec = load(name, None)
        return Store(default or spec.storage.root), spec.name
    return Store(default or "./raylt-data"), name


def name_of(name: str) -> str:
    """A sweep's name, of which a spec file is another."""
    return load(name, None).name if is_file(name) else name


def is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
