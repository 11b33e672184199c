"""`raylt ui`: MLflow's own web server over the runs recorded here."""

from __future__ import annotations

import os
import subprocess
import sys

from raylt.errors import InputError
from raylt.runs import split_sqlite, without_secrets


def serve_ui(uri: str, port: int) -> int:
    """Serve MLflow's page on the loopback interface until Ctrl-C; returns its exit code.

    Raises `InputError` where the URI is a server's, which has a page of its own, or names no database yet.
    """
    if uri.startswith(("http://", "https://")):
        raise InputError(f"{without_secrets(uri)} is a tracking server: open it in a browser")
    sqlite = split_sqlite(uri)
    if sqlite is not None and not sqlite[1].exists():
        raise InputError(f"{sqlite[1]} is not there: run a sweep in this folder first, or give --uri")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)", file=sys.stderr)
    # the URI not as an argument: it may carry a password, and anyone can list arguments
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_BACKEND_STORE_URI": uri}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
