"""Ray, connected: started on this machine, or the cluster at an address; and what a trial gets there."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylt.cluster import ray_start
from raylt.cluster.auth import asks_for_token
from raylt.cluster.capacity import Capacity, needed, read_capacity
from raylt.cluster.ray_start import Say
from raylt.errors import SpecError
from raylt.spec import SweepSpec
from raylt.spec.checks import LEAST_GPU

FIRST_WORKER_WITHIN_S = 90.0

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # Tune would start such a trial again by itself, unseen
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
}


PATHS = ("RAYLT_DATA", "RAYLT_INCEPTION")


@dataclass(frozen=True)
class Resources:
    """What a trial gets."""

    cpus: float
    gpus: float

    def shared_by(self, trials: int, spec: SweepSpec) -> Resources:
        """Where `resources.gpus` is `auto`, one GPU for so many trials."""
        is_auto = spec.resources.gpus == "auto" and self.gpus == 1
        return Resources(self.cpus, LEAST_GPU * math.floor(1 / trials / LEAST_GPU)) if is_auto and trials > 1 else self


def prepare_environment(address: str | None) -> None:
    """Settings that Ray reads when it is first imported, so this comes first. Where Ray is imported already, they stay.

    Raises `EnvironmentFailure` where no Ray answers at the address, or where it turns us away.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    for name in PATHS:  # workers run in folders of their own
        if name in os.environ:
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    if address is None and "ray" not in sys.modules:  # other users of this machine must not be able to send us code
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    elif address is not None:
        is_asked = asks_for_token(address)
        os.environ.setdefault("RAY_AUTH_MODE", "token" if is_asked else "disabled")  # its nodes must be able to answer us


@contextmanager
def connected(address: str | None, say: Say) -> Iterator[None]:
    """A running Ray: started here and ended with us, or the cluster at `address`. Raises `EnvironmentFailure`."""
    prepare_environment(address)
    with ray_start.running(address, say):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield


def trial_resources(spec: SweepSpec, say: Say) -> Resources:
    """What a trial gets, once a node is up that has it: the autoscaler is asked for one, and said what is waited for.

    Raises `SpecError` where no machine that is up, or that may ever be started, could hold a trial.
    """
    capacity = read_capacity()
    gpus = float(spec.resources.gpus) if spec.resources.gpus != "auto" else 0.0
    if spec.resources.gpus == "auto":
        capacity = _with_first_worker(capacity, say)
        gpus = float(capacity.has_gpus)
    if problems := capacity.problems(spec.resources.cpus, gpus):
        raise SpecError(problems)
    resources = Resources(spec.resources.cpus, gpus)
    if not capacity.holds(resources.cpus, resources.gpus):
        on_a_node(_is_up, resources, say)
    return resources


def _with_first_worker(capacity: Capacity, say: Say) -> Capacity:
    """Whether trials get GPUs depends on machines that show what they have once they are up: waits a while for the first."""
    end = time.monotonic() + FIRST_WORKER_WITHIN_S
    unknown = [kind for kind in capacity.types if kind.has is None and not kind.num_up]
    if unknown and not capacity.has_gpus:
        say(f"waiting for a first worker, to see whether it has a GPU ({', '.join(map(str, unknown))})")
        while unknown and time.monotonic() < end:
            time.sleep(1.0)
            capacity = read_capacity()
            unknown = [kind for kind in capacity.types if kind.has is None and not kind.num_up]
    return capacity


def on_a_node(task: Callable[[], Any], resources: Resources, say: Say) -> Any:
    """The task's result, from a node with what a trial needs, for which the autoscaler is asked; says what is waited for."""
    import ray

    waits_for = ""
    pending = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=-1)(task).remote()
    while not ray.wait([pending], timeout=5.0)[0]:
        capacity = read_capacity()
        if problems := capacity.problems(resources.cpus, resources.gpus):
            raise SpecError(problems)
        kinds = ", or ".join(map(str, capacity.candidates(resources.cpus, resources.gpus)))
        if not capacity.holds(resources.cpus, resources.gpus) and kinds != waits_for:
            say(f"waiting for a node with {needed(resources.cpus, resources.gpus)} ({kinds})")
            waits_for = kinds
    return ray.get(pending)


def _is_up() -> None:
    """A task that only needs a node."""
