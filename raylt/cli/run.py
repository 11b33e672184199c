"""Commands that compute: sweep, ticket; and validate, which says what keeps them from it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylt.cli.common import SetOption, SpecArgument, app, console, find_results, lines_of, load, print_tables
from raylt.errors import InputError

if TYPE_CHECKING:
    from raylt.spec import SweepSpec


@app.command()
def sweep(
    spec: SpecArgument = None,
    set_: SetOption = None,
    new: Annotated[bool, typer.Option("--new", help="Start beside an existing sweep of this name, as NAME-2.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, start nothing.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run on this machine (the default).")] = False,
    address: Annotated[str | None, typer.Option("--address", help="Run on the Ray cluster there (auto, HOST:PORT).")] = None,
) -> None:
    """Run a sweep. The same command again resumes it; a larger search.trials extends it."""
    if local and address is not None:
        raise InputError("--local and --address contradict each other; give one of them")
    parsed = load(spec, set_)
    with lines_of(spec, set_):
        if dry_run:
            from raylt.sweep import describe_sweep

            sys.stdout.writelines(f"{line}\n" for line in describe_sweep(parsed, new=new))
            return
        from raylt.sweep import run_sweep

        parsed, code = run_sweep(parsed, address=address, new=new, console=console(stderr=True))
    _print_end(parsed, code, new)
    raise typer.Exit(code)


@app.command()
def validate(spec: SpecArgument = None, set_: SetOption = None) -> None:
    """Read a spec and say everything that is wrong with it. Needs the file alone."""
    parsed = load(spec, set_)
    typer.echo(f"{parsed.name}: valid ({parsed.digest[:12]})")


@app.command()
def ticket(
    spec: SpecArgument = None,
    set_: SetOption = None,
    rule: Annotated[
        str, typer.Option(help="How weights are spread over layers: uniform, uniform+, er, erk, lamp, global.")
    ] = "uniform",
    density: Annotated[float | None, typer.Option(help="Overall density after the last round. Default: the spec's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order, noise and timesteps. Default: train.seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trial as JSON.")] = False,
) -> None:
    """Run one lottery-ticket search here, without Ray: train, prune, rewind, again and again."""
    overrides = [*(set_ or []), *([f"ticket.density={density}", "ticket.densities=null"] if density is not None else [])]
    parsed = load(spec, overrides)
    with lines_of(spec, overrides):
        from raylt.single import run_ticket

        record, code = run_ticket(parsed, rule, seed, console(stderr=True))
    _print_record(record, as_json)
    raise typer.Exit(code)


def _print_end(spec: SweepSpec, code: int, new: bool) -> None:
    """After a sweep: the Pareto table and where to look."""
    try:
        _, _, document = find_results(spec.name, spec.storage.root)
    except InputError:
        return  # stopped before the sweep had begun: there is nothing to show
    if any(trial["pareto"] for trial in document["trials"]):
        print_tables(document, True)
    from raylt.runs import tracking_uri, without_secrets

    typer.echo(
        f"\n{spec.name}: {document['state']}, {document['counts']['failed']} of {document['counts']['asked']} trials failed"
    )
    typer.echo(f"  results  raylt results {spec.name} --root {spec.storage.root}")
    typer.echo(f"  MLflow   raylt ui   ({without_secrets(tracking_uri(spec))}, experiment raylt/{spec.name})")
    if code in (130, 143):
        again = f" with --set name={spec.name} in place of --new" if new else ""
        typer.echo(f"  stopped before its end; the same command{again} goes on from here")


def _print_record(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, indent=1, allow_nan=False))
        return
    for row in record["rounds"]:
        loss, fid = (f"{row[key]:.4g}" if row[key] is not None else "-" for key in ("loss", "fid"))
        typer.echo(f"round {row['round']}  density {row['density']:.4f}  loss {loss}  FID {fid}")
    typer.echo(f"{record['state']}{': ' + record['error'] if record['error'] else ''}")
