"""deploy/aws_account.py on a mocked account: what cluster.yaml names is there, with the rights it needs and no more."""

from __future__ import annotations

import importlib.util
import inspect
import json
from fnmatch import fnmatchcase
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
    spec = importlib.util.spec_from_file_location("aws_account", REPOSITORY / "raylt/cluster/deploy/aws_account.py")
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


# --- whether a call is allowed, as IAM decides it -------------------------------------------------------------------------


def holds(condition: dict[str, dict[str, str]], context: dict[str, str]) -> bool:
    """Of the operators that are used here; an unknown one is an error of the test."""
    assert set(condition) <= {"StringEquals"}
    return all(context.get(key) == value for pairs in condition.values() for key, value in pairs.items())


def may(role: str, action: str, resource: str, **context: str) -> bool:
    """Whether some statement allows it: what none does is denied. `__` in the names of keys stands for `/`, `_` for `:`."""
    found = {key.replace("__", "/").replace("_", ":"): value for key, value in context.items()}
    for statement in statements(role):
        assert set(statement) <= {"Effect", "Action", "Resource", "Condition"} and statement["Effect"] == "Allow"
        resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        fits = any(fnmatchcase(action, pattern) for pattern in statement["Action"])
        if fits and any(fnmatchcase(resource, r) for r in resources) and holds(statement.get("Condition", {}), found):
            return True
    return False


def machine(region: str = REGION) -> str:
    return f"arn:aws:ec2:{region}:123456789012:instance/i-0abc"


def tagged(name: str | None) -> dict[str, str]:
    """A machine's cluster, as it stands on the machine."""
    return {} if name is None else {"aws_ResourceTag__ray-cluster-name": name}


@mock_aws
@pytest.mark.parametrize("owner", [None, "another", "raylt"])
def test_the_head_tags_and_ends_its_own_machines_alone(script: ModuleType, owner: str | None):
    """Could it tag any machine, it could make it its own, and end it then."""
    script.main("some-bucket", REGION)
    name = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["cluster_name"]
    for action in ("ec2:CreateTags", "ec2:TerminateInstances"):
        assert may("raylt-head", action, machine(), **tagged(owner)) is (owner == name)
        assert not may("raylt-head", action, machine("eu-west-1"), **tagged(name))
        assert not may("raylt-worker", action, machine(), **tagged(name))
    for other in ("volume/vol-1", "subnet/subnet-1", "security-group/sg-1", "image/ami-1"):
        assert not may("raylt-head", "ec2:CreateTags", f"arn:aws:ec2:{REGION}:123456789012:{other}", **tagged(name))


@mock_aws
def test_the_head_launches_machines_with_its_tag_alone(script: ModuleType):
    script.main("some-bucket", REGION)
    with_tag = {"aws_RequestTag__ray-cluster-name": "raylt"}
    assert may("raylt-head", "ec2:RunInstances", machine(), **with_tag)
    assert may("raylt-head", "ec2:CreateTags", machine(), **with_tag, ec2_CreateAction="RunInstances")
    assert not may("raylt-head", "ec2:CreateTags", machine(), **with_tag)  # of one that is there
    assert not may("raylt-head", "ec2:CreateTags", machine(), **with_tag, ec2_CreateAction="CreateVolume")
    assert not may("raylt-head", "ec2:RunInstances", machine(), **{"aws_RequestTag__ray-cluster-name": "another"})
    assert not may("raylt-head", "ec2:RunInstances", machine())
    for part in ("image/ami-1", "subnet/subnet-1", "network-interface/*", "security-group/sg-1", "key-pair/raylt", "volume/*"):
        assert may("raylt-head", "ec2:RunInstances", f"arn:aws:ec2:{REGION}:123456789012:{part}")
    assert may("raylt-head", "ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/ami-1")
    assert not may("raylt-head", "ec2:RunInstances", f"arn:aws:ec2:{REGION}:123456789012:launch-template/lt-1")
    assert may("raylt-head", "ec2:DescribeInstances", "*")
    for action in ("ec2:ModifyInstanceAttribute", "ec2:StopInstances", "ec2:DeleteTags", "ec2:DeleteVolume", "iam:CreateRole"):
        assert not may("raylt-head", action, machine(), **tagged("raylt"))


@mock_aws
def test_the_head_passes_the_workers_role_to_machines_alone(script: ModuleType):
    script.main("some-bucket", "us-east-1")
    roles, to_machines = "arn:aws:iam::123456789012:role", {"iam_PassedToService": "ec2.amazonaws.com"}
    assert may("raylt-head", "iam:PassRole", f"{roles}/raylt-worker", **to_machines)
    assert not may("raylt-head", "iam:PassRole", f"{roles}/raylt-worker", iam_PassedToService="lambda.amazonaws.com")
    assert not may("raylt-head", "iam:PassRole", f"{roles}/raylt-head", **to_machines)
    assert not may("raylt-head", "iam:PassRole", f"{roles}/admin", **to_machines)
    actions = {action for statement in statements("raylt-head") for action in statement["Action"]}
    assert {action for action in actions if "*" in action} == {"ec2:Describe*"}
    assert {action for action in actions if action.startswith("iam:")} == {"iam:PassRole"}


def test_ray_tags_what_it_launches_while_it_does_and_what_is_its_own_later():
    """What the policy rests on, in Ray's own code: no machine of it is ever without the tag."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    assert TAG_RAY_CLUSTER_NAME == "ray-cluster-name"
    launch = inspect.getsource(AWSNodeProvider._create_node)
    assert '"ResourceType": "instance"' in launch and "TAG_RAY_CLUSTER_NAME" in launch and "TagSpecifications" in launch
    assert "create_tags" not in launch and "create_tags" in inspect.getsource(AWSNodeProvider._create_tags)


# --- a bucket, or a role, that was there before ---------------------------------------------------------------------------


@mock_aws
def test_the_rules_of_a_bucket_that_was_there_are_added_to(script: ModuleType):
    s3 = boto3.client("s3", REGION)
    s3.create_bucket(Bucket="some-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    expire = {"ID": "old logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}}
    stale = {
        "ID": "unfinished uploads",
        "Status": "Disabled",
        "Filter": {},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 9},
    }
    s3.put_bucket_lifecycle_configuration(Bucket="some-bucket", LifecycleConfiguration={"Rules": [expire, stale]})
    for _ in range(2):
        script.main("some-bucket", REGION)
        first, ours = s3.get_bucket_lifecycle_configuration(Bucket="some-bucket")["Rules"]
        assert first == expire
        assert (ours["ID"], ours["Status"]) == ("unfinished uploads", "Enabled")
        assert ours["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}


@mock_aws
def test_what_closes_a_bucket_that_was_there_stays(script: ModuleType):
    s3 = boto3.client("s3", REGION)
    s3.create_bucket(Bucket="some-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::some-bucket/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    s3.put_bucket_policy(Bucket="some-bucket", Policy=policy)
    s3.put_bucket_versioning(Bucket="some-bucket", VersioningConfiguration={"Status": "Enabled"})
    script.main("some-bucket", REGION)
    closed = s3.get_public_access_block(Bucket="some-bucket")["PublicAccessBlockConfiguration"]
    assert len(closed) == 4 and all(closed.values())
    assert s3.get_bucket_policy(Bucket="some-bucket")["Policy"] == policy
    assert s3.get_bucket_versioning(Bucket="some-bucket")["Status"] == "Enabled"


@mock_aws
def test_a_role_that_others_may_take_is_given_nothing(script: ModuleType):
    iam = boto3.client("iam", REGION)
    others = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::999999999999:root"}, "Action": "sts:AssumeRole"}
    iam.create_role(RoleName="raylt-head", AssumeRolePolicyDocument=script.document(others))
    with pytest.raises(SystemExit, match="there is a role raylt-head that not only machines may take"):
        script.main("some-bucket", REGION)
    assert iam.list_role_policies(RoleName="raylt-head")["PolicyNames"] == []
