"""What several commands share: the app, its arguments, where a sweep's head is, tables."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylt import __version__
from raylt.errors import InputError, SpecError
from raylt.report.lookup import name_of
from raylt.report.terminal import plain_console

if TYPE_CHECKING:
    from rich.console import Console

    from raylt.cluster.ssh import Head
    from raylt.report.fitted_table import FittedTable
    from raylt.report.records import SweepDocument
    from raylt.report.text import SortKey
    from raylt.spec.vocabulary import Protocol

app = typer.Typer(
    help="How far can a DDPM be pruned, and where? Lottery-ticket searches on Ray Tune, Optuna and MLflow.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _say_versions(is_asked: bool) -> None:
    """Without an import of torch, which takes seconds."""
    if is_asked:
        versions = (
            f"torch {version('torch')}",
            f"Ray {version('ray')}",
            f"Optuna {version('optuna')}",
            f"MLflow {version('mlflow')}",
        )
        typer.echo(f"raylt {__version__} (Python {platform.python_version()}, {', '.join(versions)})")
        raise typer.Exit


@app.callback()
def _about(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_versions, is_eager=True, help="Say which raylt this is, and on what.")
    ] = False,
) -> None:
    pass


SPEC_HELP = "A spec file, or the name of a sweep that comes with raylt. Default: $RAYLT_SPEC, ./sweep.yaml, digits."
SpecArgument = Annotated[str | None, typer.Argument(metavar="[SPEC]", help=SPEC_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Override a key by its dotted path.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A sweep's name, or its spec file.")]
RootOption = Annotated[str | None, typer.Option("--root", help="The store. Default: $RAYLT_ROOT, ./raylt-data.")]
LocalOption = Annotated[bool, typer.Option("--local", help="On this machine, whatever cluster there is.")]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="FILE", help="On the cluster of this Ray file. Default: ./cluster.yaml, if up."),
]


@dataclass(frozen=True)
class Where:
    """Where the store is that a command reads."""

    root: RootOption = None
    local: LocalOption = False
    cluster: ClusterOption = None


@contextmanager
def lines_of(source: str | None, overrides: list[str] | None) -> Iterator[None]:
    """Gives problems that are found only once shapes, data or the cluster are known the lines of their keys."""
    try:
        yield
    except SpecError as error:
        if any(problem.file for problem in error.problems):
            raise
        from raylt.spec.load import located

        raise located(error.problems, source, list(overrides or [])) from error


def head_to_ask(where: Where) -> Head | None:
    """The head whose store a command that reads is about; None where the store is to be read from here."""
    from raylt.cluster.place import decide

    if where.root is not None and where.cluster is not None:
        raise InputError("--root and --cluster contradict each other; give one of them")
    if where.cluster is None and (where.root is not None or os.environ.get("RAYLT_ROOT")):
        return None
    return decide(local=where.local, cluster=where.cluster).head


def ask_head(context: typer.Context, where: Where) -> None:
    """Where the sweep is a cluster's that is reached over SSH: runs this very command on its head, and leaves with its code."""
    head = head_to_ask(where)
    if head is not None:
        from raylt.cluster import ssh

        raise typer.Exit(ssh.run(head, words_of(context)))


def words_of(context: typer.Context) -> list[str]:
    """The command line behind the context, without what says where; a spec file, which is here, by its sweep's name."""
    words: list[str] = []
    level: Any = context
    while level is not None and level.parent is not None:  # `store du` are two
        words, level = [str(level.info_name), *words], level.parent
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in ("root", "local", "cluster") or value in (None, False, [], ()):
            continue
        if parameter.param_type_name == "argument":
            values = value if isinstance(value, list | tuple) else [value]
            words += [name_of(str(one)) for one in values] if parameter.name in ("name", "names") else map(str, values)
        else:
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return words


def console(*, stderr: bool) -> Console:
    return plain_console(sys.stderr if stderr else sys.stdout)


def print_table(table: FittedTable) -> None:
    """Not cropped: where even one column is wider than the terminal, its numbers are for the terminal to wrap."""
    console(stderr=False).print(table, crop=False)


def print_tables(document: SweepDocument, pareto: bool, protocol: Protocol | None = None, sort: SortKey | None = None) -> None:
    """The front; or the search's trials with similarity, the confirmation, or both. Raises `InputError` for a wrong sort."""
    from raylt.report.tables import cost_text, pareto_table, selected, similarity_table, trials_tables

    chosen = selected(document, protocol=protocol, pareto=pareto, sort=sort)
    if pareto:
        print_table(pareto_table(document, sort))
        return
    for table in trials_tables(chosen, protocol or "search"):
        print_table(table)
    if chosen["trials"]:
        typer.echo(cost_text(chosen["trials"]))
    if protocol != "final" and document["similarity"]:
        print_table(similarity_table(document))
    if protocol != "search":
        print_confirmation(document)
    if protocol == "final" and not chosen["trials"]:
        typer.echo(f"nothing is confirmed yet; `raylt confirm {document['name']}` does it")


def print_cost(document: SweepDocument, pareto: bool, protocol: Protocol | None, sort: SortKey | None) -> None:
    """What the chosen trials cost. Raises `InputError` for a wrong sort."""
    from raylt.report.tables import cost_table, selected

    print_table(cost_table(selected(document, protocol=protocol, pareto=pareto, sort=sort)))


def print_confirmation(document: SweepDocument) -> None:
    """What `raylt confirm` has found so far; nothing where nothing was confirmed."""
    from raylt.report.confirmation_tables import confirmation_tables

    for table in confirmation_tables(document):
        print_table(table)
