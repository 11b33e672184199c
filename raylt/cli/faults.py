"""Whatever ends a command, in words and with an exit code: what a user can mend, what others failed with, our own faults."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import typer

from raylt.cli.streams import complain
from raylt.errors import EnvironmentFailure, RayltError, cause_of

VARIABLE = "RAYLT_TRACEBACK"
OTHERS = {  # whose errors are no fault of ours: a database, a file system, a service
    "sqlite3": "SQLite", "sqlalchemy": "the database", "alembic": "the database", "pyarrow": "the store", "botocore": "AWS",
    "mlflow": "MLflow", "ray": "Ray", "requests": "the network", "urllib3": "the network", "grpc": "the network",
}  # fmt: skip


def leave_with(error: BaseException) -> int:
    """Says what `error` is; the exit code that it stands for."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # typer's answer to it is 1
        error = error.__context__
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return 130
    if isinstance(error, BrokenPipeError):
        complain(error)
        return 0
    if hasattr(error, "show"):  # typer's own, whose base class has no public name
        error.show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, RayltError):
        print(error, file=sys.stderr)
        return error.exit_code
    print(_in_words(error), file=sys.stderr)
    return EnvironmentFailure.exit_code


def _in_words(error: BaseException) -> str:
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or cause_of(error)}"
    if isinstance(error, MemoryError):
        return "this machine has too little memory left for that; end something else, or run it elsewhere"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "this user has no home directory; let the variable HOME name a folder"
    if package in OTHERS:
        return f"{OTHERS[package]} failed: {cause_of(error)}"
    return f"an error that raylt does not know: {cause_of(error)}\n{_kept(error)}"


def _kept(error: BaseException) -> str:
    """Where the traceback is, for whoever mends raylt."""
    text = "".join(traceback.format_exception(error))
    fault = "This is a fault of raylt's, not of yours; what is in the store is safe, and the same command resumes from there."
    if os.environ.get(VARIABLE):
        return f"{fault}\n{text.rstrip()}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="raylt-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return f"{fault}\n{VARIABLE}=1 shows where it comes from; please report it with that."
    return f"{fault}\nPlease report it with {file.name}, which says where it comes from ({VARIABLE}=1 prints that)."
