"""What several commands share: the app, its arguments, where specs and sweeps are found, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylt.errors import InputError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from raylt.ledger import Ledger
    from raylt.spec import SweepSpec
    from raylt.ssh import Head
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
LocalOption = Annotated[bool, typer.Option("--local", help="On this machine, whatever cluster there is.")]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="FILE", help="On the cluster of this Ray file. Default: ./cluster.yaml, if up."),
]


def load(source: str | None, overrides: list[str] | None) -> SweepSpec:
    """The spec, with the store that RAYLT_ROOT names where it is set."""
    from raylt.specfile import load_spec

    overrides = list(overrides or [])
    if "RAYLT_ROOT" in os.environ:
        overrides.append(f"storage.root={json.dumps(os.environ['RAYLT_ROOT'])}")
    return load_spec(source, overrides)


@contextmanager
def lines_of(source: str | None, overrides: list[str] | None) -> Iterator[None]:
    """Gives problems that are found only once shapes, data or the cluster are known the lines of their keys."""
    try:
        yield
    except SpecError as error:
        if any(problem.file for problem in error.problems):
            raise
        from raylt.specfile import located

        raise located(error.problems, source, list(overrides or [])) from error


def find_results(name: str, root: str | None) -> tuple[SweepSpec, Ledger, dict[str, Any]]:
    from raylt.document import results as document_of
    from raylt.document import stored_spec
    from raylt.ledger import existing

    store, name = find_sweep(name, root)
    ledger = existing(store, name)
    spec = stored_spec(store, name)
    return spec, ledger, document_of(spec, ledger)


def find_sweep(name: str, root: str | None) -> tuple[Store, str]:
    """The store and the sweep's name, from a name or a spec file."""
    from raylt.store import Store

    default = root or os.environ.get("RAYLT_ROOT")
    if is_file(name):
        spec = load(name, None)
        return Store(default or spec.storage.root), spec.name
    return Store(default or "./raylt-data"), name


def head_to_ask(root: str | None, local: bool, cluster: str | None) -> Head | None:
    """The head whose store a command that reads is about; None where the store is to be read from here."""
    from raylt.where import decide

    if root is not None and cluster is not None:
        raise InputError("--root and --cluster contradict each other; give one of them")
    if cluster is None and (root is not None or "RAYLT_ROOT" in os.environ):
        return None
    return decide(local=local, cluster=cluster).head


def ask_head(context: typer.Context, root: str | None, local: bool, cluster: str | None) -> None:
    """Where the sweep is a cluster's that is reached over SSH: runs this very command on its head, and leaves with its code."""
    head = head_to_ask(root, local, cluster)
    if head is not None:
        from raylt import ssh

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


def name_of(name: str) -> str:
    """A sweep's name, of which a spec file is another."""
    return load(name, None).name if is_file(name) else name


def is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def print_tables(document: dict[str, Any], pareto: bool) -> None:
    from raylt.report import similarity_table, trials_table

    out = console(stderr=False)
    out.print(trials_table(document, pareto))
    if not pareto and document["similarity"]:
        out.print(similarity_table(document))
