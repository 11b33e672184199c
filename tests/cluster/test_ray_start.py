"""Whatever keeps Ray from starting, and whatever it fails with later, is a line with a remedy and exit code 3."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, RuntimeEnvSetupError
from ray.tune import TuneError

from raylt.cluster import ray_start
from raylt.errors import EnvironmentFailure, InputError, in_units

LATE = Exception(
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the GCS "
    "has become overloaded."
)
NO_SHM = ValueError("The configured object store size (0.1 GB) exceeds /dev/shm size (0.0 GB). This will harm performance.")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch):
    """`refusing(error, times)`: `ray.init` raises that error so often; gives what it was called with."""
    calls = []

    def make(error: BaseException, times: int = 99):
        def init(**given):
            calls.append(given)
            if len(calls) <= times:
                raise error

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        return calls

    return make


@pytest.mark.parametrize(
    ("error", "tries", "remedy"),
    [
        (LATE, 3, "too busy"),
        (TimeoutError("Timed out after 30 seconds while waiting for node to startup."), 3, "too busy"),
        (RuntimeError("Failed to start GCS.  Last 0 lines of error files:"), 3, "too busy"),
        (RuntimeError("Timed out waiting for file gcs_server_port"), 3, "too busy"),
        (NO_SHM, 1, "--shm-size"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/there/ray"),
            1,
            "/there/ray: Permission denied; Ray keeps its files",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/there"), 1, "RAY_TMPDIR"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "RAY_TMPDIR"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone"), 1, "RAY_TMPDIR"),
        (AssertionError(), 1, "session_latest/logs"),
        (KeyError("node_manager_port"), 1, "session_latest/logs"),
        (RuntimeError("Version mismatch"), 1, "session_latest/logs"),
        (ConnectionError("Could not find any running Ray instance."), 1, "RAY_TMPDIR"),
    ],
    ids=repr,
)
def test_any_refusal_is_a_line_with_a_remedy(refusing, error, tries, remedy):
    calls, said = refusing(error), []
    with pytest.raises(EnvironmentFailure) as caught, ray_start.running(None, said.append):
        raise AssertionError("not reached")
    assert remedy in str(caught.value)
    assert str(caught.value).startswith("Ray does not start on this machine: ")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert (len(calls), len(said)) == (tries, tries - 1)


def test_a_cluster_that_refuses_is_named(refusing):
    calls = refusing(ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"))
    with pytest.raises(EnvironmentFailure, match=r"^no Ray at 10.0.0.1:6379: "), ray_start.running("10.0.0.1:6379", print):
        raise AssertionError("not reached")
    assert "object_store_memory" not in calls[0] and "_temp_dir" not in calls[0]  # Ray refuses these beside an address


def test_a_busy_machine_is_tried_again_and_what_was_half_up_is_ended(refusing, monkeypatch):
    left = []
    calls, said = refusing(LATE, times=1), []
    start = ray.init

    def init(**given):
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        start(**given)

    monkeypatch.setattr(ray, "init", init)
    with ray_start.running(None, said.append):
        assert left[0].wait(10) < 0 and left[1].poll() is None
    left[1].kill()
    left[1].wait()
    assert len(calls) == 2 and "trying again, 2 more times" in said[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeEnvSetupError("no runtime environment"), "RuntimeEnvSetupError: "),
        (
            RayTaskError("probe", "Traceback (most recent call last): ...", ImportError("no torch there")),
            "ImportError: no torch",
        ),
        (OutOfMemoryError("killed"), "OutOfMemoryError: killed"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_what_ray_fails_with_later_is_a_line_too(refusing, error, words, is_wrapped):
    refusing(error, times=0)
    with pytest.raises(EnvironmentFailure) as caught, ray_start.running(None, print):
        if not is_wrapped:
            raise error
        try:
            raise error
        except Exception:
            raise TuneError("Traceback (most recent call last): ...")  # noqa: B904  # as Tune does
    assert str(caught.value).startswith(f"Ray failed: {words}")
    assert "Traceback" not in str(caught.value) and "resumes from here" in str(caught.value)


def test_raylts_own_fault_while_it_deals_with_a_dead_worker_is_not_said_to_be_rays(refusing):
    """Tune raises all that a callback raises as its own error, with the death of the worker behind it."""
    death = OutOfMemoryError("killed")
    refusing(death, times=0)
    with pytest.raises(TuneError), ray_start.running(None, print):
        try:
            try:
                raise death
            except OutOfMemoryError:
                in_units("a fault")
        except TypeError:
            raise TuneError("Traceback (most recent call last): ...")  # noqa: B904  # as Tune does


@pytest.mark.parametrize("error", [InputError("yours"), KeyError("ours"), KeyboardInterrupt()], ids=repr)
def test_what_is_not_rays_passes(refusing, error):
    refusing(error, times=0)
    with pytest.raises(type(error)), ray_start.running(None, print):
        raise error


def test_a_tmpdir_too_long_for_sockets_is_said_and_another_one_taken(refusing, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 60)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    calls, said = refusing(LATE, times=0), []
    with ray_start.running(None, said.append):
        folder = Path(calls[0]["_temp_dir"])
        assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
        assert len(os.fsencode(folder / ray_start._LONGEST_SOCKET)) <= ray_start.SOCKET_BYTES
    assert not folder.exists()
    assert f"{long} is too long" in said[0] and str(folder) in said[0]


def test_rays_own_check_of_a_socket_agrees(tmp_path):
    from ray._private.utils import validate_socket_filepath

    name = str(tmp_path) + "/" + "x" * (ray_start.SOCKET_BYTES - len(str(tmp_path)) - 1)
    validate_socket_filepath(name)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath(f"{name}x")


def test_a_real_ray_starts_below_a_long_tmpdir(tmp_path):
    """With the real Ray, whose sockets have the longest path that we count on."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    code = (
        "import glob; from raylt.cluster import ray_runtime, ray_start\n"
        "with ray_runtime.connected(None, print):\n"
        "    import ray; folder = ray._private.worker._global_node.get_session_dir_path()\n"
        "    sockets = glob.glob(f'{folder}/sockets/*')\n"
        "    longest = max(len(name) - len(folder.rpartition('/')[0]) - 1 for name in sockets)\n"
        "    print('longest', longest <= len(ray_start._LONGEST_SOCKET), sockets)\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"TMPDIR": str(long)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert "longest True" in ran.stdout, ran.stdout + ran.stderr
    assert ran.returncode == 0 and "Traceback" not in ran.stderr
