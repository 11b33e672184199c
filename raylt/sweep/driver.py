"""run_sweep(): wires the rooms below. Starting, resuming and extending a sweep are the same call."""

from __future__ import annotations

import os
import platform
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from rich.console import Console

from raylt.cluster import ray_runtime, ray_watch
from raylt.cluster.place import Place
from raylt.cluster.signals import Signals
from raylt.diffusion.compute import Compute
from raylt.errors import EnvironmentFailure, RayltError, chain_of, without_secrets
from raylt.search.confirm import Request
from raylt.search.profile import measure_similarity
from raylt.search.sampler import default_startup
from raylt.search.study import StudyKeeper, study_path
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Lease, Ledger, Store
from raylt.store.layout import SPEC_FILE
from raylt.store.ledger_files import read_lock
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_lock import SweepLock
from raylt.store.sweep_state import failed_trials, is_complete, write_spec
from raylt.sweep import dry_run, preflight
from raylt.sweep.concurrency import Memory
from raylt.sweep.dispatch import Dispatcher
from raylt.sweep.footprint import refuse_too_large
from raylt.sweep.progress import SweepProgress
from raylt.sweep.resume import has_more_to_confirm, refuse_other_inputs, refuse_read_only, start, started_with
from raylt.sweep.step_form import Tuned, refuse_without_compiler, tune_step
from raylt.tracking.client import check as check_tracking
from raylt.tracking.runs import tracking_uri
from raylt.tracking.tracker import Tracker
from raylt.trial.inputs import InputDigests

VERSIONS = ("raylt", "torch", "torchvision", "diffusers", "ray", "optuna", "mlflow", "torch-fidelity")
STUDY_CLOSES_WITHIN_S = 10.0  # of an interrupted sweep: whoever stopped it waits


class SweepEnd(NamedTuple):
    """How a run of a sweep has ended: the spec as named in the store, the exit code, whether MLflow shows all of it."""

    spec: SweepSpec
    code: int
    is_recorded: bool = True


@dataclass(frozen=True)
class RunRequest:
    """What is asked of one run of a sweep.

    `ends_at` (seconds of `time.monotonic`): when to stop as upon SIGTERM, with exit code 3; the checks before the lease is
    taken are not cut short. `stored_images`: the images are those in the store, since nobody but the store names their folder.
    """

    new: bool = False  # beside an existing sweep of the name
    confirm: Request | None = None
    stored_images: bool = False
    ends_at: float | None = None


def run_sweep(spec: SweepSpec, place: Place, console: Console, request: RunRequest | None = None) -> SweepEnd:
    """Run a sweep to its end, from wherever it stands, and confirm what it found where that is asked for.

    Raises `InputError` for a changed identity or a sweep that cannot run, `LeaseHeld` where another driver runs it.
    """
    request = request or RunRequest()
    store = Store(spec.storage.root)
    spec = start(spec, store, new=request.new, confirm=request.confirm)
    check_tracking(tracking_uri(spec))
    checked = preflight.check(spec, store, started_with(spec, store), request.stored_images)
    if place.address is None:
        refuse_too_large(spec, Compute.local(spec))
        refuse_without_compiler(Compute.local(spec))
    signals, lease = Signals(), None
    try:
        if request.ends_at is not None:
            signals.start_timer(request.ends_at)
        lease = Lease.acquire(store, spec.name, signals.terminate)
        driver = _Driver(spec, store, lease, signals, console, request.confirm)
        return SweepEnd(spec, driver.run(place, checked), driver.is_recorded)
    except KeyboardInterrupt:
        return SweepEnd(spec, signals.exit_code)
    except SystemExit as leave:  # Ray's own answer to SIGTERM while it starts
        if leave.code != signal.SIGTERM:
            raise
        return SweepEnd(spec, 143)
    finally:
        signals.restore()
        if lease is not None:
            lease.release()


def describe_sweep(spec: SweepSpec, *, new: bool = False) -> list[str]:
    """What `run_sweep` would do, after the same checks; starts and writes nothing."""
    store = Store(spec.storage.root)
    spec = start(spec, store, new=new)
    refuse_read_only(store)
    away = check_tracking(tracking_uri(spec))
    checked = preflight.check(spec, store, started_with(spec, store))
    compute = Compute.local(spec)
    refuse_too_large(spec, compute)  # it is measured here
    refuse_without_compiler(compute)
    budget = dry_run.describe_cost(spec, Ledger(store, spec.name), checked.inputs, compute)
    warning = [] if away is None else [f"warning: MLflow does not answer ({away}); a sweep does not depend on it"]
    return [*preflight.describe_plan(spec, store, checked), *budget, *warning]


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Driver:
    """One driver's life over one sweep, under its lease."""

    def __init__(
        self,
        spec: SweepSpec,
        store: Store,
        lease: Lease,
        signals: Signals,
        console: Console,
        confirm: Request | None,
    ) -> None:
        self.confirm, self.is_recorded = confirm, True
        self._gone: EnvironmentFailure | None = None  # Ray
        self.spec, self.store, self.lease, self.signals, self.console = spec, store, lease, signals, console
        self.ledger = Ledger(store, spec.name, lease.check)
        self.yaml = without_secrets(dump_yaml(spec.dump()))  # as the store and MLflow keep it

    def run(self, place: Place, checked: preflight.Preflight) -> int:
        lock = read_lock(self.store, self.spec.name)
        if lock is not None:
            self._restore(lock)
        if lock is not None and is_complete(self.spec, self.ledger) and not self._has_more_to_confirm():
            return self._project_and_leave()
        refuse_other_inputs(self.spec.name, lock, checked.inputs.digests)
        self._say(str(place))
        self._warn_of_store()
        for line in preflight.data_lines(self.spec, checked.inputs.images):
            self._say(line)
        checked.inputs.put(Store(self.store.root, f"{self.spec.name}/driver", self.lease.check))
        with ExitStack() as ray_is_up:
            with self.signals.held():
                ray_is_up.enter_context(ray_runtime.connected(place.address, self._say))
            resources = ray_runtime.trial_resources(self.spec, self._say)
            self._write_spec()
            lock = lock or self._lock(self._tuned(resources), checked)
            self._warn_of_other_versions(lock)
            return self._search(lock, resources.shared_by(lock.trials_a_gpu, self.spec), checked.inputs.digests)

    def _tuned(self, resources: ray_runtime.Resources) -> Tuned:
        """Decided once per sweep. Asks a worker what its GPU can do, since we may have none."""
        from raylt.sweep.actor import for_workers  # as below

        if not resources.gpus:
            return Tuned(Compute.resolve(self.spec, False, False))
        spec = for_workers(self.spec)
        tuned: Tuned = ray_runtime.on_a_node(lambda: tune_step(spec), resources, self._say)
        for line in tuned.lines:
            self._say(line)
        return tuned

    def _restore(self, lock: SweepLock) -> None:
        """What `raylt store verify --repair` deletes for the next driver to write, or a driver died before writing."""
        self.ledger.keep_copy(lock)
        if self.store.read(f"sweeps/{self.spec.name}/{SPEC_FILE}") is None:
            self._write_spec()

    def _write_spec(self) -> None:
        self.lease.check()
        write_spec(self.store, self.spec.name, self.yaml)

    def _has_more_to_confirm(self) -> bool:
        return has_more_to_confirm(self.spec, self.ledger, self.confirm)

    def _lock(self, tuned: Tuned, checked: preflight.Preflight) -> SweepLock:
        """What is resolved once and then holds for the sweep's life."""
        record = {
            "code_schema": CODE_SCHEMA,
            "digest": self.spec.digest,
            "spec": self.yaml,  # as it was at the start, should spec.yaml be lost
            **tuned.compute.key(),
            **({"trials_a_gpu": tuned.trials_a_gpu} if tuned.trials_a_gpu > 1 else {}),
            "startup": default_startup(self.spec),
            "data_sha256": checked.inputs.digests.images,
            "inception_sha256": checked.inputs.digests.inception,
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        }
        lock = SweepLock(record)
        self.ledger.lock(lock)
        return lock

    def _warn_of_store(self) -> None:
        """Where two drivers at once could both believe that they hold the sweep, say so before anything is written."""
        why = self.store.why_not_once()
        if why is not None:
            self._say(
                f"warning: {self.store.root.partition('?')[0]} cannot create a file only once ({why}): "
                "see to it that one driver alone is started on a sweep there"
            )

    def _warn_of_other_versions(self, lock: SweepLock) -> None:
        for name, then in lock.versions.items():
            now = platform.python_version() if name == "python" else version(name)
            if now != then:
                self._say(f"warning: the sweep was started with {name} {then}, this is {now}: last digits may differ")

    def _search(self, lock: SweepLock, resources: ray_runtime.Resources, inputs: InputDigests) -> int:
        from raylt.sweep.actor import WorkerConfig, for_workers  # these import Ray, which must find its settings made
        from raylt.sweep.searcher import LedgerSearcher
        from raylt.sweep.tune import run_tune

        assert lock.computed is not None
        compute = Compute(*lock.computed)
        self._say(f"computes {compute}")
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

        dispatcher = Dispatcher(self.spec, self.ledger, lock.startup, changed, self.confirm)
        searcher = LedgerSearcher(dispatcher, round_done, Memory(self.spec.search.concurrency, progress.say))
        holder = self.lease.holder
        shared = WorkerConfig(
            for_workers(self.spec), compute, inputs, self.store.uri, self.spec.name, holder.epoch, holder.token
        )
        try:
            study.sync_soon()
            tracker.sync_soon()
            with ray_watch.watched(ray_watch.of_ray(), self._ray_is_gone, self._leave_at_once):
                run_tune(self.spec, searcher, resources, shared.dump())
        except Exception as error:
            raise self._gone or _underlying(error) from error
        finally:
            self.signals.end_timer()
            progress.close()
            self._close(study, tracker)
        failure = self._gone or searcher.failure
        if failure is not None:
            raise failure
        if dispatcher.stopped_by is not None:
            raise EnvironmentFailure(f"stopped: five trials in a row failed with one cause: {dispatcher.stopped_by}")
        return self._exit_code()

    def _ray_is_gone(self, what: str) -> None:
        self._gone = EnvironmentFailure(
            f"stopped: Ray no longer answers ({what} is gone: killed, perhaps for want of memory, or out of reach). "
            "Nothing is lost: the same command resumes from here"
        )
        self.signals.terminate()

    def _leave_at_once(self) -> None:
        """Tune waits for what is gone. What is committed stays; MLflow gets the rest from the next driver."""
        self._say(str(self._gone))
        self.lease.release()
        os._exit(EnvironmentFailure.exit_code)

    def _project_and_leave(self) -> int:
        """Nothing to run: bring similarity, study and MLflow up to date, should they be behind or gone."""
        self.signals.end_timer()
        measure_similarity(self.spec, self.ledger)
        study = StudyKeeper(self.spec, self.ledger, study_path(self.store, self.spec.name))
        self._close(study, Tracker(self.spec, self.ledger, self.yaml, tracking_uri(self.spec)))
        return self._exit_code()

    def _close(self, study: StudyKeeper, tracker: Tracker) -> None:
        ended = is_complete(self.spec, self.ledger)
        study.close(None if ended else STUDY_CLOSES_WITHIN_S)
        self.is_recorded = tracker.close("complete" if ended else "interrupted") or not self.lease.is_mine

    def _exit_code(self) -> int:
        was_told = self.signals.terminated or self.signals.expired  # perhaps before a confirmation was planned
        if not is_complete(self.spec, self.ledger) or (was_told and self._has_more_to_confirm()):
            return self.signals.exit_code
        return 1 if failed_trials(self.ledger) else 0

    def _say(self, line: str) -> None:
        _say(self.console, line)


def _underlying(error: BaseException) -> BaseException:
    """What Tune wrapped: an error of ours (another driver took over, the disk is full) where there is one."""
    return next((link for link in chain_of(error) if isinstance(link, RayltError)), error)
