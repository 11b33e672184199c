"""A sweep on a cluster reached over SSH: a real sshd, a real Ray head that asks for a token, and the laptop's commands.

One head serves all tests of the module; each has a sweep of its own name in the head's store. What takes more than a minute
on two cores is marked slow.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged
from tests.support.head import NAME, Lab, own_lab
from tests.support.sshd import own_sshd

PATIENCE_S = 240.0
WHERE = "runs on the Ray cluster of ./cluster.yaml, head 127.0.0.1 (it was brought up from here); --local runs on this machine"
SMALL = {"search": {"trials": 1, "pilots": 0, "profile": "movement", "baselines": []}, "resources": {"gpus": 0}}
LONG = {"train": {"steps": 100_000, "checkpoint_every": 100}}  # hours: it only ends by being ended


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, _warm_store: Path) -> Iterator[Lab]:
    with own_lab(tmp_path_factory.mktemp("lab")) as lab:
        shutil.copytree(_warm_store, lab.head.home / "store")
        yield lab


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A head without Ray."""
    with own_lab(tmp_path_factory.mktemp("silent"), is_started=False) as lab:
        yield lab


class Command:
    """A command of the laptop's, as it runs; what it prints lies in files."""

    def __init__(self, lab: Lab, *words: str, env: dict[str, str] | None = None) -> None:
        self.folder = lab.folder / f"command-{time.monotonic_ns()}"
        self.folder.mkdir()
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raylt.cli", *words], cwd=lab.folder, env={**lab.env, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"a command does not end:\n{self.out}\n{self.err}")

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, f"still not so: {what}\n{self.out}\n{self.err}"
            time.sleep(0.1)

    def ssh(self) -> list[psutil.Process]:
        """The OpenSSH clients that it has at work."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name() == "ssh"]


def run(lab: Lab, *words: str, env: dict[str, str] | None = None) -> Command:
    command = Command(lab, *words, env=env)
    command.end()
    return command


def spec(lab: Lab, name: str, **changes: Any) -> str:
    """A spec file in the laptop's folder."""
    (lab.folder / f"{name}.yaml").write_text(dump_yaml(merged(TINY, merged(SMALL, {"name": name, **changes}))))
    return f"{name}.yaml"


def jobs(lab: Lab) -> dict[str, dict[str, Any]]:
    """What Ray's Jobs API tells, asked on the head's loopback."""
    url = f"http://127.0.0.1:{lab.head.dashboard_port}/api/jobs/"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {lab.head.token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {job["submission_id"]: job for job in json.load(answer) if job["submission_id"]}


def test_a_sweep_from_the_laptop(lab: Lab) -> None:
    """To its end, through a broken connection: the log once, the exit code, and what can be read of it afterwards."""
    sweep = Command(lab, "sweep", spec(lab, "whole"))
    sweep.until(lambda: "whole starts" in sweep.out, "the sweep begins")
    [client] = sweep.ssh()
    client.kill()
    assert sweep.end() == 0, sweep.err
    lines = sweep.out.splitlines()
    assert len([line for line in lines if re.search(r" 0000-dense complete", line)]) == 1
    assert len([line for line in lines if "whole starts" in line]) == 1
    assert sweep.err.splitlines()[0] == WHERE
    assert [line for line in sweep.err.splitlines()[1:] if "is lost" not in line and "again" not in line] == [
        "sent as job raylt-whole-1",
        "job raylt-whole-1: succeeded, exit code 0",
    ]
    assert "the sweep does not need it; trying again" in sweep.err and "connected to" in sweep.err
    assert not (lab.folder / "raylt-data").exists()  # nothing of it is here

    status = run(lab, "status", "whole")
    assert (status.process.returncode, status.err) == (0, "")
    assert status.out.startswith("whole: complete (2 asked, 2 complete")
    by_file = json.loads(run(lab, "results", "whole.yaml", "--json").out)
    assert by_file["state"] == "complete"
    page = run(lab, "report", "whole", "-o", "page.html")
    assert (page.process.returncode, page.out) == (0, "page.html\n")
    assert "<html" in (lab.folder / "page.html").read_text()[:200]
    assert run(lab, "stop", "whole").out.startswith("whole: complete")
    assert "noise" not in sweep.out + sweep.err + status.out + page.err

    again = run(lab, "sweep", "whole.yaml", "--detach")
    assert (again.process.returncode, again.err.splitlines()[1]) == (0, "sent as job raylt-whole-2")


@pytest.mark.slow
def test_a_confirmation_from_the_laptop(lab: Lab) -> None:
    """Of a spec file: the search comes first. Then by its name alone, since the head has its spec: more seeds extend it."""
    learns = {"train": {"learning_rate": 2e-2, "batch_size": 16}, "metrics": {"final": {"samples": 60, "steps": 3}}}
    name = spec(lab, "judged", confirm={"controls": ["shuffled"]}, **learns)
    done = run(lab, "confirm", name, "--seeds", "1")
    assert done.process.returncode == 0, done.out + done.err
    assert done.err.splitlines()[0] == WHERE and "job raylt-judged-confirm-" in done.err
    assert "judged: confirmed at 12 training steps" in " ".join(done.out.split())
    more = run(lab, "confirm", "judged", "--seeds", "2")
    assert more.process.returncode == 0, more.out + more.err
    trials = json.loads(run(lab, "results", "judged", "--json").out)["trials"]
    final = [(t["seed"], t["kind"], t["control"]) for t in trials if t["protocol"] == "final"]
    of_a_seed = [("dense", None), ("search", None), ("control", "shuffled")]
    assert final == [(seed, *one) for seed in (1000, 1001) for one in of_a_seed]
    wrong = run(lab, "confirm", "judged", "--root", "elsewhere")
    assert wrong.process.returncode == 2 and "--root is for this machine" in wrong.err


@pytest.mark.slow
def test_what_the_head_refuses_comes_back(lab: Lab) -> None:
    """Exit 2 with the file's own line; and what only reads, with the head's words on stderr."""
    name = spec(lab, "greedy", resources={"cpus": 64, "gpus": 0})
    line = 1 + next(i for i, text in enumerate((lab.folder / name).read_text().splitlines()) if "cpus:" in text)
    sweep = run(lab, "sweep", name)
    assert sweep.process.returncode == 2
    assert re.search(rf"greedy\.yaml:{line}: resources\.cpus: more than .*2 \(got 64\); at most 2", sweep.out)
    assert sweep.err.splitlines()[-1] == "job raylt-greedy-1: failed, exit code 2"
    status = run(lab, "status", "nobody")
    assert (status.process.returncode, status.out) == (2, "")
    assert status.err.startswith("no sweep 'nobody' in ")


@pytest.mark.slow
def test_watching_and_stopping(lab: Lab) -> None:
    """--detach, a second command that finds the job, Ctrl-C that ends neither, another spec of the name, and `raylt stop`."""
    name = spec(lab, "long", **LONG)
    sent = run(lab, "sweep", name, "--detach")
    assert (sent.process.returncode, sent.out) == (0, "")
    assert sent.err.splitlines()[1:] == [
        "sent as job raylt-long-1",
        "`raylt sweep long.yaml` watches it, `raylt status long` says how far it is, `raylt stop long` stops it",
    ]
    watch = Command(lab, "sweep", name)
    watch.until(lambda: "long starts" in watch.out, "the sweep begins")
    assert "job raylt-long-1 runs this sweep already" in watch.err
    other = run(lab, "sweep", name, "--set", "train.seed=7")
    assert other.process.returncode == 2
    assert re.search(r"job raylt-long-1 on .* runs sweep long with another spec; restore the spec, ", other.err)

    os.kill(watch.process.pid, signal.SIGINT)
    assert watch.end() == 130
    assert "no longer watching; the sweep goes on. `raylt sweep long.yaml` watches it again, `raylt stop long`" in watch.err
    assert jobs(lab)["raylt-long-1"]["status"] == "RUNNING"
    assert run(lab, "status", "long").out.startswith("long: running")

    watch = Command(lab, "sweep", name)
    watch.until(lambda: "long starts" in watch.out, "the log is there again")
    stop = run(lab, "stop", "long")
    assert (stop.process.returncode, stop.out.splitlines()[-1].split(";")[0]) == (0, "long: stopped"), stop.err
    assert watch.end() in (130, 143)
    assert run(lab, "status", "long").out.startswith("long: interrupted")


@pytest.mark.slow
def test_nothing_secret_is_in_what_ray_shows(lab: Lab) -> None:
    """The head's environment file reaches the driver, and neither the API nor the log of Ray's that a job leaves."""
    planted = "planted-5a1fe9c0"
    env_file = lab.head.home / ".raylt/env"
    before = env_file.read_text()
    env_file.write_text(f"{before}AWS_SECRET_ACCESS_KEY={planted}\nRAYLT_ROOT={lab.head.home}/other\n")
    try:
        dry = run(lab, "sweep", spec(lab, "secret"), "--dry-run")
        assert dry.process.returncode == 0, dry.err
        assert f"store    {lab.head.home}/other" in dry.out  # the file was read
        assert run(lab, "sweep", "secret.yaml").process.returncode == 0
    finally:
        env_file.write_text(before)
    assert (lab.head.home / "other/sweeps/secret").is_dir()
    shown = json.dumps(jobs(lab)["raylt-secret-1"])
    assert planted not in shown and lab.head.token not in shown
    logs = [path for path in lab.head.tmp.rglob("*") if path.is_file() and "logs" in path.parts]
    assert len(logs) > 10
    for path in logs:
        text = path.read_bytes()
        assert planted.encode() not in text and lab.head.token.encode() not in text, path


@pytest.mark.slow  # a real server over SSH: minutes on a busy machine
def test_the_heads_mlflow_page(lab: Lab) -> None:
    """`raylt ui` leads to what the head's MLFLOW_TRACKING_URI names, and says so where that is a file."""
    ui = run(lab, "ui")
    assert ui.process.returncode == 2 and "records at sqlite:" in ui.err

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the head's page")

        def log_message(self, *args: object) -> None:
            pass

    env_file = lab.head.home / ".raylt/env"
    before = env_file.read_text()
    with socketserver.TCPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env_file.write_text(f"{before}MLFLOW_TRACKING_URI=http://127.0.0.1:{server.server_address[1]}\n")
        try:
            ui = Command(lab, "ui", "--port", "0")
            ui.until(lambda: "Ctrl-C ends it" in ui.err, "the page is there")
            [url] = re.findall(r"http://127\.0\.0\.1:\d+", ui.err)
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.read() == b"the head's page"
            [client] = ui.ssh()
            os.kill(ui.process.pid, signal.SIGINT)
            assert ui.end() == 130
            client.wait(30)
        finally:
            env_file.write_text(before)
            server.shutdown()


@pytest.mark.slow
def test_a_tunnel_ends_with_its_owner(lab: Lab) -> None:
    """However the laptop's command dies, no ssh stays behind."""
    sweep = Command(lab, "sweep", spec(lab, "orphan", **LONG))
    sweep.until(lambda: "Running entrypoint" in sweep.out, "the log comes")
    [client] = sweep.ssh()
    sweep.process.kill()
    sweep.process.wait()
    client.wait(30)
    assert jobs(lab)["raylt-orphan-1"]["status"] in ("PENDING", "RUNNING")


@pytest.mark.slow
def test_wrong_or_no_token(lab: Lab, tmp_path: Path) -> None:
    """Over SSH as at an address: exit 3, and where the token should lie."""
    (tmp_path / "home").mkdir()
    name, homeless = spec(lab, "unheard"), {"HOME": str(tmp_path / "home")}
    address = ("--address", lab.head.address)
    for env, said in (
        (homeless, "it asks for a token, and there is none here; put"),
        ({"RAY_AUTH_TOKEN": "x" * 40}, "it refuses"),
    ):
        for words in ((), address):
            sweep = run(lab, "sweep", name, *words, env=env)
            assert sweep.process.returncode == 3, sweep.err
            assert said in sweep.err.splitlines()[-1] and "~/.ray/auth_token" in sweep.err


class TestNoHead:
    """Without Ray on the head, or without the head: exit 3 with the cause, and never a sweep on the laptop."""

    def test_no_ray(self, silent: Lab) -> None:
        sweep = run(silent, "sweep", spec(silent, "nowhere"))
        assert (sweep.process.returncode, sweep.out) == (3, "")
        there = f"{silent.sshd.user}@127.0.0.1, port {silent.head.dashboard_port} of its loopback"
        assert sweep.err.splitlines() == [WHERE, f"Ray's Jobs API does not answer on {there}; is Ray running there?"]

    @pytest.mark.parametrize("command", [("sweep", "nowhere.yaml"), ("status", "nowhere"), ("ui",), ("report", "x", "-o", "p")])
    def test_no_sshd(self, silent: Lab, tmp_path: Path, command: tuple[str, ...]) -> None:
        spec(silent, "nowhere")
        with own_sshd(tmp_path / "gone") as gone:
            path = f"{gone.shims}:{os.environ['PATH']}"
        done = run(silent, *command, env={"PATH": path})
        assert done.process.returncode == 3
        assert re.search(r"the head .*@127.0.0.1 cannot be reached: .*Connection refused", done.err)

    def test_wrong_key(self, silent: Lab, tmp_path: Path) -> None:
        spec(silent, "nowhere")
        with own_sshd(tmp_path / "other") as other:
            done = run(silent, "status", "nowhere", env={"PATH": f"{other.shims}:{os.environ['PATH']}", "HOME": str(tmp_path)})
        assert done.process.returncode == 3
        assert "Permission denied (publickey)" in done.err and "auth.ssh_private_key of the cluster file" in done.err

    def test_another_host_key(self, silent: Lab, tmp_path: Path) -> None:
        """Who answers under the head's address must be who answered first."""
        assert run(silent, "status", "nowhere").process.returncode == 2
        assert len((silent.folder / f"home/.raylt/known_hosts/{NAME}").read_text().splitlines()) == 1
        known = tmp_path / f"home/.raylt/known_hosts/{NAME}"
        known.parent.mkdir(parents=True)
        with own_sshd(tmp_path / "other") as other:
            known.write_text(silent.sshd.known_hosts.read_text().replace(str(silent.sshd.port), str(other.port)))
            env = {"PATH": f"{other.shims}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
            done = run(silent, "status", "nowhere", env=env)
        assert done.process.returncode == 3
        assert f"Host key verification failed.; if the head was made anew, remove {known}" in done.err

    def test_no_raylt(self, silent: Lab) -> None:
        """The head has no raylt in its PATH."""
        program = silent.head.home / "bin/raylt"
        program.rename(program.with_name("elsewhere"))
        try:
            done = run(silent, "status", "nowhere")
        finally:
            program.with_name("elsewhere").rename(program)
        assert done.process.returncode == 3
        assert done.err.splitlines()[-1].endswith("@127.0.0.1: the ~/.bashrc there must put it into PATH")

    def test_down(self, silent: Lab) -> None:
        """After `ray down`, the file is no place to run, and what is here can be read."""
        silent.set_state("terminated")
        try:
            named = run(silent, "sweep", spec(silent, "nowhere"), "--cluster", "cluster.yaml")
            found = run(silent, "status", "nowhere")
        finally:
            silent.set_state("running")
        assert (named.process.returncode, named.out) == (2, "")
        assert named.err == "--cluster cluster.yaml: its cluster lab is not up; start it with: ray up cluster.yaml\n"
        assert found.process.returncode == 2 and "in ./raylt-data" in found.err
