"""raylt/deploy/aws_account.py on a mocked account: what cluster.yaml names is there, with the rights it needs and no more."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

REPOSITORY = Path(__file__).parents[2]
REGION = "us-west-2"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    spec = importlib.util.spec_from_file_location("aws_account", REPOSITORY / "raylt" / "deploy" / "aws_account.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def statements(role: str) -> list[dict[str, Any]]:
    policies = boto3.client("iam", REGION)
    assert policies.list_role_policies(RoleName=role)["PolicyNames"] == ["raylt"]
    assert policies.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    return policies.get_role_policy(RoleName=role, PolicyName="raylt")["PolicyDocument"]["Statement"]


@mock_aws
def test_what_cluster_yaml_needs_is_made_and_a_second_time_changes_nothing(script: ModuleType):
    script.main("some-bucket", REGION)
    before = {role: statements(role) for role in ("raylt-head", "raylt-worker")}
    script.main("some-bucket", REGION)
    assert {role: statements(role) for role in before} == before
    iam = boto3.client("iam", REGION)
    types = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
    for node_type in types.values():
        name = node_type["node_config"]["IamInstanceProfile"]["Name"]
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [role["RoleName"] for role in profile["Roles"]] == [name]
    (rule,) = boto3.client("s3", REGION).get_bucket_lifecycle_configuration(Bucket="some-bucket")["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}


@mock_aws
def test_workers_may_use_the_bucket_and_nothing_else(script: ModuleType):
    script.main("some-bucket", REGION)
    for statement in statements("raylt-worker"):
        assert all(action.startswith("s3:") for action in statement["Action"])
        assert statement["Resource"] in ("arn:aws:s3:::some-bucket", "arn:aws:s3:::some-bucket/*")


@mock_aws
def test_the_head_ends_its_own_machines_alone_and_passes_the_workers_role_alone(script: ModuleType):
    script.main("some-bucket", "us-east-1")
    by_action = {action: statement for statement in statements("raylt-head") for action in statement["Action"]}
    assert by_action["iam:PassRole"]["Resource"].endswith(":role/raylt-worker")
    name = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["cluster_name"]
    assert by_action["ec2:TerminateInstances"]["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": name}}
    assert [action for action in by_action if action.startswith("iam:")] == ["iam:PassRole"]
    assert not {action for action in by_action if "*" in action} - {"ec2:Describe*"}
