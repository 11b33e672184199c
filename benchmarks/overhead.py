"""What a trial costs that does nothing: how raylt's share grows over a long sweep, and against Tune's own parts.

    python benchmarks/overhead.py [--quick]      # writes benchmarks/results/overhead.json

Everything but the trial's work is real: dispatcher, searcher, Tune on a local Ray with reused actors, ledger and stages
on a disk, study.db, MLflow on SQLite with every file of a run. The trial returns a result of the real shape at once.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from raylt.cluster import ray_runtime

ray_runtime.prepare_environment(None)  # before Ray is imported

import optuna
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from raylt.diffusion.tensors import pack
from raylt.diffusion.unet import layers_of
from raylt.search.sampler import default_startup
from raylt.search.space import distributions
from raylt.search.study import StudyKeeper
from raylt.spec import SweepSpec, TrialSpec, dump_yaml
from raylt.spec.trials import TrainingRequest
from raylt.store import Lease, Ledger, Output, Store
from raylt.store.layout import GRID, LOCK_FILE, RUNS_FILE, SIMILARITY_FILE, SPEC_FILE, TICKET
from raylt.store.results import TrialResult
from raylt.sweep.concurrency import Memory
from raylt.sweep.dispatch import Dispatcher
from raylt.sweep.messages import TrialFinished, as_result
from raylt.sweep.progress import SweepProgress
from raylt.sweep.searcher import LedgerSearcher
from raylt.sweep.tune import run_tune
from raylt.tracking.runs import trial_files
from raylt.tracking.tracker import Tracker

RESULTS = Path(__file__).parent / "results" / "overhead.json"
WINDOW = 20  # trials behind each median: from the 10th on, and up to the last
PROFILE = {"down": -1.0, "mid": -0.2, "up": 1.2}


class Clock(NamedTuple):
    """Seconds, as they were when a trial ended."""

    wall: float
    loop: float  # CPU of the thread that runs Tune's loop: what a busy machine does not change
    driver: float  # CPU of the whole process, the record's thread included

    @staticmethod
    def now() -> Clock:
        return Clock(time.perf_counter(), time.thread_time(), time.process_time())


class Instant(tune.Trainable):
    """In place of `TrialActor`: one step that reports a round and the result, a bowl in two of the four parameters."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        params = self._config["trial"]["params"]
        gamma, delta = params.get("gamma", 0.0), params.get("delta/down", 0.0)
        numbers = {
            "loss": 0.1 + (gamma - 0.5) ** 2 + delta**2,
            "flops": int(1e6 * (2 + gamma)),
            "time_ms": int(time.time() * 1000),
        }
        result = {**self._config["template"], **numbers}
        result["rounds"] = [{**report, **numbers} for report in result["rounds"]]
        ended = TrialResult.from_json(result)
        return as_result(TrialFinished(ended, ended.scores))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """As `TrialActor`: nothing."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """As `TrialActor`: nothing."""


class Plain(Instant):
    """The same objective for Tune's own parts, with files as raylt records them of a trial."""

    def setup(self, config: dict[str, Any], files: dict[str, bytes]) -> None:
        self._files = files
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        for name, data in self._files.items():
            (Path(self.logdir) / name).write_bytes(data)
        gamma, delta = self._config["gamma"], self._config["delta"]["down"]  # OptunaSearch nests at each slash
        return {"loss": 0.1 + (gamma - 0.5) ** 2 + delta**2, "flops": int(1e6 * (2 + gamma)), "done": True}


def make_spec(trials: int) -> SweepSpec:
    search = {"trials": trials, "pilots": 0, "baselines": []}
    return SweepSpec.model_validate({"schema": 1, "name": "overhead", "search": search})


def template(spec: SweepSpec, store: Store) -> dict[str, Any]:
    """A result as `TrialRun` leaves it, its numbers made up, its stages real: the record reads and draws their files."""
    ticket = store.stage({"kind": "ticket", "of": "overhead"})
    ticket.make(lambda stage: Output({"bytes": 1 << 16}, {TICKET: os.urandom(1 << 16)}))
    sample = store.stage({"kind": "sample", "of": "overhead"})
    grid = pack(images={"first": torch.randint(0, 255, (64, *(spec.image_shape[0], 8, 8)), dtype=torch.uint8)})
    sample.make(lambda stage: Output({"fid": 1.0}, {GRID: grid}))
    report = {
        "shared": False,
        "density": 0.1,
        "loss": 0.0,
        "fid": 1.0,
        "kid": None,
        "flops": 0,
        "ticket_bytes": 1 << 16,
        "time_ms": 0,
    }
    return {
        "state": "COMPLETE", "cause": None, **report, "flops_dense": 4_000_000, "broken": False, "ticket": "0" * 64,
        "kept": {block: [100, 1000] for block in spec.blocks},
        "layers": {layer.name: [layer.size // 10, layer.size] for layer in layers_of(spec.unet_config)},
        "rounds": [{"round": index, **report} for index in range(spec.ticket.rounds + 1)],
        "start_stage": "0" * 64, "final_stage": "0" * 64, "ticket_stage": ticket.digest, "sample_stage": sample.digest,
        "steps": {"asked": 0, "trained": 0, "shared": 0}, "timing": {"wall_s": 0.0, "stages_s": 0.0},
        "stages": {f"{index:064x}": f"{index:064x}" for index in range(10)},
    }  # fmt: skip


def run_raylt(folder: Path, trials: int, resources: ray_runtime.Resources) -> dict[str, Any]:
    """A sweep as `raylt.sweep` wires it. Times at which its trials finished, and when MLflow was up to date after the last."""
    spec, store = make_spec(trials), Store(str(folder / "store"))
    lease = Lease.acquire(store, spec.name)
    ledger, yaml, uri = Ledger(store, spec.name, lease.check), dump_yaml(spec.dump()), f"sqlite:///{folder}/mlflow.db"
    store.write(f"sweeps/{spec.name}/{SPEC_FILE}", yaml.encode())
    ledger.write(LOCK_FILE, {"digest": spec.digest, "startup": default_startup(spec)})
    ledger.write(SIMILARITY_FILE, {"blocks": {}, "profile": PROFILE})
    study, ends = StudyKeeper(spec, ledger, folder / "study.db"), []
    tracker, progress = Tracker(spec, ledger, yaml, uri), SweepProgress(spec, ledger, Console(file=StringIO()))
    tracker.sync_soon()
    wait_for(
        lambda: "parent" in (ledger.read(RUNS_FILE) or {})
    )  # importing mlflow and making its schema are not a trial's cost

    def changed(trial: Any, result: Any) -> None:
        study.sync_soon()
        tracker.sync_soon()
        progress.changed(trial, result)
        if result is not None:
            ends.append(Clock.now())

    def round_done(trial: Any, report: Any) -> None:
        tracker.round_done(trial, report)
        progress.round_done(trial, report)

    dispatcher = Dispatcher(spec, ledger, default_startup(spec), changed)
    searcher = LedgerSearcher(dispatcher, round_done, Memory(spec.search.concurrency, progress.say))
    shared = {"template": template(spec, store)}
    run_tune(spec, searcher, resources, shared, Instant)
    study.close()
    assert tracker.close("complete"), "the record is not whole"
    whole = Clock.now()
    lag_s = whole.wall - ends[-1].wall
    lease.release()
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        finished = database.execute("select count(*) from runs where status = 'FINISHED'").fetchone()[0]
    assert len(ends) == trials + 1 and finished == trials + 2, (len(ends), finished)  # the dense trial; and the parent
    return {"ends": ends, "lag_s": lag_s, "whole": whole}


def run_plain(folder: Path, trials: int) -> dict[str, Any]:
    """The same space, sampler, concurrency and databases with the parts that come with Tune."""
    spec, ends = make_spec(trials), []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ends.append(Clock.now())

    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=default_startup(spec), multivariate=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
    search = OptunaSearch(
        distributions(spec), metric=["loss", "flops"], mode=["min", "min"], sampler=sampler, storage=storage, study_name="plain"
    )
    record = MLflowLoggerCallback(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="plain", save_artifact=True
    )  # fmt: skip
    trainable = tune.with_parameters(Plain, files=recorded_files(spec, folder))
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": spec.resources.cpus, "gpu": 0}),
        tune_config=tune.TuneConfig(
            search_alg=tune.search.ConcurrencyLimiter(search, max_concurrent=spec.search.concurrency),
            num_samples=trials, reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="plain", storage_path=str(folder / "tune"), verbose=0, callbacks=[record, Ends()]),
    ).fit()  # fmt: skip
    assert len(ends) == trials
    return {"ends": ends, "whole": Clock.now()}


def recorded_files(spec: SweepSpec, folder: Path) -> dict[str, bytes]:
    """The files of one trial's run in MLflow, drawn already."""
    store = Store(str(folder / "files"))
    return trial_files(
        store, TrialSpec(0, "search", TrainingRequest("searched", 0)), TrialResult.from_json(template(spec, store))
    )


def wait_for(condition: Any) -> None:
    while not condition():
        time.sleep(0.1)


def gaps_ms(ends: Sequence[Clock], clock: str) -> list[float]:
    times = [getattr(end, clock) for end in ends]
    return [1000 * (after - before) for before, after in itertools.pairwise(times)]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raylt-overhead-") as name:
        yield Path(name)


def growth(trials: int, resources: ray_runtime.Resources) -> dict[str, Any]:
    """One long sweep: time per trial at its 10th and at its last."""
    with folder() as place:
        run = run_raylt(place, trials, resources)
    return {
        "trials": trials,
        "total_s": round(run["ends"][-1].wall - run["ends"][0].wall, 1),
        "record_up_to_date_after_s": round(run["lag_s"], 1),
        **{clock: growth_of(gaps_ms(run["ends"], clock)) for clock in Clock._fields},
    }


def growth_of(gaps: list[float]) -> dict[str, Any]:
    early, late = gaps[10 : 10 + WINDOW], gaps[-WINDOW:]
    return {
        "median_ms_10th": round(statistics.median(early), 1),
        "median_ms_last": round(statistics.median(late), 1),
        "ratio": round(statistics.median(late) / statistics.median(early), 3),
        "mean_ms_by_100": [round(statistics.mean(gaps[index : index + 100]), 1) for index in range(0, len(gaps) - 99, 100)],
    }


def against_plain(trials: int, repeats: int, resources: ray_runtime.Resources) -> dict[str, Any]:
    """raylt and Tune's own parts in turn. The first trials, which start actors and open databases, are left out."""
    runs: dict[str, list[list[Clock]]] = {"raylt": [], "plain": []}
    whole: dict[str, list[float]] = {"raylt": [], "plain": []}
    for _ in range(repeats):
        for name, ends in runs.items():
            with folder() as place:
                run = run_raylt(place, trials, resources) if name == "raylt" else run_plain(place, trials)
            ends.append(run["ends"][10:])
            whole[name].append(round(1000 * (run["whole"].driver - ends[-1][0].driver) / (len(ends[-1]) - 1), 1))
    ratio = statistics.median(whole["raylt"]) / statistics.median(whole["plain"])
    return {
        "trials": trials,
        "repeats": repeats,
        **{clock: comparison_of(runs, clock) for clock in Clock._fields},
        "driver_to_a_whole_record": {"ms_a_trial": whole, "ratio_of_medians": round(ratio, 3)},
    }


def comparison_of(runs: dict[str, list[list[Clock]]], clock: str) -> dict[str, Any]:
    medians = {name: [round(statistics.median(gaps_ms(ends, clock)), 1) for ends in each] for name, each in runs.items()}
    means = {name: [round(statistics.mean(gaps_ms(ends, clock)), 1) for ends in each] for name, each in runs.items()}
    return {
        "median_ms": medians,
        "mean_ms": means,
        "ratio_of_medians": round(statistics.median(medians["raylt"]) / statistics.median(medians["plain"]), 3),
        "ratio_of_means": round(statistics.median(means["raylt"]) / statistics.median(means["plain"]), 3),
    }


def circumstances(quick: bool) -> dict[str, Any]:
    """When and where a part was measured. On a loaded machine trust `loop` and `driver`, which count CPU time, over `wall`."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "quick": quick,
        "load": round(os.getloadavg()[1], 1),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("raylt", "ray", "optuna", "mlflow")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials, to see that it works")
    parser.add_argument("--only", choices=("growth", "against_plain"), help="one of the two parts; the other's figures stay")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    long, short, repeats = (100, 30, 1) if args.quick else (1000, 60, 3)
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    with ray_runtime.connected(None, print):
        resources = ray_runtime.trial_resources(make_spec(1), print)
        parts = {"growth": lambda: growth(long, resources), "against_plain": lambda: against_plain(short, repeats, resources)}
        for name, part in parts.items():
            if args.only in (None, name):
                document[name] = {**part(), **circumstances(args.quick)}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
