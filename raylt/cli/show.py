"""Commands that only read: status, results, report, export, ui."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylt.cli.groups import with_groups
from raylt.cli.options import (
    ClusterOption,
    LocalOption,
    NameArgument,
    RootOption,
    Where,
    app,
    ask_head,
    head_to_ask,
    print_cost,
    print_tables,
)
from raylt.errors import InputError
from raylt.report.lookup import find_ledger, find_results, name_of
from raylt.report.text import SortKey
from raylt.spec.vocabulary import Protocol

if TYPE_CHECKING:
    from raylt.cluster.ssh import Head


@app.command()
@with_groups
def status(
    context: typer.Context,
    name: NameArgument,
    where: Where = Where(),
) -> None:
    """How far a sweep is, who drives it, and why trials failed."""
    ask_head(context, where)
    from raylt.report.document import counts_of
    from raylt.store.lease import read_holder
    from raylt.store.results import COMPLETE, RUNNING
    from raylt.store.sweep_state import state_of, states_of

    spec, ledger = find_ledger(name, where.root)
    state, states = state_of(spec, ledger), states_of(ledger)
    # Nobody drives it, so no trial runs, whatever its state.
    words = {"running": "unfinished", RUNNING: "UNFINISHED"} if state == "interrupted" else {}
    counts = counts_of([how for how, _ in states.values()])
    typer.echo(f"{spec.name}: {state} ({', '.join(f'{count} {words.get(how, how)}' for how, count in counts.items())})")
    holder = read_holder(ledger.store, spec.name)
    if state == "running":
        typer.echo(f"driven by {holder}")
    for number, (how, cause) in states.items():
        if how != COMPLETE:
            typer.echo(f"{number:5d} {ledger.submitted[number].kind:8} {words.get(how, how):10} {cause or ''}".rstrip())
    if state == "interrupted":
        typer.echo("nothing runs; the same `raylt sweep` command resumes from here, with the unfinished trials first")


@dataclass(frozen=True)
class Shown:
    """What is shown of a sweep's results, and how."""

    pareto: Annotated[bool, typer.Option("--pareto", help="The Pareto front alone.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON document.")] = False
    as_csv: Annotated[bool, typer.Option("--csv", help="A row a trial.")] = False
    protocol: Annotated[Protocol | None, typer.Option(help="The trials of the search, or those that confirm it, alone.")] = None
    sort: Annotated[
        SortKey | None,
        typer.Option(help="The smallest first; never across protocols or training budgets."),
    ] = None
    cost: Annotated[bool, typer.Option("--cost", help="Training steps and hours of each trial, and of all.")] = False


@app.command()
@with_groups
def results(
    context: typer.Context,
    name: NameArgument,
    where: Where = Where(),
    show: Shown = Shown(),
) -> None:
    """What a sweep has found, and what was confirmed of it."""
    if show.as_json and show.as_csv:
        raise InputError("--json and --csv contradict each other; give one of them")
    if show.as_json and show.sort is not None:
        raise InputError("--json is by id, so --sort contradicts it; give --csv, or sort what --json prints")
    if show.cost and (show.as_json or show.as_csv):
        raise InputError("--cost is a table, and --json and --csv have its numbers anyway; give one of them")
    ask_head(context, where)
    _, _, document = find_results(name, where.root)
    if show.cost:
        print_cost(document, show.pareto, show.protocol, show.sort)
        return
    if not show.as_json and not show.as_csv:
        print_tables(document, show.pareto, show.protocol, show.sort)
        return
    from raylt.report.dataframes import csv_text
    from raylt.report.tables import selected

    chosen = selected(document, protocol=show.protocol, pareto=show.pareto, sort=show.sort)
    typer.echo(csv_text(chosen) if show.as_csv else json.dumps(chosen, indent=1, allow_nan=False), nl=show.as_json)


@app.command()
@with_groups
def report(
    name: NameArgument,
    output: Annotated[Path, typer.Option("-o", help="The HTML file; - is stdout.")],
    where: Where = Where(),
) -> None:
    """One HTML page with everything a sweep has found."""
    head = head_to_ask(where)
    page = _page(name, where.root) if head is None else _page_of(head, name)
    if str(output) == "-":
        typer.echo(page, nl=False)
        return
    _refuse_records(output)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from None
    typer.echo(str(output))


def _refuse_records(output: Path) -> None:
    """Raises `InputError` for a file among a store's records, which a page would overwrite."""
    path = output.resolve()
    for root in path.parents:
        is_among = path.relative_to(root).parts[0] in ("sweeps", "stages", "locks")
        if is_among and (root / "sweeps").is_dir() and (root / "stages").is_dir():
            raise InputError(f"{output}: lies among the records of the store {root}; give another file")


def _page(name: str, root: str | None) -> str:
    from raylt.errors import without_secrets
    from raylt.report.html_page import sweep_page
    from raylt.spec import dump_yaml

    spec, ledger, document = find_results(name, root)
    return sweep_page(document, ledger, without_secrets(dump_yaml(spec.dump())))


def _page_of(head: Head, name: str) -> str:
    """As the head writes it; what it says of its errors is on stderr already."""
    from raylt.cluster import ssh

    code, page = ssh.output(head, ["report", name_of(name), "-o", "-"])
    if code:
        raise typer.Exit(code)
    return page


@app.command()
@with_groups
def export(
    name: NameArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    root: RootOption = None,
    seed_ticket: Annotated[
        bool, typer.Option("--seed-ticket", help="In the ticket file, the seed of its initialisation in place of values.")
    ] = False,
) -> None:
    """Write a trial as a folder that diffusers' DDPMPipeline.from_pretrained loads, with its ticket file."""
    spec, ledger, _ = find_results(name, root)
    from raylt.sweep.single import export_trial

    export_trial(spec, ledger, trial, folder, as_seed=seed_ticket)
    typer.echo(str(folder))


@app.command()
@with_groups
def ui(
    uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking URI. Default: $MLFLOW_TRACKING_URI, sqlite:///mlflow.db.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on the loopback interface; 0: a free one.")] = 5000,
    local: LocalOption = False,
    cluster: ClusterOption = None,
) -> None:
    """Open MLflow's web page on the runs recorded here, or on the cluster."""
    from raylt.spec.sections import TrackingSpec
    from raylt.tracking.runs import given_uri
    from raylt.tracking.server import serve_head_ui, serve_ui

    if uri is not None and cluster is not None:
        raise InputError("--uri and --cluster contradict each other; give one of them")
    source = "MLFLOW_TRACKING_URI" if uri is None else "--uri"
    named = (os.environ.get(source) or None) if uri is None else uri
    if named is None or cluster is not None:
        from raylt.cluster.place import decide

        head = decide(local=local, cluster=cluster).head
        if head is not None:
            raise typer.Exit(serve_head_ui(head, port))
    raise typer.Exit(serve_ui(given_uri(source, TrackingSpec().uri if named is None else named), port))
