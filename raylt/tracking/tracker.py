"""The ledger shown as MLflow runs, and brought up to date from it whenever they are behind.

All calls come from one thread, so a tracking server that is away delays the record, never the search.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raylt.background import CLOSE_WITHIN_S, AbandonedError, Background, Pace
from raylt.errors import Fenced, without_secrets
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.canonical import digest_of
from raylt.spec.tracking_uri import artifact_root
from raylt.store import Ledger
from raylt.store.layout import RUNS_FILE, SIMILARITY_FILE
from raylt.store.results import FAIL, RoundResult, TrialResult
from raylt.store.sweep_state import is_complete, state_of
from raylt.tracking import runs
from raylt.tracking.client import connect, lasting_fault, words_of
from raylt.tracking.moved_files import mend_places
from raylt.tracking.parent_run import Shown
from raylt.tracking.runs import LEDGER_TAG, RECORD_TAG, Point, Run, tracking_uri

__all__ = ["Recorder", "Tracker", "record", "tracking_uri"]

log = logging.getLogger("raylt.tracking")

BETWEEN_PICTURES_S = 60.0  # the parent's pictures and report: drawing takes a second of the driver's CPU ...
PICTURES_SHARE = 1 / 20  # ... and longer in a long sweep: this much of the time at most
NEW_PART = 20  # mlflow.json is written anew once one in so many of its runs is new
PARENT = "parent"
REMEDY = "the record is tried again, and the next start of the sweep brings it up to date"
_STATUS = {"running": "RUNNING", "complete": "FINISHED", "interrupted": "KILLED"}
Reports = Mapping[int, Sequence[RoundResult]]  # trial -> what its rounds reported so far


def record(spec: SweepSpec, ledger: Ledger, spec_yaml: str, uri: str) -> None:
    """Bring the record up to date, here and now. Raises what MLflow raises."""
    Recorder(spec, ledger, spec_yaml, uri).sync(state_of(spec, ledger), {}, pictures=True)


class Recorder:
    """Syncs one sweep's runs from one thread. After a failure make a new one: it looks everything up afresh."""

    def __init__(
        self, spec: SweepSpec, ledger: Ledger, spec_yaml: str, uri: str, step: Callable[[], None] | None = None
    ) -> None:
        """`step` is called between the steps of a sync; what it raises ends the sync."""
        self.spec, self.ledger, self.spec_yaml, self.uri = spec, ledger, without_secrets(spec_yaml), uri
        self.step = step or (lambda: None)
        self._client: Any = None
        self._runs: dict[str, Run] | None = None  # PARENT or a trial's id -> its run
        self._saved: Mapping[str, str] = {}  # what the ledger says of them
        self._place = 0  # in the ledger's changes: what was before it is shown
        self._shown = Shown()

    def sync(self, state: str, reports: Reports, *, pictures: bool) -> None:
        """One pass: runs that are missing are made, those that are behind are brought up to date."""
        self._check()
        if self._runs is None:
            self._client = connect(self.uri)
            mend_places(self.uri, _experiment_name(self.ledger.name))
            self._ledger_id = self._name_ledger()
            self._experiment = self._find_experiment()
            self._runs = self._find_runs()
        changes = self.ledger.changes[self._place :]  # the driver goes on meanwhile
        changed = sorted(set(changes))
        self._make_runs(self._runs, changed, pictures)
        for number in sorted({*changed, *reports}):
            self._update_trial(self._runs[str(number)], self.ledger.submitted[number], reports.get(number, ()))
        self._update_parent(self._runs[PARENT], state, changed, pictures)
        self._place += len(changes)

    def _check(self) -> None:
        if self.ledger.check is not None:
            self.ledger.check()
        self.step()

    def _name_ledger(self) -> str:
        """The name of this very ledger, kept in it: others of one name and digest may share the tracking server."""
        fresh = {"ledger": uuid.uuid4().hex}
        self._saved = self.ledger.decide(RUNS_FILE, fresh)
        if "ledger" not in self._saved:  # of an earlier raylt
            self._saved = {**self._saved, **fresh}
            self.ledger.write(RUNS_FILE, self._saved)
        return str(self._saved["ledger"])

    # --- finding and making -----------------------------------------------------------------------------------------

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = _experiment_name(self.ledger.name)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifact_root(self.uri)))
            except MlflowException:  # another sweep of that name was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _find_runs(self) -> dict[str, Run]:
        by_trial, token = {}, None
        while True:
            page = self._client.search_runs([self._experiment], f"tags.`{LEDGER_TAG}` = '{self._ledger_id}'", page_token=token)
            for stored in page:
                info, data = stored.info, stored.data
                run = Run(info.run_id, info.start_time, info.status, data.tags, set(data.params))
                is_parent = data.tags.get("raylt.kind") == runs.SWEEP_KIND
                by_trial[PARENT if is_parent else data.tags["raylt.trial"]] = run
            token = page.token
            if not token:
                return by_trial

    def _make_runs(self, by_trial: dict[str, Run], asked: Sequence[int], at_once: bool) -> None:
        """One run for the sweep and one for each trial, then their ids into the ledger: `at_once`, or once they are a few."""
        if PARENT not in by_trial:
            tags = {**runs.sweep_tags(self.spec, self.ledger, self._ledger_id), "raylt.kind": runs.SWEEP_KIND}
            by_trial[PARENT] = self._make_run(self.ledger.name, tags, self.ledger.view().results.values())
        for number in asked:
            if str(number) not in by_trial:
                self._check()
                trial, result = self.ledger.submitted[number], self.ledger.results.get(number)
                tags = runs.sweep_tags(self.spec, self.ledger, self._ledger_id, trial.protocol) | runs.trial_tags(trial, None)
                began = [] if result is None else [result]
                by_trial[str(number)] = self._make_run(trial.name, {**tags, "mlflow.parentRunId": by_trial[PARENT].id}, began)
        behind = len(by_trial) + 1 - len(self._saved)  # the file is written whole, so not for each of thousands
        if at_once or self._place == 0 or behind * NEW_PART >= len(by_trial):
            ids = {"ledger": self._ledger_id, **{key: run.id for key, run in by_trial.items()}}
            if ids != self._saved:
                self.ledger.write(RUNS_FILE, ids)
                self._saved = ids

    def _make_run(self, name: str, tags: dict[str, str], ended: Iterable[TrialResult]) -> Run:
        """A run that begins now, or, for what has `ended` already, when that began: a rebuilt run shows a true duration."""
        starts = (int(r.time_ms - 1000 * (0 if r.timing is None else r.timing.wall_s)) for r in ended)
        start_ms = min(starts, default=None)
        made = self._client.create_run(self._experiment, start_time=start_ms, tags=tags, run_name=name)
        return Run(made.info.run_id, made.info.start_time, made.info.status, tags)

    # --- bringing up to date ----------------------------------------------------------------------------------------

    def _update_trial(self, run: Run, trial: TrialSpec, reports: Iterable[RoundResult]) -> None:
        result = self.ledger.results.get(trial.id)
        if result is None:
            points = [point for report in reports for point in runs.round_points(report)]
            self._send(run, {}, runs.trial_params(self.spec, trial, None), points)
            return
        mark = self._shown.mark_of(trial.id, result)
        if run.tags.get(RECORD_TAG) == mark:
            return
        self._check()
        self._send(run, runs.trial_tags(trial, result), runs.trial_params(self.spec, trial, result), runs.trial_points(result))
        self._upload(run, runs.trial_files(self.ledger.store, trial, result))
        status = "FAILED" if result.state == FAIL else "FINISHED"
        self._set_status(run, status, result.time_ms)
        self._set_mark(run, mark)

    def _update_parent(self, run: Run, state: str, changed: Iterable[int], pictures: bool) -> None:
        new = self._shown.add(self.ledger, changed)
        mark = digest_of([self.spec_yaml, state, self._shown.digest, self.ledger.read(SIMILARITY_FILE)])
        if run.tags.get(RECORD_TAG) == mark and run.status == _STATUS[state]:
            return
        self._check()
        params = {**runs.sweep_params(self.spec), **runs.group_params(self.spec, self.ledger)}
        self._send(run, {}, params, [*runs.similarity_points(self.spec, self.ledger), *new])
        self._set_status(run, _STATUS[state], self._shown.last_ms)
        if pictures:
            self._upload(run, runs.sweep_files(self.spec, self.ledger.view(), self.spec_yaml, state))
            self._set_mark(run, mark)

    def _send(self, run: Run, tags: Mapping[str, str], params: Mapping[str, str], points: Collection[Point]) -> None:
        """Tags, params and points that the run is not known to have."""
        from mlflow.entities import Metric, Param, RunTag

        for batch in run.lacks(tags, params, points):
            self.step()
            metrics = [Metric(*point) for point in batch.points]
            self._client.log_batch(run.id, metrics, [Param(*p) for p in batch.params], [RunTag(*t) for t in batch.tags])
        run.has(tags, params, points)

    def _set_status(self, run: Run, status: str, end_ms: int) -> None:
        if run.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run.id, status=status)
        else:
            self._client.set_terminated(run.id, status, max(run.start_ms, end_ms))
        run.status = status

    def _set_mark(self, run: Run, mark: str) -> None:
        """The last write: a run without it is replayed whole."""
        self.step()
        self._client.set_tag(run.id, RECORD_TAG, mark)
        run.has({RECORD_TAG: mark}, (), ())

    def _upload(self, run: Run, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory(prefix="raylt-") as folder:
            for name, data in files.items():
                self.step()
                path = Path(folder) / name
                path.write_bytes(data)
                self._client.log_artifact(run.id, str(path))


def _experiment_name(sweep: str) -> str:
    return f"raylt/{sweep}"


class _GivenUpError(Exception):
    """The fault that was just told comes again and again: nobody need try."""


class Tracker:
    """Keeps the record up to date while a sweep runs, from a thread of its own."""

    def __init__(self, spec: SweepSpec, ledger: Ledger, spec_yaml: str, uri: str, pace: Pace = Pace()) -> None:
        self._spec, self._spec_yaml, self._uri = spec, spec_yaml, uri
        self._ledger = ledger  # the driver's, which changes it meanwhile
        self._recorder: Recorder | None = None
        self._reports: dict[int, dict[int, RoundResult]] = {}
        self._lock = threading.Lock()
        self._final, self._complained = "", False
        self._paint_at = time.monotonic() + BETWEEN_PICTURES_S
        self._thread = Background("tracking", self._try, self._failed, self._went_well, (Fenced, _GivenUpError), pace)
        self._thread.start()

    def sync_soon(self) -> None:
        """Ask for a sync; returns at once."""
        self._thread.ask()

    def round_done(self, trial: TrialSpec, report: RoundResult) -> None:
        """Show a round of a running trial; returns at once."""
        with self._lock:
            self._reports.setdefault(trial.id, {})[report.round] = report
        self._thread.ask()

    def close(self, state: Literal["complete", "interrupted"]) -> bool:
        """One last sync. Whether the record is up to date: False where MLflow takes none, or another driver took over."""
        self._final = state
        return self._thread.close(CLOSE_WITHIN_S if state == "interrupted" else None)

    def _try(self, closing: bool) -> None:
        try:
            self._sync(closing)
        except (AbandonedError, Fenced):
            raise
        except Exception as error:
            why = lasting_fault(error)
            if why is None:
                raise
            where = without_secrets(self._uri)
            log.warning("cannot record in MLflow at %s: %s; the search goes on without a record", where, why)
            raise _GivenUpError from error

    def _sync(self, closing: bool) -> None:
        if self._recorder is None:
            self._recorder = Recorder(self._spec, self._ledger, self._spec_yaml, self._uri, self._thread.step)
        ledger = self._ledger
        with self._lock:
            self._reports = {number: rounds for number, rounds in self._reports.items() if number not in ledger.results}
            reports = {number: list(rounds.values()) for number, rounds in self._reports.items()}
        state = self._final if closing else "complete" if is_complete(self._spec, ledger) else "running"
        began = time.monotonic()
        pictures = closing or began > self._paint_at
        self._recorder.sync(state, reports, pictures=pictures)
        if pictures:
            now = time.monotonic()
            self._paint_at = now + max(BETWEEN_PICTURES_S, (now - began) / PICTURES_SHARE)

    def _failed(self, error: Exception) -> None:
        """Look everything up again at the next try; say so once, since the search does not depend on it."""
        self._recorder = None
        if not self._complained:
            self._complained = True
            where = without_secrets(self._uri)
            log.warning("cannot record in MLflow at %s (%s); the search goes on, %s", where, words_of(error), REMEDY)

    def _went_well(self) -> None:
        self._complained = False
