"""The command line: parse, call, print. Heavy imports are inside the commands: `--help` and `validate` answer at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from raylt.errors import EnvironmentFailure, InputError, RayltError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from raylt.ledger import Ledger
    from raylt.spec import SweepSpec
    from raylt.store import Store

app = typer.Typer(
    help="How far can a DDPM be pruned, and where? Lottery-ticket searches on Ray Tune, Optuna and MLflow.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

SPEC_HELP = "A spec file, or the name of a sweep that comes with raylt. Default: $RAYLT_SPEC, ./sweep.yaml, digits."
SpecArgument = Annotated[str | None, typer.Argument(metavar="[SPEC]", help=SPEC_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key by its dotted path.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A sweep's name, or its spec file.")]
RootOption = Annotated[str | None, typer.Option("--root", help="The store. Default: $RAYLT_ROOT, ./raylt-data.")]


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
    parsed = _load(spec, set_)
    with _lines_of(spec, set_):
        if dry_run:
            from raylt.sweep import describe_sweep

            sys.stdout.writelines(f"{line}\n" for line in describe_sweep(parsed, new=new))
            return
        from raylt.sweep import run_sweep

        parsed, code = run_sweep(parsed, address=address, new=new, console=_console(stderr=True))
    _print_end(parsed, code, new)
    raise typer.Exit(code)


@app.command()
def validate(spec: SpecArgument = None, set_: SetOption = None) -> None:
    """Read a spec and say everything that is wrong with it. Needs the file alone."""
    parsed = _load(spec, set_)
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
    parsed = _load(spec, overrides)
    with _lines_of(spec, overrides):
        from raylt.single import run_ticket

        record, code = run_ticket(parsed, rule, seed, _console(stderr=True))
    _print_record(record, as_json)
    raise typer.Exit(code)


@app.command()
def status(name: NameArgument, root: RootOption = None) -> None:
    """How far a sweep is, who drives it, and why trials failed."""
    from raylt.lease import read_holder

    spec, ledger, document = _results(name, root)
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items())
    typer.echo(f"{spec.name}: {document['state']} ({counts})")
    holder = read_holder(ledger.store, spec.name)
    if document["state"] == "running":
        typer.echo(f"driven by {holder}")
    for trial in document["trials"]:
        if trial["state"] in ("RUNNING", "FAIL", "PRUNED"):
            rounds = f"round {len(trial['rounds'])}" if trial["rounds"] else ""
            typer.echo(f"{trial['id']:5d} {trial['kind']:8} {trial['state']:8} {trial['error'] or rounds}".rstrip())
    if document["state"] == "interrupted":
        typer.echo("nothing runs; the same `raylt sweep` command goes on from here, with the trials that are RUNNING first")


@app.command()
def results(
    name: NameArgument,
    root: RootOption = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="The Pareto front alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON document.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row a trial.")] = False,
) -> None:
    """What a sweep has found."""
    if as_json and as_csv:
        raise InputError("--json and --csv contradict each other; give one of them")
    from raylt.report import csv_text

    _, _, document = _results(name, root)
    if pareto and (as_json or as_csv):
        document = {**document, "trials": [trial for trial in document["trials"] if trial["pareto"]]}
    if as_json:
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
    elif as_csv:
        typer.echo(csv_text(document), nl=False)
    else:
        _print_tables(document, pareto)


@app.command()
def report(
    name: NameArgument, output: Annotated[Path, typer.Option("-o", help="The HTML file.")], root: RootOption = None
) -> None:
    """One HTML page with everything a sweep has found."""
    from raylt.report import html_page
    from raylt.runs import without_secrets
    from raylt.specfile import dump_yaml

    spec, _, document = _results(name, root)
    page = html_page(document, without_secrets(dump_yaml(spec.dump())))
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from None
    typer.echo(str(output))


@app.command()
def export(
    name: NameArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    root: RootOption = None,
) -> None:
    """Write a trial as a folder that diffusers' DDPMPipeline.from_pretrained loads, with its ticket file."""
    spec, ledger, _ = _results(name, root)
    from raylt.single import export_trial

    export_trial(spec, ledger, trial, folder)
    typer.echo(str(folder))


@app.command()
def ui(
    uri: Annotated[
        str | None, typer.Option(help="MLflow's tracking URI. Default: $MLFLOW_TRACKING_URI, sqlite:///mlflow.db.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open MLflow's web page on the runs recorded here."""
    from raylt.spec import TrackingSpec
    from raylt.ui import serve_ui

    raise typer.Exit(serve_ui(uri or os.environ.get("MLFLOW_TRACKING_URI") or TrackingSpec().uri, port))


# --- helpers ----------------------------------------------------------------------------------------------------------


def _load(source: str | None, overrides: list[str] | None) -> SweepSpec:
    """The spec, with the store that RAYLT_ROOT names where it is set."""
    from raylt.specfile import load_spec

    overrides = list(overrides or [])
    if "RAYLT_ROOT" in os.environ:
        overrides.append(f"storage.root={json.dumps(os.environ['RAYLT_ROOT'])}")
    return load_spec(source, overrides)


@contextmanager
def _lines_of(source: str | None, overrides: list[str] | None) -> Iterator[None]:
    """Gives problems that are found only once shapes, data or the cluster are known the lines of their keys."""
    try:
        yield
    except SpecError as error:
        if any(problem.file for problem in error.problems):
            raise
        from raylt.specfile import located

        raise located(error.problems, source, list(overrides or [])) from error


def _results(name: str, root: str | None) -> tuple[SweepSpec, Ledger, dict[str, Any]]:
    from raylt.ledger import existing
    from raylt.results import results as document_of
    from raylt.results import stored_spec

    store, name = _find(name, root)
    ledger = existing(store, name)
    spec = stored_spec(store, name)
    return spec, ledger, document_of(spec, ledger)


def _find(name: str, root: str | None) -> tuple[Store, str]:
    """The store and the sweep's name, from a name or a spec file."""
    from raylt.store import Store

    default = root or os.environ.get("RAYLT_ROOT")
    if name.endswith((".yaml", ".yml")):
        spec = _load(name, None)
        return Store(default or spec.storage.root), spec.name
    return Store(default or "./raylt-data"), name


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _print_tables(document: dict[str, Any], pareto: bool) -> None:
    from raylt.report import similarity_table, trials_table

    console = _console(stderr=False)
    console.print(trials_table(document, pareto))
    if not pareto and document["similarity"]:
        console.print(similarity_table(document))


def _print_end(spec: SweepSpec, code: int, new: bool) -> None:
    """After a sweep: the Pareto table and where to look."""
    try:
        _, _, document = _results(spec.name, spec.storage.root)
    except InputError:
        return  # stopped before the sweep had begun: there is nothing to show
    if any(trial["pareto"] for trial in document["trials"]):
        _print_tables(document, True)
    from raylt.runs import tracking_uri

    typer.echo(
        f"\n{spec.name}: {document['state']}, {document['counts']['failed']} of {document['counts']['asked']} trials failed"
    )
    typer.echo(f"  results  raylt results {spec.name} --root {spec.storage.root}")
    typer.echo(f"  MLflow   raylt ui   ({tracking_uri(spec)}, experiment raylt/{spec.name})")
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


def main() -> NoReturn:
    """Run a command; print errors a user can cause as plain lines and leave with their exit code."""
    try:
        app()
    except RayltError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        print(EnvironmentFailure(f"{error.filename or 'input/output'}: {error.strerror or error}"), file=sys.stderr)
        sys.exit(3)
    sys.exit(0)


if __name__ == "__main__":
    main()
