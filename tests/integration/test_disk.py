"""A sweep that was killed, swept clean by `raylt store gc`, and gone on with; and what it needs against what was estimated."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from diffusers import DDPMPipeline

from raylt.diffusion.data import load_images
from raylt.report.document import results
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Lease, Ledger, Store
from raylt.sweep.footprint import footprint
from raylt.trial.inputs import Inputs
from tests.chaos.test_scripted import comparable, drive
from tests.conftest import TINY, merged

SPEC = SweepSpec.model_validate(TINY)
ESTIMATE_WITHIN = 1.6  # times what is really needed, and never less


def raylt(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "raylt.cli", *words], capture_output=True, text=True, timeout=300)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_estimate_is_what_a_sweep_needs(undisturbed):
    need, real = footprint(SPEC, Inputs(load_images(SPEC.data))), bytes_in(undisturbed / "root")
    print(f"estimated {need.end} and {need.peak} bytes, needed {real}: {need.end / real:.2f} times as much")
    assert real <= need.end <= ESTIMATE_WITHIN * real
    assert need.end < need.peak


def test_the_estimate_grows_with_what_costs():
    inputs = Inputs(load_images(SPEC.data))

    def end(**changes) -> int:
        return footprint(SweepSpec.model_validate(merged(TINY, changes)), inputs).end

    plain = end()
    assert end(search={"trials": 6}) > plain < end(ticket={"rounds": 3}) and end(search={"pilots": 3}) > plain
    assert end(metrics={"keep_samples": True}) - plain == 80 * 64 * 9  # trainings: two dense, two of round 1, five of round 2


def test_gc_frees_what_a_kill_left_and_the_sweep_goes_on_as_if_nothing_had_been(undisturbed, _warm_store, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(_warm_store, root)
    assert drive(tmp_path, "checkpointed", "5") == -9
    assert list(root.glob("stages/*/*/checkpoint-*"))
    before = bytes_in(root / "stages")

    lease = Lease.acquire(Store(str(root)), "tiny")  # as a living driver has it
    done = raylt("store", "gc", "tiny", "--root", str(root))
    assert done.returncode == 3 and "sweep tiny is being driven by pid" in done.stderr
    assert raylt("store", "gc", "tiny", "--root", str(root), "--dry-run").returncode == 3
    lease.release()

    would = raylt("store", "gc", "tiny", "--root", str(root), "--dry-run").stdout
    assert would.startswith("would free ") and bytes_in(root / "stages") == before
    freed = raylt("store", "gc", "tiny", "--root", str(root))
    assert freed.stdout == would.replace("would free", "freed")
    assert "1 unfinished stages, 0 stages of failed trials alone" in freed.stdout
    assert not list(root.glob("stages/*/*/checkpoint-*")) and bytes_in(root / "stages") < before

    assert drive(tmp_path) == 0
    assert comparable(tmp_path) == comparable(undisturbed)
    table = raylt("store", "du", "--root", str(root)).stdout
    assert re.search(r"^tiny +[\d.]+ MB +0 B +0 B +[\d.]+ kB *$", table, re.MULTILINE), table
    assert "stages that no sweep names: 0 B" in table
    assert raylt("store", "gc", "tiny", "--root", str(root)).stdout.startswith("freed 0 B")
    (tmp_path / "tiny.yaml").write_text(dump_yaml(TINY))
    done = raylt("export", "tiny", "7", str(tmp_path / "exported"), "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert DDPMPipeline.from_pretrained(tmp_path / "exported").unet.config.sample_size == 8
    assert results(SPEC, Ledger(Store(str(root)), "tiny"))["counts"]["complete"] == 8


def test_of_nothing(tmp_path):
    done = raylt("store", "du", "--root", str(tmp_path))
    assert done.returncode == 2 and f"{tmp_path} is no store" in done.stderr
    done = raylt("store", "gc", "nothing", "--root", str(tmp_path))
    assert done.returncode == 2 and "no sweep 'nothing'" in done.stderr
