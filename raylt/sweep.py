"""run_sweep(): wires the rooms below. Starting, resuming and extending a sweep are the same call."""

from __future__ import annotations

import platform
import signal
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from raylt import cluster, estimate, preflight
from raylt.confirm import Request, extend
from raylt.diffusion.train import Compute
from raylt.document import LOCK_FILE, SPEC_FILE, confirmations, failed_trials, is_complete, stored_spec
from raylt.errors import EnvironmentFailure, InputError, RayltError
from raylt.inputs import Address
from raylt.lease import Lease
from raylt.ledger import Ledger
from raylt.progress import SweepProgress
from raylt.runs import tracking_uri, without_secrets
from raylt.search.dispatch import Dispatcher
from raylt.search.memory import Memory
from raylt.search.profile import measure
from raylt.search.sampler import default_startup
from raylt.search.study import StudyKeeper
from raylt.single import local_compute
from raylt.spec import SweepSpec, TrackingSpec, digest_of
from raylt.specfile import dump_yaml
from raylt.store import Store
from raylt.tracking import Tracker
from raylt.where import Place

VERSIONS = ("raylt", "torch", "torchvision", "diffusers", "ray", "optuna", "mlflow", "torch-fidelity")
STUDY_CLOSES_WITHIN_S = 10.0  # of an interrupted sweep: whoever stopped it waits


def run_sweep(
    spec: SweepSpec, *, place: Place, new: bool = False, confirm: Request | None = None, ends_at: float | None = None,
    console: Console,
) -> tuple[SweepSpec, int]:  # fmt: skip
    """Run a sweep to its end, from wherever it stands, and confirm what it found where that is asked for.

    Returns the spec as named in the store, and the exit code. `ends_at` (seconds of `time.monotonic`): when to stop as upon
    SIGTERM, with exit code 3; the checks before the lease is taken are not cut short.

    Raises `InputError` for a changed identity or a sweep that cannot run, `LeaseHeld` where another driver runs it.
    """
    store = Store(spec.storage.root)
    spec = with_free_name(spec, store) if new else spec
    refuse_changed_identity(spec, store)
    found = preflight.check(spec, store, begun_with(spec, store))
    signals, lease = cluster.Signals(), None
    try:
        if ends_at is not None:
            signals.start_timer(ends_at)
        lease = Lease.acquire(store, spec.name, signals.terminate)
        return spec, _Driver(spec, store, lease, signals, console, confirm).run(place, found)
    except KeyboardInterrupt:
        return spec, signals.exit_code
    except SystemExit as leave:  # Ray's own answer to SIGTERM while it starts
        if leave.code != signal.SIGTERM:
            raise
        return spec, 143
    finally:
        signals.restore()
        if lease is not None:
            lease.release()


def describe_sweep(spec: SweepSpec, *, new: bool = False) -> list[str]:
    """What `run_sweep` would do, after the same checks; starts and writes nothing."""
    store = Store(spec.storage.root)
    spec = with_free_name(spec, store) if new else spec
    refuse_changed_identity(spec, store)
    found = preflight.check(spec, store, begun_with(spec, store))
    budget = estimate.describe(spec, Ledger(store, spec.name), found.inputs, local_compute(spec))
    return [*preflight.describe(spec, store, found), *budget]


def begun_with(spec: SweepSpec, store: Store) -> Address | None:
    """The inputs of a sweep of this name, where one was begun."""
    lock = store.read_json(f"sweeps/{spec.name}/{LOCK_FILE}")
    return None if lock is None or "data_sha256" not in lock else Address(lock["data_sha256"], lock.get("inception_sha256"))


def with_free_name(spec: SweepSpec, store: Store) -> SweepSpec:
    """NAME, or NAME-2, NAME-3 ... where sweeps of those names exist: `--new` deletes nothing."""
    name, number = spec.name, 1
    while store.read(f"sweeps/{name}/{SPEC_FILE}") is not None:
        number += 1
        name = f"{spec.name}-{number}"
    return spec.model_copy(update={"name": name})


def refuse_changed_identity(spec: SweepSpec, store: Store) -> None:
    """Raises `InputError`, naming the keys that differ, where a sweep of this name asks for something else."""
    if store.read(f"sweeps/{spec.name}/{SPEC_FILE}") is None:
        return
    before = stored_spec(store, spec.name)
    if before.digest == spec.digest:
        return
    old, new = before.identity(), spec.identity()
    changed = [f"  {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    advice = f"restore the spec, or start {spec.name}-2 beside it with --new"
    raise InputError("\n".join([f"sweep {spec.name} was begun with another spec; {advice}:", *changed]))


class _Driver:
    """One driver's life over one sweep, under its lease."""

    def __init__(
        self, spec: SweepSpec, store: Store, lease: Lease, signals: cluster.Signals, console: Console, confirm: Request | None
    ) -> None:
        self.confirm = confirm
        self.spec, self.store, self.lease, self.signals, self.console = spec, store, lease, signals, console
        self.ledger = Ledger(store, spec.name, lease.check)
        self.yaml = without_secrets(dump_yaml(spec.dump()))  # as the store and MLflow keep it

    def run(self, place: Place, found: preflight.Preflight) -> int:
        lock = self.ledger.read(LOCK_FILE)
        if lock is not None and is_complete(self.spec, self.ledger) and not self._has_more_to_confirm():
            return self._project_and_leave()
        self._refuse_other_inputs(lock, found.inputs.address)
        self._say(str(place))
        found.inputs.put(Store(self.store.root, f"{self.spec.name}/driver", self.lease.check))
        with ExitStack() as ray_is_up:
            with self.signals.held():
                ray_is_up.enter_context(cluster.connected(place.address, self._say))
            resources = cluster.trial_resources(self.spec, self._say)
            self.lease.check()
            self.store.write(f"sweeps/{self.spec.name}/{SPEC_FILE}", self.yaml.encode())
            lock = lock or self._lock(cluster.resolve_compute(self.spec, resources, self._say), found)
            self._warn_of_other_versions(lock)
            return self._search(lock, resources, found.inputs.address)

    def _has_more_to_confirm(self) -> bool:
        known = confirmations(self.ledger)
        return self.confirm is not None and len(extend(self.spec, self.ledger, known, self.confirm)) > len(known)

    def _refuse_other_inputs(self, lock: dict[str, Any] | None, have: Address) -> None:
        name = self.spec.name
        if lock is not None and lock["data_sha256"] != have.images:
            raise InputError(f"the images are not those that sweep {name} began with; restore data.root, or use --new")
        if lock is not None and lock.get("inception_sha256", have.inception) != have.inception:
            raise InputError(f"the Inception weights are not those that sweep {name} began with; restore them, or use --new")

    def _lock(self, compute: Compute, found: preflight.Preflight) -> dict[str, Any]:
        """What is resolved once and then holds for the sweep's life."""
        lock = {
            "digest": self.spec.digest,
            **compute.key(),
            "startup": default_startup(self.spec),
            "data_sha256": found.inputs.address.images,
            "inception_sha256": found.inputs.address.inception,
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        }
        self.ledger.write(LOCK_FILE, lock)
        return lock

    def _warn_of_other_versions(self, lock: dict[str, Any]) -> None:
        for name, begun_with in lock["versions"].items():
            now = platform.python_version() if name == "python" else version(name)
            if now != begun_with:
                self._say(f"warning: the sweep was begun with {name} {begun_with}, this is {now}: last digits may differ")

    def _search(self, lock: dict[str, Any], resources: cluster.Resources, inputs: Address) -> int:
        from raylt.actor import TrialActor  # these import Ray, which must find its settings made
        from raylt.search.searcher import LedgerSearcher, StopEarly, WorkerDeaths

        compute = Compute(lock["device"], lock["precision"], lock["threads"])
        study = StudyKeeper(self.spec, self.ledger, study_path(self.store, self.spec.name))
        tracker = Tracker(self.spec, self.ledger, self.yaml, tracking_uri(self.spec))
        progress = SweepProgress(self.spec, self.ledger, self.console)

        def changed(trial: Any, result: Any) -> None:
            study.sync_soon()
            tracker.sync_soon()
            progress.changed(trial, result)

        def round_done(trial: Any, report: Any) -> None:
            tracker.round_done(trial, report)
            progress.round_done(trial, report)

        dispatcher = Dispatcher(self.spec, self.ledger, lock["startup"], changed, self.confirm)
        searcher = LedgerSearcher(dispatcher, round_done, Memory(self.spec.search.concurrency, progress.say))
        shared = {
            "spec": _for_workers(self.spec).dump(), "compute": compute.key(), "inputs": asdict(inputs), "name": self.spec.name,
            "root": self.store.uri, "epoch": self.lease.holder.epoch,
        }  # fmt: skip
        try:
            study.sync_soon()
            tracker.sync_soon()
            callbacks = [WorkerDeaths(searcher)]
            cluster.run_tune(TrialActor, searcher, callbacks, StopEarly(searcher), self.spec, resources, shared)
        except Exception as error:
            raise _underlying(error) from error
        finally:
            self.signals.end_timer()
            progress.close()
            self._close(study, tracker)
        if searcher.failure is not None:
            raise searcher.failure
        if dispatcher.stopped_by is not None:
            raise EnvironmentFailure(f"stopped: five trials in a row failed with one cause: {dispatcher.stopped_by}")
        return self._exit_code()

    def _project_and_leave(self) -> int:
        """Nothing to run: bring similarity, study and MLflow up to date, should they be behind or gone."""
        self.signals.end_timer()
        measure(self.spec, self.ledger)
        study = StudyKeeper(self.spec, self.ledger, study_path(self.store, self.spec.name))
        self._close(study, Tracker(self.spec, self.ledger, self.yaml, tracking_uri(self.spec)))
        return self._exit_code()

    def _close(self, study: StudyKeeper, tracker: Tracker) -> None:
        ended = is_complete(self.spec, self.ledger)
        study.close(None if ended else STUDY_CLOSES_WITHIN_S)
        is_recorded = tracker.close("complete" if ended else "interrupted")
        if not is_recorded and self.lease.is_mine:
            self._say("warning: MLflow could not be reached; the next start of this sweep brings its record up to date")

    def _exit_code(self) -> int:
        was_told = self.signals.terminated or self.signals.expired  # perhaps before a confirmation was planned
        if not is_complete(self.spec, self.ledger) or (was_told and self._has_more_to_confirm()):
            return self.signals.exit_code
        return 1 if failed_trials(self.ledger) else 0

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _underlying(error: BaseException) -> BaseException:
    """What Tune wrapped: an error of ours (another driver took over, the disk is full) where there is one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RayltError):
            return link
        link = link.__cause__ or link.__context__
    return error


def _for_workers(spec: SweepSpec) -> SweepSpec:
    """The spec without what workers never see: MLflow, and the data set, which reaches them by the store."""
    data = spec.data.model_copy(update={"root": None})
    return spec.model_copy(update={"data": data, "tracking": TrackingSpec()})


def study_path(store: Store, name: str) -> Path:
    """Where Optuna's file lies: with the sweep, or in the user's cache where the store is not local."""
    if store.is_local:
        return store.local_path(f"sweeps/{name}/study.db")
    return Path.home() / ".cache" / "raylt" / digest_of(store.root)[:16] / name / "study.db"
