"""A sweep's whole path in one process, without Ray, that kills itself at a scripted point: what the chaos tests start.

    python -m tests.chaos.drive FOLDER [POINT NTH]      # or `main` in a process of its own

POINT is one of `POINTS`; the process sends itself SIGKILL when it has passed that point for the NTH time. Store, MLflow
database and a log of every step of training lie in FOLDER, so that the tests can count what was done twice.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.train import Trainer
from raylt.search.sampler import default_startup
from raylt.search.study import StudyFile
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Lease, Ledger, Stage, Store
from raylt.store.ledger_files import read_lock
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import write_spec
from raylt.sweep.dispatch import Dispatcher, Finished
from raylt.tracking import tracker
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from tests.conftest import TINY
from tests.support import sabotage

# Where in the code each point lies: what has just happened when the process dies.
POINTS = {
    "asked": (Ledger, "submit"),
    "started": (TrialRun, "__init__"),
    "step": (Trainer, "run_step"),
    "checkpointed": (Stage, "checkpoint"),
    "half a stage": (Store, "write"),  # any file: key, checkpoint, payload, manifest, ledger, lock
    "stage whole": (Stage, "_make"),
    "round reported": (TrialRun, "_score"),
    "reported": (TrialRun, "_result"),
    "in the ledger": (Ledger, "finish"),
    "told": (StudyFile, "sync"),
    "logged": (tracker, "record"),
}


def kill_after(point: str, nth: int) -> None:
    """Wrap the function of `point`: its `nth` return is the last thing this process does."""
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        nonlocal calls
        value = original(*args, **kwargs)
        calls += 1
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(owner, name, wrapper)


def main(folder: str, point: str = "", nth: str = "0") -> None:
    root, uri = f"{folder}/root", f"sqlite:///{folder}/mlflow.db"
    sabotage.wrap(TrialRun, Trainer, folder, {})
    if point:
        kill_after(point, int(nth))
    spec = SweepSpec.model_validate(TINY)
    store = Store(root)
    lease = Lease.acquire(store, spec.name)
    ledger = Ledger(store, spec.name, lease.check)
    yaml = dump_yaml(spec.dump())
    write_spec(store, spec.name, yaml)
    inputs = Inputs(load_images(spec.data))
    inputs.put(store)
    if read_lock(store, spec.name) is None:
        begun = {"code_schema": CODE_SCHEMA, "digest": spec.digest, "spec": yaml}
        ledger.lock(SweepLock({**begun, "startup": default_startup(spec), "data_sha256": inputs.digests.images}))
    study = StudyFile(spec, Path(root) / "sweeps" / spec.name / "study.db")
    dispatcher = Dispatcher(spec, ledger, default_startup(spec), lambda trial, result: study.sync(ledger))
    bench = TrialContext.open(spec, Compute(), inputs)
    study.sync(ledger)
    while not isinstance(trial := dispatcher.next_trial(set()), Finished):
        run = TrialRun(trial, bench, Store(root, owner=f"{spec.name}/{trial.id}", guard=lease.check))
        for _ in run:
            pass
        dispatcher.finish(trial.id, run.result)
        tracker.record(spec, ledger, yaml, uri)
    tracker.record(spec, ledger, yaml, uri)
    study.close()
    lease.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
