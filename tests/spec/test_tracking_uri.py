"""What can never be a tracking URI is refused with the right form; what MLflow may take is left to it."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from raylt.background import Pace
from raylt.cli import app
from raylt.errors import EnvironmentFailure, InputError
from raylt.spec.tracking_uri import uri_problem
from raylt.store import Ledger, Store
from raylt.tracking.client import check
from raylt.tracking.runs import given_uri, tracking_uri
from raylt.tracking.tracker import Tracker

NEVER = {  # -> what the message must suggest
    "./mlruns": "sqlite:///mlflow.db", "mlruns": "sqlite:///mlflow.db", "file:///x/mlruns": "sqlite:///mlflow.db",
    "file:mlruns": "sqlite:///mlflow.db", "localhost:5000": "http://localhost:5000", "localhost": "http://localhost:5000",
    "10.0.0.7": "http://10.0.0.7:5000", "mlflow.example.org:443/x": "http://mlflow.example.org:443/x",
    "mlflow.db": "sqlite:///mlflow.db", "/data/m.db": "sqlite:////data/m.db", "sqlite://mlflow.db": "sqlite:///mlflow.db",
    "sqlite:mlflow.db": "sqlite:///mlflow.db", "sqlite:/data/m.db": "sqlite:////data/m.db", "http//x": "http://x",
    "http:/x:5000": "http://x:5000", "https:x": "https://x", "postgres://u@h/db": "postgresql://", "http://": "http://localhost",
    "http://:5000": "http://localhost:5000", "http://host:port": "http://localhost:5000", "s3://bucket/x": "sqlite:///mlflow.db",
    "http://a b:5000": "http://localhost:5000", " http://h:5000": "http://localhost:5000", "uc": "sqlite:///mlflow.db",
    "sqlite3:///m.db": "sqlite:///m.db",
}  # fmt: skip
PERHAPS = (
    "sqlite:///mlflow.db", "sqlite:////data/m.db?timeout=9", "sqlite+pysqlite:///m.db", "http://localhost:5000", "https://h/mlflow/",
    "HTTP://h:1", "http://[::1]:5000", "http://me:pass@h:5000", "postgresql://u:p@h/db", "postgresql+psycopg://h/db",
    "mysql+pymysql://h/db", "mssql+pyodbc://h/db", "databricks", "databricks://profile",
)  # fmt: skip


@pytest.mark.parametrize(("uri", "right"), NEVER.items())
def test_what_can_be_none_is_refused_with_the_right_form(uri: str, right: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["validate", "digits", "--set", f"tracking.uri={json.dumps(uri)}"])
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    text = str(done.exception)
    assert text.startswith("--set: tracking.uri: ") and right in text and "\n" not in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI: ") as refused:
        check(given_uri("MLFLOW_TRACKING_URI", uri))
    assert right in str(refused.value)


@pytest.mark.parametrize("uri", NEVER)
def test_nothing_is_refused_that_mlflow_takes(uri: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception):  # noqa: B017  MLflow, SQLAlchemy, requests: each has its own
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


@pytest.mark.parametrize("uri", PERHAPS)
def test_what_may_be_one_is_left_to_mlflow(uri: str) -> None:
    assert uri_problem(uri) is None


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///data/"])
def test_a_file_must_be_named(uri: str) -> None:
    assert uri_problem(uri) is not None


def test_no_password_is_shown(monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgres://me:geheim@h/db")
    with pytest.raises(InputError) as refused:
        given_uri("MLFLOW_TRACKING_URI", "postgres://me:geheim@h/db")
    assert "geheim" not in str(refused.value) and "postgresql://" in str(refused.value)
    done = CliRunner().invoke(app, ["validate", "digits", "--set", "tracking.uri=postgres://me:geheim@h/db"])
    assert "geheim" not in str(done.exception)


def test_a_plugin_of_mlflow_may_know_more(monkeypatch: Any) -> None:
    class Entry:
        name = "azureml"

    monkeypatch.setattr(
        "raylt.spec.tracking_uri.entry_points", lambda group: [Entry] if group == "mlflow.tracking_store" else []
    )
    assert uri_problem("azureml://x") is None and uri_problem("other://x") is not None


def test_file_stores_are_left_to_who_asks_mlflow_for_them(monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert uri_problem("./mlruns") is None and uri_problem("file:///x") is None


# --- at the start: one request, one look at a file --------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as the path says: /STATUS/html or /STATUS/json."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        _, status, kind, *_ = self.path.split("/")
        body = b"<html></html>" if kind == "html" else b'{"error_code": "PERMISSION_DENIED", "message": "no"}'
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()


@pytest.mark.parametrize("path", ["200/html", "301/html", "400/html", "404/html", "405/html", "501/html"])
def test_what_answers_and_is_no_mlflow_is_refused(server: str, path: str) -> None:
    with pytest.raises(EnvironmentFailure, match="is no MLflow server") as refused:
        check(f"{server}/{path}")
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("path", ["401/html", "403/html", "403/json"])
def test_refused_credentials_are_said(server: str, path: str) -> None:
    with pytest.raises(EnvironmentFailure, match=r"refuses the credentials.*MLFLOW_TRACKING_TOKEN"):
        check(f"{server}/{path}")


@pytest.mark.parametrize("path", ["500/html", "502/html", "503/html", "429/html"])
def test_what_may_pass_does_not_keep_a_search_from_starting(server: str, path: str) -> None:
    assert check(f"{server}/{path}")


def test_a_server_that_is_away_or_silent_costs_seconds() -> None:
    assert check("http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert check(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_https_to_a_server_without_is_refused(server: str) -> None:
    with pytest.raises(EnvironmentFailure, match="HTTPS"):
        check(server.replace("http:", "https:"))


@pytest.mark.parametrize(
    "uri", ["postgresql+asyncpg://h/db", "mysql://h/db", "postgresql+nosuch://h/db", "sqlite+nosuch:///x.db"]
)
def test_a_driver_that_is_missing_is_found_before_the_start(uri: str) -> None:
    with pytest.raises(EnvironmentFailure, match=r"install that package|correct tracking\.uri"):
        check(uri)


def test_a_file_that_is_no_database_is_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("schema: 1\nname: not a database\n")
    (tmp_path / "empty").touch()
    for name in ("text", ""):
        with pytest.raises(EnvironmentFailure, match=r"folder|no SQLite"):
            check(f"sqlite:///{tmp_path}/{name}".rstrip("/"))
    assert check(f"sqlite:///{tmp_path}/none.db") is None and check(f"sqlite:///{tmp_path}/empty") is None


def test_a_sweep_and_a_record_ask_before_they_start(server: str, tmp_path: Path, tiny_spec: Any, monkeypatch: Any) -> None:
    from raylt.cluster.place import Place
    from raylt.sweep.driver import run_sweep
    from raylt.tracking.recorder import record_address

    spec = tiny_spec(storage={"root": str(tmp_path / "root")})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/404/html")
    with pytest.raises(EnvironmentFailure, match="no MLflow server"):
        run_sweep(spec, Place("--local"), None)  # type: ignore[arg-type]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    with pytest.raises(InputError, match="http://localhost:5000"):
        run_sweep(spec, Place("--local"), None)  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()
    store = Store(spec.storage.root)
    Ledger(store, spec.name, lambda: None).write("spec.lock.json", {})
    from raylt.spec import dump_yaml

    store.write(f"sweeps/{spec.name}/spec.yaml", dump_yaml(spec.dump()).encode())
    with pytest.raises(InputError, match="http://localhost:5000"):
        record_address(store, spec.name, None)
    done = CliRunner().invoke(app, ["ui", "--uri", "localhost:5000"])
    assert "--uri: is no URI (got 'localhost:5000'); http://localhost:5000" in str(done.exception)


# --- within a run -----------------------------------------------------------------------------------------------------


def test_a_fault_that_cannot_pass_is_said_once_and_not_tried_again(tmp_path: Path, tiny_spec: Any, caplog: Any) -> None:
    spec = tiny_spec()
    ledger = Ledger(Store(str(tmp_path)), spec.name, lambda: None)
    tracker = Tracker(spec, ledger, "", "mysql://u:geheim@h/db", Pace(0.01, 0.01, 0.01))
    for _ in range(5):
        tracker.sync_soon()
    assert tracker.close("complete") is False
    (said,) = [record.getMessage() for record in caplog.records]
    assert "install that package" in said and "without a record" in said and "again" not in said and "geheim" not in said


def test_the_last_line_of_a_sweep_without_a_record_says_how_to_make_it(
    tmp_path: Path, tiny_spec: Any, monkeypatch: Any
) -> None:
    from raylt.sweep.driver import SweepEnd

    monkeypatch.chdir(tmp_path)
    spec = tiny_spec(storage={"root": str(tmp_path / "a b")})
    for is_recorded in (True, False):
        monkeypatch.setattr("raylt.sweep.driver.run_sweep", lambda *_, **__: SweepEnd(spec, 0, is_recorded))  # noqa: B023
        done = CliRunner().invoke(app, ["sweep", "digits", "--local"])
        assert done.exit_code == 0
        says = done.output.splitlines()[-1:] == [
            f"warning: MLflow lacks some or all of this sweep's record; `raylt record tiny --root '{tmp_path}/a b'` makes it"
        ]
        assert says is not is_recorded


def test_the_spec_says_where_unless_the_environment_does(tiny_spec: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(tiny_spec()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///$HOME/m.db")
    monkeypatch.setenv("HOME", "/home/a b%2F")
    assert tracking_uri(tiny_spec()) == "sqlite+pysqlite:////home/a b%252F/m.db"
