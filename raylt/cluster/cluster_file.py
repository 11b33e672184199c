"""Ray's cluster file (`ray up FILE`) as far as it says how to reach a cluster's head; read without Ray and any cloud."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raylt.cluster.own_files import read_own
from raylt.cluster.ssh import Head
from raylt.errors import EnvironmentFailure, InputError, as_yaml_value
from raylt.spec.canonical import JsonObject

ASK_WITHIN_S = 10.0  # for the head's address, of whoever knows it
DASHBOARD_PORT = 8265

# What goes into ssh's command line, or into one that it makes of it: key -> (what it is, how it must look).
_WORDS = {
    "cluster_name": ("name of a cluster", re.compile(r"[^-./\s\x00-\x1f\"][^/\x00-\x1f\"]*")),
    "provider.head_ip": ("name or address of a machine", re.compile(r"[\w:][\w.:%-]*")),
    "auth.ssh_user": ("name of a user", re.compile(r"[^-\W][^\s\x00-\x1f\x7f'\"`;&<>|(){}$]*")),
    "auth.ssh_private_key": ("file", re.compile(r"[^-\x00-\x1f][^\x00-\x1f]*")),
    "auth.ssh_proxy_command": ("command", re.compile(r"[^-\x00-\x1f][^\x00-\x1f]*")),
}


@dataclass(frozen=True)
class ClusterFile:
    """What we need of it. `path` is as the user gave it."""

    path: str
    name: str
    provider: JsonObject
    auth: JsonObject
    head_commands: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Machines of one's own, by address: Ray keeps their state in a file here."""
        return self.provider.get("type") == "local" and "coordinator_address" not in self.provider

    @property
    def dashboard_port(self) -> int:
        """Where the head's Jobs API listens: what its `ray start` says."""
        matches = [re.search(r"--dashboard-port[= ](\d+)", command) for command in self.head_commands if "ray start" in command]
        return next((int(match[1]) for match in matches if match), DASHBOARD_PORT)


def read_cluster_file(path: str) -> ClusterFile:
    """Raises `InputError` where it is no file that `ray up` takes and that tells how to reach the head."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a Ray cluster file: {reason}") from None
    sections = data if isinstance(data, dict) else {}
    provider, auth = (sections[key] if isinstance(sections.get(key), dict) else {} for key in ("provider", "auth"))
    for key, is_there, right in (
        ("cluster_name", isinstance(sections.get("cluster_name"), str), "the name that `ray up` gives the cluster"),
        ("provider", "type" in provider, "a section with type: aws, local, ..."),
        ("auth", "ssh_user" in auth, "a section with ssh_user, and ssh_private_key"),
    ):
        if not is_there:
            raise InputError(f"{path}: {key}: is missing, so this is no Ray cluster file; {right}")
    given = {"cluster_name": sections["cluster_name"], "provider.head_ip": provider.get("head_ip")}
    for key, value in {**given, **{f"auth.{name}": value for name, value in auth.items()}}.items():
        if value is not None:
            _refuse_odd(path, key, value)
    commands = tuple(map(str, sections.get("head_start_ray_commands") or ()))
    return ClusterFile(path, sections["cluster_name"], dict(provider), dict(auth), commands)


def _refuse_odd(path: str, key: str, value: object) -> None:
    """Raises `InputError` for a value that ssh, or a shell behind it, could take for an option or a command of its own."""
    what, pattern = _WORDS.get(key, ("", None))
    if pattern is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise InputError(
            f"{path}: {key}: is no {what} (got {as_yaml_value(value)}); text that does not begin with - or hold odd signs"
        )


def was_brought_up(file: ClusterFile) -> bool:
    """Whether `ray up` has run on it from here, as files of Ray's on this machine say. Asks nobody."""
    return read_own(_record(file)) is not None if file.is_local else bool(_cached(file))


def find_head(file: ClusterFile) -> Head | None:
    """The head that is up now, None where there is none.

    Takes `ASK_WITHIN_S` at most. Raises `EnvironmentFailure` where whoever should know does not answer.
    """
    host = _local_head(file) if file.is_local else _asked_head(file)
    if host is None:
        return None
    _refuse_odd(file.path, "provider.head_ip", host)
    auth = {**_cached(file).get("auth", {}), **file.auth}  # where the file names no key, Ray made one and wrote it there
    for name in ("ssh_user", "ssh_private_key", "ssh_proxy_command"):
        if auth.get(name) is not None:
            _refuse_odd(file.path, f"auth.{name}", auth[name])
    key = auth.get("ssh_private_key")
    key = None if key is None else str(Path(key).expanduser())
    return Head(host, auth["ssh_user"], key, auth.get("ssh_proxy_command"), file.name, file.dashboard_port)


def ray_folder() -> Path:
    """Where Ray keeps its sessions and what it knows of clusters, by default."""
    temporary = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None)
    return Path(temporary or "/tmp") / "ray"


def _record(file: ClusterFile) -> Path:
    """Where Ray's local provider keeps what it knows of a cluster."""
    return ray_folder() / f"cluster-{file.name}.state"


def _local_head(file: ClusterFile) -> str | None:
    """The address of a local provider's head that is up, by Ray's record."""
    try:
        node = json.loads(read_own(_record(file)) or "{}").get(file.provider.get("head_ip"), {})
    except (ValueError, AttributeError):
        return None
    if node.get("state") != "running" or node.get("tags", {}).get("ray-node-type") != "head":
        return None
    name = str(node.get("external_ip") or file.provider["head_ip"])
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise EnvironmentFailure(f"{file.path}: provider.head_ip: {name} has no address: {error.strerror or error}") from None


def _cached(file: ClusterFile) -> JsonObject:
    """The resolved configuration that `ray up` left on this machine; {} where it left none."""
    for entry in sorted(Path(tempfile.gettempdir()).glob("ray-config-*"), key=_modified, reverse=True):
        try:
            config = json.loads(read_own(entry) or "{}")["config"]
            cluster = (config["cluster_name"], config["provider"].get("type"), config["provider"].get("region"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if cluster == (file.name, file.provider.get("type"), file.provider.get("region")):
            return dict(config)
    return {}


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _asked_head(file: ClusterFile) -> str | None:
    """`ray get-head-ip`, which asks the cloud; in a process, since a cloud's client may take minutes to give up."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "get-head-ip", file.path]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_WITHIN_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise EnvironmentFailure(f"{file.path}: no answer within {ASK_WITHIN_S:g} s about its head (ray get-head-ip)") from None
    answer = asked.stdout.split()
    if asked.returncode == 0 and answer:
        return answer[-1]
    said = [line.strip() for line in asked.stderr.splitlines() if line.strip()] or ["it said nothing"]
    if "not found!" in said[-1]:  # Ray's RuntimeError: Head node of cluster (NAME) not found!
        return None
    raise EnvironmentFailure(f"{file.path}: its head could not be asked for (ray get-head-ip): {said[-1]}")
