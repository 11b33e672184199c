"""`raylt record`: MLflow brought up to date without running anything."""

from __future__ import annotations

from typing import Annotated

import typer

from raylt.cli.common import ClusterOption, LocalOption, RootOption, app, ask_head
from raylt.errors import LeaseHeld
from raylt.lookup import find_sweep, store_root


@app.command()
def record(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sweeps. Default: all in the store.")] = None,
    root: RootOption = None,
    local: LocalOption = False,
    cluster: ClusterOption = None,
) -> None:
    """Bring MLflow up to date from the store: after a lost database, or on a new server. Runs no trial."""
    ask_head(context, root, local, cluster)
    from raylt.ledger import sweep_names
    from raylt.record import record_sweep
    from raylt.store import Store

    if names:
        found = [find_sweep(name, root) for name in names]
    else:
        store = Store(store_root(root))
        found = [(store, name) for name in sweep_names(store)]
    for store, name in found:
        try:
            typer.echo(f"{name}: recorded, {record_sweep(store, name)} trials")
        except LeaseHeld as held:
            typer.echo(f"{name}: skipped, its driver keeps the record: {held}")
    if not found:
        typer.echo("no sweep in the store yet: nothing to record")
