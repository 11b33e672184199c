"""What the sweep and chaos tests do to a sweep's processes: log steps of training, and hold, kill or break chosen trials.

The code under test has no hooks for this. `environment` puts a `sitecustomize` on PYTHONPATH, which Ray's workers
inherit from the driver: it wraps classes of raylt once `raylt.trial` has been imported.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "RAYLT_TEST_SABOTAGE"
WATCHED = "raylt.trial.run"
AT_STEP = 7  # of the first round that a trial trains itself
HOLD, DIE, LOSE_GPU = "hold", "die", "lose the gpu"  # besides names of exceptions

# --- in the test ------------------------------------------------------------------------------------------------------


def environment(folder: Path, plan: Mapping[int, str], pace_s: float = 0.0) -> dict[str, str]:
    """For a driver, or a raylet of a cluster: `plan` says what becomes of trials at `AT_STEP`, each step takes `pace_s` more.

    Logs and flags are kept in `folder`.
    """
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text("from tests.support import sabotage\n\nsabotage.watch()\n")
    repository = Path(__file__).parents[2]
    settings = {"folder": str(folder), "plan": {str(trial): what for trial, what in plan.items()}, "pace_s": pace_s}
    return {"PYTHONPATH": f"{hook}{os.pathsep}{repository}", VARIABLE: json.dumps(settings)}


def held(folder: Path, trial: int) -> Path:
    """There once the trial is held; holds the worker's pid."""
    return folder / f"held-{trial}"


def let_go(folder: Path, trial: int) -> None:
    """The trial's worker goes on, and is not held again."""
    (folder / f"go-{trial}").touch()


# --- in the driver and its workers ------------------------------------------------------------------------------------


def watch() -> None:
    settings = json.loads(os.environ[VARIABLE])
    _append(Path(settings["folder"]) / "processes.log", " ".join(sys.orig_argv))
    sys.meta_path.insert(0, _OnceImported(settings))


class _OnceImported:
    """An import hook that sabotages `WATCHED` when it has been imported."""

    def __init__(self, settings):
        self.settings = settings

    def find_spec(self, name, path=None, target=None):
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            wrap(module.TrialRun, sys.modules["raylt.diffusion.train"].Trainer, **self.settings)
            log_commits(importlib.import_module("raylt.store.ledger").Ledger, Path(self.settings["folder"]))

        spec.loader.exec_module = exec_module
        return spec


def log_commits(ledger_class, folder):
    """Log every asked or ended trial that this process has committed to `ledger.log`."""
    ask, finish = ledger_class.submit, ledger_class.finish

    @functools.wraps(ask)
    def asked(self, trial):
        ask(self, trial)
        _append(folder / "ledger.log", f"trials/{trial.id:05d}/asked.json")

    @functools.wraps(finish)
    def finished(self, number, result):
        was_there = number in self.results
        kept = finish(self, number, result)
        if not was_there and kept == result:
            _append(folder / "ledger.log", f"trials/{number:05d}/result.json")
        return kept

    ledger_class.submit, ledger_class.finish = asked, finished


def wrap(run_class, trainer_class, folder, plan, pace_s=0.0):
    """Log every step of training to `steps.log`: seed of the order, step, checksum of the mask. Strike where planned."""
    folder, waiting, current = Path(folder), dict(plan), None
    begin, step = run_class.__init__, trainer_class.run_step

    @functools.wraps(begin)
    def begun(self, trial, *args, **kwargs):
        nonlocal current
        current = str(trial.id)
        begin(self, trial, *args, **kwargs)

    @functools.wraps(step)
    def stepped(self):
        loss = step(self)
        mask = zlib.crc32(b"".join(mask.bool().cpu().numpy().tobytes() for mask in self.masks))
        _append(folder / "steps.log", f"{self.recipe.seed} {self.step} {mask}")
        if self.step == AT_STEP and current in waiting:
            _strike(folder, int(current), waiting.pop(current))
        time.sleep(pace_s)
        return loss

    run_class.__init__, trainer_class.run_step = begun, stepped


def _strike(folder: Path, trial: int, what: str) -> None:
    if what == DIE:
        _append(folder / f"deaths-{trial}", str(os.getpid()))
        os._exit(1)
    if what == LOSE_GPU:  # once; an assertion that fails on the device leaves this process without it
        torch, flag = sys.modules["torch"], folder / f"lost-{trial}"
        if not flag.exists():
            flag.touch()
            _ = torch.zeros(1, device="cuda")[torch.ones(1, dtype=torch.long, device="cuda")]
        return
    if what != HOLD:
        error = getattr(builtins, what, None) or getattr(sys.modules["torch"], what)
        raise error(f"planned for trial {trial}")
    partial = held(folder, trial).with_suffix(".partial")
    partial.write_text(str(os.getpid()))
    partial.replace(held(folder, trial))
    while not (folder / f"go-{trial}").exists():
        time.sleep(0.02)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
