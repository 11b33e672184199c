"""A spot notice becomes Ray's drain: runs `ray start --block` and sends it SIGTERM once AWS has announced this machine's end.

    python -m raylt.cluster.spot ray start --address=HEAD:6379 --block

Ray answers SIGTERM of a blocking worker by draining its node as preempted, so that trials write a checkpoint and leave before
the machine does, two minutes after the notice. The standard library alone: this must not die of anything else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

METADATA = "http://169.254.169.254"  # AWS_EC2_METADATA_SERVICE_ENDPOINT, which AWS's own tools read, overrides it
EVERY_S = 5.0  # AWS's own advice
TIMEOUT_S = 2.0

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # instance metadata is never behind a proxy


def notice(endpoint: str) -> str | None:
    """What AWS will do to this machine and when (`terminate at 2026-01-01T00:00:00Z`); None where it has announced nothing.

    Raises `OSError` where there is no instance metadata to ask.
    """
    token = _ask(endpoint, "api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        answer = _ask(endpoint, "meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return None
        raise
    try:
        action = json.loads(answer)
        return f"{action['action']} at {action['time']}"
    except (ValueError, KeyError, TypeError):
        return answer  # a notice all the same


def _ask(endpoint: str, path: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(f"{endpoint}/latest/{path}", method=method, headers=headers)
    with _direct.open(request, timeout=TIMEOUT_S) as response:
        return str(response.read().decode(errors="replace")).strip()


def run(command: list[str], endpoint: str, every_s: float = EVERY_S) -> int:
    """Run `command` to its end and return its exit code; SIGTERM it at the first notice. Our own signals are passed on."""
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: child.send_signal(received))
    told, complained = False, False
    while True:
        try:
            code = child.wait(every_s)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            pass
        try:
            announced = None if told else notice(endpoint)
        except OSError as error:
            announced = None
            if not complained:
                complained = True
                _say(f"no instance metadata at {endpoint} ({error}); asking on")
        if announced is not None:
            told = True
            _say(f"spot notice: {announced}; draining this node")
            child.terminate()


def _say(line: str) -> None:
    print(f"raylt.spot: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python -m raylt.cluster.spot COMMAND ...")
    sys.exit(run(sys.argv[1:], os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/")))
