"""A sweep as a Ray job on a cluster's head: sent once, watched for as long as one likes, never ended by who stops watching."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylt.cluster import ssh
from raylt.cluster.auth import find_token, refusal
from raylt.errors import EnvironmentFailure, InputError

SWEEP, DIGEST = "raylt_sweep", "raylt_digest"  # of a job's metadata
SWEEP_CODES = (0, 1, 2, 3, 130, 143)  # that `raylt sweep` leaves with
GIVE_UP_AFTER_S = 600.0  # without the head
SLOWEST_RETRY_S = 15.0

# In the head's home, so that a relative store is the same folder for a sweep and for who reads it; secrets come from the head.
ENTRYPOINT = (
    'command="$1"; spec="$PWD/$2"; [ -e "$spec" ] || spec="$2"; shift 2; cd; '
    'set -a; [ ! -r ~/.raylt/env ] || . ~/.raylt/env; set +a; exec raylt "$command" "$spec" "$@"'
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sent:
    """A sweep to be sent: the text of its spec under the file's name, and the options that are for the head to heed.

    To confirm a sweep that the head has, its name is enough: `file` then is that, without a text.
    """

    name: str
    digest: str
    file: str
    text: str
    options: tuple[str, ...] = ()
    command: str = "sweep"  # or confirm
    bound: tuple[str, ...] = ()  # options of this one job, which tell no sweep from another: --max-hours

    @property
    def label(self) -> str:
        """What tells its jobs from those of other sweeps. `--new` is a sweep of its own, whose name only the store knows."""
        return " ".join([self.name, *([] if self.command == "sweep" else [self.command]), *self.options])


def submit_or_attach(head: ssh.Head, sweep: Sent, say: Say) -> str:
    """The submission id of the job that runs the sweep: one that does already, or a new one.

    Raises `InputError` where a job runs a sweep of this name with another spec, `EnvironmentFailure` without a head.
    """
    with _client(head) as client:
        jobs = _jobs_of(client, sweep.label)
        running = [job for job in jobs if not job.status.is_terminal()]
        if running:
            job = str(running[-1].submission_id)
            if running[-1].metadata.get(DIGEST) != sweep.digest:
                raise InputError(
                    f"job {job} on {head} runs sweep {sweep.name} with another spec; restore the spec, "
                    f"stop it with `raylt stop {sweep.name}`, or start {sweep.name}-2 beside it with `raylt sweep --new`"
                )
            say(f"job {job} runs this sweep already; this is its log from the start")
            if sweep.bound:
                say(f"{' '.join(sweep.bound)} changes nothing for a job that runs; `raylt stop {sweep.name}` ends it")
            return job
        job = _submit(client, sweep, 1 + max([_count(str(job.submission_id)) for job in jobs], default=0))
        say(f"sent as job {job}")
        return job


def _submit(client: Any, sweep: Sent, count: int) -> str:
    name = re.sub(r"[^\w-]+", "-", sweep.label)
    with tempfile.TemporaryDirectory(prefix="raylt-job-") as folder:
        if sweep.text:
            (Path(folder) / sweep.file).write_text(sweep.text, encoding="utf-8")
        words = shlex.join([sweep.command, sweep.file, *sweep.options, *sweep.bound])
        columns = f"COLUMNS={shutil.get_terminal_size().columns} " if sys.stdout.isatty() else ""
        try:
            return str(
                client.submit_job(
                    submission_id=f"raylt-{name}-{count}",
                    entrypoint=f"{columns}bash -c {shlex.quote(ENTRYPOINT)} raylt {words}",
                    runtime_env={"working_dir": folder},
                    metadata={SWEEP: sweep.label, DIGEST: sweep.digest},
                )
            )
        except RuntimeError as error:
            raise EnvironmentFailure(f"Ray did not take the job: {_last_line(error)}") from error


def _jobs_of(client: Any, label: str) -> list[Any]:
    """The sweep's jobs that Ray knows, oldest first."""
    jobs = [job for job in client.list_jobs() if job.submission_id and (job.metadata or {}).get(SWEEP) == label]
    return sorted(jobs, key=lambda job: (job.start_time or 0, _count(job.submission_id)))


def _count(submission_id: str) -> int:
    match = re.search(r"-(\d+)$", submission_id)
    return int(match[1]) if match else 0


def watch(head: ssh.Head, job: str, name: str, say: Say) -> int:
    """Print the job's log as it comes, to the job's end, through lost connections. Returns the sweep's exit code.

    Raises `EnvironmentFailure` where the head stays away, or where the job ended without an exit code of its own.
    """
    log, lost_since, pause_s = _Log(), None, 1.0
    while True:
        try:
            with _client(head) as client:
                if lost_since is not None:
                    say(f"connected to {head} again")
                    lost_since, pause_s = None, 1.0
                info = _follow(client, job, log)
        except ssh.Unreachable as error:
            if lost_since is None:
                lost_since = time.monotonic()
                say(f"the connection to {head} is lost ({error}); the sweep does not need it; trying again")
            if time.monotonic() - lost_since > GIVE_UP_AFTER_S:
                raise EnvironmentFailure(
                    f"{head} has been away for {GIVE_UP_AFTER_S / 60:g} minutes ({error}); if it lives, the sweep goes on, "
                    "and the same command watches it again"
                ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, SLOWEST_RETRY_S)
            continue
        return _forgotten(head, job, name, say) if info is None else _exit_code(info, job, say)


class _Log:
    """What has been printed of a log that is always sent from its start."""

    def __init__(self) -> None:
        self.num_printed = 0

    def restart(self) -> Callable[[str], None]:
        """Takes the text from its start on, piece by piece; prints what is new."""
        position = 0

        def take(text: str) -> None:
            nonlocal position
            new = text[max(0, self.num_printed - position) :]
            position += len(text)
            if new:
                sys.stdout.write(new)
                sys.stdout.flush()
                self.num_printed = position

        return take


def _follow(client: Any, job: str, log: _Log) -> Any | None:
    """Streams until the job has ended: its last word, or None where Ray does not know it. Raises `ssh.Unreachable`."""
    try:
        while (info := _info(client, job)) is not None and not info.status.is_terminal():
            asyncio.run(_stream(client, job, log))  # its end is not the job's: ask
            time.sleep(0.5)
        if info is not None:
            log.restart()(client.get_job_logs(job))
        return info
    except OSError as error:
        raise ssh.Unreachable("the tunnel broke") from error
    except RuntimeError as error:
        raise ssh.Unreachable(_last_line(error)) from error


async def _stream(client: Any, job: str, log: _Log) -> None:
    """The log to the end of its stream, whatever ends it."""
    import aiohttp

    take = log.restart()
    with suppress(RuntimeError, aiohttp.ClientError):
        async for text in client.tail_job_logs(job):
            take(text)


def _info(client: Any, job: str) -> Any | None:
    """What Ray knows of the job; None where it knows none of that id."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _exit_code(info: Any, job: str, say: Say) -> int:
    """The driver's own exit code, with the job's last state in words."""
    state, code = str(info.status.value), info.driver_exit_code
    if code in SWEEP_CODES:
        say(f"job {job}: {state.lower()}, exit code {code}")
        return int(code)
    if state == "STOPPED":
        say(f"job {job}: stopped; the same command resumes from there")
        return 143
    reason = _last_line(info.message or "no reason given") if code is None else _how_it_died(code)
    raise EnvironmentFailure(f"job {job}: {state.lower()}: {reason}; the same command resumes from there")


def _how_it_died(code: int) -> str:
    """In words, for a code that is none of `raylt sweep`: the system's, or the shell's that was to start it."""
    if code == ssh.NOT_FOUND:
        return "there is no raylt in the PATH of the head's Ray"
    if code < 0 or code > 128:
        return f"its driver was killed by signal {-code if code < 0 else code - 128}"
    return f"its driver left with {code}"


def _forgotten(head: ssh.Head, job: str, name: str, say: Say) -> int:
    """Ray lost its table of jobs with its head process; the sweep's own record is in the store."""
    code, text = ssh.output(head, ["results", name, "--json"])
    document = json.loads(text) if code == 0 else {}
    counts = document.get("counts", {})
    if document.get("state") == "complete":
        say(f"Ray no longer knows job {job} (was its head restarted?), but the sweep is complete")
        return 1 if counts["failed"] else 0
    state = document.get("state", "not started")
    raise EnvironmentFailure(
        f"Ray no longer knows job {job} (was its head restarted?); the sweep is {state}, and nothing of it is lost: "
        "the same command resumes from there"
    )


@contextmanager
def _client(head: ssh.Head) -> Iterator[Any]:
    """Ray's client of the head's Jobs API, through a tunnel of its own.

    Raises `ssh.Unreachable`, `EnvironmentFailure` where it turns us away.
    """
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for chatty in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # Ray's client would prefer it to the address that it is given
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with ssh.tunnel(head, head.dashboard_port) as port:
        try:
            yield JobSubmissionClient(f"http://127.0.0.1:{port}", headers=headers)
        except AuthenticationError:
            raise EnvironmentFailure(f"Ray on {head}: {refusal(token is not None)}") from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise ssh.Unreachable(
                f"Ray's Jobs API does not answer on {head}, port {head.dashboard_port} of its loopback; is Ray running there?"
            ) from error


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
