"""Where a name leads: a sweep's spec, its ledger, its results document. What the command line and `raylt.results` share.

Imports are inside the functions: `raylt --help` and `raylt validate` answer at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import TYPE_CHECKING

log = logging.getLogger("raylt.lookup")

if TYPE_CHECKING:
    from raylt.report.records import SweepDocument
    from raylt.spec import SweepSpec
    from raylt.store import Ledger, Store


def load(source: str | None, overrides: list[str] | None) -> SweepSpec:
    """The spec, with the store that RAYLT_ROOT names where it is set."""
    from raylt.spec import load_spec
    from raylt.spec.paths import literal

    overrides = list(overrides or [])
    if os.environ.get("RAYLT_ROOT"):
        overrides.append(f"storage.root={json.dumps(literal(store_root(None)))}")
    return load_spec(source, overrides)


def store_root(root: str | None) -> str:
    """The store that --root names, else RAYLT_ROOT (where it is not empty), else the default: the one place that knows.

    Raises `InputError` where the words name no place.
    """
    from raylt.spec.sections import StorageSpec

    if root is not None:
        return _place("--root", root)
    named = os.environ.get("RAYLT_ROOT")
    return _place("RAYLT_ROOT", named) if named else StorageSpec().root


def _place(source: str, words: str) -> str:
    from raylt.errors import InputError, as_yaml_value
    from raylt.spec.paths import EXPECTED, expanded, root_problem

    try:
        root = expanded(words)
    except LookupError as error:
        raise InputError(f"{source}: {error} (got {as_yaml_value(words)}); {EXPECTED}") from None
    problem = root_problem(root)
    if problem is not None:
        raise InputError(f"{source}: {problem[0]} (got {as_yaml_value(words)}); {problem[1]}")
    return root


def find_results(name: str, root: str | None) -> tuple[SweepSpec, Ledger, SweepDocument]:
    from raylt.report.document import results as document_of

    spec, ledger = find_ledger(name, root)
    return spec, ledger, document_of(spec, ledger)


def find_ledger(name: str, root: str | None) -> tuple[SweepSpec, Ledger]:
    """For what needs no result in full: of thousands of trials that takes a while."""
    from raylt.store.ledger import existing
    from raylt.store.sweep_state import stored_spec

    store, name = find_sweep(name, root)
    ledger = existing(store, name)
    return stored_spec(store, name), ledger


def find_sweep(name: str, root: str | None) -> tuple[Store, str]:
    """The store and the sweep's name, from a name or a spec file."""
    from raylt.store import Store

    if is_file(name):
        spec = load(name, None)
        store = Store(spec.storage.root if root is None else store_root(root))
        _warn_of_another_spec(name, spec, store)
        return store, spec.name
    return Store(store_root(root)), name


def _warn_of_another_spec(file: str, spec: SweepSpec, store: Store) -> None:
    """Whoever names a sweep by its spec file may take what is stored under that name for what the file says."""
    from raylt.store.damage import Damaged
    from raylt.store.ledger_files import read_lock

    with contextlib.suppress(Damaged):  # which is said where the sweep is read
        lock = read_lock(store, spec.name)
        if lock is not None and lock.digest not in (None, spec.digest):
            log.warning("sweep %s was started with another spec than %s; this is what is stored of it", spec.name, file)


def name_of(name: str) -> str:
    """A sweep's name, of which a spec file is another."""
    from raylt.spec import load_spec

    return load_spec(name, here=False).name if is_file(name) else name


def is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
