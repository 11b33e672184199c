"""The Optuna study as a projection of the ledger: `study.db`, for Optuna's own tools. Nothing is read back from it.

So nothing that happens to the file may end a search: it is kept by a thread, and made again where it is lost.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from raylt.background import AbandonedError, Background, Pace
from raylt.errors import chain_of
from raylt.search.groups import with_chosen_groups
from raylt.search.proposal import frozen
from raylt.search.space import distributions
from raylt.spec import SweepSpec
from raylt.spec.canonical import digest_of
from raylt.spec.tracking_uri import sqlite_uri
from raylt.store import Ledger, Store

log = logging.getLogger("raylt.study")

# SQLite's names of what is wrong with the machine, not with the file: tried again later, the file left as it is.
_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_PERM")


class StudyFile:
    """`study.db`: the search trials as Optuna and its dashboard see them, brought up to date from the ledger.

    Number i of the study is the i-th search trial. Raises what Optuna, SQLite and the filesystem raise; make a new one
    after that.
    """

    def __init__(self, spec: SweepSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self._space: dict[str, BaseDistribution] | None = None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._storage = RDBStorage(sqlite_uri(path.absolute()))
        study = optuna.create_study(
            study_name=spec.name,
            storage=self._storage,
            directions=[StudyDirection.MINIMIZE] * len(spec.search.objectives),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(spec.search.objectives))
        self._id = self._storage.get_study_id_from_name(spec.name)
        # What the file holds is read once; from here on this object is its only writer.
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        self._held = {trial.user_attrs.get("raylt.trial"): None for trial in trials}  # raylt's ids, in their order
        running = {trial.user_attrs.get("raylt.trial"): trial.number for trial in trials if not trial.state.is_finished()}
        self._running = {i: self._storage.get_trial_id_from_study_id_trial_number(self._id, n) for i, n in running.items()}
        self._place = 0  # in the ledger's changes

    def sync(self, ledger: Ledger, step: Callable[[], None] = lambda: None) -> None:
        """Add the search trials it lacks, and tell those that have ended. Calls `step` before each write."""
        changes = ledger.changes[self._place :]  # the driver goes on meanwhile
        search = [number for number in sorted(set(changes)) if ledger.submitted[number].is_search]
        if self._place == 0 and list(self._held) != search[: len(self._held)]:
            raise ValueError("it holds other trials than the ledger")
        space = self._space_of(ledger) if search else {}
        for number in search:
            trial, result = ledger.submitted[number], ledger.results.get(number)
            if number not in self._held:
                step()
                optuna_id = self._storage.create_new_trial(self._id, frozen(self.spec, space, trial, result))
                self._held[number] = None
                if result is None:
                    self._running[number] = optuna_id
            elif number in self._running and result is not None:
                step()
                self._tell(self._running.pop(number), frozen(self.spec, space, trial, result))
        self._place += len(changes)

    def _tell(self, optuna_id: int, ended: FrozenTrial) -> None:
        self._storage.set_trial_user_attr(optuna_id, "rungs", ended.user_attrs["rungs"])
        for rung, loss in ended.intermediate_values.items():
            self._storage.set_trial_intermediate_value(optuna_id, rung, loss)
        self._storage.set_trial_state_values(optuna_id, ended.state, ended.values)

    def _space_of(self, ledger: Ledger) -> dict[str, BaseDistribution]:
        """The space of the study, once there is a trial: before, its groups may not have been chosen."""
        if self._space is None:
            self._space = distributions(with_chosen_groups(self.spec, ledger.similarity()))
        return self._space

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._storage.remove_session()
            self._storage.engine.dispose()


class StudyKeeper:
    """Keeps `study.db` up to date while a sweep runs, from a thread of its own. Says once what keeps it from that."""

    def __init__(self, spec: SweepSpec, ledger: Ledger, path: Path, pace: Pace = Pace()) -> None:
        self._spec, self._ledger, self._path = spec, ledger, path
        self._file: StudyFile | None = None
        self._complained = False
        self._thread = Background("study", self._sync, self._failed, lambda: None, (), pace)
        self._thread.start()

    def sync_soon(self) -> None:
        """Ask for a sync; returns at once."""
        self._thread.ask()

    def close(self, total_s: float | None = None) -> None:
        """One last sync; gives up after `total_s`, or once it gets nowhere."""
        self._thread.close(total_s)

    def _sync(self, closing: bool) -> None:
        try:
            self._update()
        except AbandonedError:
            raise
        except Exception as error:
            if _is_passing(error):
                raise
            self._complain(error, "made again from the ledger")
            self._drop()
            self._path.unlink(missing_ok=True)
            self._update()
        if closing:
            self._drop()

    def _update(self) -> None:
        if self._file is not None and not self._path.exists():
            self._drop()  # deleted: SQLite would go on in a file that nobody can open
        if self._file is None:
            self._file = StudyFile(self._spec, self._path)
        self._file.sync(self._ledger, self._thread.step)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _failed(self, error: Exception) -> None:
        self._drop()
        self._complain(error, "tried again later; the search needs it not")

    def _complain(self, error: Exception, remedy: str) -> None:
        if not self._complained:
            self._complained = True
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning("Optuna's study %s cannot be kept (%s); it is %s", self._path, why, remedy)


def _is_passing(error: BaseException) -> bool:
    """Whether a file could not be used for a reason that lies outside it."""
    for link in chain_of(error):
        cause = getattr(link, "orig", link)  # SQLAlchemy wraps what the driver raised
        if isinstance(cause, sqlite3.Error):
            return str(getattr(cause, "sqlite_errorname", "")).startswith(_PASSING)
        if isinstance(link, OSError):
            return True
    return False


def study_path(store: Store, name: str) -> Path:
    """Where Optuna's file lies: with the sweep, or in the user's cache where the store is not local."""
    if store.is_local:
        return store.local_path(f"sweeps/{name}/study.db")
    return Path.home() / ".cache" / "raylt" / digest_of(store.root)[:16] / name / "study.db"
