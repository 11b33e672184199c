"""Processes forked off a server that has imported everything once: seconds for each instead of half a minute.

Not off pytest's own process: autograd refuses to work in a fork of one that has trained.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from ray import cloudpickle

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "tests.chaos.drive", "tests.integration.test_faults", "mlflow.tracking", "mlflow.store.db.utils", "ray.tune",
        "raylt.report.figures", "raylt.report.html_page", "raylt.sweep.actor", "raylt.sweep.driver", "raylt.sweep.single",
        "raylt.tracking.recorder",
    ]
)  # fmt: skip


def start(work: Callable[..., Any], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """`work(*arguments)` in such a process, in this one's environment; both may be closures."""
    process = FORK.Process(target=_work, args=(cloudpickle.dumps((work, arguments, dict(os.environ))),))
    process.start()
    return process


def _work(pickled: bytes) -> None:
    work, arguments, environment = cloudpickle.loads(pickled)
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)
