"""Commands that compute, as jobs on a cluster's head that is reached over SSH."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import typer

from raylt.errors import InputError
from raylt.report.lookup import is_file

if TYPE_CHECKING:
    from raylt.cli.sweep import Run
    from raylt.cluster.jobs import Sent
    from raylt.cluster.ssh import Head


def confirm_on(head: Head, name: str, overrides: list[str] | None, counts: list[str], run: Run) -> int:
    """The confirmation as a job on a cluster's head: of a spec file, or of a sweep that the head has, by its name.

    `counts`: `--top` and `--seeds`, as far as they were given.
    """
    from raylt.cluster import jobs
    from raylt.spec import dump_yaml, load_spec
    from raylt.spec.paths import has_credentials

    bound = _bound(run.max_hours)
    again = shlex.join(["raylt", "confirm", name, *(f"--set={override}" for override in overrides or []), *counts, *bound])
    if is_file(name):
        parsed = load_spec(name, overrides or [], here=False)
        sent = jobs.Sent(parsed.name, parsed.digest, "spec.yaml", dump_yaml(parsed.dump()), tuple(counts), "confirm", bound)
    else:
        for key, _, value in (override.partition("=") for override in overrides or []):
            if has_credentials(value):
                where = "~/.raylt/env on the head has what the sweep needs there"
                raise InputError(f"--set: {key}: holds a user name, password or token, and a job's words can be read; {where}")
        words = [*counts, *(f"--set={override}" for override in overrides or [])]
        sent = jobs.Sent(name, "", name, "", tuple(words), "confirm", bound)
    return _run_job(head, sent, again, detach=run.detach)


def _bound(max_hours: float | None) -> tuple[str, ...]:
    return () if max_hours is None else (f"--max-hours={max_hours}",)


def sweep_on(head: Head, source: str | None, overrides: list[str] | None, *, new: bool, dry_run: bool, run: Run) -> int:
    """The sweep as a job on a cluster's head; what needs its data and its store (`--dry-run`) is asked there as well.

    The spec goes as its file is, so that errors found there name its lines; with `--set`, as it reads with them.
    Where the store and MLflow are, and every secret, is for the head's own environment to say.
    """
    from raylt.cluster import jobs, ssh
    from raylt.errors import has_secret
    from raylt.spec import dump_yaml, load_spec
    from raylt.spec.load import find_spec, read_spec

    path, parsed = find_spec(source), load_spec(source, overrides or [], here=False)
    text = read_spec(path)
    if overrides or has_secret(text):  # in a comment, say: everybody with Ray's token can read what a job brings
        text = dump_yaml(parsed.dump())
    name = path.name if path.suffix in (".yaml", ".yml") else "spec.yaml"
    options = ["--new"] if new else []
    if dry_run:
        return ssh.run(head, ["sweep", "--dry-run", *options], file=(name, text))
    bound = _bound(run.max_hours)
    spec_words = [*([source] if source else []), *(f"--set={override}" for override in overrides or [])]
    again = shlex.join(["raylt", "sweep", *spec_words, *options, *bound])
    sent = jobs.Sent(parsed.name, parsed.digest, name, text, tuple(options), bound=bound)
    return _run_job(head, sent, again, detach=run.detach)


def _run_job(head: Head, sent: Sent, again: str, *, detach: bool) -> int:
    """Send a job, or find the one that is at it, and watch it. `again`: the command that watches it once more."""
    from raylt.cluster import jobs

    def say(line: str) -> None:
        typer.echo(line, err=True)

    job = jobs.submit_or_attach(head, sent, say)
    if detach:
        say(f"`{again}` watches it, `raylt status {sent.name}` says how far it is, `raylt stop {sent.name}` stops it")
        return 0
    try:
        return jobs.watch(head, job, sent.name, say)
    except KeyboardInterrupt:
        say(f"\nno longer watching; the sweep goes on. `{again}` watches it again, `raylt stop {sent.name}` stops it")
        return 130
