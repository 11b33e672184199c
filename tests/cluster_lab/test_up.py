"""`ray up` of cluster-local.yaml over SSH, a sweep from the laptop, `ray down`, on the machines of a `lab`. In file order.

What a machine of this lab lacks against a real one: deploy/setup.sh finds ~/venv made already, and Ray's slow starts on
a busy host are waited for (RAY_raylet_start_wait_time_s).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster_lab.lab import REPOSITORY, Lab, Machine, lab, missing, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=f"a lab needs: {', '.join(missing())}"),
]

UP = "ray up -y cluster.yaml"
QUICK = (
    "--set train.steps=30 --set train.checkpoint_every=10 --set ticket.rewind_step=5 --set search.trials=4 "
    "--set search.concurrency=4 --set metrics.search.samples=80 --set metrics.search.steps=2 --set metrics.reference=200"
)
SWEEP = f"raylt sweep {QUICK}"
NUM_TRIALS = 5 + 4


@dataclass
class Site:
    """The lab's machines, and the folder on the laptop that has cluster.yaml."""

    lab: Lab
    head: Machine
    worker: Machine
    laptop: Machine
    folder: Path

    @property
    def root(self) -> str:
        return f"{self.lab.shared}/raylt"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with lab() as ours:
        head, worker, laptop = (
            ours.machine(name, address)
            for name, address in (("head", "10.77.0.1"), ("worker", "10.77.0.2"), ("laptop", "10.77.0.9"))
        )
        folder = laptop.home / "raylt"
        copy_checkout(folder)
        text = edited((folder / "cluster-local.yaml").read_text(), f"{ours.shared}/raylt")
        (folder / "cluster.yaml").write_text(text)
        yield Site(ours, head, worker, laptop, folder)


def copy_checkout(folder: Path) -> None:
    """The files that git knows or would: what a clone has, and what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def edited(text: str, root: str) -> str:
    """cluster-local.yaml with the lines edited that say so, and no other."""
    answers = {
        "head_ip:": "  head_ip: 10.77.0.1",
        "worker_ips:": "  worker_ips: [10.77.0.2]",
        "ssh_user:": "  ssh_user: root",
        "ssh_private_key:": "  ssh_private_key: ~/.ssh/raylt",
        "setup.sh": f"  - bash ~/raylt/raylt/cluster/deploy/setup.sh {root}",
    }
    lines = []
    for line in text.splitlines():
        if re.search(r"# EDIT\b", line):
            (key,) = [key for key in answers if key in line]
            line = answers.pop(key)
        lines.append(line)
    assert not answers
    return "\n".join(lines)


def num_nodes(head: Machine) -> int:
    found = re.search(r"^ (\d+) local.cluster.node", head.run("ray status", timeout_s=300).stdout, re.MULTILINE)
    return int(found[1]) if found else 0


def test_ray_up_starts_head_and_worker(site: Site):
    assert site.laptop.run("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token").returncode == 0
    start = time.monotonic()
    up = site.laptop.run(UP, cwd=site.folder, timeout_s=900)
    assert up.returncode == 0
    print(f"*** ray up: {time.monotonic() - start:.0f} s")
    wait_until(lambda: num_nodes(site.head) == 2, 300, every_s=5)
    print(f"*** both machines in: {time.monotonic() - start:.0f} s")
    for machine in (site.head, site.worker):
        assert (machine.home / ".raylt" / "env").stat().st_mode & 0o777 == 0o600
        assert (machine.home / ".ray").stat().st_mode & 0o777 == 0o700


def test_nothing_answers_without_the_token_and_pages_are_on_loopback(site: Site):
    listening = site.head.run("ss -Hltnp").stdout
    ports = {int(line.split()[3].rsplit(":", 1)[1]): line for line in listening.splitlines()}
    assert ports[8265].split()[3] == "127.0.0.1:8265"
    assert ports[5000].split()[3] == "127.0.0.1:5000"
    ours = set(re.findall(r'\(\("([^"]+)"', "\n".join(line for line in ports.values() if "127.0.0.1" not in line.split()[3])))
    assert {name for name in ours if not name.startswith(("ray", "gcs_server", "python"))} == {"sshd"}
    assert site.head.run("curl -sf http://127.0.0.1:5000/health").stdout == "OK"
    for port in (5000, 8265):
        assert site.laptop.run(f"curl -s -m 10 http://10.77.0.1:{port}/").returncode == 7, "refused"
    ask = "curl -s -m 10 -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert site.head.run(ask).stdout == "401"
    assert site.head.run(f'{ask} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"').stdout == "200"
    assert site.laptop.run("curl -s -m 10 -X POST http://10.77.0.1:52365/api/job_agent/jobs/").stdout.startswith("Unauthorized")
    ask = "timeout 200 ray status --address 10.77.0.1:6379"
    assert "local.cluster.node" in site.laptop.run(f"RAY_AUTH_MODE=token {ask}").stdout
    assert (
        "local.cluster.node"
        not in site.laptop.run(f"mkdir -p /tmp/nobody && HOME=/tmp/nobody RAY_AUTH_MODE=disabled {ask}").stdout
    )
    wrong = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"
    assert "local.cluster.node" not in site.laptop.run(f"HOME=/tmp/nobody {wrong} {ask}").stdout


def test_a_bare_sweep_runs_there(site: Site):
    start, trained_on = time.monotonic(), set()
    sweep = site.laptop.start(SWEEP, cwd=site.folder)
    while sweep.poll() is None and time.monotonic() - start < 1500:
        trained_on |= {machine.name for machine in (site.head, site.worker, site.laptop) if machine.find("Trainable")}
        time.sleep(1)
    out, _ = sweep.communicate(timeout=10)
    print(out, f"*** sweep: {time.monotonic() - start:.0f} s", sep="\n")
    assert sweep.returncode == 0
    assert "cluster.yaml" in out.splitlines()[0], "the first line says where and why"
    assert trained_on == {"head", "worker"}
    document = results(site)
    assert document["state"] == "complete"
    assert document["counts"] == {"asked": NUM_TRIALS, "complete": NUM_TRIALS, "failed": 0, "pruned": 0, "running": 0}
    assert not (site.folder / "raylt-data").exists(), "nothing ran on the laptop"


def test_mlflow_on_the_head_has_it(site: Site):
    script = (
        "from mlflow import MlflowClient; c = MlflowClient('http://127.0.0.1:5000');"
        "e = c.get_experiment_by_name('raylt/digits').experiment_id; runs = c.search_runs([e]);"
        "print(len(runs), {r.info.status for r in runs}, len(c.list_artifacts(runs[0].info.run_id)) > 0)"
    )
    assert site.head.run(f'python -c "{script}"', timeout_s=300).stdout.endswith(f"{NUM_TRIALS + 1} {{'FINISHED'}} True\n")


def test_a_spot_notice_drains_a_worker(site: Site):
    """cluster.yaml's own worker command, on a machine whose metadata service announces its end."""
    spot = site.lab.machine("spot", "10.77.0.3")
    (spot.home / "raylt").symlink_to(REPOSITORY)
    (spot.home / ".ray").mkdir()
    shutil.copy(site.laptop.home / ".ray" / "auth_token", spot.home / ".ray")
    with (spot.home / "url").open("w") as url:
        service = subprocess.Popen(spot.entering(f"exec python -c {shlex.quote(METADATA)}"), stdout=url, env=spot.environment)
    try:
        wait_until(lambda: (spot.home / "url").read_text().endswith("\n"), 120)
        drain_upon_notice(site, spot, (spot.home / "url").read_text().strip())
    finally:
        service.kill()
        service.wait()


def drain_upon_notice(site: Site, spot: Machine, url: str) -> None:
    command = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["worker_start_ray_commands"][-1]
    assert spot.run(f"export RAY_HEAD_IP=10.77.0.1 AWS_EC2_METADATA_SERVICE_ENDPOINT={url}; {command}").returncode == 0
    log = spot.home / ".raylt" / "ray.log"
    wait_until(lambda: spot.find("raylet/raylet") != [] and "Ray runtime started" in log.read_text(), 300)
    assert "notice" not in log.read_text()
    (spot.home / "announce").touch()
    wait_until(lambda: "raylt.spot: spot notice: terminate at 2026-01-01T00:02:00Z" in log.read_text(), 30)
    wait_until(lambda: "Draining for up to 90" in log.read_text(), 30)
    wait_until(lambda: not spot.find("raylet/raylet"), 120)
    why = "import ray; ray.init('auto'); print([n['DeathReasonMessage'] for n in ray.nodes() if not n['Alive']])"
    assert "SIGTERM; draining" in site.head.run(f'python -c "{why}"').stdout


METADATA = """
import json, os, time
from tests.cluster.test_spot import NOTICE, Metadata
service = Metadata()
print(service.url, flush=True)
while True:
    time.sleep(0.2)
    if os.path.exists(os.path.expanduser("~/announce")):
        service.announced = json.dumps(NOTICE)
"""


def test_ray_down_ends_everything_and_leaves_the_results(site: Site):
    before = results(site)
    down = site.laptop.run("ray down -y cluster.yaml", cwd=site.folder, timeout_s=300)
    assert down.returncode == 0
    for machine in (site.head, site.worker):
        wait_until(lambda machine=machine: not machine.find("raylet/raylet") and not machine.find("gcs_server"), 120)
    wait_until(lambda: not site.head.find("mlflow server") and not site.head.find("raylt.tracking.head_server"), 180)
    assert results(site) == before


def test_a_new_ray_up_shows_the_record_again(site: Site):
    (site.head.home / ".raylt" / "mlflow.db").unlink()
    up = site.laptop.run(UP, cwd=site.folder, timeout_s=900)
    assert up.returncode == 0
    assert f"digits: recorded, {NUM_TRIALS} trials" in up.stdout
    again = site.laptop.run(SWEEP, cwd=site.folder, timeout_s=600)
    assert again.returncode == 0, "complete: nothing is left to run"


def results(site: Site) -> dict:
    return json.loads(site.laptop.run(f"raylt results digits --root {site.root} --json 2> /dev/null").stdout)
