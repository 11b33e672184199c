"""Where a sweep runs, and where what it left is read: decided once, in one order, with the reason in words.

Nothing is imported or asked that the answer does not need: a folder without a cluster costs a look at a few files.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from raylt.cluster.cluster_file import find_head, ray_folder, read_cluster_file, was_brought_up
from raylt.cluster.own_files import read_own
from raylt.cluster.ssh import Head
from raylt.errors import EnvironmentFailure, InputError

DEFAULT_FILE = "cluster.yaml"
ANSWERS_WITHIN_S = 2.0  # a GCS on this very machine
_ADDRESS = re.compile(r"[^\s/]+:[0-9]{1,5}")  # of a GCS


@dataclass(frozen=True)
class Place:
    """This machine (neither is set), the Ray cluster at `address`, or the one whose `head` is reached over SSH."""

    why: str
    address: str | None = None
    head: Head | None = None

    def __str__(self) -> str:
        """The first line that a sweep prints."""
        if self.head is not None:
            return f"runs on the Ray cluster of {self.why}"
        return (
            f"runs on the Ray cluster at {self.address} ({self.why})" if self.address else f"runs on this machine ({self.why})"
        )


def decide(*, local: bool = False, address: str | None = None, cluster: str | None = None) -> Place:
    """An option, RAY_ADDRESS, the cluster whose head this is, ./cluster.yaml where it was brought up from here, this machine.

    Raises `InputError` for options that contradict each other, an address that is none and an explicit file whose cluster is
    not up; `EnvironmentFailure` where the head of a cluster that should be up cannot be asked for.
    """
    options = [option for option, is_given in _options(local, address, cluster) if is_given]
    if len(options) > 1:
        raise InputError(f"{' and '.join(options)} contradict each other; give one of them")
    if local:
        return Place("--local")
    if address is not None:
        return _at(address, "--address")
    if cluster is not None and os.environ.get("RAY_ADDRESS"):
        raise InputError("--cluster and RAY_ADDRESS, which is set, contradict each other; unset it, or leave --cluster out")
    if cluster is not None:
        return _explicit(cluster)
    if os.environ.get("RAY_ADDRESS"):
        return _at(os.environ["RAY_ADDRESS"], "RAY_ADDRESS")
    here = head_on_this_machine()
    if here is not None:
        return Place("this machine is its head; --local runs it without", here)
    return _default_file()


def _options(local: bool, address: str | None, cluster: str | None) -> list[tuple[str, bool]]:
    return [("--local", local), ("--address", address is not None), ("--cluster", cluster is not None)]


def _at(address: str, source: str) -> Place:
    if address == "local":
        return Place(f"{source} is local")
    if address != "auto" and not _ADDRESS.fullmatch(address):
        raise InputError(f"{source}: is no address of a Ray cluster (got {address!r}); HOST:PORT of its GCS, auto or local")
    if address == "auto":
        return Place(f"{source} is auto", _joined(source))
    return Place(source, address)


def _joined(source: str) -> str:
    """The cluster that this user last joined from here. Ray's own search would take any user's: they get our code and token."""
    recorded = _recorded()
    addresses = {recorded} if recorded else _of_own_raylets()
    if len(addresses) != 1:
        several = (
            f"there are several of yours here: {', '.join(sorted(addresses))}" if addresses else "you joined none from here"
        )
        raise InputError(
            f"{source}: auto is the Ray cluster that you joined from this machine, and {several}; give its HOST:PORT"
        )
    return addresses.pop()


def _of_own_raylets() -> set[str]:
    """The clusters that Ray's processes of this user here belong to, be they recorded or not."""
    addresses = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline() if process.uids().real == os.getuid() else []
            if words and Path(words[0]).name == "raylet":
                addresses |= {word.partition("=")[2] for word in words if word.startswith("--gcs-address=")}
    return addresses


def _explicit(path: str) -> Place:
    file = read_cluster_file(path)
    head = find_head(file)
    if head is None:
        raise InputError(f"--cluster {path}: its cluster {file.name} is not up; start it with: ray up {path}")
    return Place(f"{path}, head {head.host} (--cluster)", head=head)


def _default_file() -> Place:
    """./cluster.yaml where it has been brought up from here, else this machine."""
    if not Path(DEFAULT_FILE).is_file():
        return Place("no cluster is named, and there is no ./cluster.yaml")
    try:
        file = read_cluster_file(DEFAULT_FILE)
    except InputError as error:
        return Place(f"./{error}")
    if not was_brought_up(file):
        return Place(
            f"./{DEFAULT_FILE} has not been brought up from here; --cluster {DEFAULT_FILE} asks for its head all the same"
        )
    try:
        head = find_head(file)
    except EnvironmentFailure as error:
        raise EnvironmentFailure(f"./{error}; --local runs on this machine") from None
    if head is None:
        return Place(f"the cluster of ./{DEFAULT_FILE} is down; ray up {DEFAULT_FILE} starts it")
    return Place(f"./{DEFAULT_FILE}, head {head.host} (it was brought up from here); --local runs on this machine", head=head)


def head_on_this_machine() -> str | None:
    """The address of the cluster whose head we are on: one that `ray start --head` (or `ray up`) began and that answers.

    `ray start` writes it down on every node, so it counts only where the address is one of ours; a record that another user
    wrote, or whose GCS is gone, does not. Nor does one whose port another user has taken since, who would get our token.
    """
    address = _recorded()
    host, _, port = (address or "").rpartition(":")
    if address is None or host not in _own_addresses() or address not in _of_own_raylets():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN_S).close()
    except OSError:
        return None
    return address


def _recorded() -> str | None:
    """The address that `ray start` wrote down here, for this user."""
    address = (read_own(ray_folder() / "ray_current_cluster") or "").strip()
    return address if _ADDRESS.fullmatch(address) else None


def _own_addresses() -> set[str]:
    return {"localhost"} | {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
