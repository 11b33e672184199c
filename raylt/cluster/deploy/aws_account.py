"""Makes what cluster.yaml needs of an AWS account, once: the bucket, and the roles of the head and of the workers.

    python raylt/cluster/deploy/aws_account.py BUCKET REGION        # with credentials that may do so; again does no harm

The head may launch and end machines of cluster `raylt`, give them the workers' role, and use the bucket. Workers may use the
bucket. Neither may anything else. What a bucket has already stays: its own rules, and what closes it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import boto3
from botocore.exceptions import ClientError

HEAD, WORKER, CLUSTER = "raylt-head", "raylt-worker", "raylt"  # names in cluster.yaml
TAG = "ray-cluster-name"  # by which Ray knows a cluster's machines
PARTS = ("image", "snapshot", "subnet", "network-interface", "security-group", "key-pair", "volume", "spot-instances-request")
UNFINISHED = "unfinished uploads"  # the rule of ours
TRUST = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}


Statement = dict[str, Any]  # of an IAM policy


def allow(*actions: str, on: str | list[str], **condition: Any) -> Statement:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on} | ({"Condition": condition} if condition else {})


def bucket_statements(bucket: str) -> list[Statement]:
    """Reading, writing and deleting objects of one bucket."""
    objects = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
    return [
        allow("s3:ListBucket", "s3:GetBucketLocation", on=f"arn:aws:s3:::{bucket}"),
        allow(*objects, on=f"arn:aws:s3:::{bucket}/*"),
    ]


def head_statements(bucket: str, worker_role: str, region: str) -> list[Statement]:
    """The bucket, and what Ray's autoscaler does: it launches machines with its tag, and tags and ends those alone.

    A tag is what makes a machine its own, so it may give none to a machine that is there already and has not got it.
    """
    machines = f"arn:aws:ec2:{region}:*:instance/*"
    return [
        *bucket_statements(bucket),
        allow("ec2:Describe*", on="*"),  # EC2 knows no narrower right to look
        allow("ec2:RunInstances", on=machines, StringEquals={f"aws:RequestTag/{TAG}": CLUSTER}),
        allow("ec2:RunInstances", on=[f"arn:aws:ec2:{region}:*:{part}/*" for part in PARTS]),
        allow("ec2:CreateTags", on=machines, StringEquals={"ec2:CreateAction": "RunInstances"}),
        allow("ec2:CreateTags", "ec2:TerminateInstances", on=machines, StringEquals={f"aws:ResourceTag/{TAG}": CLUSTER}),
        allow("iam:PassRole", on=worker_role, StringEquals={"iam:PassedToService": "ec2.amazonaws.com"}),
        allow("ssm:GetParameters", on="arn:aws:ssm:*::parameter/aws/service/*"),  # images by their public names
    ]


def make_bucket(bucket: str, region: str) -> None:
    """The bucket, closed. Uploads that a killed machine left unfinished are dropped after a day: they cost and show nowhere."""
    s3 = boto3.client("s3", region)
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with ignoring("BucketAlreadyOwnedByYou"):
        s3.create_bucket(Bucket=bucket, **place)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    drop_unfinished_uploads(s3, bucket)


def drop_unfinished_uploads(s3: Any, bucket: str) -> None:
    """A rule beside those that the bucket has: S3 takes them all at once, in place of all that were."""
    drop = {"ID": UNFINISHED, "Status": "Enabled", "Filter": {}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    configuration: Statement = {"Rules": []}
    with ignoring("NoSuchLifecycleConfiguration"):
        configuration = s3.get_bucket_lifecycle_configuration(Bucket=bucket)
    rules = [*(rule for rule in configuration["Rules"] if rule.get("ID") != UNFINISHED), drop]
    kept = {key: configuration[key] for key in ("TransitionDefaultMinimumObjectSize",) if key in configuration}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules}, **kept)


def make_role(iam: Any, name: str) -> str:
    """A role for machines alone, in a profile of the same name; returns its ARN. One that others may take is given nothing."""
    with ignoring("EntityAlreadyExists"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=document(TRUST))
    if iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"] != [TRUST]:
        sys.exit(f"there is a role {name} that not only machines may take (its trust policy); rename or delete it first")
    with ignoring("EntityAlreadyExists"):
        iam.create_instance_profile(InstanceProfileName=name)
    with ignoring("LimitExceeded"):  # it has its one role
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(iam.get_role(RoleName=name)["Role"]["Arn"])


def document(*statements: Statement) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@contextlib.contextmanager
def ignoring(*codes: str) -> Any:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] not in codes:
            raise


def main(bucket: str, region: str) -> None:
    make_bucket(bucket, region)
    iam = boto3.client("iam", region)
    worker = make_role(iam, WORKER)
    make_role(iam, HEAD)
    iam.put_role_policy(RoleName=WORKER, PolicyName=CLUSTER, PolicyDocument=document(*bucket_statements(bucket)))
    iam.put_role_policy(RoleName=HEAD, PolicyName=CLUSTER, PolicyDocument=document(*head_statements(bucket, worker, region)))
    with ignoring("InvalidInput", "EntityAlreadyExists"):  # the account has it: it had a spot machine before
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    print(f"bucket {bucket} in {region}; roles and instance profiles {HEAD}, {WORKER}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python raylt/cluster/deploy/aws_account.py BUCKET REGION")
    try:
        main(*sys.argv[1:])
    except ClientError as error:
        sys.exit(f"AWS refused: {error}")
