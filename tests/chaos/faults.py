"""The faults: each does its harm to a running sweep and puts the machines back, so that the next one finds them whole.

What a fault leaves of the sweep is the sweep's business: the driver may go on, or have ended with a documented exit
code, in which case the harness gives the same command again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.machines import DRAIN_S, MlflowServer, Node, RayCluster, eventually, send
from tests.chaos.sweep import Sweep

IS_ROOT = os.geteuid() == 0  # filling and locking a filesystem needs one of our own


class Missed(Exception):
    """The fault found nothing to harm: it does not count."""


class UnexpectedError(Exception):
    """raylt did not behave under a fault as its documentation says."""


@dataclass
class World:
    """All that faults act upon. `draw` decides whatever is left to chance."""

    sweep: Sweep
    cluster: RayCluster
    tracking: MlflowServer
    environment: dict[str, str]  # of drivers
    draw: random.Random

    def start_driver(self) -> None:
        self.sweep.start_driver(self.environment, self.cluster.address)

    def expect_end(self, code: int, *allowed: int) -> None:
        """The driver has ended; raises where its exit code is none of those (0, 1: it had just finished)."""
        if code not in (allowed := (*allowed, 0, 1)):
            raise UnexpectedError(f"the driver left with {code}, not {allowed}:\n{self.sweep.output()[-3000:]}")
        if "Traceback" in self.sweep.output():
            raise UnexpectedError(f"the driver left a traceback:\n{self.sweep.output()[-3000:]}")


# --- workers and nodes ------------------------------------------------------------------------------------------------


def _busy_node(world: World) -> Node:
    """One that runs a trial. Raises `Missed` where the sweep has ended meanwhile."""
    if not eventually(lambda: world.cluster.busy() or not world.sweep.is_running(), "a worker runs") or not (
        nodes := world.cluster.busy()
    ):
        raise Missed
    return world.draw.choice(nodes)


def _signal_a_worker(world: World, number: int) -> None:
    workers = _busy_node(world).workers()
    if not workers:
        raise Missed
    send([world.draw.choice(workers)], number)


def worker_killed(world: World) -> None:
    _signal_a_worker(world, signal.SIGKILL)


def worker_terminated(world: World) -> None:
    _signal_a_worker(world, signal.SIGTERM)


def raylet_killed(world: World) -> None:
    node = _busy_node(world)
    if (raylet := node.raylet) is None:
        raise Missed
    world.cluster.lose(node)
    send([raylet], signal.SIGKILL)
    world.cluster.add_node()
    node.kill()


def node_drained(world: World) -> None:
    """A spot notice: SIGTERM to `ray start --block`, which drains the node and ends it a few seconds later."""
    node = _busy_node(world)
    world.cluster.lose(node)
    node.processes()
    node.process.send_signal(signal.SIGTERM)
    world.cluster.add_node()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.process.wait(4 * DRAIN_S)
    node.kill()


def node_frozen(world: World) -> None:
    """A node that answers nobody, and is gone for good a while later."""
    node = _busy_node(world)
    world.cluster.lose(node)
    send(node.processes(), signal.SIGSTOP)
    world.cluster.add_node()
    time.sleep(world.draw.uniform(5, 10))
    node.kill()


def head_killed(world: World) -> None:
    """Head and with it the cluster: a new one is started under another address. The driver cannot live on."""
    world.cluster.head.kill()
    for node in list(world.cluster.nodes):
        world.cluster.lose(node)
        node.kill()
    world.cluster.start_head()
    for _ in range(2):
        world.cluster.add_node()
    world.sweep.wait()


# --- drivers ----------------------------------------------------------------------------------------------------------


def driver_killed(world: World) -> None:
    world.sweep.stop(signal.SIGKILL)


def driver_terminated(world: World) -> None:
    world.expect_end(world.sweep.stop(signal.SIGTERM), 143)


def driver_interrupted(world: World) -> None:
    world.expect_end(world.sweep.stop(signal.SIGINT), 130)


def second_driver(world: World) -> None:
    """Another driver on the live sweep must leave at once with exit 3 and say who holds it."""
    sweep, first = world.sweep, world.sweep.holder()["pid"]
    second = sweep.start(world.environment, world.cluster.address)
    code, said = second.wait(120), sweep.output(sweep.drivers)
    if sweep.is_running() and (code != 3 or str(first) not in said):
        raise UnexpectedError(f"a second driver left with {code}:\n{said[-3000:]}")
    if not sweep.is_running() and code not in (0, 1, 3):
        raise UnexpectedError(f"a second driver left with {code}:\n{said[-3000:]}")


# --- servers and files ------------------------------------------------------------------------------------------------


def mlflow_away(world: World) -> None:
    """Killed, away for a while, and on its way back: it is there again half a minute later."""
    world.tracking.wait()
    world.tracking.kill()
    time.sleep(world.draw.uniform(2, 8))
    world.tracking.start()


def study_deleted(world: World) -> None:
    world.sweep.study_file.unlink(missing_ok=True)
    world.sweep.wait_for_training()


def study_deleted_while_stopped(world: World) -> None:
    world.sweep.stop(signal.SIGKILL)
    world.sweep.study_file.unlink(missing_ok=True)


def store_full(world: World) -> None:
    """No byte is left on the store's filesystem, for a while."""
    ballast = world.sweep.root / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    try:
        _let_fail(world)
    finally:
        ballast.unlink()


def store_read_only(world: World) -> None:
    """The store's filesystem can only be read, for a while: a read-only mount of it lies over it."""
    root = str(world.sweep.root)
    _mount("--bind", root, root)
    try:
        _mount("-o", "remount,ro,bind", root)
        _let_fail(world)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def _let_fail(world: World) -> None:
    """Time for a checkpoint or a result to fail. A driver that leaves has to say so with exit 3."""
    with contextlib.suppress(TimeoutError):
        eventually(lambda: not world.sweep.is_running(), "the driver leaves", world.draw.uniform(3, 12))
    if not world.sweep.is_running():
        world.expect_end(world.sweep.wait(), 3)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def mount_store(root: Path) -> None:
    """A small filesystem of its own for a store."""
    root.mkdir()
    _mount("-t", "tmpfs", "-o", "size=96m", "raylt-chaos", str(root))


def unmount_store(root: Path) -> None:
    subprocess.run(["umount", "--lazy", str(root)], check=False, capture_output=True)


KINDS: dict[str, Callable[[World], None]] = {
    "worker killed": worker_killed,
    "worker terminated": worker_terminated,
    "raylet killed": raylet_killed,
    "node drained": node_drained,
    "node frozen": node_frozen,
    "head killed": head_killed,
    "driver killed": driver_killed,
    "driver terminated": driver_terminated,
    "driver interrupted": driver_interrupted,
    "second driver": second_driver,
    "MLflow away": mlflow_away,
    "study deleted": study_deleted,
    "study deleted while stopped": study_deleted_while_stopped,
    **({"store full": store_full, "store read-only": store_read_only} if IS_ROOT else {}),
}
POISONED_TRIAL = "poisoned trial"  # in every sweep, the undisturbed one included


def schedule(faults: int, draw: random.Random) -> list[str]:
    """Kinds in random order, each as often as any other, give or take one."""
    kinds: list[str] = []
    while len(kinds) < faults:
        kinds += draw.sample(sorted(KINDS), len(KINDS))
    return kinds[:faults]
