"""A node is removed in mid-trial: the trial goes on elsewhere, from its last checkpoint, and is not blamed."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.chaos.machines import RayCluster, eventually, send
from tests.chaos.sweep import CHECKPOINT_EVERY, Sweep, spec_for
from tests.conftest import merged
from tests.support import sabotage

PACE_S = 0.1  # more for each step: a second between checkpoints


@pytest.fixture
def sweep_on_a_cluster(_warm_store, tmp_path) -> Iterator[tuple[Sweep, RayCluster]]:
    """A sweep of the dense model and two pilots, one trial at a time, on two nodes."""
    environment = sabotage.environment(tmp_path, {}, PACE_S)
    cluster = RayCluster(environment)
    sweep = Sweep(tmp_path, _warm_store, merged(spec_for(1, 0), {"search": {"baselines": []}}))
    try:
        cluster.start_head()
        for _ in range(2):
            cluster.add_node()
        sweep.start_driver(cluster.for_drivers, cluster.address)
        yield sweep, cluster
    finally:
        if sweep.driver is not None and sweep.is_running():
            sweep.driver.kill()
        cluster.stop()


def lines(sweep: Sweep) -> list[str]:
    return (sweep.folder / "steps.log").read_text().splitlines() if (sweep.folder / "steps.log").exists() else []


def wait_until_inside(sweep: Sweep) -> None:
    """Until some steps have been trained beyond a checkpoint that is not the last of its stage."""
    first = len(lines(sweep))

    def inside() -> bool:
        new = lines(sweep)[first:]
        step = int(new[-1].split()[1]) if len(new) > 3 else 0
        return step > CHECKPOINT_EVERY and step % CHECKPOINT_EVERY in (3, 4, 5, 6)

    eventually(inside, "training is between two checkpoints")


def after(sweep: Sweep, num: int) -> str:
    """The first step that is trained after the first `num`."""
    return eventually(lambda: lines(sweep)[num : num + 1], "training goes on")[0]


@pytest.mark.slow
def test_a_trial_whose_node_goes_away_goes_on_elsewhere(sweep_on_a_cluster):
    sweep, cluster = sweep_on_a_cluster

    wait_until_inside(sweep)  # (a) the raylet is killed, and everything below it with it
    (node,) = [node for node in cluster.nodes if node.workers()]
    cluster.lose(node)
    node.kill()
    done = lines(sweep)
    seed, step, mask = done[-1].split()
    last = int(step) // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    assert after(sweep, len(done)) == f"{seed} {last + 1} {mask}"
    killed = int(step) - last

    cluster.add_node()
    wait_until_inside(sweep)  # (b) a spot notice
    (node,) = [node for node in cluster.nodes if node.workers()]
    cluster.lose(node)
    node.processes()
    node.process.send_signal(signal.SIGTERM)
    eventually(lambda: not node.workers(), "the worker leaves")
    done = lines(sweep)
    seed, step, mask = done[-1].split()
    assert int(step) % CHECKPOINT_EVERY, "it should have left between two checkpoints"
    assert after(sweep, len(done)) == f"{seed} {int(step) + 1} {mask}"

    wait_until_inside(sweep)  # (c) the worker alone is told to leave
    (node,) = [node for node in cluster.nodes if node.workers()]
    before = sweep.steps().total() - len(sweep.steps())
    send(node.workers(), signal.SIGTERM)
    assert sweep.wait() == 0, sweep.output()
    repeated = sweep.steps().total() - len(sweep.steps())
    print(f"steps repeated: {killed} after a kill, {before - killed} after a notice, {repeated - before} after SIGTERM")
    assert killed <= CHECKPOINT_EVERY
    assert repeated == before == killed
    assert {result.state for result in sweep.ledger().results.values()} == {"COMPLETE"}
