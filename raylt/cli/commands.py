"""Every command there is: importing their modules makes them part of the app."""

from __future__ import annotations

from raylt.cli import manage, record, show, store, sweep
from raylt.cli.options import app

__all__ = ["app", "manage", "record", "show", "store", "sweep"]
