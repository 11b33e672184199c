"""A driver that was taken for dead, and lives; and a store whose damage no trial is blamed for."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylt.report.document import results
from raylt.spec import SweepSpec
from raylt.store import Ledger, Store
from tests.chaos.test_scripted import drive
from tests.conftest import TINY
from tests.integration.test_s3 import SPEC, put_spec
from tests.support import s3, sabotage
from tests.support.sabotage import HOLD
from tests.support.sweeping import NAME, Sweep, comparable, eventually

STOPPED_FOR_S = 120.0


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    made = Sweep(tmp_path)
    yield made
    for driver in made.drivers:
        if driver.poll() is None:
            os.kill(driver.pid, signal.SIGCONT)
    made.kill()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "raylt-data")
        return
    with s3.running() as server:
        yield server.root("takeover")


@pytest.mark.slow  # two minutes and two sweeps, twice
@pytest.mark.timeout(1200)
def test_a_driver_stopped_for_two_minutes_while_another_finishes_its_sweep(root, sweep, _warm_store, tmp_path_factory):
    put_spec(sweep, root, _warm_store)
    first = sweep.start(SPEC, plan={6: HOLD})
    flag = sabotage.held(sweep.folder, 6)
    eventually(lambda: flag.exists() or first.poll() is not None, "trial 6 is at work")
    assert first.poll() is None, sweep.end(first).err
    os.kill(first.pid, signal.SIGSTOP)
    began = time.monotonic()
    sabotage.let_go(sweep.folder, 6)  # its worker was not stopped, and finds out by itself
    second = sweep.run()
    assert second.code == 0, second.err
    assert f"was driven by pid {first.pid}" in second.err
    document = sweep.results(SPEC)
    time.sleep(max(0.0, STOPPED_FOR_S - (time.monotonic() - began)))
    os.kill(first.pid, signal.SIGCONT)
    done = sweep.end(first)
    assert done.code == 3 and "Traceback" not in done.err, done.err
    assert "was taken over by pid" in done.err.splitlines()[-1]
    assert comparable(sweep.results(SPEC)) == comparable(document)
    committed = (sweep.folder / "ledger.log").read_text().splitlines()
    assert len(committed) == len(set(committed)) == 2 * len(document["trials"])  # each asked once, each ended once
    assert "none damaged" in sweep.read("store", "verify", "--root", root)

    alone = tmp_path_factory.mktemp("alone")
    shutil.copytree(_warm_store, alone / "root")
    assert drive(alone) == 0
    undisturbed = results(SweepSpec.model_validate(TINY), Ledger(Store(str(alone / "root")), NAME))
    assert comparable(document) == comparable(undisturbed)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_stage_ends_the_sweep_and_fails_no_trial(sweep, _warm_store):
    put_spec(sweep, "./raylt-data", _warm_store)
    assert sweep.run("--set", "search.trials=0").code == 0
    store = Store(str(sweep.folder / "raylt-data"))
    dense = Ledger(store, NAME).results[0]
    harmed = sweep.folder / "raylt-data" / store.find(dense.ticket.final_stage).path / "trained.safetensors"
    flip(harmed)
    done = sweep.run()
    assert done.code == 3 and "Traceback" not in done.err, done.err
    assert "trained.safetensors is damaged" in done.err and "raylt store verify" in done.err
    document = sweep.results()
    assert document["counts"]["failed"] == 0 and document["state"] == "interrupted"
    assert sweep.end(sweep.start("verify", command="store")).code == 3
    mended = sweep.end(sweep.start("verify", "--repair", command="store"))
    assert mended.code == 0 and "deleted" in mended.out
    done = sweep.run()
    assert done.code == 0, done.err
    assert sweep.results()["counts"]["complete"] == 8


@pytest.mark.slow  # without Ray: tests/chaos/test_damage.py
def test_one_digit_of_a_result_does_not_move_the_front(sweep, _warm_store):
    put_spec(sweep, "./raylt-data", _warm_store)
    assert sweep.run("--set", "search.trials=1").code == 0
    path = sweep.ledger / "trials/00004/result.json"
    text = path.read_text()
    path.write_text(text.replace('"loss": 0.', '"loss": 1.', 1))
    assert path.read_text() != text
    for words in (["results", NAME, "--json"], ["status", NAME], ["report", NAME, "-o", "page.html"]):
        done = sweep.end(sweep.start(*words[1:], command=words[0]))
        assert (done.code, "trials/00004/result.json is damaged" in done.err) == (3, True), done
    assert "Traceback" not in done.err
