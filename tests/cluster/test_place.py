"""Where a sweep runs: the order in which that is decided, what each answer says, and what is asked of whom for it."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylt.cluster import cluster_file, place
from raylt.cluster.cluster_file import find_head, read_cluster_file, was_brought_up
from raylt.cluster.own_files import read_own
from raylt.cluster.place import decide
from raylt.cluster.ssh import Head
from raylt.errors import EnvironmentFailure, InputError
from tests.chaos.machines import eventually

OWN = """\
cluster_name: mine
provider: {type: local, head_ip: 127.0.0.9, worker_ips: [127.0.0.2]}
auth: {ssh_user: me, ssh_private_key: ~/key.pem, ssh_proxy_command: nc %h %p}
head_start_ray_commands: [ray stop, "ray start --head --dashboard-port=9999"]
"""
CLOUD = """\
cluster_name: mine
provider: {type: aws, region: us-west-2}
auth: {ssh_user: ubuntu}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine that knows no cluster."""
    for name in [name for name in os.environ if name.startswith("RAY")]:
        monkeypatch.delenv(name)
    for name, value in {"RAY_TMPDIR": "ray-tmp", "HOME": "home"}.items():
        (tmp_path / value).mkdir()
        monkeypatch.setenv(name, str(tmp_path / value))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def head_here(tmp_path: Path) -> Iterator[str]:
    """A server on this machine that Ray's own record names as the cluster's GCS, and a raylet of its."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _write(tmp_path / "ray-tmp/ray/ray_current_cluster", address)
        with a_raylet(address):
            yield address


@contextmanager
def a_raylet(address: str) -> Iterator[int]:
    """A process that looks like Ray's on a node of that cluster; its pid."""
    words = ["/ray/raylet", "-c", "read line", "sh", f"--gcs-address={address}"]
    with subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE) as process:
        try:
            eventually(psutil.Process(process.pid).cmdline, "the process has its words")  # Linux sets them after it has begun
            yield process.pid
        finally:
            process.kill()


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def bring_up(state: str = "running", **node: Any) -> None:
    """What Ray's local provider writes down."""
    record = {"127.0.0.9": {"tags": {"ray-node-type": "head"}, "state": state, **node}}
    _write(Path(os.environ["RAY_TMPDIR"]) / "ray/cluster-mine.state", json.dumps(record))


def cache(**changes: Any) -> None:
    """What `ray up` leaves of a cloud's cluster."""
    config = {
        "cluster_name": "mine",
        "provider": {"type": "aws", "region": "us-west-2"},
        "auth": {"ssh_private_key": "/made/by/ray.pem"},
    }
    _write(Path(tempfile.gettempdir()) / "ray-config-123", json.dumps({"_version": 1, "config": {**config, **changes}}))


def ray_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """`python -m ray.scripts.scripts ...` as a shell script, which writes down what it was asked."""
    program = _write(tmp_path / "python", f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{script}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(cluster_file.sys, "executable", str(program))


class TestOrder:
    def test_nothing_said(self) -> None:
        place = decide()
        assert (place.address, place.head) == (None, None)
        assert str(place) == "runs on this machine (no cluster is named, and there is no ./cluster.yaml)"

    def test_each_beats_the_next(self, folder: Path, monkeypatch: pytest.MonkeyPatch, head_here: str) -> None:
        _write(folder / "cluster.yaml", OWN)
        bring_up()
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert str(decide(local=True)) == "runs on this machine (--local)"
        assert str(decide(address="10.0.0.2:6379")) == "runs on the Ray cluster at 10.0.0.2:6379 (--address)"
        assert str(decide()) == "runs on the Ray cluster at 10.0.0.1:6379 (RAY_ADDRESS)"
        monkeypatch.delenv("RAY_ADDRESS")
        assert str(decide()) == f"runs on the Ray cluster at {head_here} (this machine is its head; --local runs it without)"
        (Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster").unlink()
        brought_up = "(it was brought up from here); --local runs on this machine"
        assert str(decide()) == f"runs on the Ray cluster of ./cluster.yaml, head 127.0.0.9 {brought_up}"
        bring_up("terminated")
        assert str(decide()) == "runs on this machine (the cluster of ./cluster.yaml is down; ray up cluster.yaml starts it)"

    def test_a_file_named_beats_one_found(self, folder: Path) -> None:
        _write(folder / "other.yaml", OWN.replace("mine", "other"))
        _write(folder / "cluster.yaml", OWN)
        bring_up()
        with pytest.raises(
            InputError, match=r"^--cluster other.yaml: its cluster other is not up; start it with: ray up other"
        ):
            decide(cluster="other.yaml")
        assert str(decide(cluster="cluster.yaml")) == "runs on the Ray cluster of cluster.yaml, head 127.0.0.9 (--cluster)"

    def test_contradictions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match=r"^--local and --address contradict each other; give one of them$"):
            decide(local=True, address="auto")
        with pytest.raises(InputError, match=r"^--local and --address and --cluster contradict"):
            decide(local=True, address="auto", cluster="x")
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        with pytest.raises(InputError, match=r"^--cluster and RAY_ADDRESS, which is set, contradict each other"):
            decide(cluster="x")

    @pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://10.0.0.1:8265", "10.0.0.1", ":6379", "host:", ""])
    def test_no_address(self, address: str) -> None:
        with pytest.raises(
            InputError, match=r"^--address: is no address of a Ray cluster \(got .*\); HOST:PORT of its GCS, auto or local"
        ):
            decide(address=address)

    def test_the_address_auto_is_the_recorded_one(self, head_here: str) -> None:
        assert str(decide(address="auto")) == f"runs on the Ray cluster at {head_here} (--address is auto)"

    def test_the_address_auto_without_a_record_is_that_of_ones_own_raylet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray itself would take any user's, and so would send them code and token."""
        here = [process for process in psutil.process_iter() if process.pid == os.getpid()]
        monkeypatch.setattr(psutil, "process_iter", lambda: here)
        with pytest.raises(
            InputError, match=r"^--address: auto is the Ray cluster that you joined .* none from here; give its"
        ):
            decide(address="auto")
        with a_raylet("10.0.0.7:6379") as pid:
            here.append(psutil.Process(pid))
            assert decide(address="auto").address == "10.0.0.7:6379"
            monkeypatch.setattr(os, "getuid", lambda: 54321)  # then it is another user's
            with pytest.raises(InputError, match="none from here"):
                decide(address="auto")

    def test_the_address_local_is_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert str(decide()) == "runs on this machine (RAY_ADDRESS is local)"


class TestHeadOnThisMachine:
    """Ray's record of the last `ray start` is believed only where it can be about us, and true."""

    def test_its_gcs_is_gone(self, head_here: str) -> None:
        address = head_here
        with socket.create_server(("127.0.0.1", 0)) as server:
            gone = f"127.0.0.1:{server.getsockname()[1]}"
        _write(Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster", gone)
        assert (place.head_on_this_machine(), address) == (None, head_here)

    def test_another_user_took_its_port(self, head_here: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server answers there, but no raylet of this user's is of its cluster: it would be sent token and code."""
        assert place.head_on_this_machine() == head_here
        monkeypatch.setattr(psutil, "process_iter", list)
        assert place.head_on_this_machine() is None

    @pytest.mark.parametrize("record", ["10.255.255.1:6379", "", "nonsense", "127.0.0.1:", "127.0.0.1:port"])
    def test_not_ours(self, record: str) -> None:
        """A worker's record names another machine; the rest is none."""
        _write(Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster", record)
        assert place.head_on_this_machine() is None


def _given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


def _linked(path: Path) -> None:
    """To a file of this user's, which somebody else chose."""
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def _named_twice(path: Path) -> None:
    path.with_name("again").hardlink_to(path)


def _a_pipe(path: Path) -> None:
    """Whoever opens it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [_given_away, lambda path: path.chmod(0o646), lambda path: path.chmod(0o666), _linked, _named_twice, _a_pipe],
    ids=["another user's", "written by others", "written by all", "a link", "a second name", "a pipe"],
)
class TestSomebodyElsesFiles:
    """What lies in a temporary folder is believed where this user alone can have written it; else it is not there."""

    def test_rays_record_of_the_last_cluster(self, head_here: str, spoil: Any) -> None:
        assert place.head_on_this_machine() == head_here
        spoil(Path(os.environ["RAY_TMPDIR"]) / "ray/ray_current_cluster")
        assert place.head_on_this_machine() is None

    def test_the_local_providers_state(self, folder: Path, spoil: Any) -> None:
        _write(folder / "cluster.yaml", OWN)
        bring_up()
        assert decide().head is not None
        spoil(Path(os.environ["RAY_TMPDIR"]) / "ray/cluster-mine.state")
        assert decide().head is None
        assert find_head(read_cluster_file("cluster.yaml")) is None

    def test_rays_cache_names_no_key_and_no_command(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
    ) -> None:
        _write(folder / "cluster.yaml", CLOUD)
        ray_says(monkeypatch, tmp_path, "echo 10.0.0.5")
        cache(auth={"ssh_proxy_command": "touch owned"})
        assert decide().head.proxy_command == "touch owned"  # type: ignore[union-attr]
        spoil(Path(tempfile.gettempdir()) / "ray-config-123")
        assert "has not been brought up from here" in str(decide())
        head = find_head(read_cluster_file("cluster.yaml"))
        assert head is not None and (head.key, head.proxy_command) == (None, None)


@pytest.mark.parametrize(
    ("mode", "is_alone", "is_believed"), [(0o664, True, True), (0o664, False, False), (0o644, False, True)]
)
def test_a_group_of_ones_own_is_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_alone: bool, is_believed: bool
) -> None:
    """With umask 002, which goes with a group for each user, Ray's files are writable by that group."""
    path = _write(tmp_path / "file", "text")
    path.chmod(mode)
    me = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwall", lambda: [me])
    entry = grp.struct_group((me.pw_name, "x", me.pw_gid, [] if is_alone else ["eve"]))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: entry)
    os.chown(path, -1, me.pw_gid)
    assert read_own(path) == ("text" if is_believed else None)


class TestFile:
    @pytest.mark.parametrize(
        ("key", "old", "new"),
        [
            ("provider.head_ip", "127.0.0.9", "-oProxyCommand=touch owned"),
            ("provider.head_ip", "127.0.0.9", "a;touch owned"),
            ("auth.ssh_user", "ssh_user: me", 'ssh_user: "-oProxyCommand=touch owned"'),
            ("auth.ssh_user", "ssh_user: me", "ssh_user: me$(touch owned)"),
            ("auth.ssh_user", "ssh_user: me", "ssh_user: 1000"),
            ("auth.ssh_private_key", "~/key.pem", '"-oProxyCommand=touch owned"'),
            ("auth.ssh_proxy_command", "nc %h %p", '"-x"'),
            ("cluster_name", "mine", "../../.ssh/config"),
            ("cluster_name", "mine", "-x"),
        ],
    )
    def test_what_ssh_would_take_for_an_option(self, folder: Path, key: str, old: str, new: str) -> None:
        _write(folder / "c.yaml", OWN.replace(old, new))
        with pytest.raises(InputError, match=rf"^c\.yaml: {re.escape(key)}: is no .*; text that does not begin with -"):
            decide(cluster="c.yaml")

    @pytest.mark.parametrize("said", ["-oProxyCommand=x", "10.0.0.5;x"])
    def test_an_address_that_is_none(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
        _write(folder / "c.yaml", CLOUD)
        ray_says(monkeypatch, tmp_path, f"echo '{said}'")
        with pytest.raises(InputError, match=r"^c\.yaml: provider\.head_ip: is no name or address of a machine"):
            decide(cluster="c.yaml")

    def test_ssh_is_told_where_its_options_end(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever makes a `Head` without a file: `ssh` itself then takes the host for one, and finds none of that name."""
        monkeypatch.setattr("shutil.which", lambda name: "ssh")
        words = Head("-oProxyCommand=x", "me", None, None, "10%", 8265).ssh("-T")
        assert words[-3:] == ["me", "--", "-oProxyCommand=x"]
        assert any(word.endswith('known_hosts/10%%"') for word in words)  # ssh would read %" as a sign of its own

    def test_what_it_says_of_the_head(self, folder: Path) -> None:
        file = read_cluster_file(str(_write(folder / "c.yaml", OWN)))
        bring_up()
        head = find_head(file)
        assert head is not None
        assert (head.host, head.user, head.dashboard_port) == ("127.0.0.9", "me", 9999)
        assert (head.key, head.proxy_command) == (str(Path("~/key.pem").expanduser()), "nc %h %p")
        bring_up(external_ip="127.0.0.8")
        assert find_head(file).host == "127.0.0.8"  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a: [", "cannot be read as a Ray cluster file"),
            ("- a", "cluster_name: is missing"),
            ("cluster_name: x", "provider: is missing"),
            ("cluster_name: x\nprovider: {type: aws}\nauth: {}", "auth: is missing"),
        ],
    )
    def test_no_cluster_file(self, folder: Path, text: str, said: str) -> None:
        """Named, it is an error; found, it is somebody else's file."""
        _write(folder / "cluster.yaml", text)
        with pytest.raises(InputError, match=f"^cluster.yaml: {said}"):
            decide(cluster="cluster.yaml")
        assert said in str(decide()) and decide().head is None

    def test_no_file(self) -> None:
        with pytest.raises(InputError, match=r"^no\.yaml: cannot be read as a Ray cluster file: No such file"):
            decide(cluster="no.yaml")


class TestCloud:
    """Whether a cloud's cluster is up only the cloud can say; it is asked where Ray remembers one, or the file is named."""

    def test_an_untouched_file_asks_nobody(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _write(folder / "cluster.yaml", CLOUD)
        ray_says(monkeypatch, tmp_path, "echo 10.0.0.5")
        cache(cluster_name="another")
        assert not was_brought_up(read_cluster_file("cluster.yaml"))
        assert "has not been brought up from here" in str(decide())
        assert not (tmp_path / "asked").exists()

    def test_up(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _write(folder / "cluster.yaml", CLOUD)
        cache()
        ray_says(monkeypatch, tmp_path, "echo noise; echo 10.0.0.5")
        head = decide().head
        assert head is not None
        assert (head.host, head.user, head.key, head.dashboard_port) == ("10.0.0.5", "ubuntu", "/made/by/ray.pem", 8265)
        assert (tmp_path / "asked").read_text() == "-m ray.scripts.scripts get-head-ip cluster.yaml\n"

    def test_down(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _write(folder / "cluster.yaml", CLOUD)
        cache()
        ray_says(monkeypatch, tmp_path, "echo 'RuntimeError: Head node of cluster (mine) not found!' >&2; exit 1")
        assert str(decide()) == "runs on this machine (the cluster of ./cluster.yaml is down; ray up cluster.yaml starts it)"
        with pytest.raises(InputError, match=r"is not up; start it with: ray up cluster\.yaml"):
            decide(cluster="cluster.yaml")

    def test_no_answer_is_no_reason_to_run_here(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _write(folder / "cluster.yaml", CLOUD)
        cache()
        ray_says(monkeypatch, tmp_path, "echo 'NoCredentialsError: Unable to locate credentials' >&2; exit 1")
        with pytest.raises(
            EnvironmentFailure, match=r"^\./cluster.yaml: its head could not .*Unable to locate credentials; --local"
        ):
            decide()
        ray_says(monkeypatch, tmp_path, "exec sleep 60")
        monkeypatch.setattr(cluster_file, "ASK_WITHIN_S", 0.5)
        with pytest.raises(EnvironmentFailure, match=r"^\./cluster.yaml: no answer within 0.5 s about its head.*; --local"):
            decide()

    def test_rays_own_words_for_a_cluster_that_is_down(self) -> None:
        """What `find_head` looks for in them."""
        from ray.autoscaler._private.commands import _get_running_head_node

        class Empty:
            def non_terminated_nodes(self, tags: dict[str, str]) -> list[str]:
                return []

        with pytest.raises(RuntimeError, match=r"not found!$"):
            _get_running_head_node({"cluster_name": "x"}, "x.yaml", None, _provider=Empty())


def test_deciding_imports_nothing_heavy(folder: Path, tmp_path: Path) -> None:
    _write(folder / "cluster.yaml", CLOUD)
    heavy = {"ray", "torch", "mlflow", "boto3"}
    code = f"import sys; from raylt.cluster.place import decide; decide(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
