"""Where trials run: on this machine, or on the Ray cluster at an address. The only place that starts Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from raylt.cluster import ray_start
from raylt.cluster.auth import asks_for_token
from raylt.cluster.capacity import Capacity, needed, read_capacity
from raylt.cluster.ray_start import Say
from raylt.errors import EnvironmentFailure, SpecError
from raylt.spec import SweepSpec

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


def run_tune(
    trainable: type,
    searcher: Any,
    callbacks: list[Any],
    stopper: Any,
    spec: SweepSpec,
    resources: Resources,
    shared: dict[str, Any],
) -> None:
    """One Tune run to its end, to Ctrl-C or to the stopper. Its own experiment files are scratch and are thrown away."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter

    class Actor(trainable):
        """The trainable with what all trials share: Tune's config then holds the trial alone."""

        def setup(self, config: dict[str, Any]) -> None:
            super().setup({**shared, **config})

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return bool(super().reset_config({**shared, **new_config}))

    _keep_secrets_at_home()
    scratch = Path(tempfile.mkdtemp(prefix="raylt-tune-"))
    limited = ConcurrencyLimiter(searcher, max_concurrent=spec.search.concurrency)
    try:
        tune.Tuner(
            tune.with_resources(Actor, {"cpu": resources.cpus, "gpu": resources.gpus}),
            tune_config=tune.TuneConfig(search_alg=limited, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name=spec.name, storage_path=str(scratch), verbose=0, callbacks=callbacks, stop=stopper,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher hands such trials out again
            ),
        ).fit()  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_secrets_at_home() -> None:
    """Tune copies AWS's keys into the runtime environment of its actors, which Ray logs and shows in clear.

    Workers have what their node's environment has, as everything else on it.
    """
    from ray.tune.execution import class_cache

    kept = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = kept


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Signals:
    """SIGTERM and SIGHUP as gentle as Ctrl-C: Tune stops on SIGUSR1; before and after its run we simply leave.

    SIGHUP comes when the terminal or the SSH session ends. Who has it ignored (`nohup`) goes on.
    """

    def __init__(self) -> None:
        self.terminated, self.expired = False, False
        gentle = (signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.getsignal(number) for number in gentle if signal.getsignal(number) != signal.SIG_IGN}
        self._held = threading.Lock()  # while Ray starts
        self._timer: threading.Timer | None = None
        self.take()

    def start_timer(self, ends_at: float) -> None:
        """From `ends_at` (seconds of `time.monotonic`) on it is as if SIGTERM had come, and `expired`: `--max-hours`."""
        self._timer = threading.Timer(min(max(0.0, ends_at - time.monotonic()), threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True
        self._timer.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the time does not run out: `ray.init` puts handlers of its own in place, and its C++ one aborts.

        Ray's processes inherit that SIGHUP is ignored. It reaches every process of a terminal that ends, and workers are to
        live until the driver has asked them to leave. A terminal that ended meanwhile is noticed afterwards.
        """
        had_terminal = signal.SIGHUP in self._before and _has_terminal()
        with self._held:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            try:
                yield
            finally:
                self.take()
        if had_terminal and not _has_terminal():
            self.terminate()

    def take(self) -> None:
        for number in self._before:
            signal.signal(number, self._on_terminate)

    def _expire(self) -> None:
        with self._held:
            if not self.terminated:
                self.expired = True
                self.terminate()

    def end_timer(self) -> None:
        """What ends from here on ends by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True
        if callable(signal.getsignal(signal.SIGUSR1)):
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        """As if somebody had sent SIGTERM; from any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def exit_code(self) -> int:
        """Of a sweep that was stopped: by its hours, SIGTERM, Ctrl-C."""
        if self.expired:
            return EnvironmentFailure.exit_code
        return 143 if self.terminated else 130

    def restore(self) -> None:
        self.end_timer()
        for number, handler in self._before.items():
            signal.signal(number, handler)
