"""cluster.yaml and cluster-local.yaml: Ray takes them, and what they would start on AWS is what they say. No cloud needed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.commands import _get_node_provider
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[2]
REGION = "us-west-2"
EDITED = {
    "cluster.yaml": {"region", "ssh_private_key", "KeyName", "setup.sh"},
    "cluster-local.yaml": {"head_ip", "worker_ips", "ssh_user", "ssh_private_key", "setup.sh"},
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / name).read_text())


@pytest.fixture(params=list(EDITED))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_ray_accepts_it(name: str):
    validate_config(prepare_config(load(name)))


def test_what_is_to_edit_is_marked_and_little(name: str):
    lines = [line for line in (REPOSITORY / name).read_text().splitlines() if re.search(r"# EDIT\b", line)]
    assert {next(key for key in EDITED[name] if key in line) for line in lines} == EDITED[name]
    assert len(lines) == len(EDITED[name])


def test_what_it_copies_is_there_and_is_enough_to_install(name: str):
    mounts = load(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert {remote: (REPOSITORY / source).exists() for remote, source in mounts.items()} == dict.fromkeys(mounts, True)
    project = (REPOSITORY / "pyproject.toml").read_text()
    for needed in ("README.md", "LICENSE", "sweeps"):
        assert f'"{needed}"' in project
        assert mounts[f"~/raylt/{needed}"] == needed


def test_ray_is_behind_its_token_and_pages_are_on_loopback(name: str):
    config = load(name)
    head, worker = (
        [command for command in config[key] if "ray start" in command]
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
    )
    assert len(head) == len(worker) == 1
    assert head[0].startswith("RAY_AUTH_MODE=token ")
    assert worker[0].startswith("RAY_AUTH_MODE=token ")
    assert "--dashboard-host=127.0.0.1" in head[0]
    assert "RAY_enable_autoscaler_v2=0" in head[0]
    assert "--block" in worker[0]


def test_shell_commands_parse(name: str):
    config = load(name)
    commands = [*config["setup_commands"], *config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


# --- AWS, mocked ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A mocked EC2 in which Ray's own bootstrap launched cluster.yaml's head and a worker; and the file as Ray filled it in."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes keys into ~/.ssh
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            environment.setenv(variable, "testing")
        environment.delenv("AWS_PROFILE", raising=False)
        yield from launch()


def launch() -> Iterator[tuple[Any, dict[str, Any]]]:
    with mock_aws():
        ec2, iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
        ec2.create_key_pair(KeyName="raylt")
        for profile in ("raylt-head", "raylt-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        config = prepare_config(load("cluster.yaml"))
        aws = _NODE_PROVIDERS["aws"](config["provider"])
        config = aws.fillout_available_node_types_resources(config)
        validate_config(config)
        config = aws.bootstrap_config(config)
        provider = _get_node_provider(config["provider"], config["cluster_name"])
        for node_type, kind in (("head", "head"), ("gpu", "worker")):
            tags = {
                "ray-node-type": kind, "ray-user-node-type": node_type, "ray-node-name": f"ray-raylt-{kind}",
                "ray-node-status": "uninitialized", "ray-launch-config": "hash",
            }  # fmt: skip
            provider.create_node(config["available_node_types"][node_type]["node_config"], tags, 1)
        yield ec2, config


def machines(ec2: Any) -> dict[str, dict[str, Any]]:
    """head | gpu -> the instance that EC2 has."""
    found = [machine for group in ec2.describe_instances()["Reservations"] for machine in group["Instances"]]
    return {next(tag["Value"] for tag in machine["Tags"] if tag["Key"] == "ray-user-node-type"): machine for machine in found}


def test_the_head_is_on_demand_and_workers_are_spot(launched: tuple[Any, dict[str, Any]]):
    ec2, config = launched
    found = machines(ec2)
    assert set(found) == {"head", "gpu"}
    assert "InstanceLifecycle" not in found["head"]
    assert found["gpu"]["InstanceLifecycle"] == "spot"
    assert {kind: machine["InstanceType"] for kind, machine in found.items()} == {"head": "m7i.xlarge", "gpu": "g6.2xlarge"}
    assert {machine["KeyName"] for machine in found.values()} == {"raylt"}
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)


def test_nothing_but_ssh_is_open(launched: tuple[Any, dict[str, Any]]):
    ec2, _ = launched
    groups = {group["GroupId"] for machine in machines(ec2).values() for group in machine["SecurityGroups"]}
    assert len(groups) == 1
    (group,) = ec2.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]
    to_the_world = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"] or rule["PrefixListIds"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in to_the_world] == [("tcp", 22, 22)]
    among_nodes = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert set(among_nodes) == groups


def test_each_machine_has_its_own_role_and_an_encrypted_disk_and_closed_metadata(launched: tuple[Any, dict[str, Any]]):
    ec2, _ = launched
    found = machines(ec2)
    assert found["head"]["IamInstanceProfile"]["Arn"].endswith("/raylt-head")
    assert found["gpu"]["IamInstanceProfile"]["Arn"].endswith("/raylt-worker")
    volumes = ec2.describe_volumes()["Volumes"]
    assert [(volume["Size"], volume["Encrypted"]) for volume in volumes] == [(150, True)] * 2
    for machine in found.values():
        assert machine["MetadataOptions"]["HttpTokens"] == "required"


def test_all_machines_have_one_python(launched: tuple[Any, dict[str, Any]]):
    """Ray compares versions to the patch, and an Ubuntu release keeps its Python."""
    images = [node["node_config"]["ImageId"] for node in launched[1]["available_node_types"].values()]
    assert ["24.04" in image and "ubuntu" in image for image in images] == [True, True]


def test_ray_down_terminates_everything(launched: tuple[Any, dict[str, Any]]):  # the last one: they share what was launched
    ec2, config = launched
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    provider.terminate_nodes(provider.nodes_for_teardown({}))
    assert {machine["State"]["Name"] for machine in machines(ec2).values()} <= {"terminated", "shutting-down"}
