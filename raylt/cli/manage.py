"""Commands about a sweep at work: logs, stop, retry."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from raylt.cli.groups import with_groups
from raylt.cli.options import NameArgument, Where, app, ask_head
from raylt.errors import EnvironmentFailure, InputError
from raylt.report.lookup import find_results, find_sweep

STOPS_WITHIN_S = 90.0  # Tune gives a running step ten seconds, MLflow's last sync thirty


@app.command()
@with_groups
def logs(
    context: typer.Context,
    name: NameArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the trial ends.")] = False,
    where: Where = Where(),
) -> None:
    """What a trial's worker said: rounds, losses, and the traceback where it failed."""
    ask_head(context, where)
    from raylt.report.text import spanned
    from raylt.store.sweep_state import state_of
    from raylt.store.trial_log import read_log

    spec, ledger, _ = find_results(name, where.root)
    if trial not in ledger.submitted:
        raise InputError(f"{ledger.name} has no trial {trial}; it has {spanned(ledger.submitted)}")

    def is_finished() -> bool:
        ledger.reload()
        return trial in ledger.results or state_of(spec, ledger) != "running"

    said = False
    for text in read_log(ledger.store, ledger.name, trial, until=is_finished if follow else None):
        typer.echo(text, nl=False)
        said = True
    if not said:
        typer.echo(f"{ledger.name}: trial {trial} has said nothing yet", err=True)


@app.command()
@with_groups
def stop(
    context: typer.Context,
    name: NameArgument,
    where: Where = Where(),
) -> None:
    """Stop a running sweep, wherever its driver is: trials leave at their next step, and the same command resumes it."""
    ask_head(context, where)
    from raylt.store.lease import has_stopped, request_stop

    _, ledger, document = find_results(name, where.root)
    holder = request_stop(ledger.store, ledger.name)
    if holder is None:
        typer.echo(f"{ledger.name}: {document['state']}; nobody drives it")
        return
    typer.echo(f"{ledger.name}: asked {holder} to stop", err=True)
    deadline = time.monotonic() + STOPS_WITHIN_S
    while not has_stopped(ledger.store, ledger.name, holder):
        if time.monotonic() > deadline:
            raise EnvironmentFailure(
                f"{ledger.name} has not stopped within {STOPS_WITHIN_S:.0f} s; it was asked to: look again soon"
            )
        time.sleep(0.5)
    typer.echo(f"{ledger.name}: stopped; the same `raylt sweep` command resumes from here")


@app.command()
@with_groups
def retry(
    context: typer.Context,
    name: NameArgument,
    trials: Annotated[
        list[int] | None, typer.Argument(metavar="[TRIAL]...", help="Numbers of trials that failed, or whose stages are gone.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All trials that failed.")] = False,
    where: Where = Where(),
) -> None:
    """Ask trials again; the next `raylt sweep` runs them.

    A trial that failed gets a new number. One whose stages were damaged and deleted runs again under its own.
    """
    if failed == bool(trials):
        raise InputError("which trials? Give their numbers, or --failed for all that failed")
    ask_head(context, where)
    from raylt.sweep.retry import retry as ask_again

    store, name = find_sweep(name, where.root)
    retried = ask_again(store, name, trials or None)
    if not any(retried):
        typer.echo(f"{name}: no trial failed, or all that did were submitted again")
        return
    pairs = [f"{old} as {new}" for old, new in retried.again.items()]
    typer.echo(
        f"{name}: submitted again: {', '.join([*pairs, *map(str, retried.reopened)])}; the same `raylt sweep` command runs them"
    )
