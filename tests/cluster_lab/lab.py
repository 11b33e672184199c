"""Machines on one host: each has network, processes, mounts and host name of its own; a bridge joins them; sshd is real.

Nothing in one can see or end what runs in another, or on the host: `ray stop` ends the Ray of its own machine alone. Each
machine has its own home, /tmp and port 22. The Python environment of the tests takes the place of the one that
raylt/cluster/deploy/setup.sh would install. Needs root, iproute2, util-linux, OpenSSH and rsync.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh-keygen", "rsync", "ss")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# What a machine does before its first process: private mounts. What the tests need below /tmp is put back over the new one.
BOOT = """
set -e
home=$1 address=$2 name=$3; shift 3
mount --make-rprivate /
hostname "$name"
sed "s#^root:.*#root:x:0:0:root:$home:/bin/bash#" /etc/passwd > "$home/../passwd"
mount --bind "$home/../passwd" /etc/passwd
printf '127.0.0.1 localhost\\n%s %s\\n' "$address" "$name" > "$home/../hosts"
mount --bind "$home/../hosts" /etc/hosts
number=0
for kept; do number=$((number + 1)); mkdir -p "$home/../kept/$number"; mount --bind "$kept" "$home/../kept/$number"; done
mount -t tmpfs tmpfs /tmp
number=0
for kept; do number=$((number + 1)); mkdir -p "$kept"; mount --bind "$home/../kept/$number" "$kept"; done
mkdir -p /run/sshd
ip link set lo up
exec sleep infinity
"""

BASHRC = """
export PATH={venv}/bin:$PATH PYTHONPATH=$HOME/raylt
export RAY_USAGE_STATS_ENABLED=0 RAY_raylet_start_wait_time_s=300 TERM=dumb
"""


def missing() -> list[str]:
    """What this host lacks for a lab."""
    return [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None] + ([] if os.geteuid() == 0 else ["root"])


@dataclass(frozen=True)
class Machine:
    name: str
    address: str
    home: Path
    pid: int  # of its first process

    def run(self, command: str, *, timeout_s: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command in a login shell there, as its user would type it; stdout and stderr in one."""
        done = subprocess.run(
            self.entering(command, cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout_s, env=self.environment,
        )  # fmt: skip
        print(f"--- {self.name}$ {command}   # {done.returncode}\n{done.stdout}", flush=True)
        return done

    def start(self, command: str, *, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.entering(command, cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self.environment,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Everything that runs there."""
        here = _namespace(self.pid)
        return [process for process in psutil.process_iter() if _namespace(process.pid) == here]

    def find(self, words: str) -> list[psutil.Process]:
        """The processes whose command line has these words."""
        return [process for process in self.processes() if words in _command_line(process)]

    def entering(self, command: str, cwd: Path | None = None) -> list[str]:
        inner = f"cd {shlex.quote(str(cwd or self.home))} && source ~/.bashrc && {command}"
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-p", "--", "bash", "-c", inner]

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": PATH, "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8"}


class Lab:
    """A bridge, and the machines on it. Folder `shared` is seen by all of them under one path."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.key = folder / "key"
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self._switch = self._process("unshare", "--net", "sleep", "infinity")
        wait_until(lambda: _namespace(self._switch.pid, "net") not in ("", _namespace(os.getpid(), "net")), 30)
        self._on_switch("ip", "link", "add", "lab", "type", "bridge")
        self._on_switch("ip", "link", "set", "lab", "up")

    def machine(self, name: str, address: str) -> Machine:
        """A machine that is up and, but for one called laptop, lets the lab's key in at port 22."""
        home = self.folder / name / "home"
        (home / ".ssh").mkdir(parents=True)
        (home / ".bashrc").write_text(BASHRC.format(venv=sys.prefix))
        kept = [str(path) for path in {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)} if path.is_relative_to("/tmp")]
        boot = self._process(
            "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
            "bash", "-c", BOOT, "boot", str(home), address, name, *kept,
        )  # fmt: skip
        wait_until(lambda: any("infinity" in _command_line(child) for child in psutil.Process(boot.pid).children()), 60)
        (first,) = psutil.Process(boot.pid).children()
        machine = Machine(name, address, home, first.pid)
        self._on_switch("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(first.pid))
        self._on_switch("ip", "link", "set", name, "master", "lab", "up")
        network = f"ip addr add {address}/24 dev eth0 && ip link set eth0 up && ip route add default via 10.77.0.254"
        assert machine.run(network).returncode == 0
        if name == "laptop":
            shutil.copy(self.key, home / ".ssh" / "raylt")
        else:
            self._let_in(machine)
        return machine

    def _let_in(self, machine: Machine) -> None:
        shutil.copy(f"{self.key}.pub", machine.home / ".ssh" / "authorized_keys")
        (machine.home / "venv").symlink_to(sys.prefix)
        (machine.home / ".raylt").mkdir(mode=0o700)
        shutil.copy(REPOSITORY / "pyproject.toml", machine.home / ".raylt" / "installed")  # so that setup.sh installs nothing
        host_key = machine.home.parent / "host_key"
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key))
        options = (f"HostKey={host_key}", "StrictModes=no", "UsePAM=no", "PasswordAuthentication=no", "PidFile=none")
        sshd = "$(command -v sshd) -f /dev/null " + " ".join(f"-o {option}" for option in options)
        assert machine.run(f"{sshd} -E {machine.home.parent}/sshd.log").returncode == 0

    def _process(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env={**os.environ, "PATH": PATH}, stdin=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(_kill, process)
        return process

    def _on_switch(self, *command: str) -> None:
        _do("nsenter", "-t", str(self._switch.pid), "-n", "--", *command)


@contextmanager
def lab() -> Iterator[Lab]:
    """A lab until the block is left; then everything in it is gone. Not below /tmp, which each machine has of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="raylt-lab-", dir="/var/tmp", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        yield Lab(Path(folder), stack)


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.5) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not so after {within_s:g} s"
        time.sleep(every_s)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The first process of a machine takes all others of its process namespace with it."""
    for child in psutil.Process(process.pid).children():
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait(30)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "PATH": PATH})


def _namespace(pid: int, kind: str = "pid") -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return ""


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
