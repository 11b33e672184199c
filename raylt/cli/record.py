"""`raylt record`: MLflow brought up to date without running anything."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from raylt.cli.groups import with_groups
from raylt.cli.options import Where, app, ask_head
from raylt.errors import InputError, LeaseHeld
from raylt.report.lookup import find_sweep, is_file, load, store_root
from raylt.spec.paths import has_credentials
from raylt.spec.sections import TrackingSpec


@app.command()
@with_groups
def record(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sweeps. Default: all in the store.")] = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking URI. Default: $MLFLOW_TRACKING_URI, sqlite:///mlflow.db.")
    ] = None,
    where: Where = Where(),
) -> None:
    """Bring MLflow up to date from the store: after a lost database, or on a new server. Runs no trial.

    Where the store's own spec names another place than the default, that has to be confirmed with --uri.
    """
    if uri is not None and has_credentials(uri):
        raise InputError("--uri: holds a user name, password or token, and anybody can list a command; use MLFLOW_TRACKING_URI")
    ask_head(context, where)
    from raylt.store import Store
    from raylt.store.ledger import sweep_names
    from raylt.tracking.recorder import record_address, record_sweep

    if names:
        sweeps = [(*find_sweep(name, where.root), uri or _own_uri(name)) for name in names]
    else:
        store = Store(store_root(where.root))
        sweeps = [(store, name, uri) for name in sweep_names(store)]
    for store, name, place in [(store, name, record_address(store, name, sweep_uri)) for store, name, sweep_uri in sweeps]:
        try:
            typer.echo(f"{name}: recorded, {record_sweep(store, name, place)} trials")
        except LeaseHeld as held:
            typer.echo(f"{name}: skipped, its driver keeps the record: {held}")
    if not sweeps:
        typer.echo("no sweep in the store yet: nothing to record")


def _own_uri(name: str) -> str | None:
    """What the user's own spec file says, where one is given and says another than the default."""
    if not is_file(name) or os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    spec_uri = load(name, None).tracking.uri
    return None if spec_uri == TrackingSpec().uri else spec_uri
