"""A cluster's head over SSH, by the user's own OpenSSH client: commands that run there, tunnels to ports of its loopback."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raylt.errors import EnvironmentFailure

CONNECT_WITHIN_S = 10
FAILED = 255  # OpenSSH's own exit code; no command of ours leaves with it
NOT_FOUND = 127  # a shell's
READY = "raylt-tunnel-is-up"

# The head's PATH is made in ~/.bashrc, which asks to be interactive; what that prints (to 1 and 2) is not ours (3 and 4). The
# script itself, and its words, are for a shell that is not. Secrets and the store's address are for the head alone to know.
SHELL = "bash --login -i -c {login} {script} {words} 3>&1 4>&2 >/dev/null 2>&1"
LOGIN = '. ~/.bashrc; exec 1>&3 2>&4 3>&- 4>&-; cd; exec sh -c "$0" raylt "$@"'
ENVIRONMENT = "set -a; [ ! -r ~/.raylt/env ] || . ~/.raylt/env; set +a; "
# Ends with its watcher, whose end closes our stdin: a follower of a log must not outlive who follows.
COMMAND = (
    "exec 5<&0 </dev/null; { cat <&5; kill $$; } >/dev/null 2>&1 & cat=$!; exec 5<&-; "
    'raylt "$@" & it=$!; trap "kill $it" TERM; wait $it; code=$?; kill $cat 2>/dev/null; exit $code'
)
# The same with a file sent: its name comes first, its text on stdin.
WITH_FILE = (
    'dir=$(mktemp -d) && trap \'rm -rf "$dir"\' EXIT; file="$dir/$1"; shift; cat >"$file"; verb=$1; shift; '
    'raylt "$verb" "$file" "$@"'
)


class Unreachable(EnvironmentFailure):
    """The way to the head is gone, perhaps for now only. Exit 3."""


@dataclass(frozen=True)
class Head:
    """How to reach it. `cluster` names the file that remembers its host key; `dashboard_port` is of its own loopback."""

    host: str
    user: str
    key: str | None
    proxy_command: str | None
    cluster: str
    dashboard_port: int

    def __str__(self) -> str:
        return f"{self.user}@{self.host}"

    @property
    def known_hosts(self) -> Path:
        return Path.home() / ".raylt" / "known_hosts" / self.cluster

    def ssh(self, *options: str) -> list[str]:
        """The client's command line, up to what is to run. It never asks questions: the host key is learnt at first sight."""
        program = shutil.which("ssh")
        if program is None:
            raise EnvironmentFailure(f"a cluster is reached with OpenSSH's client, and there is no ssh here ({self})")
        self.known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {
            "BatchMode": "yes", "LogLevel": "ERROR", "ConnectTimeout": str(CONNECT_WITHIN_S),
            "ServerAliveInterval": "5", "ServerAliveCountMax": "3", "ExitOnForwardFailure": "yes",
            "StrictHostKeyChecking": "accept-new", "UserKnownHostsFile": f'"{_untokened(self.known_hosts)}"',
        }  # fmt: skip
        if self.key is not None:
            settings["IdentitiesOnly"] = "yes"
        if self.proxy_command is not None:
            settings["ProxyCommand"] = self.proxy_command
        key = ["-i", _untokened(self.key)] if self.key is not None else []
        words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return [program, *words, *key, *options, "-l", self.user, "--", self.host]

    def failure(self, said: str) -> Unreachable:
        """Why it was not reached, in the client's last words."""
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "ssh gave no reason")
        advice = ""
        if "ermission denied" in last:
            advice = "; auth.ssh_user and auth.ssh_private_key of the cluster file must be those of its head"
        elif "verification failed" in last:
            advice = f"; if the head was made anew, remove {self.known_hosts} and try again"
        return Unreachable(f"the head {self} cannot be reached: {last}{advice}")


def _untokened(path: object) -> str:
    """A path for OpenSSH, to which %h and the like in it are the host and so on."""
    return str(path).replace("%", "%%")


def _remote(script: str, words: list[str]) -> str:
    columns = f"export COLUMNS={shutil.get_terminal_size().columns}; " if sys.stdout.isatty() else ""
    return SHELL.format(login=shlex.quote(LOGIN), script=shlex.quote(columns + ENVIRONMENT + script), words=shlex.join(words))


def run(head: Head, words: list[str], *, file: tuple[str, str] | None = None) -> int:
    """`raylt WORDS` on the head with our stdout and stderr; its exit code. `file`: name and text of a spec, behind the verb.

    Raises `Unreachable`.
    """
    return _run(head, words, file, None).returncode


def output(head: Head, words: list[str]) -> tuple[int, str]:
    """The same with its stdout as text."""
    done = _run(head, words, None, subprocess.PIPE)
    return done.returncode, done.stdout


def shell(head: Head, script: str) -> str:
    """What a line of shell prints on the head, behind its environment file."""
    command = [*head.ssh("-T"), _remote(script, [])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == FAILED:
        raise head.failure(done.stderr)
    return done.stdout


def _run(head: Head, words: list[str], file: tuple[str, str] | None, stdout: int | None) -> subprocess.CompletedProcess[str]:
    script, args = (COMMAND, words) if file is None else (WITH_FILE, [file[0], *words])
    with tempfile.TemporaryDirectory(prefix="raylt-ssh-") as folder:
        log = Path(folder) / "log"  # of ssh's own words; stderr is the command's
        command = [*head.ssh("-T", "-E", str(log)), _remote(script, args)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True, process_group=0) as process:
            try:
                if file is not None:
                    out, _ = process.communicate(file[1])
                else:
                    out = process.stdout.read() if process.stdout is not None else ""
                    process.wait()
            except BaseException:
                process.terminate()
                raise
        if process.returncode == FAILED:
            raise head.failure(log.read_text() if log.exists() else "")
        if process.returncode == NOT_FOUND:
            raise EnvironmentFailure(f"there is no raylt on {head}: the ~/.bashrc there must put it into PATH")
        return subprocess.CompletedProcess(command, process.returncode, out)


@contextmanager
def tunnel(head: Head, port: int, local_port: int = 0) -> Iterator[int]:
    """A local port that leads to `port` on the head's loopback, as long as the block lasts.

    The far end is a `cat` that reads from us: it ends with this process, however that ends. Raises `Unreachable`.
    """
    process, local_port = _open_tunnel(head, port, local_port)
    try:
        yield local_port
    finally:
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        process.terminate()
        process.wait()


def _open_tunnel(head: Head, port: int, local_port: int) -> tuple[subprocess.Popen[str], int]:
    for _ in range(5):
        chosen = local_port or _free_port()
        command = [*head.ssh("-T", "-L", f"127.0.0.1:{chosen}:127.0.0.1:{port}"), f"echo {READY}; exec cat"]
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, process_group=0
            )
            for line in _pipe(process.stdout):
                if line.strip() == READY:  # the forward stands before the session begins
                    return process, chosen
            process.wait()
            said.seek(0)
            why = said.read()
        if local_port or "in use" not in why:
            raise head.failure(why)
    raise head.failure(why)


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
