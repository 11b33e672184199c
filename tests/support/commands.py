"""Commands of raylt, and how they ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import TINY, merged

SMALL = merged(
    TINY,
    {
        "name": "small",
        "train": {"learning_rate": 2e-2, "batch_size": 16},  # enough in 12 steps for tickets that are not broken
        "search": {"trials": 2, "pilots": 0, "profile": "movement", "sampler": "random"},
        "metrics": {"keep_samples": True},
        "resources": {"gpus": 0},
    },
)
SEARCHED, BROKEN_OFF = 3, 4  # of its trials, two; the others: dense, uniform, erk
HEAVY = {"torch", "ray", "mlflow", "optuna", "diffusers", "torchvision"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of a refusal: nothing on stdout, and no traceback."""
        assert (self.code, self.out) == (2, "")
        assert "Traceback" not in self.err
        return self.err.splitlines()


Call = Callable[..., Done]


def start(*words: str | Path, flags: tuple[str, ...] = ()) -> Done:
    """The command in a process of its own."""
    command = [sys.executable, *flags, "-m", "raylt.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def paths(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
