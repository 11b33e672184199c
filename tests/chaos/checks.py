"""What must hold of a sweep after any number of faults, counted: nothing lost, nothing twice, no orphans."""

from __future__ import annotations

import collections
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from raylt.store.results import COMPLETE, FAIL, PRUNED
from raylt.tracking.runs import trial_points
from tests.chaos.sweep import CHECKPOINT_EVERY, NAME, Sweep

ENDED = {COMPLETE: "FINISHED", PRUNED: "FINISHED", FAIL: "FAILED"}  # state of a trial -> of its run in MLflow


@dataclass
class Findings:
    """Each list names what it found, one line each."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    equal_to_undisturbed: bool = True
    steps_repeated: int = 0
    steps_allowed: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.twice or self.orphans) and self.steps_repeated <= self.steps_allowed

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in asdict(self).items())


def check(sweep: Sweep, whole: Sweep, database: Path, faults: int, concurrency: int, left: list[psutil.Process]) -> Findings:
    """Compare a sweep that has ended with its own records, and with the sweep `whole` that nothing disturbed.

    `left`: processes that run trials, now that no driver is left.
    """
    found = Findings()
    _check_ledger(found, sweep, whole)
    _check_study(found, sweep)
    _check_mlflow(found, sweep, database)
    found.orphans += [f"process {process.pid} still runs a trial" for process in left]
    found.equal_to_undisturbed = sweep.results() == whole.results()
    _count_steps(found, sweep, whole, faults, concurrency)
    return found


def _check_ledger(found: Findings, sweep: Sweep, whole: Sweep) -> None:
    ledger, expected = sweep.ledger(), whole.ledger()
    found.lost += [f"trial {number} was never asked" for number in sorted(set(expected.submitted) - set(ledger.submitted))]
    found.lost += [f"trial {trial.id} has no result" for trial in ledger.open_trials()]
    found.twice += [f"trial {number} is one too many" for number in sorted(set(ledger.submitted) - set(expected.submitted))]
    found.twice += [f"{name} was written {times} times" for name, times in sorted(sweep.commits().items()) if times > 1]
    for number, result in sorted(ledger.results.items()):
        if number in expected.results and result.state != expected.results[number].state:
            found.lost.append(f"trial {number} ended as {result.state}: {result.cause}")
    if sweep.steps().keys() < whole.steps().keys():
        found.lost.append(f"{len(whole.steps().keys() - sweep.steps().keys())} steps were never trained")


def _check_study(found: Findings, sweep: Sweep) -> None:
    ledger, objectives = sweep.ledger(), sweep.spec().search.objectives
    rows = {}
    for state, params, values, trial in sweep.study():
        if trial in rows:
            found.twice.append(f"study: two rows of trial {trial}")
        if state == "RUNNING":
            found.orphans.append(f"study: trial {trial} is RUNNING")
        rows[trial] = (state, params, values)
    for number, trial in ledger.submitted.items():
        result = ledger.results.get(number)
        if trial.kind != "search" or result is None:
            continue
        told = rows.pop(number, None)
        values = [float(result.objective(name)) for name in objectives] if result.state == COMPLETE else None
        if told is None or told[0] != result.state or (values is not None and told[2] != values):
            found.lost.append(f"study: trial {number} ended as {result.state} with {values}, it has {told}")
    found.twice += [f"study: trial {number} is not in the ledger" for number in rows]


def _check_mlflow(found: Findings, sweep: Sweep, database: Path) -> None:
    ledger = sweep.ledger()
    runs = collections.defaultdict(list)
    for name, status, points in sweep.mlflow(database):
        runs[name].append((status, points))
        if status in ("RUNNING", "SCHEDULED"):
            found.orphans.append(f"MLflow: run {name} is {status}")
    for name, same in runs.items():
        if len(same) > 1:
            found.twice.append(f"MLflow: {len(same)} runs {name}")
    if not runs.pop(NAME, None):
        found.lost.append("MLflow: no run of the sweep")
    for number, trial in ledger.submitted.items():
        result = ledger.results.get(number)
        same = runs.pop(trial.name, None)
        if same is None:
            found.lost.append(f"MLflow: no run {trial.name}")
        elif result is not None:
            status, points = same[0]
            wanted = sorted((p.key, p.value, p.time_ms, p.step) for p in trial_points(result))
            if status != ENDED[result.state] or set(wanted) - set(points):
                found.lost.append(f"MLflow: run {trial.name} is {status} and lacks {len(set(wanted) - set(points))} points")
            if len(points) > len(wanted):
                found.twice.append(f"MLflow: run {trial.name} has {len(points)} points, the ledger {len(wanted)}")
    found.twice += [f"MLflow: run {name} is of no trial" for name in runs]


def _count_steps(found: Findings, sweep: Sweep, whole: Sweep, faults: int, concurrency: int) -> None:
    """Each fault costs each running trial at most one checkpoint interval; so does each death of the poisoned one."""
    found.steps_repeated = (sweep.steps() - whole.steps()).total()
    extra_deaths = max(0, sweep.deaths() - whole.deaths())
    found.steps_allowed = (faults * concurrency + extra_deaths) * CHECKPOINT_EVERY
