"""One run of Ray Tune over a sweep's trials."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import ConcurrencyLimiter

from raylt.cluster import ray_internals
from raylt.cluster.ray_runtime import Resources
from raylt.spec import SweepSpec
from raylt.spec.canonical import JsonObject
from raylt.sweep.actor import TrialActor
from raylt.sweep.searcher import LedgerSearcher, StopEarly, WorkerDeaths


def run_tune(
    spec: SweepSpec, searcher: LedgerSearcher, resources: Resources, shared: JsonObject,
    trainable: type = TrialActor,
) -> None:  # fmt: skip
    """To its end, to Ctrl-C or to the stopper. Tune's own experiment files are scratch and are thrown away.

    `shared`: what all trials share, as `WorkerConfig.dump` gives it.
    """

    class Actor(trainable):
        """The trainable with what all trials share: Tune's config then holds the trial alone."""

        def setup(self, config: dict[str, Any]) -> None:
            super().setup({**shared, **config})

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return bool(super().reset_config({**shared, **new_config}))

    ray_internals.patch()
    scratch = Path(tempfile.mkdtemp(prefix="raylt-tune-"))
    try:
        tune.Tuner(
            tune.with_resources(Actor, {"cpu": resources.cpus, "gpu": resources.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(searcher, max_concurrent=spec.search.concurrency), num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=spec.name, storage_path=str(scratch), verbose=0, callbacks=[WorkerDeaths(searcher)],
                stop=StopEarly(searcher),
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher hands such trials out again
            ),
        ).fit()  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
