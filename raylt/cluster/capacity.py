"""What a Ray cluster's machines can give one trial: those that are up, and those that its autoscaler may start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from raylt.errors import Problem
from raylt.spec.canonical import JsonObject

HEAD = "node:__internal_head__"  # the resource by which Ray marks the head
TYPE = "ray.io/node-group"  # the label by which the autoscaler marks a node's type
ASK_WITHIN_S = 60.0


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that the autoscaler starts, `num_max` at most; `has` is None where only a started one can tell."""

    name: str
    has: dict[str, float] | None
    num_max: int
    num_up: int
    machine: str  # what the cloud calls it; "" where it has no name

    def __str__(self) -> str:
        return f"{self.name}: {f'{self.machine}; ' if self.machine else ''}{self.num_up} of at most {self.num_max} up"


@dataclass(frozen=True)
class Capacity:
    """Resources by name, as Ray counts them: of each node that is up, of each that may be started."""

    nodes: tuple[dict[str, float], ...]
    types: tuple[NodeType, ...] = field(default=())

    @property
    def offers(self) -> list[dict[str, float]]:
        return [*self.nodes, *(kind.has for kind in self.types if kind.has is not None)]

    @property
    def has_gpus(self) -> bool:
        return any(offer.get("GPU", 0) >= 1 for offer in self.offers)

    def holds(self, cpus: float, gpus: float) -> bool:
        """Whether some node that is up could run a trial."""
        return any(_fits(node, cpus, gpus) for node in self.nodes)

    def candidates(self, cpus: float, gpus: float) -> list[NodeType]:
        """Types of which another may be started and could run it, as far as is known."""
        return [kind for kind in self.types if kind.num_up < kind.num_max and (kind.has is None or _fits(kind.has, cpus, gpus))]

    def problems(self, cpus: float, gpus: float) -> list[Problem]:
        """Why no node, now or ever, could run a trial; [] where one can."""
        if any(_fits(offer, cpus, gpus) for offer in self.offers) or self.candidates(cpus, gpus):
            return []
        wanted = {"CPU": ("resources.cpus", cpus, ""), "GPU": ("resources.gpus", gpus, ", or auto")}
        problems = []
        for resource, (key, number, otherwise) in wanted.items():
            most = max((offer.get(resource, 0.0) for offer in self.offers), default=0.0)
            if number > most:
                what, right = f"more than {self._any_node}{most:g}", f"at most {most:g}{otherwise}"
                problems.append(Problem(key, what, right, number, True))
        together = f"no node of the cluster has {gpus:g} GPU and {cpus:g} CPUs at once"
        return problems or [Problem("resources.cpus", together, "fewer, so that one node holds a trial", cpus, True)]

    @property
    def _any_node(self) -> str:
        return "this machine's " if len(self.nodes) == 1 and not self.types else "any node of the cluster has, "


def needed(cpus: float, gpus: float) -> str:
    """What a trial needs, in words."""
    cpu_words = f"{cpus:g} CPU{'s' if cpus != 1 else ''}"
    return f"{gpus:g} GPU{'s' if gpus > 1 else ''} and {cpu_words}" if gpus else cpu_words


def _fits(has: dict[str, float], cpus: float, gpus: float) -> bool:
    return has.get("CPU", 0.0) >= cpus and has.get("GPU", 0.0) >= gpus


def read_capacity() -> Capacity:
    """Of the cluster that this process is connected to."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return Capacity(tuple(node["Resources"] for node in nodes), tuple(_node_types(_config(nodes), nodes)))


def _config(nodes: Sequence[JsonObject]) -> JsonObject:
    """What the cluster's autoscaler goes by; {} where it has none.

    Ray publishes it nowhere: it lies in a file on the head, which the autoscaler's process there names. A task reads it, which
    takes none of the head's CPUs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    head = next((node["NodeID"] for node in nodes if HEAD in node["Resources"]), None)
    if head is None or head == context.get_node_id():
        return read_config(context.gcs_address)
    there = ray.remote(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False))(read_config)
    config: JsonObject = ray.get(there.remote(context.gcs_address), timeout=ASK_WITHIN_S)
    return config


def read_config(gcs_address: str) -> JsonObject:
    """The autoscaling configuration of the cluster whose head is this machine; {} where none is to be found."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    option = "--autoscaling-config="
    for process in psutil.process_iter():
        try:
            words = process.cmdline() if process.uids().real == os.getuid() else []  # anybody can name a process so
            if f"--gcs-address={gcs_address}" in words and any(word.endswith("monitor.py") for word in words):
                path = next((word.removeprefix(option) for word in words if word.startswith(option)), None)
                config = YAML(typ="safe", pure=True).load(Path(path).expanduser()) if path else None
                return config if isinstance(config, dict) else {}
        except (psutil.Error, OSError, YAMLError):
            continue
    return {}


def _node_types(config: JsonObject, nodes: Sequence[JsonObject]) -> list[NodeType]:
    """The types of which the autoscaler may start one; the head's is not among them, unless workers share it."""
    workers = [node for node in nodes if HEAD not in node["Resources"]]
    num_max = int(config.get("max_workers", 0))
    kinds = []
    for name, kind in (config.get("available_node_types") or {}).items():
        default = 0 if name == config.get("head_node_type") else num_max
        has = kind.get("resources") or None
        details = kind.get("node_config") or {}
        is_spot = (details.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
        machine = ", ".join(
            [*([str(details["InstanceType"])] if "InstanceType" in details else []), *(["spot"] if is_spot else [])]
        )
        most = min(num_max, int(kind.get("max_workers", default)))
        num_up = sum(node.get("Labels", {}).get(TYPE, name) == name for node in workers)
        if most > 0:
            kinds.append(NodeType(str(name), has, most, num_up, machine))
    return kinds
