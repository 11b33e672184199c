"""MLflow's tracking URIs: which can be none, and how the path of an SQLite file is written into one and read from it."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from raylt.spec.paths import expanded

DATABASES = ("postgresql", "mysql", "sqlite", "mssql")  # that MLflow knows, each perhaps with a +driver
EXAMPLES = "for example sqlite:///mlflow.db or http://localhost:5000"
_MISSPELT = {"postgres": "postgresql", "psql": "postgresql", "mariadb": "mysql", "sqlite3": "sqlite"}
_KEPT = " +/"  # what SQLAlchemy leaves unquoted in the path of a database


def split_sqlite(uri: str) -> tuple[str, Path, str] | None:
    """(scheme, absolute path, query) of the URI of an SQLite file; None for any other URI."""
    parts = _sqlite_parts(uri)
    if parts is None:
        return None
    scheme, path, query = parts
    return scheme, Path(path).absolute(), query


def _sqlite_parts(uri: str) -> tuple[str, str, str] | None:
    scheme, _, rest = uri.partition(":///")
    quoted, mark, query = rest.partition("?")
    path = unquote(quoted)
    is_file = scheme.partition("+")[0] == "sqlite" and path not in ("", ":memory:")
    return (scheme, path, mark + query) if is_file else None


def sqlite_uri(path: Path, scheme: str = "sqlite", query: str = "") -> str:
    """The URI of an SQLite file, whatever is in its name.

    For `sqlite:///` MLflow makes the folder of the path as it stands, without reading its %XX: beside a folder whose name
    needs those, another. It leaves that to SQLite where a driver is named.
    """
    quoted = quote(str(path), safe=_KEPT)
    if scheme == "sqlite" and quoted != str(path):
        scheme = "sqlite+pysqlite"
    return f"{scheme}:///{quoted}{query}"


def absolute_uri(uri: str) -> str:
    """The same place from any folder."""
    sqlite = split_sqlite(uri)
    return uri if sqlite is None else sqlite_uri(sqlite[1], sqlite[0], sqlite[2])


def with_path(uri: str, change: Callable[[str], str]) -> str:
    """A URI with the path of its SQLite file changed; any other URI as it is. Raises what `change` raises."""
    parts = _sqlite_parts(uri)
    if parts is None or (path := change(parts[1])) == parts[1]:
        return uri
    return f"{parts[0]}:///{quote(path, safe=_KEPT)}{parts[2]}"


def expanded_uri(uri: str) -> str:
    """A URI with `~` and variables in the path of its SQLite file replaced. Raises `LookupError`, in words."""
    return with_path(uri, expanded)


def artifact_root(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside an SQLite file; elsewhere the server knows."""
    sqlite = split_sqlite(uri)
    return None if sqlite is None else (sqlite[1].parent / "mlartifacts").as_uri()


# --- what can be none -------------------------------------------------------------------------------------------------


def uri_problem(uri: str) -> tuple[str, str] | None:
    """What is wrong with a URI that MLflow never takes, and what would be right; None where it may be one."""
    scheme, mark, rest = uri.partition("://")
    family = scheme.partition("+")[0].lower()
    if not uri.strip():
        return "is empty", EXAMPLES
    if uri != uri.strip() or (mark and not uri.isprintable()):
        return "has spaces or control characters around it or in it", EXAMPLES
    if not mark or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme):
        return _problem_of_no_uri(uri)
    if family in ("http", "https"):
        return _server_problem(uri)
    if family == "sqlite":
        return _sqlite_problem(uri, rest)
    if family == "file":
        return _folder_problem()
    if family in _MISSPELT:
        form = f"{_MISSPELT[family]}://{'...' if '@' in rest else rest}"  # perhaps with a password
        return f"begins with {scheme}, which MLflow does not know", form
    if family in DATABASES or family == "databricks" or family in _plugins():
        return None
    return f"begins with {scheme}, which MLflow does not know", EXAMPLES


def _problem_of_no_uri(uri: str) -> tuple[str, str] | None:
    """Words without ://, which MLflow takes for a folder or for nothing."""
    if uri == "databricks" or uri.partition(":")[0] in _plugins():
        return None
    if match := re.match(r"(https?)(?::/?|//|/)(.+)", uri, re.IGNORECASE):
        return "is no URI", f"{match[1].lower()}://{match[2].lstrip('/')}"
    if match := re.match(r"sqlite3?(?:\+\w+)?:/*(.+)", uri):
        return "is no URI", _sqlite_form(uri, match[1])
    if re.fullmatch(r"(\[[\da-f:]+\]|[\w.-]+):\d+(/.*)?", uri):
        return "is no URI", f"http://{uri}"
    if uri.endswith((".db", ".sqlite", ".sqlite3")):
        return "is no URI", f"sqlite:///{uri}"
    if uri == "localhost" or _is_ip(uri):
        return "is no URI", f"http://{uri}:5000"
    return _folder_problem()


def _server_problem(uri: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        return f"is no address of a server ({error})", "for example http://localhost:5000"
    if not parts.hostname or re.search(r"[\s$<>{}|\\^`]", parts.netloc):
        return "names no server", "for example http://localhost:5000"
    return None


def _sqlite_problem(uri: str, rest: str) -> tuple[str, str] | None:
    if rest.startswith("/") and (parts := _sqlite_parts(uri)) is not None:
        if parts[1].startswith("file:"):
            return "names its file by a URI within", _sqlite_form(uri, parts[1].removeprefix("file:"))
        return ("names a folder", "a file in it") if parts[1].endswith("/") else None
    if rest.strip("/") in ("", ":memory:"):
        return "is a database in memory, gone with the sweep", "for example sqlite:///mlflow.db"
    return "names its file behind two slashes", _sqlite_form(uri, rest)


def _sqlite_form(uri: str, path: str) -> str:
    """Three slashes, then the path; which begins with a slash of its own where it did."""
    is_absolute = bool(re.match(r"sqlite3?(?:\+\w+)?:/[^/]", uri))
    return f"sqlite:///{'/' if is_absolute else ''}{path.lstrip('/') if is_absolute else path}"


def _folder_problem() -> tuple[str, str] | None:
    """MLflow has closed its file store, unless it is told otherwise by a variable of its own."""
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return None
    return "is a folder, in which MLflow records no longer", f"{EXAMPLES} (`mlflow migrate-filestore` moves old runs)"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _plugins() -> set[str]:
    """Schemes that other packages have taught MLflow."""
    return {entry.name for entry in entry_points(group="mlflow.tracking_store")}
