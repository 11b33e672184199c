"""`raylt sweep` on stores that fail: on a real S3 server with drivers killed and the server gone, on disks full or read-only.

The same resume test as on a local store: whatever happened in between, the results are those of a sweep that nothing has
disturbed, and no step is trained more than one checkpoint interval again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylt.report.document import results
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger, Store
from raylt.store.filesystem import Files
from tests.chaos.test_scripted import steps_trained
from tests.conftest import TINY, merged
from tests.support import s3, sabotage
from tests.support.sabotage import HOLD
from tests.support.sweeping import NAME, Done, Sweep, comparable, eventually

CHECKPOINT_EVERY = TINY["train"]["checkpoint_every"]
SPEC = "tiny.yaml"


@pytest.fixture(scope="module")
def expected(undisturbed: Path) -> dict[str, Any]:
    return comparable(results(SweepSpec.model_validate(TINY), Ledger(Store(str(undisturbed / "root")), NAME)))


@pytest.fixture
def server() -> Iterator[s3.S3Server]:
    with s3.running() as running:
        yield running


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    made.kill()


def put_spec(sweep: Sweep, root: str, warm: Path) -> None:
    """The tiny sweep's spec, and a store at `root` that knows the features already."""
    (sweep.folder / SPEC).write_text(dump_yaml(merged(TINY, {"storage": {"root": root}})))
    source, target = Files(str(warm)), Files(root)
    for path, _ in source.all_files("stages"):
        target.write(path, source.read(path) or b"")


def wait_for(sweep: Sweep, driver: subprocess.Popen, trial: int) -> int:
    """The pid of the worker that is held in the middle of `trial`."""
    flag = sabotage.held(sweep.folder, trial)
    eventually(lambda: flag.exists() or driver.poll() is not None, f"trial {trial} is at work")
    assert driver.poll() is None, sweep.end(driver).err
    pid = int(flag.read_text())
    flag.unlink()
    return pid


def assert_stopped_by_its_store(done: Done, cause: str) -> None:
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert cause in done.err.splitlines()[-1]


@pytest.mark.timeout(1200)  # four drivers
def test_a_sweep_on_s3_resumes_as_one_on_a_local_store(server, sweep, undisturbed, expected, _warm_store):
    root = server.root("sweeps")
    put_spec(sweep, root, _warm_store)

    # kill -9 of the driver in the middle of a round, after a checkpoint; before that, a second driver
    first = sweep.start(SPEC, plan={2: HOLD})
    worker = wait_for(sweep, first, 2)
    done = sweep.run()
    assert done.code == 3
    assert f"sweep {NAME} is being driven by pid {first.pid} on " in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert any("/checkpoint-" in key for key in server.keys("sweeps"))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    eventually(lambda: not psutil.pid_exists(worker), "the worker is gone")

    # the server goes away in the middle of a round, for longer than is waited for
    second = sweep.start(SPEC, plan={6: HOLD})
    wait_for(sweep, second, 6)
    server.stop()
    sabotage.let_go(sweep.folder, 6)
    assert_stopped_by_its_store(sweep.end(second), "see that the server is up and that its address is right")
    server.start()

    done = sweep.run()
    assert done.code == 0, done.err
    assert comparable(sweep.results(SPEC)) == expected
    assert not [key for key in server.keys("sweeps") if "checkpoint-" in key or key.endswith("claim.json")]
    before, after = steps_trained(undisturbed), sweep.steps()
    assert set(after) == set(before)
    again = (after - before).total()
    print(f"{again} of {before.total()} steps again, after a kill and a server that was gone")
    assert again <= 2 * TINY["search"]["concurrency"] * CHECKPOINT_EVERY
    assert "freed 0 B" in sweep.read("store", "gc", SPEC)


# --- local disks ------------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    """To the last byte, as a sweep that ended would leave it after a while."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB: less than the tiny sweep needs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(1200)  # four drivers
def test_a_full_disk_stops_a_sweep_that_goes_on_when_there_is_space_and_a_read_only_one_does(
    disk, sweep, undisturbed, expected, _warm_store
):
    put_spec(sweep, str(disk / "root"), _warm_store)
    dry = sweep.read("sweep", SPEC, "--dry-run")
    assert "may be missing; free them there, or choose another storage.root" in dry
    measured = sweep.steps()  # the dry run takes a few, to time them
    for _ in range(2):  # again: it does not wear out
        assert_stopped_by_its_store(sweep.run(), "No space left on device; free space there (raylt store du")
    stopped = sweep.results(SPEC)
    assert stopped["state"] == "interrupted" and stopped["counts"]["failed"] == 0  # no trial was blamed for it

    fill(disk)
    root = ("--root", str(disk / "root"))
    done = sweep.call("store", "gc", NAME, *root)  # which the message names: its own lease finds no room
    assert done.code == 0 and re.match(r"freed [\d.]+ [kM]B: \d unfinished stages", done.out), done
    assert sweep.call("store", "gc", NAME, *root).out.startswith("freed 0 B")
    fill(disk)
    done = sweep.call("store", "gc", NAME, *root)
    assert_stopped_by_its_store(done, "and no checkpoint of it that could go first; free a few kB there")
    (disk / "filler").unlink()

    remount(disk, "ro,size=64m")
    done = sweep.run()
    assert_stopped_by_its_store(done, "Read-only file system; make it writable, or choose another storage.root")
    assert len(done.err.splitlines()) <= 2  # where it would have run, and why it does not
    assert comparable(sweep.results(SPEC)) == comparable(stopped)  # who only reads need not write

    remount(disk, "rw")
    done = sweep.run()
    assert done.code == 0, done.err
    assert comparable(sweep.results(SPEC)) == expected
    assert set(sweep.steps() - measured) == set(steps_trained(undisturbed))
