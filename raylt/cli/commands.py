"""Every command there is: importing their modules makes them part of the app."""

from __future__ import annotations

from raylt.cli import manage, record, run, stores, view
from raylt.cli.common import app

__all__ = ["app", "manage", "record", "run", "stores", "view"]
