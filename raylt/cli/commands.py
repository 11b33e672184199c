"""Every command there is: importing their modules makes them part of the app."""

from __future__ import annotations

from raylt.cli import manage, record, show, store, sweep
from raylt.cli.options import app

__all__ = ["app", "manage", "record", "show", "store", "sweep"]

# As `raylt --help` lists them: in the order in which a user needs them.
ORDER = ("validate", "sweep", "status", "results", "report", "ui", "confirm", "export", "stop", "retry", "logs", "record",
         "ticket")  # fmt: skip
app.registered_commands.sort(key=lambda command: ORDER.index(getattr(command.callback, "__name__", "")))
