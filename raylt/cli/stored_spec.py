"""What a command takes from a sweep that a store has, and what it does not: a store is data, and somebody else may write it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from raylt.report.lookup import find_sweep, is_file, load

if TYPE_CHECKING:
    from raylt.spec import SweepSpec


def spec_to_confirm(name: str, overrides: list[str] | None, root: str | None) -> tuple[SweepSpec, bool]:
    """That of a sweep which was started, with the store it lies in; else the spec that `raylt sweep` would take.

    And whether it is the store alone that names `data.root`, where then nothing is read. Raises `InputError` where the
    store alone names where the record goes.
    """
    from raylt.spec.load import builtin_sweeps, parse_again
    from raylt.spec.paths import literal
    from raylt.spec.sections import StorageSpec
    from raylt.store.ledger import existing, sweep_names
    from raylt.store.sweep_state import stored_spec
    from raylt.tracking.recorder import record_address

    store, sweep = find_sweep(name, root)
    if is_file(name) or (sweep not in sweep_names(store) and name in builtin_sweeps()):
        parsed = load(name, overrides)
        return parsed if root is None else parsed.model_copy(update={"storage": StorageSpec(root=store.root)}), False
    spec = stored_spec(existing(store, sweep).store, sweep)
    if not _names(overrides, "tracking.uri"):
        record_address(store, sweep, None, "--set tracking.uri=")
    store_keys = [f"storage.root={json.dumps(literal(store.root))}", f"name={json.dumps(sweep)}"]
    parsed = parse_again(spec, name, [*(overrides or []), *store_keys])
    return parsed, spec.data.root is not None and not _names(overrides, "data.root")


def _names(overrides: list[str] | None, key: str) -> bool:
    """Whether `--set` gives a key, or the section that it is in."""
    keys = [override.partition("=")[0].strip() for override in overrides or []]
    return key in keys or key.partition(".")[0] in keys
