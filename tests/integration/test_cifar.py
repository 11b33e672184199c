"""The CIFAR-10 specs on real CIFAR-10 with Inception, at toy size: what they ask for runs, from the search to the verdicts.

Only sizes change: the U-Net keeps its kinds of blocks, with attention, dropout and its own head rule. Full size needs a GPU
for days, and has not been run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylt.spec import load_spec
from raylt.spec.presets import PRESETS

UNET = {**PRESETS["ddpm-cifar10"], "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
TOY = {
    "model.preset": None, "model.config": UNET,
    "train.steps": 30, "train.batch_size": 8, "train.learning_rate": 1e-2, "train.warmup_steps": 2,
    "ticket.rounds": 2, "ticket.density": 0.3, "ticket.rewind_step": 2, "ticket.shared_rounds": 0,
    "search.trials": 1, "search.pilots": 2, "search.concurrency": 1,
    "metrics.reference": 64,
    **{f"metrics.{p}.{key}": value for p in ("search", "final") for key, value in (("samples", 8), ("steps", 3))},
    "metrics.final.sampler": "ddpm",
    "confirm.seeds": 2, "confirm.top": 1, "confirm.steps": [30], "confirm.control_rounds": [2],
    "resources.cpus": 1, "resources.gpus": 0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("RAYLT_TEST_DATA" not in os.environ, reason="RAYLT_TEST_DATA names no folder with CIFAR-10 and Inception")
@pytest.mark.parametrize("name", ["cifar10", "cifar10-uniform"])
def test_a_cifar_spec_at_toy_size(tmp_path: Path, name: str) -> None:
    data = Path(os.environ["RAYLT_TEST_DATA"]).absolute()
    spec = load_spec(name)
    words = [f"--set={key}={json.dumps(value)}" for key, value in TOY.items()]
    if spec.search.trials == 0:  # the paper's schedule searches nothing
        words.append("--set=search.trials=0")
    inception = next(data.glob("weights-inception-*.pth"))
    env = {**os.environ, "RAYLT_DATA": str(data), "RAYLT_INCEPTION": str(inception)}
    raylt = [sys.executable, "-m", "raylt.cli"]
    done = subprocess.run(
        [*raylt, "confirm", name, *words, "--local"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = subprocess.run([*raylt, "results", name, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    document = json.loads(shown)
    assert document["state"] == "complete" and document["counts"]["failed"] == 0
    assert document["protocols"]["final"]["features"] == "inception"
    assert {"dense", "baseline", "control"} <= {trial["kind"] for trial in document["trials"] if trial["protocol"] == "final"}
    assert all(trial["fid"] > 100 for trial in document["trials"])  # of nets that know nothing yet
    controls = {row["control"] for row in document["confirmation"]} - {None}
    assert controls == {"reinit", "shuffled", "random", "small-dense"}
