"""MLflow's SQLite file in a folder that was moved or copied: it says of each artifact where that was before.

MLflow writes down absolute places, so it would make the old folder anew for the next run, and find nothing of those before.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raylt.spec.tracking_uri import artifact_root, split_sqlite
from raylt.tracking.runs import LEDGER_TAG, RECORD_TAG

log = logging.getLogger("raylt.tracking")

_TAGGED = "select run_uuid from tags where key = ?"


def mend_places(uri: str, experiment: str) -> int:
    """Set the places of one experiment's artifacts to the folder beside its SQLite file, where they are; how many runs changed.

    Only where raylt chose the place, and only where it has moved: files of a run lie here, the old folder is gone altogether,
    or has a database of its own, of which this one is a copy. One transaction; what it does not understand it leaves. Raises
    `sqlite3.Error`.
    """
    sqlite, here = split_sqlite(uri), artifact_root(uri)
    if sqlite is None or here is None or not sqlite[1].exists():
        return 0
    with contextlib.closing(sqlite3.connect(sqlite[1], timeout=20, isolation_level=None)) as database:
        database.execute("begin")
        try:
            changed = _mend(database, experiment, here, sqlite[1].name)
            database.execute("commit")
        except BaseException:
            database.execute("rollback")
            raise
    if changed is not None:
        log.warning("%s was moved: MLflow now finds the artifacts of %s in %s", sqlite[1].name, experiment, _path_of(here))
    return changed or 0


def _mend(database: sqlite3.Connection, experiment: str, here: str, file: str) -> int | None:
    """How many runs were changed; None where nothing has moved."""
    if database.execute("select count(*) from sqlite_master where name in ('experiments', 'runs', 'tags')").fetchone() != (3,):
        return None  # yet empty, or somebody else's
    places = "select experiment_id, artifact_location from experiments where name = ?"
    row = database.execute(places, (experiment,)).fetchone()
    if row is None:
        return None
    number, old = row
    before, now = _path_of(old or ""), _path_of(here)
    if before is None or now is None or before.name != now.name or _is_same(before, now):
        return None
    start = f"{old.rstrip('/')}/"
    runs = database.execute("select run_uuid, artifact_uri from runs where experiment_id = ?", (number,)).fetchall()
    rests = {run: uri.removeprefix(start) for run, uri in runs if (uri or "").startswith(start)}
    arrived = {run for run, rest in rests.items() if (now / unquote(rest)).is_dir()}
    stayed = {run for run, rest in rests.items() if (before / unquote(rest)).is_dir()}
    if not arrived and before.parent.exists() and not (before.parent / file).exists():
        return None
    # In a copy, what lies in the old folder may be the original's, of a later time: of a run not recorded here it is.
    raylts, recorded = ({run for (run,) in database.execute(_TAGGED, (tag,))} for tag in (LEDGER_TAG, RECORD_TAG))
    mended = [run for run in rests if run in arrived or run not in stayed or run in raylts - recorded]
    database.execute("update experiments set artifact_location = ? where experiment_id = ?", (here, number))
    pairs = [(f"{here}/{rests[run]}", run) for run in mended]
    database.executemany("update runs set artifact_uri = ? where run_uuid = ?", pairs)
    return len(mended)


def _path_of(uri: str) -> Path | None:
    """The folder that a file URI names."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _is_same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return one == other or one.samefile(other)
    return False
