"""A real sshd on a free loopback port, for one test: throwaway keys, a log, and an `ssh` that finds it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_WITHIN_S = 30.0

CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
MaxStartups 100
MaxSessions 100
LogLevel VERBOSE
{extra}
"""


@dataclass(frozen=True)
class Sshd:
    """A server at work. `shims` goes first in PATH, since Ray has no field for a port."""

    port: int
    pid: int
    user: str
    key: Path
    known_hosts: Path
    shims: Path
    log: Path

    @property
    def options(self) -> list[str]:
        """For an `ssh` of one's own."""
        fixed = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.known_hosts}", "ConnectTimeout=30"]
        return ["-F", "none", "-p", str(self.port), "-i", str(self.key), *(word for o in fixed for word in ("-o", o))]


@contextmanager
def own_sshd(folder: Path, *, addresses: tuple[str, ...] = ("127.0.0.1",), extra: str = "") -> Iterator[Sshd]:
    """An sshd with its files in `folder` (made where it is missing), until the block is left. Skips where none is installed.

    `addresses` are loopback addresses, all on one port (127.0.0.1 as head, 127.0.0.2 as worker); `extra` lines of sshd_config.
    """
    server, keygen = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"), shutil.which("ssh-keygen")
    if server is None or keygen is None:
        pytest.skip("needs OpenSSH's sshd and ssh-keygen")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host_key", "user_key"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "raylt test", "-f", folder / name], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = _free_port(addresses)
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"[{address}]:{port} {host_key}" for address in addresses))
    text = CONFIG.format(port=port, address="\nListenAddress ".join(addresses), folder=folder, extra=extra)
    (folder / "sshd_config").write_text(text)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged half in
    log = folder / "sshd.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([server, "-D", "-e", "-f", folder / "sshd_config"], stderr=stream, stdin=subprocess.DEVNULL)
    try:
        _wait_for(process, addresses, port, log)
        shims = _shims(folder, port)
        yield Sshd(port, process.pid, getpass.getuser(), folder / "user_key", folder / "known_hosts", shims, log)
    finally:
        process.terminate()  # connections that are open live on in processes of their own, as with any sshd
        process.wait(timeout=30)


def _free_port(addresses: tuple[str, ...]) -> int:
    """A port that is free on all of them."""
    for _ in range(50):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
            if all(_is_free(address, port) for address in addresses[1:]):
                return port
    raise RuntimeError("no port is free on all addresses")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _wait_for(process: subprocess.Popen[bytes], addresses: tuple[str, ...], port: int, log: Path) -> None:
    end = time.monotonic() + START_WITHIN_S
    for address in addresses:
        while True:
            try:
                socket.create_connection((address, port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"sshd did not start:\n{log.read_text()}") from None
                time.sleep(0.05)


def _shims(folder: Path, port: int) -> Path:
    """`ssh` with the port; `rsync -e 'ssh ...'` finds it through PATH too."""
    shims = folder / "bin"
    shims.mkdir()
    (shims / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -p {port} "$@"\n')
    (shims / "ssh").chmod(0o755)
    return shims
