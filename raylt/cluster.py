"""Where trials run: on this machine, or on the Ray cluster at an address. The only place that starts Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from raylt.diffusion.train import Compute
from raylt.errors import EnvironmentFailure, Problem, SpecError
from raylt.spec import SweepSpec

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
    """What the cluster has, and what a trial gets."""

    cluster_cpus: float
    cluster_gpus: float
    trial_gpus: float


def prepare_environment(address: str | None) -> None:
    """Settings that Ray reads when it is first imported, so this comes first. Where Ray is imported already, they stay."""
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    for name in PATHS:  # workers run in folders of their own
        if name in os.environ:
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    if address is None and "ray" not in sys.modules:  # other users of this machine must not be able to send us code
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


@contextmanager
def connected(spec: SweepSpec, address: str | None) -> Iterator[Resources]:
    """A running Ray: started here and ended with us, or the cluster at `address`.

    Raises `EnvironmentFailure` where none can be had, `SpecError` where no machine could ever hold a trial.
    """
    prepare_environment(address)
    import ray

    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise EnvironmentFailure(f"no Ray {'on this machine' if address is None else f'at {address}'}: {error}") from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield _resources(spec, ray.cluster_resources())
    finally:
        ray.shutdown()


def _resources(spec: SweepSpec, have: dict[str, float]) -> Resources:
    cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    wanted = (1.0 if gpus else 0.0) if spec.resources.gpus == "auto" else spec.resources.gpus
    problems = []
    if spec.resources.cpus > cpus:
        problems.append(
            Problem("resources.cpus", f"more than the cluster's {cpus:g}", f"at most {cpus:g}", spec.resources.cpus, True)
        )
    if wanted > gpus:
        problems.append(
            Problem("resources.gpus", f"more than the cluster's {gpus:g}", f"at most {gpus:g}, or auto", wanted, True)
        )
    if problems:
        raise SpecError(problems)
    return Resources(cpus, gpus, wanted)


def resolve_compute(spec: SweepSpec, resources: Resources) -> Compute:
    """Device, precision and threads, decided once per sweep. Asks a GPU worker what it can do, since we may have none."""
    has_cuda, has_bf16 = False, False
    if resources.trial_gpus:
        import ray

        has_cuda, has_bf16 = ray.get(ray.remote(num_gpus=resources.trial_gpus)(_probe_gpu).remote())
    wanted = spec.train.precision
    precision = ("bf16" if has_bf16 else "fp32") if wanted == "auto" else wanted
    return Compute("cuda" if has_cuda else "cpu", precision, spec.resources.cpus)


def _probe_gpu() -> tuple[bool, bool]:
    import torch

    has_cuda = torch.cuda.is_available()
    return has_cuda, has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)


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
            tune.with_resources(Actor, {"cpu": spec.resources.cpus, "gpu": resources.trial_gpus}),
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


class Signals:
    """SIGTERM as gentle as Ctrl-C: Tune stops on SIGUSR1; before and after its run we simply leave."""

    def __init__(self) -> None:
        self.terminated = False
        self._before = signal.getsignal(signal.SIGTERM)
        self.take()

    def take(self) -> None:
        """Again once Ray is up: `ray.init` puts handlers of its own in place, and its C++ one aborts."""
        signal.signal(signal.SIGTERM, self._on_terminate)

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
        return 143 if self.terminated else 130

    def restore(self) -> None:
        signal.signal(signal.SIGTERM, self._before)
