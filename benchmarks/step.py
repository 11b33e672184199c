"""A step of raylt's training beside one of diffusers' training example, for three U-Nets.

    python benchmarks/step.py [--rounds 7] [--only digits | tiny | ddpm-cifar10]     # writes benchmarks/results/step.json

The example is `examples/unconditional_image_generation/train_unconditional.py` of diffusers: a DataLoader with flips, AdamW,
clipping, `EMAModel`. It trains without masks, raylt with one, in all forms of the device. They take turns in one
process, and each turn the order. On a GPU: batches of 128, also the example in bf16, times by the wall, and MFU. On a
CPU: small batches, CPU time of this thread.

MFU counts 3 forward passes a step (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and no more than the U-Net's
multiplications, against the peak of the precision that multiplies.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from gpu import PEAK_TFLOPS
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from raylt.diffusion.compute import COMPILED, EAGER, FORMS, Compute
from raylt.diffusion.device import gpu_abilities
from raylt.diffusion.flops import count_flops
from raylt.diffusion.train import Trainer
from raylt.diffusion.unet import build_unet
from raylt.spec import SweepSpec
from raylt.sweep.step_time import trainer_of

RESULTS = Path(__file__).parent / "results" / "step.json"
CPU_BATCHES = {"digits": 32, "tiny": 32, "ddpm-cifar10": 2}
PIECE_S = 1.0  # of a turn, about


class Example:
    """The loop of diffusers' example, as its options stand by default."""

    def __init__(self, model: UNet2DModel, images_NCHW: Tensor, batch_size: int, device: str, is_bf16: bool) -> None:
        self.device, self.is_bf16 = device, is_bf16
        self.model = model.to(device).train()
        self.loader = DataLoader(TensorDataset(images_NCHW), batch_size, shuffle=True, drop_last=True)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.scheduler, self._batches = DDPMScheduler(num_train_timesteps=1000), iter(())

    def _batch(self) -> Tensor:
        batch = next(self._batches, None)
        if batch is None:
            self._batches: Iterator[list[Tensor]] = iter(self.loader)
            batch = next(self._batches)
        x_BCHW = batch[0].float() / 127.5 - 1
        return torch.stack([x.flip(-1) if torch.rand(()) < 0.5 else x for x in x_BCHW])  # a transform works image by image

    def run_step(self) -> Tensor:
        clean_BCHW = self._batch().to(self.device)
        noise_BCHW = torch.randn_like(clean_BCHW)
        t_B = torch.randint(0, 1000, (len(clean_BCHW),), device=self.device)
        noisy_BCHW = self.scheduler.add_noise(clean_BCHW, noise_BCHW, t_B)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_bf16):
            loss = torch.nn.functional.mse_loss(self.model(noisy_BCHW, t_B).sample.float(), noise_BCHW)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        return loss.detach()


def seconds_a_step(run_step: Callable[[], Tensor], device: str) -> float:
    """Of as many steps as fill a piece."""
    clock = time.perf_counter if device == "cuda" else time.thread_time
    began, steps = clock(), 0
    while steps < 2 or clock() - began < PIECE_S:
        last = run_step()
        steps += 1
        if device == "cuda" and steps % 10 == 0:
            torch.cuda.synchronize()
    float(last)  # waits for the device
    return (clock() - began) / steps


def arms_of(spec: SweepSpec, device: str) -> dict[str, tuple[Any, str]]:
    """Name -> (a loop, its precision)."""
    size, batch_size = spec.unet_config["sample_size"], spec.train.batch_size
    images_NCHW = torch.randint(0, 256, (2000, spec.image_shape[0], size, size), dtype=torch.uint8)
    precisions = ("fp32", "bf16") if device == "cuda" else ("fp32",)
    arms: dict[str, tuple[Any, str]] = {}
    for precision in precisions:
        for form in FORMS if device == "cuda" else (EAGER, COMPILED):
            arms[f"raylt {precision} {form}"] = trainer_of(spec, images_NCHW, Compute(device, precision, 1, form)), precision
        model = build_unet(spec.unet_config, 0)
        arms[f"example {precision}"] = Example(model, images_NCHW, batch_size, device, precision == "bf16"), precision
    return arms


def measure(preset: str, device: str, rounds: int) -> dict[str, Any]:
    batch_size = 128 if device == "cuda" else CPU_BATCHES[preset]
    name = "digits" if preset == "digits" else "cifar10"
    spec = SweepSpec.model_validate({
        "schema": 1, "name": "step", "data": {"name": name, "flip": True}, "model": {"preset": preset},
        "train": {"steps": 1000, "batch_size": batch_size, "gradient_clip": 1.0},
    })  # fmt: skip
    arms, times = arms_of(spec, device), dict[str, list[float]]()
    for turn in range(rounds + 1):  # the first warms up
        for arm in arms if turn % 2 else reversed(arms):
            took = seconds_a_step(arms[arm][0].run_step, device)
            if turn:
                times.setdefault(arm, []).append(took)
    flops = 3 * count_flops(spec.unet_config).dense * batch_size
    return {
        "batch": batch_size, "forward_gflops_an_image": count_flops(spec.unet_config).dense / 1e9,
        "arms": {arm: numbers_of(taken, batch_size, flops, arms[arm][1], device) for arm, taken in sorted(times.items())},
        "example_to_raylt": {
            arm: round(statistics.median(
                example / ours for example, ours in zip(times[f"example {arms[arm][1]}"], times[arm], strict=True)
            ), 3)
            for arm in sorted(times) if arm.startswith("raylt")
        },
        "checkpoint": checkpoint_cost(arms[next(arm for arm in arms if arm.startswith("raylt"))][0]),
    }  # fmt: skip


def checkpoint_cost(trainer: Trainer) -> dict[str, Any]:
    """What a training waits for a checkpoint, and what its writing takes (on a GPU, in a thread), without the store's share."""
    before = time.perf_counter()
    snapshot = trainer.snapshot()
    waited = time.perf_counter() - before
    data = snapshot().to_bytes(trainer.recipe.masks)
    return {
        "waits_ms": round(1000 * waited, 1),
        "takes_ms": round(1000 * (time.perf_counter() - before), 1),
        "bytes": len(data),
    }


def numbers_of(taken: list[float], batch_size: int, flops: float, precision: str, device: str) -> dict[str, Any]:
    step_s = statistics.median(taken)
    numbers = {"step_ms": round(1000 * step_s, 2), "images_per_s": round(batch_size / step_s, 1)}
    peaks = next(
        (peaks for card, peaks in PEAK_TFLOPS.items() if device == "cuda" and card in torch.cuda.get_device_name()), None
    )
    return numbers if peaks is None else {**numbers, "mfu": round(flops / step_s / 1e12 / peaks[precision], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=list(CPU_BATCHES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if gpu_abilities()[0] else "cpu"
    document = json.loads(given.out.read_text()) if given.out.exists() else {}
    for preset in CPU_BATCHES:
        if given.only in (None, preset):
            document[preset] = {
                **measure(preset, device, given.rounds),
                "on": torch.cuda.get_device_name() if device == "cuda" else f"one thread of {platform.machine()}",
                "date": dt.date.today().isoformat(), "torch": version("torch"), "diffusers": version("diffusers"),
            }  # fmt: skip
            given.out.write_text(json.dumps(document, indent=1) + "\n")
            print(preset, document[preset]["arms"], document[preset]["example_to_raylt"])


if __name__ == "__main__":
    main()
