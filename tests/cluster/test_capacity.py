"""What nodes and an autoscaler's file can give a trial: what is refused at once, what is waited for, and in what words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylt.cluster.capacity import HEAD, TYPE, Capacity, _node_types, needed, read_config
from tests.chaos.machines import eventually

CONFIG: dict[str, Any] = {
    "max_workers": 8,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 64}},
        "gpu": {
            "resources": {"CPU": 8, "GPU": 1},
            "node_config": {"InstanceType": "g6.2xlarge", "InstanceMarketOptions": {"MarketType": "spot"}},
        },
        "cpu": {"resources": {"CPU": 32}, "max_workers": 2, "node_config": {"InstanceType": "c7i.8xlarge"}},
        "off": {"resources": {"CPU": 128, "GPU": 8}, "max_workers": 0},
    },
}
HEAD_NODE = {"Resources": {HEAD: 1.0, "memory": 1e9}, "Labels": {}}
AWS = Capacity((HEAD_NODE["Resources"],), tuple(_node_types(CONFIG, [HEAD_NODE])))
MINE = {"max_workers": 2, "head_node_type": "own", "available_node_types": {"own": {"resources": {}, "max_workers": 2}}}


def node(kind: str | None = None, **has: float) -> dict[str, Any]:
    return {"Resources": has, "Labels": {TYPE: kind} if kind else {}}


def test_types_that_may_be_started() -> None:
    """Not the head's, and none of which there may be none."""
    assert [str(kind) for kind in AWS.types] == [
        "gpu: g6.2xlarge, spot; 0 of at most 8 up",
        "cpu: c7i.8xlarge; 0 of at most 2 up",
    ]
    up = _node_types(CONFIG, [HEAD_NODE, node("gpu", CPU=8, GPU=1), node("gpu", CPU=8, GPU=1), node("cpu", CPU=32)])
    assert [kind.num_up for kind in up] == [2, 1]


@pytest.mark.parametrize(
    ("cpus", "gpus", "kinds"), [(1, 1, ["gpu"]), (8, 0.5, ["gpu"]), (9, 0, ["cpu"]), (1, 0, ["gpu", "cpu"])]
)
def test_what_may_come_is_waited_for(cpus: float, gpus: float, kinds: list[str]) -> None:
    """A head without CPUs holds nothing itself."""
    assert not AWS.holds(cpus, gpus)
    assert AWS.problems(cpus, gpus) == []
    assert [kind.name for kind in AWS.candidates(cpus, gpus)] == kinds
    assert AWS.has_gpus


@pytest.mark.parametrize(
    ("cpus", "gpus", "said"),
    [
        (1, 2, ["resources.gpus: more than any node of the cluster has, 1 (got 2); at most 1, or auto"]),
        (33, 0, ["resources.cpus: more than any node of the cluster has, 32 (got 33); at most 32"]),
        (64, 2, ["resources.cpus: more than any node of the cluster has, 32", "resources.gpus: more than any node"]),
        (16, 1, ["resources.cpus: no node of the cluster has 1 GPU and 16 CPUs at once (got 16); fewer"]),
    ],
)
def test_what_never_comes_is_refused(cpus: float, gpus: float, said: list[str]) -> None:
    problems = [str(problem) for problem in AWS.problems(cpus, gpus)]
    assert len(problems) == len(said) and all(map(str.startswith, problems, said))


def test_one_machine() -> None:
    here = Capacity(({"CPU": 2.0},))
    assert [str(problem) for problem in here.problems(3, 0)] == [
        "resources.cpus: more than this machine's 2 (got 3); at most 2"
    ]
    assert here.problems(2, 0) == [] and here.holds(2, 0) and not here.has_gpus


def test_nodes_are_not_added_up() -> None:
    """A trial is on one node."""
    assert Capacity(({"CPU": 2.0}, {"CPU": 2.0})).problems(3, 0)


def test_machines_that_only_show_what_they_have_once_up() -> None:
    """Ray's local provider: waited for while one is missing, refused once all are there."""
    none_up = Capacity((HEAD_NODE["Resources"],), tuple(_node_types(MINE, [HEAD_NODE])))
    assert none_up.problems(1, 1) == [] and [str(kind) for kind in none_up.candidates(1, 1)] == ["own: 0 of at most 2 up"]
    nodes = [HEAD_NODE, node(CPU=4), node(CPU=4)]
    all_up = Capacity(tuple(each["Resources"] for each in nodes), tuple(_node_types(MINE, nodes)))
    [problem] = all_up.problems(1, 1)
    assert str(problem) == "resources.gpus: more than any node of the cluster has, 0 (got 1); at most 0, or auto"


def test_words() -> None:
    assert [needed(1, 0), needed(2, 0), needed(1, 1), needed(4, 0.25), needed(8, 2)] == [
        "1 CPU", "2 CPUs", "1 GPU and 1 CPU", "0.25 GPU and 4 CPUs", "2 GPUs and 8 CPUs",
    ]  # fmt: skip


def test_another_users_process_is_no_autoscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may call a process so; of this user's own it is Ray's."""
    (tmp_path / "config.yaml").write_text("max_workers: 3\n")
    words = ["python", "-c", "read line", "monitor.py", "--gcs-address=h:1", f"--autoscaling-config={tmp_path}/config.yaml"]
    with subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        try:
            eventually(psutil.Process(process.pid).cmdline, "the process has its words")  # Linux sets them after it has begun
            monkeypatch.setattr(psutil, "process_iter", lambda: [psutil.Process(process.pid)])
            assert read_config("h:1") == {"max_workers": 3}
            monkeypatch.setattr(os, "getuid", lambda: 54321)
            assert read_config("h:1") == {}
        finally:
            process.kill()
