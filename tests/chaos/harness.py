"""Chaos: real sweeps on a real cluster under faults from a seeded schedule, then a check that nothing was lost.

    python -m tests.chaos.harness --faults 40 --seed 1 [--concurrency 1] [--record FILE]

Sweep after sweep of small trials, twenty faults each, until all faults have been injected. Adds what it counted to
FILE; leaves with 1 if anything was lost, done twice or left over, or if a sweep ended other than an undisturbed one.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.spec import SweepSpec
from raylt.store import Store
from raylt.trial.score import Scorer
from tests.chaos.checks import Findings, check
from tests.chaos.faults import (
    IS_ROOT,
    KINDS,
    POISONED_TRIAL,
    Missed,
    UnexpectedError,
    World,
    mount_store,
    schedule,
    unmount_store,
)
from tests.chaos.machines import MlflowServer, RayCluster
from tests.chaos.sweep import PLAN, Sweep, spec_for
from tests.support import sabotage

FAULTS_A_SWEEP, SEARCHED = 20, 12
PACE_S = 0.05  # more for each step, so that faults hit trials and not the gaps between them
RESTARTS = 6  # of a driver that has to end the sweep once the faults are over


@dataclass
class Run:
    """What one run of the harness has injected and found so far."""

    seed: int
    concurrency: int
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: int = 0
    twice: int = 0
    orphans: int = 0
    sweeps: int = 0
    equal_to_undisturbed: bool = True
    steps_repeated: int = 0
    unexpected: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def faults(self) -> int:
        return self.kinds.total()

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.twice or self.orphans or self.unexpected) and self.equal_to_undisturbed

    def add(self, findings: Findings) -> None:
        self.lost += len(findings.lost)
        self.twice += len(findings.twice)
        self.orphans += len(findings.orphans)
        self.equal_to_undisturbed &= findings.equal_to_undisturbed
        self.steps_repeated += findings.steps_repeated
        if findings.steps_repeated > findings.steps_allowed:
            self.unexpected.append(f"{findings.steps_repeated} steps were repeated, {findings.steps_allowed} allowed")

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed, "faults": self.faults, "kinds": dict(sorted(self.kinds.items())),
            "concurrency": self.concurrency, "sweeps": self.sweeps, "lost": self.lost, "twice": self.twice,
            "orphans": self.orphans, "equal_to_undisturbed": self.equal_to_undisturbed,
            "steps_repeated": self.steps_repeated, "unexpected": [line.splitlines()[0] for line in self.unexpected],
            "duration_s": round(time.monotonic() - self.began), "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip


class Harness:
    """Sweeps in folders below `folder`, compared with one that nothing disturbs."""

    def __init__(self, folder: Path, warm: Path | None, seed: int, concurrency: int, searched: int = SEARCHED) -> None:
        """`warm`: a store that knows the spec's classifier and reference statistics; made there, if it is not yet."""
        self.folder, self.draw, self.run = folder, random.Random(seed), Run(seed, concurrency)
        self.spec = spec_for(concurrency, searched)
        self.warm = warm or folder / "warm"
        spec = SweepSpec.model_validate(self.spec)
        Scorer(spec, Compute(), load_images(spec.data), "search").reference(Store(str(self.warm), owner="warm"))
        self.tracking = MlflowServer(folder / "mlflow")

    def close(self) -> None:
        self.tracking.kill()

    def undisturbed(self) -> Sweep:
        folder = self.folder / "undisturbed"
        folder.mkdir()
        sweep = Sweep(folder, self.warm, self.spec)
        sweep.start_driver(sabotage.environment(folder, PLAN))
        code = sweep.wait(600)
        if code != 1:  # one trial is poisoned
            raise RuntimeError(f"the undisturbed sweep left with {code}:\n{sweep.output()[-3000:]}")
        self.whole = sweep
        say(f"undisturbed: {len(sweep.ledger().results)} trials, {sweep.steps().total()} steps")
        return sweep

    def disturbed(self, kinds: list[str]) -> list[str]:
        """One sweep under the faults `kinds`; returns those that it ended too early for."""
        folder = self.folder / f"sweep-{self.run.sweeps}"
        folder.mkdir()
        self.run.sweeps += 1
        self.struck = collections.Counter({POISONED_TRIAL: 1})
        root = folder / "raylt-data"
        if IS_ROOT:
            mount_store(root)
        environment = sabotage.environment(folder, PLAN, PACE_S)
        cluster = RayCluster(environment)
        sweep = Sweep(folder, self.warm, self.spec, self.tracking.uri)
        world = World(sweep, cluster, self.tracking, cluster.for_drivers, self.draw)
        try:
            cluster.start_head()
            for _ in range(2):
                cluster.add_node()
            left = self._strike(world, kinds)
            self._end(world)
            self._check(world)
            return left
        finally:
            if sweep.driver is not None and sweep.is_running():
                sweep.driver.kill()
            cluster.stop()
            if IS_ROOT:
                unmount_store(root)

    def _strike(self, world: World, kinds: list[str]) -> list[str]:
        left = list(kinds)
        while left:
            if not world.sweep.is_running():
                world.start_driver()
            world.sweep.wait_for_training()
            time.sleep(self.draw.uniform(0, 3))
            if not world.sweep.is_running() and world.sweep.driver.returncode in (0, 1):
                return left  # it has ended: what is left befalls the next sweep
            if not world.sweep.is_running():
                say(f"  the driver has left with {world.sweep.driver.returncode}: the same command again")
                continue
            kind, began = left.pop(0), time.monotonic()
            try:
                KINDS[kind](world)
            except Missed:
                left.insert(0, kind)
                continue
            except UnexpectedError as error:
                self._unexpected(f"{kind}: {error}")
            self.struck[kind] += 1
            say(f"  {self.run.faults + self.struck.total():4d} {kind} ({time.monotonic() - began:.0f} s)")
        return left

    def _end(self, world: World) -> None:
        """The same command until the sweep is complete and MLflow has all of it."""
        world.tracking.wait()
        for _ in range(RESTARTS):
            if not world.sweep.is_running():
                world.start_driver()
            code = world.sweep.wait(300)
            if code in (0, 1) and "MLflow lacks some" not in world.sweep.output():
                return
            say(f"  the driver has left with {code}: the same command again")
        raise RuntimeError(f"the sweep does not end:\n{world.sweep.output()[-3000:]}")

    def _check(self, world: World) -> None:
        time.sleep(3)
        workers = [worker for node in world.cluster.nodes for worker in node.workers()]
        findings = check(world.sweep, self.whole, world.tracking.database, self.struck.total(), self.run.concurrency, workers)
        self.run.kinds += self.struck  # only now: what was not checked is not counted
        self.run.add(findings)
        say("\n".join(f"    {line}" for line in str(findings).splitlines()))

    def _unexpected(self, what: str) -> None:
        self.run.unexpected.append(what)
        say(f"  UNEXPECTED: {what}")


def say(line: str) -> None:
    print(f"{dt.datetime.now():%H:%M:%S} {line}", flush=True)


def add_to_record(path: Path, run: Mapping[str, Any]) -> None:
    """Add a run to the record, in one piece; the numbers at its top are sums over its runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(Path(tempfile.gettempdir(), f"raylt-{path.name}.lock")):
        runs = [*(json.loads(path.read_text())["runs"] if path.exists() else []), run]
        kinds = sum((collections.Counter(each["kinds"]) for each in runs), collections.Counter())
        totals = {name: sum(each[name] for each in runs) for name in ("faults", "lost", "twice", "orphans")}
        record = {**totals, "kinds": dict(sorted(kinds.items())), "runs": runs}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)


def chaos(
    kinds: list[str] | int, seed: int, concurrency: int, *, warm: Path | None = None, searched: int = SEARCHED,
    per_sweep: int = FAULTS_A_SWEEP,
) -> Run:  # fmt: skip
    """Inject these faults, or so many from the schedule, into so many sweeps as that takes."""
    folder = Path(tempfile.mkdtemp(prefix="raylt-chaos-"))
    say(f"seed {seed}, faults: {kinds}, concurrency {concurrency}, in {folder}")
    harness = Harness(folder, warm, seed, concurrency, searched)
    try:
        harness.undisturbed()
        harness.tracking.wait()
        kinds = schedule(kinds, harness.draw) if isinstance(kinds, int) else kinds
        while kinds:
            now, later = kinds[:per_sweep], kinds[per_sweep:]
            kinds = harness.disturbed(now) + later
    except Exception as error:  # a run that broke off is recorded with what it did find
        harness.run.unexpected.append(f"{type(error).__name__}: {error}")
        traceback.print_exc()
    finally:
        harness.close()
    if harness.run.is_clean:
        shutil.rmtree(folder, ignore_errors=True)
    return harness.run


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--warm", type=Path, help="a store to begin with; made there, if there is none")
    parser.add_argument("--kinds", help="these kinds, separated by commas, in place of the schedule")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left over
    run = chaos(given.kinds.split(",") if given.kinds else given.faults, given.seed, given.concurrency, warm=given.warm)
    if given.record is not None and run.faults:
        add_to_record(given.record, run.as_json())
    say(json.dumps(run.as_json()))
    return 0 if run.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
