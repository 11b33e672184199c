"""On a real GPU: `make test-gpu`. What needs none is in tests/diffusion/test_device.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raylt.diffusion.compute import EAGER, FORMS, Compute
from raylt.diffusion.data import ImageSet, load_images
from raylt.diffusion.device import is_lost
from raylt.diffusion.sample import Sampling, held_out_loss, sample_chunk
from raylt.diffusion.train import Recipe, Trainer, TrainState, run
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.errors import cause_of
from raylt.spec import dump_yaml
from raylt.sweep.step_form import tune_step
from raylt.ticket.mask import Mask
from tests.conftest import TINY, merged
from tests.support import sabotage

pytestmark = pytest.mark.gpu
STEPS = 40


@pytest.fixture(autouse=True)
def _gpu():
    assert torch.cuda.is_available(), "needs a GPU that torch can use"


@pytest.fixture
def images(tiny_spec) -> ImageSet:
    return load_images(tiny_spec().data)


# --- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, 1e-5), ("tf32", 3e-5, 1e-2)])
def test_fp32_is_ieee_and_tf32_is_not(precision, least, most):
    """Relative error of a convolution, its gradient and a product against float64."""
    Compute("cuda", precision).use()
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(16, 128, 16, 16, generator=draw), torch.randn(128, 128, 3, 3, generator=draw, requires_grad=True)

    def multiplied(x, w):
        y = torch.nn.functional.conv2d(x, w, padding=1)
        (slope,) = torch.autograd.grad(y.square().sum(), w)
        return y.detach(), slope, w.detach().flatten(1) @ w.detach().flatten(1).T

    for found, right in zip(multiplied(x.cuda(), w.cuda()), multiplied(x.double(), w.double()), strict=True):
        error = float((found.double().cpu() - right).abs().max() / right.abs().max())
        print(f"{precision}: {error:.1e}")
        assert least <= error <= most


def trained(spec, images, compute, state=None, stop=STEPS):
    mask = Mask({layer.name: torch.rand(layer.shape, generator=torch.Generator().manual_seed(1)) < 0.3
                 for layer in layers_of(spec.unet_config)})  # fmt: skip
    model = build_unet(spec.unet_config, 0)
    state = state or TrainState.fresh(mask.apply(parameters_of(model)))
    masks = {f"{name}.weight": keep for name, keep in mask.layers.items()}
    compute.use()
    trainer = Trainer(model, images.train_NCHW, Recipe(spec.train, compute, seed=0, flip=True, masks=masks), state)
    return run(trainer, stop, save=lambda data: None), mask, trainer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_pruned_weights_stay_zero_and_the_loss_is_the_cpus(tiny_spec, images, precision, form):
    spec = tiny_spec(train={"steps": STEPS, "batch_size": 32})
    compute = Compute("cuda", precision, 1, form)
    state, mask, trainer = trained(spec, images, compute)
    for group in (state.weights, state.first_moments, state.second_moments, state.ema):
        for name, keep in mask.layers.items():
            assert not group[f"{name}.weight"][~keep].view(torch.int32).any()
    model = trainer.model.eval()
    loss = {device: held_out_loss(model.to(device), images.test_NCHW, "linear", Compute(device, precision if device == "cuda"
            else "fp32"))[0] for device in ("cuda", "cpu")}  # fmt: skip
    print(f"{precision}: held-out loss {loss}")
    assert loss["cuda"] == pytest.approx(loss["cpu"], rel={"fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}[precision])
    shape = tuple(images.train_NCHW.shape[1:])
    chunks = [sample_chunk(model.to("cuda"), shape, 0, 50, Sampling("ddim", 5, "linear", compute)) for _ in range(2)]
    assert torch.equal(*chunks)


@pytest.mark.parametrize("form", FORMS)
def test_training_that_was_cut_goes_on_as_if_it_had_not_been(tiny_spec, images, form):
    """Not bit for bit: some gradients of cuDNN are sums in no fixed order. As close as two runs that nothing has cut."""
    spec = tiny_spec(train={"steps": STEPS, "batch_size": 32})
    compute = Compute("cuda", "fp32", 1, form)
    whole, again = (trained(spec, images, compute)[0] for _ in range(2))
    half = TrainState.from_bytes(trained(spec, images, compute, stop=STEPS // 2)[0].to_bytes())
    resumed = trained(spec, images, compute, half)[0]

    def distance(one, other):
        return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)

    print(f"twice the same: {distance(whole, again):.1e}; cut and resumed: {distance(whole, resumed):.1e}")
    one_less = distance(whole, trained(spec, images, compute, stop=STEPS - 1)[0])
    assert distance(whole, resumed) < 1e-5 < one_less / 10


def test_a_checkpoint_is_of_the_step_it_was_taken_at_while_training_goes_on(tiny_spec, images):
    trainer = trained(tiny_spec(train={"steps": STEPS}), images, Compute("cuda"), stop=5)[2]
    now, later = trainer.state(), trainer.snapshot()
    for _ in range(5):
        trainer.run_step()
    assert (later().step, trainer.step) == (5, 10)
    for group in ("weights", "first_moments", "second_moments", "ema"):
        assert all(torch.equal(getattr(later(), group)[name], value) for name, value in getattr(now, group).items())


def test_the_forms_of_a_step_are_tried_and_one_is_taken(tiny_spec):
    tuned = tune_step(tiny_spec(train={"steps": 100_000, "batch_size": 32}))
    print(*tuned.lines, sep="\n")
    assert [line.split()[1].rstrip(":") for line in tuned.lines if line.startswith("step")] == list(FORMS)
    assert tuned.compute.form != EAGER and tuned.trials_a_gpu >= 1


# --- what can go wrong ----------------------------------------------------------------------------------------------------


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_dead_context_is_a_lost_gpu():
    out = in_a_process(
        "import torch; from raylt.diffusion.device import is_lost\n"
        "try:\n    torch.zeros(4, device='cuda')[torch.tensor([9], device='cuda')]; torch.cuda.synchronize()\n"
        "except Exception as error: print(is_lost(error), type(error).__name__)\n"
        "try:\n    torch.zeros(4, device='cuda').sum().item()\n"
        "except Exception as error: print(is_lost(error), 'again')\n"
    )
    assert [line.split()[0] for line in out.splitlines()] == ["True", "True"], out


def test_a_want_of_memory_is_no_lost_gpu_and_one_cause():
    causes = set()
    for gib in (500, 700):
        with pytest.raises(torch.OutOfMemoryError) as raised:
            torch.empty(gib * 2**30, dtype=torch.uint8, device="cuda")
        assert not is_lost(raised.value)
        causes.add(cause_of(raised.value))
    assert causes == {"OutOfMemoryError: CUDA out of memory"}


def test_what_training_leaves_in_the_cache_is_given_back(tiny_spec, images):
    spec = tiny_spec(train={"steps": 5, "batch_size": 512})
    compute = Compute("cuda", "fp32")
    trainer = trained(spec, images, compute, stop=3)[2]
    held, used = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    compute.release_memory()
    print(f"reserved {held / 2**20:.0f} MiB, then {torch.cuda.memory_reserved() / 2**20:.0f}; in use {used / 2**20:.0f}")
    assert torch.cuda.memory_reserved() - used < (held - used) / 2
    assert trainer.step == 3


# --- a sweep --------------------------------------------------------------------------------------------------------------


SWEEP = {"train": {"precision": "auto"}, "resources": {"gpus": 0.5}, "search": {"trials": 3, "concurrency": 2}}


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    (tmp_path / "tiny.yaml").write_text(dump_yaml(merged(TINY, SWEEP)))

    def start(*options: str, plan: dict[int, str] | None = None) -> subprocess.Popen:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))}
        hooks = sabotage.environment(tmp_path, plan or {})
        hooks["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
        words = [sys.executable, "-m", "raylt.cli", "sweep", "tiny.yaml", "--local", *options]
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(words, cwd=tmp_path, env=env | hooks, stdout=log, stderr=log, start_new_session=True)

    return start


def end(driver: subprocess.Popen, folder: Path) -> str:
    code = driver.wait(400)
    log = (folder / "log").read_text()
    assert code == 0 and "Traceback" not in log, log[-6000:]
    return log


def read(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "raylt.cli", *words], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(folder: Path) -> dict[int, Any]:
    return {trial["id"]: trial["state"] for trial in json.loads(read(folder, "results", "tiny", "--json"))["trials"]}


def test_a_sweep_of_two_trials_a_gpu_whose_driver_is_killed_and_one_of_whose_workers_loses_its_gpu(sweep, tmp_path):
    first = sweep(plan={2: sabotage.HOLD})
    until = time.monotonic() + 300
    while not sabotage.held(tmp_path, 2).exists():
        assert first.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-6000:]
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    sabotage.let_go(tmp_path, 2)
    log = end(sweep(plan={6: sabotage.LOSE_GPU}), tmp_path)
    print(log)
    assert "computes on cuda in bf16 (autocast)" in log
    assert (tmp_path / "lost-6").exists()
    assert set(states(tmp_path).values()) == {"complete"}
    assert any("device-side assert" in path.read_text() for path in (tmp_path / "raylt-data").rglob("*.txt"))
    assert "none damaged" in read(tmp_path, "store", "verify")
