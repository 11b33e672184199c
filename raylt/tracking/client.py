"""The way to MLflow: a client for a tracking URI, and what stands in it for good.

With `tracker.py` the only module that imports mlflow, and only inside functions: the import takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylt.errors import EnvironmentFailure, chain_of, without_secrets
from raylt.spec.tracking_uri import DATABASES, artifact_root, split_sqlite, sqlite_uri

ANSWERS_WITHIN_S = 5  # of the one request before a sweep
_LONGEST_ARTIFACT_ROOT = 2000  # MLflow takes 2048 characters
_MAY_PASS = (408, 425, 429)  # of HTTP's 3xx and 4xx, which else say that something is wrong with the request
_ENVIRONMENT = {  # read when mlflow is imported
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # its own retries would hold the thread for minutes: ours are enough
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # its tracebacks: what it raises is said in our words
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def connect(uri: str) -> Any:
    """A client. Raises what MLflow raises."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    sqlite = split_sqlite(uri)
    if sqlite is not None and not sqlite[1].exists():
        _make_database(sqlite[1], artifact_root(uri))
    return MlflowClient(tracking_uri=uri)


def _make_database(path: Path, artifacts: str | None) -> None:
    """A fresh SQLite file with MLflow's schema, there in one piece or not at all.

    MLflow makes the schema in dozens of migrations that take seconds. A driver killed among them would leave a file
    that no MLflow can open or repair. Where none is named, it pastes the folder we are in into its SQL, quotes and all.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory(prefix="raylt-") as folder:
        SqlAlchemyStore(sqlite_uri(Path(folder) / "mlflow.db"), artifacts).engine.dispose()
        with contextlib.closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:
            data = database.serialize()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    try:
        whole.write_bytes(data)
        with contextlib.suppress(FileExistsError):  # another sweep was faster
            path.hardlink_to(whole)
    finally:
        whole.unlink(missing_ok=True)


# --- before anything starts -------------------------------------------------------------------------------------------


def check(uri: str) -> str | None:
    """Whether a record can be kept there: None, or why there is none right now, which does not keep a search from starting.

    One request at most, of a few seconds. Raises `EnvironmentFailure` for what stands in the way for good: a file that is no
    database, a driver that is not installed, a server that is no MLflow or refuses the credentials.
    """
    sqlite = split_sqlite(uri)
    if sqlite is not None:
        _check_file(sqlite[1], uri)
    try:
        if uri.partition("://")[0].partition("+")[0] in DATABASES:
            _import_driver(uri)
        elif uri.lower().startswith(("http://", "https://")):
            with _patience(ANSWERS_WITHIN_S):
                connect(uri).search_experiments(max_results=1)
    except Exception as error:
        why = lasting_fault(error) or _refusal(error)
        if why is None:
            return words_of(error)
        raise EnvironmentFailure(f"no record can be kept in MLflow at {without_secrets(uri)}: {why}") from error
    return None


def _check_file(path: Path, uri: str) -> None:
    def refuse(what: str) -> None:
        raise EnvironmentFailure(f"no record can be kept in MLflow at {path}: {what}; choose another tracking.uri")

    try:
        str(path).encode()
    except UnicodeEncodeError:
        refuse("its name is not UTF-8, which MLflow's URIs need")
    if len(artifact_root(uri) or "") > _LONGEST_ARTIFACT_ROOT:
        refuse("its folder's name is too long for MLflow")
    try:
        if path.is_dir():
            refuse("is a folder")
        with path.open("rb") as file:
            if file.read(16) not in (b"SQLite format 3\0", b""):
                refuse("is another file, no SQLite database")
    except (FileNotFoundError, PermissionError):
        return  # made, or tried again
    except OSError as error:
        refuse(str(error.strerror or error))


def _import_driver(uri: str) -> None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ValueError as error:  # the port
        raise ArgumentError(str(error)) from None
    url.get_dialect().import_dbapi()


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """How long MLflow waits for an answer inside, where the user has not said how long."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(name)


# --- faults -----------------------------------------------------------------------------------------------------------


def lasting_fault(error: BaseException) -> str | None:
    """Why an error of MLflow's comes again and again as long as this process lives, with a remedy; None where it may pass."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    for link in chain_of(error):
        if isinstance(link, ImportError):
            return f"{words_of(link)}; install that package, or choose another tracking.uri"
        if isinstance(link, (ArgumentError, NoSuchModuleError)):
            return f"{words_of(link)}; correct tracking.uri"
        if type(link).__name__ in ("UnsupportedModelRegistryStoreURIException", "InvalidUrlException"):
            return f"{words_of(link)}; correct tracking.uri"
        if "out-of-date database schema" in str(link):
            return "its database is of another version of MLflow; see to a backup, then `mlflow db upgrade`"
        if "maintenance mode" in str(link) or "file is not a database" in str(link):
            return f"{words_of(link)}; choose another tracking.uri"
    return None


def _refusal(error: BaseException) -> str | None:
    """Why an address that answers takes no record: it is no MLflow, its certificate is wrong, or it wants credentials."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import SSLError

    for link in chain_of(error):
        if isinstance(link, SSLError):
            return f"it answers, but not as HTTPS that can be trusted ({words_of(link)})"
        if not isinstance(link, MlflowException):
            continue
        if "not in a valid JSON format" in str(link):
            return "what answers there is no MLflow server; correct the address"
        said = re.search(r"failed with error code (\d{3})", str(link))
        status = int(said[1]) if said else link.get_http_status_code()
        if status in (401, 403):
            names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return f"it refuses the credentials (HTTP {status}); they come from {names}"
        if status == 501 or (300 <= status < 500 and status not in _MAY_PASS):
            return f"what answers there is no MLflow server (HTTP {status}); correct the address"
    return None


def words_of(error: BaseException) -> str:
    """An error of MLflow's in a line. Of a database, what its driver said, without the SQL."""
    said: BaseException = next(filter(None, (getattr(link, "orig", None) for link in chain_of(error))), error)
    return without_secrets(" ".join(f"{type(said).__name__}: {said}".split()))[:200]
