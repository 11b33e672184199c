"""Put on PYTHONPATH by the chaos tests: every process logs each training step it does to $RAYLT_STEP_LOG."""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from pathlib import Path

WATCHED = "raylt.diffusion.train"


class LogSteps:
    """An import hook that wraps `Trainer.run_step` once its module is loaded: the code under test has no hooks of its own."""

    def find_spec(self, name, path=None, target=None):
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            step = module.Trainer.run_step

            def logged(trainer):
                loss = step(trainer)
                mask = zlib.crc32(b"".join(mask.bool().numpy().tobytes() for mask in trainer.masks))
                with Path(os.environ["RAYLT_STEP_LOG"]).open("a") as file:
                    file.write(f"{trainer.seed} {trainer.step} {mask}\n")
                return loss

            module.Trainer.run_step = logged

        spec.loader.exec_module = exec_module
        return spec


if "RAYLT_STEP_LOG" in os.environ:
    sys.meta_path.insert(0, LogSteps())
