"""Real searches: each is a `raylt sweep` in one store, where sweeps share what they agree on. Run again, it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raylt.errors import InputError
from raylt.report.lookup import find_results
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger

Row = dict[str, Any]


def run_all(specs: Sequence[Mapping[str, Any]], root: Path, jobs: int) -> None:
    """Run the sweeps in order, `jobs` at a time. Raises where one does not come to its end."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda spec: _run(spec, root), specs))


def _run(spec: Mapping[str, Any], root: Path) -> None:
    if _has_ended(spec, root):
        return
    folder = root / "specs"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{spec['name']}.yaml"
    own = {"storage": {"root": str(root / "store")}, "tracking": {"uri": f"sqlite:///{folder}/{spec['name']}.db"}}
    file.write_text(dump_yaml({**spec, **own}))
    log = file.with_suffix(".log")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYLT_ROOT": own["storage"]["root"]}
    command = [sys.executable, "-m", "raylt.cli", "sweep", str(file), "--local"]
    with log.open("a") as out:
        code = subprocess.call(command, env=environment, stdout=out, stderr=out)
    if code != 0:
        raise SystemExit(f"sweep {spec['name']} left with {code}; see {log}")
    print(f"{spec['name']} has ended", flush=True)


def _has_ended(spec: Mapping[str, Any], root: Path) -> bool:
    try:
        stored, _, document = find_results(spec["name"], str(root / "store"))
    except InputError:  # not begun
        return False
    return document["state"] == "complete" and stored.search.trials == spec["search"]["trials"]


def read_run(name: str, root: Path) -> Row:
    """What a sweep found, in the order it was found, with the training steps each trial added to those before it."""
    spec, ledger, document = find_results(name, str(root / "store"))
    measured = ledger.read("similarity.json") or {}
    steps = _Steps(ledger)
    by_kind: dict[str, list[Row]] = {}
    for trial in document["trials"]:
        by_kind.setdefault(trial["kind"], []).append(trial)
    # Baselines are no part of a search, unless its rungs look at them.
    first = ("dense", "pilot", *(["baseline"] if spec.search.rungs else []))
    dense = by_kind["dense"][0]
    start = sum(steps.added_by(trial["id"]) for kind in first for trial in by_kind.get(kind, []))
    trials = [_trial(spec, trial, ledger, steps) for trial in by_kind["search"]]
    baselines = {t["rule"]: _trial(spec, t, ledger, _Steps(ledger)) for t in by_kind.get("baseline", [])}
    return {
        "seed": spec.train.seed,
        "dense": {"loss": dense["loss"], "fid": dense["fid"], "flops": dense["flops"]},
        "reference": [2 * dense["loss"], 2 * baselines["uniform"]["flops"]] if baselines else None,
        "profile": measured["profile"],
        "blocks": {
            group: {key: measured["blocks"][blocks[0]].get(key) for key in ("kappa", "excess", "movement")}
            for group, blocks in spec.groups.items()
        },
        "start_steps": start,
        "trials": trials,
        "baselines": baselines,
    }


def _trial(spec: SweepSpec, trial: Row, ledger: Ledger, steps: _Steps) -> Row:
    offsets = ledger.submitted[trial["id"]].proposal.offsets
    by_round = {r["round"]: r for r in trial["rounds"]}
    return {
        "state": trial["state"],
        "broken": bool(trial["broken"]),
        "bend": {group: offsets[blocks[0]] for group, blocks in spec.groups.items()} if offsets else None,
        "loss": trial["loss"],
        "fid": trial["fid"],
        "flops": trial["flops"],
        "losses": [by_round[index]["loss"] for index in sorted(by_round)],
        "flops_by_round": [by_round[index]["flops"] for index in sorted(by_round)],
        "steps": steps.added_by(trial["id"]),
    }


class _Steps:
    """Training steps of distinct stages: what a search costs on its own, whoever trained them in a store that many share."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.seen: set[str] = set()

    def added_by(self, number: int) -> int:
        new = [stage for stage in self.ledger.results[number].stages if stage not in self.seen]
        self.seen.update(new)
        return sum(self._steps_of(stages) for stages in new)

    def _steps_of(self, digest: str) -> int:
        stage = self.ledger.store.find(digest)
        return int(stage.read_manifest().values["steps"]) if stage.key["kind"] in ("train", "start") else 0
