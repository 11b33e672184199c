"""The ledger of a sweep: asked trials and results. What is not in it did not happen.

`asked.json` is written in one piece before a trial may start, `result.json` once when it has ended. Readers need
nothing; only the driver that holds the lease writes, and it checks the lease before each write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raylt.errors import InputError
from raylt.plan import TrialSpec
from raylt.store import Store

COMPLETE, PRUNED, FAIL, RUNNING = "COMPLETE", "PRUNED", "FAIL", "RUNNING"
Result = dict[str, Any]


class Ledger:
    """Trials of sweep `name` in a store. `check` raises `Fenced` where this process may not write (any more)."""

    def __init__(self, store: Store, name: str, check: Callable[[], None] | None = None) -> None:
        self.store, self.name, self.check = store, name, check
        self.folder = f"sweeps/{name}"
        self.asked: dict[int, TrialSpec] = {}
        self.results: dict[int, Result] = {}
        self.reload()

    def reload(self) -> None:
        """Read what is new. Finished trials never change, so they are read once."""
        for entry in self.store.names(f"{self.folder}/trials"):
            if not entry.isdigit():
                continue  # nothing of ours
            number = int(entry)
            if number not in self.asked:
                asked = self.store.read_json(f"{self.folder}/trials/{entry}/asked.json")
                if asked is not None:
                    self.asked[number] = TrialSpec(**asked)
            if number in self.asked and number not in self.results:
                result = self.store.read_json(f"{self.folder}/trials/{entry}/result.json")
                if result is not None:
                    self.results[number] = result

    def ask(self, trial: TrialSpec) -> None:
        """Commit a trial before it starts."""
        assert trial.id not in self.asked
        self._write(f"trials/{trial.id:05d}/asked.json", trial.dump())
        self.asked[trial.id] = trial

    def finish(self, number: int, result: Mapping[str, Any]) -> None:
        """Commit a trial's end, once: a result that is there already stays."""
        if number not in self.results:
            self._write(f"trials/{number:05d}/result.json", dict(result))
            self.results[number] = dict(result)

    def read(self, name: str) -> Any | None:
        """One of the sweep's own files: spec.lock.json, similarity.json, mlflow.json."""
        return self.store.read_json(f"{self.folder}/{name}")

    def write(self, name: str, value: Any) -> None:
        self._write(name, value)

    def _write(self, name: str, value: Any) -> None:
        assert self.check is not None, "a reader of the ledger may not write"
        self.check()
        self.store.write_json(f"{self.folder}/{name}", value)

    def open_trials(self) -> list[TrialSpec]:
        """Asked and not ended, by id: to be adopted by whoever drives the sweep."""
        return [trial for number, trial in sorted(self.asked.items()) if number not in self.results]

    def complete(self, kind: str) -> list[tuple[TrialSpec, Result]]:
        """Trials of a kind that ended well, by id; without those that confirm others."""
        mine = ((number, trial) for number, trial in sorted(self.asked.items()) if trial.kind == kind)
        ended = ((trial, self.results.get(number)) for number, trial in mine if not trial.is_confirmation)
        return [(trial, result) for trial, result in ended if result is not None and result["state"] == COMPLETE]


def sweep_names(store: Store) -> list[str]:
    """The sweeps that were begun: `existing` finds each of them."""
    return [name for name in store.names("sweeps") if store.read(f"sweeps/{name}/spec.lock.json") is not None]


def existing(store: Store, name: str) -> Ledger:
    """The ledger of a sweep that was begun. Raises `InputError`, naming those that were, where it was not."""
    if store.read(f"sweeps/{name}/spec.lock.json") is None:
        known = ", ".join(sweep_names(store)) or "none"
        raise InputError(f"no sweep {name!r} in {store.root} (there: {known}); give its name, its spec file, or --root")
    return Ledger(store, name)
