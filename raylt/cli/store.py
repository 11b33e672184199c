"""`raylt store`: how much lies in a store and whose it is, and freeing what nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raylt.cli.groups import with_groups
from raylt.cli.options import NameArgument, Where, app, ask_head, print_table
from raylt.errors import EnvironmentFailure, InputError, LeaseHeld, OutOfSpace
from raylt.report.lookup import find_sweep, store_root

if TYPE_CHECKING:
    from raylt.store import Lease, Store
    from raylt.store.garbage import Garbage, Survey

store_app = typer.Typer(help="What lies in a store, and freeing what nobody needs.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command()
@with_groups
def du(context: typer.Context, where: Where = Where()) -> None:
    """How much each sweep has in a store, and what no sweep names."""
    ask_head(context, where)
    from raylt.errors import in_units
    from raylt.report.fitted_table import FittedTable
    from raylt.store.garbage import Survey

    survey = Survey(_store(where.root))
    header = ("sweep", "complete stages", "of them shared", "unfinished", "ledger")
    table = FittedTable("", header, (4, 3, 2, 1), "a wider terminal has room for them (COLUMNS=100)")
    for name, usage in survey.usage().items():
        table.add_row([name, *map(in_units, (usage.whole, usage.shared, usage.unfinished, usage.ledger))])
    print_table(table)
    for name, error in survey.damaged.items():
        typer.echo(f"{name}: {error}", err=True)
    typer.echo(f"stages that no sweep names: {in_units(survey.unnamed_bytes())}")
    typer.echo(f"all stages: {in_units(sum(stage.bytes for stage in survey.stages.values()))}")


@store_app.command()
@with_groups
def gc(
    context: typer.Context,
    name: NameArgument,
    where: Where = Where(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, delete nothing.")] = False,
) -> None:
    """Free what a sweep has left and no result needs: unfinished stages, checkpoints, stages of failed trials alone.

    The sweep can still be resumed, extended, shown and exported. What was not finished is then made anew.
    """
    ask_head(context, where)
    from raylt.errors import in_units
    from raylt.store import Store
    from raylt.store.garbage import Survey, delete
    from raylt.store.lease import read_holder
    from raylt.store.ledger import existing

    store, name = find_sweep(name, where.root)
    existing(store, name)
    if dry_run:
        holder = read_holder(store, name)
        if holder is not None and holder.seems_alive:
            raise LeaseHeld(f"sweep {name} is being driven by {holder}; wait for it, or stop it: raylt stop {name}")
        garbage = _garbage(Survey(store), name)
        typer.echo(f"would free {in_units(garbage.bytes)}: {_described(garbage)}")
        return
    lease, freed = _lease_of(store, name)
    try:
        garbage = _garbage(Survey(store), name)
        freed += delete(Store(store.root, f"{name}/gc", lease.check), garbage)
        typer.echo(f"freed {in_units(freed)}: {_described(garbage)}")
    finally:
        lease.release()


def _lease_of(store: Store, name: str) -> tuple[Lease, int]:
    """The sweep's lease, and the bytes that had to go before there was room for it."""
    from raylt.store import Lease
    from raylt.store.garbage import make_room

    try:
        return Lease.acquire(store, name), 0
    except OutOfSpace as error:
        freed = make_room(store, name)
        if not freed:
            what = f"{store.root} has no room for the lease of {name}, and no checkpoint of it that could go first"
            raise EnvironmentFailure(f"{what}; free a few kB there, then give the same command again") from error
        return Lease.acquire(store, name), freed


@store_app.command()
@with_groups
def verify(
    context: typer.Context,
    where: Where = Where(),
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete what can be made again, restore what has a copy, set the rest aside.")
    ] = False,
) -> None:
    """Read every file of a store and name what is damaged, what is lost with it, and what mends it.

    The same `raylt sweep` command then makes again what it needs. Leaves with 3 where damage is left.
    """
    ask_head(context, where)
    from raylt.store.damage import loss_of
    from raylt.store.repair import repair as mend
    from raylt.store.verify import verify as look

    store = _store(where.root)
    check = look(store)
    for error in check.damaged:
        loss = loss_of(error.path)
        typer.echo(f"{error.path}: {error.why}; lost: {loss.what}" + ("" if repair else f"; --repair {loss.mend}"))
    if repair and check.damaged:
        for line in mend(store, check):
            typer.echo(line)
        check = look(store)
    if check.missing:
        num = len({stage.digest for stage in check.missing})
        typer.echo(
            f"{num} stages that results of complete trials name are not there: the trials' numbers stay, "
            "but export and pictures need the stages"
        )
        for name in sorted({stage.sweep for stage in check.missing}):
            numbers = " ".join(map(str, sorted({stage.trial for stage in check.missing if stage.sweep == name})))
            typer.echo(f"{name}: `raylt retry {name} {numbers}` and the same `raylt sweep` command make them again")
    unverified = f", {check.unverified} of an earlier raylt without checksums" if check.unverified else ""
    typer.echo(f"{check.files} files read{unverified}; {len(check.damaged) or 'none'} damaged")
    raise typer.Exit(EnvironmentFailure.exit_code if check.damaged else 0)


def _store(root: str | None) -> Store:
    """Raises `InputError` where there is none: a place that was mistyped holds no damage."""
    from raylt.store import Store
    from raylt.store.stages import STAGES

    store = Store(store_root(root))
    if not store.names("sweeps") and not store.names(STAGES):
        raise InputError(f"{store.root} is no store: it has neither sweeps nor stages; name one with --root or RAYLT_ROOT")
    return store


def _garbage(survey: Survey, name: str) -> Garbage:
    """What may go now: beside a sweep on the same data that runs, no whole stage may."""
    garbage = survey.garbage(name)
    running = survey.runs_beside(name)
    if survey.damaged and garbage.failed:
        typer.echo(f"{', '.join(survey.damaged)} is damaged, so what it needs is not known: stages of failed trials stay")
        return type(garbage)(garbage.unfinished, [], garbage.files)
    if running and garbage.failed:
        typer.echo(f"{', '.join(running)} on the same data is running: stages of failed trials stay until it has ended")
        return type(garbage)(garbage.unfinished, [], garbage.files)
    return garbage


def _described(garbage: Garbage) -> str:
    return (
        f"{len(garbage.unfinished)} unfinished stages, {len(garbage.failed)} stages of failed trials alone, "
        f"{len(garbage.files)} files that makers left behind"
    )
