"""cluster.yaml is one that Ray's autoscaler takes, and opens nothing of its own."""

from __future__ import annotations

from pathlib import Path

from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

FILE = Path(__file__).parents[2] / "cluster.yaml"


def test_ray_accepts_it():
    config = prepare_config(YAML(typ="safe").load(FILE))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "gpu"}


def test_trials_run_on_spot_gpus_alone_and_nothing_but_ssh_is_opened():
    config = YAML(typ="safe").load(FILE)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "security_group" not in config["provider"]  # Ray's own group opens port 22 alone
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in starts[1]
