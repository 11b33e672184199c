"""Commands that compute: sweep, ticket; and validate, which says what keeps them from it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from raylt.cli.groups import with_groups
from raylt.cli.options import (
    ClusterOption,
    LocalOption,
    NameArgument,
    RootOption,
    SetOption,
    SpecArgument,
    app,
    console,
    lines_of,
    print_confirmation,
    print_tables,
)
from raylt.cli.remote import confirm_on, sweep_on
from raylt.cli.stored_spec import spec_to_confirm
from raylt.cli.streams import told
from raylt.errors import EnvironmentFailure, InputError
from raylt.report.lookup import find_results, is_file, load
from raylt.spec.paths import literal

if TYPE_CHECKING:
    from raylt.cluster.place import Place
    from raylt.report.records import TrialRecord
    from raylt.spec import SweepSpec
    from raylt.sweep.driver import SweepEnd


AddressOption = Annotated[str | None, typer.Option("--address", help="On the Ray cluster there (auto, HOST:PORT).")]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="On a cluster reached over SSH: send the sweep, and leave it to itself.")
]


def _above_zero(hours: float | None) -> float | None:
    if hours is not None and not hours > 0:  # NaN is not either
        raise typer.BadParameter(f"{hours:g} is no time to run; give a number above 0, in hours")
    return hours


MaxHoursOption = Annotated[
    float | None,
    typer.Option("--max-hours", callback=_above_zero, help="Stop after so many hours; the same command resumes from there."),
]


@dataclass(frozen=True)
class Run:
    """Where a sweep is to run, and for how long."""

    local: LocalOption = False
    address: AddressOption = None
    cluster: ClusterOption = None
    detach: DetachOption = False
    max_hours: MaxHoursOption = None

    def place(self) -> Place:
        """Raises `InputError` where the options contradict each other or the place."""
        from raylt.cluster.place import decide

        place = decide(local=self.local, address=self.address, cluster=self.cluster)
        if self.detach and place.head is None:
            raise InputError(f"--detach is for a cluster reached over SSH, and this sweep {place}")
        return place

    def ends_at(self) -> float | None:
        """When a command that starts now has had its hours, in seconds of `time.monotonic`."""
        return None if self.max_hours is None else time.monotonic() + 3600 * self.max_hours


@app.command()
@with_groups
def sweep(
    spec: SpecArgument = None,
    set_: SetOption = None,
    new: Annotated[bool, typer.Option("--new", help="Start beside an existing sweep of this name, as NAME-2.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, start nothing.")] = False,
    run: Run = Run(),
) -> None:
    """Run a sweep. The same command again resumes it; a larger search.trials extends it.

    It runs where --local, --address or --cluster says; else at RAY_ADDRESS; else on the cluster whose head this machine is;
    else on the cluster of ./cluster.yaml, if `ray up` has started it from here; else on this machine.
    """
    from raylt.spec import load_spec

    ends_at = run.ends_at()
    load_spec(spec, set_ or [], here=False)  # before a cluster is looked for; its paths may be the head's
    place = run.place()
    if place.head is not None:
        typer.echo(str(place), err=True)
        raise typer.Exit(sweep_on(place.head, spec, set_, new=new, dry_run=dry_run, run=run))
    parsed = load(spec, set_)
    with lines_of(spec, set_):
        if dry_run:
            from raylt.sweep.driver import describe_sweep

            described = describe_sweep(parsed, new=new)
            typer.echo(str(place), err=True)
            sys.stdout.writelines(f"{line}\n" for line in described)
            return
        from raylt.sweep.driver import RunRequest, run_sweep

        ended = run_sweep(parsed, place, console(stderr=True), RunRequest(new=new, ends_at=ends_at))
    with told():
        _print_end(ended, new, run.max_hours)
    raise typer.Exit(ended.code)


@app.command()
@with_groups
def confirm(
    name: NameArgument,
    top: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Finalists of the Pareto front. Default: confirm.top.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=1000, help="Fresh seeds. Default: confirm.seeds.")] = None,
    set_: SetOption = None,
    root: RootOption = None,
    run: Run = Run(),
) -> None:
    """Train a sweep's finalists and baselines anew on fresh seeds, with controls, and say which tickets win.

    The same command again resumes it; more seeds extend it. A sweep that has not ended is run to its end first.
    """
    ends_at = run.ends_at()
    place = run.place()
    if place.head is not None and root is not None:
        raise InputError("--root is for this machine: on a cluster reached over SSH, the head's environment names the store")
    if place.head is not None:
        typer.echo(str(place), err=True)
        counts = [f"--{key}={value}" for key, value in (("top", top), ("seeds", seeds)) if value is not None]
        raise typer.Exit(confirm_on(place.head, name, set_, counts, run))
    parsed, stored_images = spec_to_confirm(name, set_, root)
    with lines_of(name if is_file(name) else None, set_):
        from raylt.search.confirm import Request
        from raylt.sweep.driver import RunRequest, run_sweep

        chosen = parsed.confirm
        request = Request(chosen.top if top is None else top, chosen.seeds if seeds is None else seeds)
        asked = RunRequest(confirm=request, stored_images=stored_images, ends_at=ends_at)
        ended = run_sweep(parsed, place, console(stderr=True), asked)
    with told():
        _print_end(ended, False, run.max_hours)
    raise typer.Exit(ended.code)


@app.command()
def validate(
    spec: SpecArgument = None,
    set_: SetOption = None,
    as_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a spec, for an editor.")] = False,
) -> None:
    """Read a spec and say everything that is wrong with it. Needs the file alone."""
    if as_schema:
        from raylt.spec.reference import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
        return
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
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of order, noise and timesteps. Default: train.seed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trial as JSON.")] = False,
) -> None:
    """Run one lottery-ticket search here, without Ray: train, prune, rewind, again and again."""
    overrides = [*(set_ or []), *([f"ticket.density={density}", "ticket.densities=null"] if density is not None else [])]
    parsed = load(spec, overrides)
    with lines_of(spec, overrides):
        from raylt.sweep.single import run_ticket

        record, code = run_ticket(parsed, rule, seed, console(stderr=True))
    with told():
        _print_record(record, as_json)
    raise typer.Exit(code)


def _print_end(ended: SweepEnd, new: bool, max_hours: float | None) -> None:
    """After a sweep: what it has found, how to go on where it was stopped, and last, where MLflow lacks some of it."""
    from raylt.spec.sections import TrackingSpec

    spec, code, is_recorded = ended
    again = f"the same command{f' with --set name={spec.name} in place of --new' if new else ''} resumes from here"
    with suppress(InputError):  # stopped before the sweep had started: there is nothing to show
        _print_found(spec)
        if code in (130, 143):
            typer.echo(f"  stopped before its end; {again}")
    if code == EnvironmentFailure.exit_code:  # other causes of it are raised
        typer.echo(f"  stopped: the {max_hours:g} hours of --max-hours are over; {again}")
    if not is_recorded:
        has_own_record = spec.tracking.uri != TrackingSpec().uri and not os.environ.get("MLFLOW_TRACKING_URI")
        place = ["--uri", literal(spec.tracking.uri)] if has_own_record else []  # the store's word would not do
        command = shlex.join(["raylt", "record", spec.name, "--root", literal(spec.storage.root), *place])
        typer.echo(f"warning: MLflow lacks some or all of this sweep's record; `{command}` makes it", err=True)


def _print_found(spec: SweepSpec) -> None:
    """The Pareto table, what is confirmed, and where to look. Raises `InputError` where the sweep has not started."""
    root = literal(spec.storage.root)
    _, _, document = find_results(spec.name, root)
    if any(trial["pareto"] for trial in document["trials"]):
        print_tables(document, True)
    elif document["state"] == "complete":
        from raylt.report.tables import why_no_front

        typer.echo(why_no_front(document))
    print_confirmation(document)
    from raylt.errors import without_secrets
    from raylt.tracking.runs import tracking_uri

    typer.echo(
        f"\n{spec.name}: {document['state']}, {document['counts']['failed']} of {document['counts']['asked']} trials failed"
    )
    typer.echo(f"  results  raylt results {spec.name} --root {shlex.quote(root)}")
    typer.echo(f"  MLflow   raylt ui   ({without_secrets(tracking_uri(spec))}, experiment raylt/{spec.name})")


def _print_record(record: TrialRecord, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, indent=1, allow_nan=False))
        return
    for row in record["rounds"]:
        loss, fid = (f"{row[key]:.4g}" if row[key] is not None else "-" for key in ("loss", "fid"))
        typer.echo(f"round {row['round']}  density {row['density']:.4f}  loss {loss}  FID {fid}")
    typer.echo(f"{record['state']}{': ' + record['error'] if record['error'] else ''}")
