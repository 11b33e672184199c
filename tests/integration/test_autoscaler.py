"""A sweep on a cluster that starts machines when they are asked for: Ray's own autoscaler, and raylets on this machine.

The head has no CPUs, as in cluster.yaml, and at first there is no other node.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged
from tests.support.head import RayHead, free_ports

pytestmark = pytest.mark.slow

COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
WAITS = "waiting for a node with 1 GPU and 1 CPU (gpu: g6.2xlarge, spot; 0 of at most 2 up)"


def autoscaling_config(address: str) -> dict[str, object]:
    machine = {"InstanceType": "g6.2xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
    return {
        "cluster_name": "lab", "max_workers": 2, "idle_timeout_minutes": 0.1, "upscaling_speed": 1.0, "auth": {},
        "provider": {
            "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": machine, "min_workers": 0, "max_workers": 2},
        },
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], **{f"{name}_commands": [] for name in COMMANDS},
    }  # fmt: skip


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    tmp = Path(tempfile.mkdtemp(prefix="ra", dir="/tmp"))
    gcs, dashboard = free_ports(2)
    head = RayHead(tmp_path / "head", tmp, secrets.token_hex(32), f"127.0.0.1:{gcs}", dashboard)
    head.extra_env |= {"RAY_enable_autoscaler_v2": "0", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    (head.home / ".ray").mkdir(parents=True)
    (head.home / ".ray/auth_token").write_text(head.token)
    (head.home / "config.json").write_text(json.dumps(autoscaling_config(head.address)))
    try:
        head.start(f"--autoscaling-config={head.home}/config.json", cpus=0)
        yield head
    finally:
        head.stop()
        shutil.rmtree(tmp, ignore_errors=True)


def start(head: RayHead, folder: Path, *options: str) -> subprocess.Popen[str]:
    env = {**head.env, "COLUMNS": "200"}
    words = [sys.executable, "-m", "raylt.cli", "sweep", "tiny.yaml", "--address", head.address, *options]
    with (folder / "err").open("w") as err:
        return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)


def test_from_no_machine_to_a_sweep(head: RayHead, warm_root: Path, tmp_path: Path) -> None:
    """What can never be is refused, what may come is waited for, until Ctrl-C or until it has come."""
    small = {"search": {"trials": 1, "pilots": 0, "profile": "movement", "baselines": []}, "resources": {"gpus": "auto"}}
    (tmp_path / "tiny.yaml").write_text(dump_yaml(merged(TINY, {**small, "storage": {"root": str(warm_root)}})))
    err = tmp_path / "err"

    greedy = start(head, tmp_path, "--set", "resources.gpus=2")
    assert greedy.wait(200) == 2
    assert err.read_text().splitlines()[1:] == [
        "--set: resources.gpus: more than any node of the cluster has, 1 (got 2.0); at most 1, or auto"
    ]

    waiting = start(head, tmp_path)
    end = time.monotonic() + 200
    while WAITS not in err.read_text():
        assert waiting.poll() is None and time.monotonic() < end, err.read_text()
        time.sleep(0.05)
    os.kill(waiting.pid, signal.SIGINT)
    assert waiting.wait(60) == 130

    sweep = start(head, tmp_path)
    assert sweep.wait(500) == 0, err.read_text()
    lines = err.read_text().splitlines()
    assert lines[0] == f"runs on the Ray cluster at {head.address} (--address)"
    assert any(line.endswith("tiny starts: 0 of 2 trials finished; store " + str(warm_root)) for line in lines)
    assert (
        json.loads((warm_root / "sweeps/tiny/spec.lock.json").read_text())["device"] == "cpu"
    )  # the GPU is in Ray's books alone
