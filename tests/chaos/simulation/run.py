"""Many runs, and what came of them:

python -m tests.chaos.simulation.run --runs 5000 --seed 1 [--record FILE]
python -m tests.chaos.simulation.run --only 4711 --trace        # one run, every operation of it
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.simulation.simulate import Outcome, outcome_of
from tests.chaos.simulation.watch import KINDS


def outcomes(seeds: Iterable[int], workers: int) -> Iterator[Outcome]:
    """The runs of many seeds, in the order in which they end."""
    gc.freeze()  # else half the time goes into looking through the modules that are loaded
    if workers == 1:
        yield from map(quiet_outcome_of, seeds)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(quiet_outcome_of, seeds, chunksize=10)


def quiet_outcome_of(seed: int) -> Outcome:
    """A run whose log nobody reads. An error of the harness itself is a finding too."""
    logging.disable(logging.CRITICAL)
    try:
        return outcome_of(seed)
    except Exception:
        return Outcome(seed, "?", [], [("traceback", f"the harness: {traceback.format_exc()}")], 0, 0.0, 0)
    finally:
        logging.disable(logging.NOTSET)


class Record:
    """The counts of many runs."""

    def __init__(self, first_seed: int) -> None:
        self.first_seed, self.runs, self.operations, self.simulated_s, self.drivers = first_seed, 0, 0, 0.0, 0
        self.faults: collections.Counter[str] = collections.Counter()
        self.storages: collections.Counter[str] = collections.Counter()
        self.found: dict[str, list[int]] = {kind: [] for kind in KINDS}
        self.places: set[tuple[str, str, str]] = set()

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.operations += outcome.operations
        self.simulated_s += outcome.simulated_s
        self.drivers += outcome.drivers
        self.storages[outcome.storage] += 1
        self.faults.update(fault.kind for fault in outcome.struck)
        self.places.update((fault.kind, fault.moment, fault.struck) for fault in outcome.struck)
        for kind in {kind for kind, _ in outcome.found}:
            self.found[kind].append(outcome.seed)

    def as_json(self) -> dict[str, Any]:
        return {
            "first_seed": self.first_seed, "runs": self.runs, "storages": dict(sorted(self.storages.items())),
            "faults": dict(sorted(self.faults.items())), "places": len(self.places), "operations": self.operations,
            "drivers": self.drivers, "simulated_hours": round(self.simulated_s / 3600),
            **{kind: len(seeds) for kind, seeds in self.found.items()},
        }  # fmt: skip

    def __str__(self) -> str:
        record = self.as_json()
        rows = [("runs", self.runs), *((f"  on {name}", count) for name, count in record["storages"].items())]
        rows += [("faults", self.faults.total()), *((f"  {name}", count) for name, count in record["faults"].items())]
        rows += [("different (fault, moment, operation, file)", record["places"]), ("drivers started", self.drivers)]
        rows += [("operations on the storage", self.operations), ("simulated hours", record["simulated_hours"])]
        rows += [(kind, len(seeds)) for kind, seeds in self.found.items()]
        return "\n".join(f"{name:<44}{value:>12}" for name, value in rows)


def describe(outcome: Outcome) -> str:
    """A run in a few lines: what struck, and what should not have happened."""
    lines = [f"seed {outcome.seed} on {outcome.storage}, {outcome.operations} operations, {outcome.drivers} drivers"]
    lines += [f"  {fault.kind}, {fault.moment} {fault.struck}" for fault in outcome.struck]
    return "\n".join([*lines, *(f"  {kind.upper()}: {what}" for kind, what in outcome.found)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--only", type=int, help="the seed of one run")
    parser.add_argument("--trace", action="store_true", help="print every operation of that run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", type=Path, help="a JSON file for the counts")
    given = parser.parse_args()
    if given.only is not None:
        outcome = outcome_of(given.only, traced=given.trace)
        print("\n".join([*(outcome.trace or []), describe(outcome)]))
        return 1 if outcome.found else 0
    record, began = Record(given.seed), time.monotonic()
    for outcome in outcomes(range(given.seed, given.seed + given.runs), given.workers):
        record.add(outcome)
        if outcome.found:
            print(describe(outcome), flush=True)
    print(record)
    print(f"{record.runs / (time.monotonic() - began):.1f} runs a second; again: --only SEED --trace")
    if given.record is not None:
        given.record.write_text(json.dumps(record.as_json(), indent=1) + "\n")
    return 1 if any(record.found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
