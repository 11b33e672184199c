"""What a step of training and a denoising step cost on a GPU: ddpm-cifar10 at batch 128, in each precision, interleaved.

    python benchmarks/gpu.py [--preset ddpm-cifar10] [--batch 128] [--rounds 5] [-o FILE]

Medians of `--rounds` interleaved pieces. MFU counts 3 forward passes a step (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)
and no more than the U-Net's multiplications, against the peak of the precision that multiplies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.flops import count_flops
from raylt.diffusion.train import Trainer
from raylt.spec import SweepSpec
from raylt.sweep.step_time import trainer_of

PRECISIONS = ("fp32", "tf32", "bf16")
PEAK_TFLOPS = {"H100": {"fp32": 67, "tf32": 495, "bf16": 989}, "H200": {"fp32": 67, "tf32": 495, "bf16": 989}}  # dense, SXM


def seconds(work: Callable[[], Any], times: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


@torch.no_grad()
def denoise(trainer: Trainer, x_NCHW: torch.Tensor, t: torch.Tensor) -> None:
    with trainer.recipe.compute.autocast():
        trainer.model(x_NCHW, t)


def measure(preset: str, batch: int, rounds: int) -> dict[str, Any]:
    spec = SweepSpec.model_validate({
        "schema": 1, "name": "gpu", "data": {"name": "cifar10"}, "model": {"preset": preset},
        "train": {"steps": 1000, "batch_size": batch, "gradient_clip": 1.0},
    })  # fmt: skip
    size = spec.unet_config["sample_size"]
    images_NCHW = torch.randint(0, 256, (2000, 3, size, size), dtype=torch.uint8)
    gpu = torch.cuda.get_device_name()
    peak = next((peaks for name, peaks in PEAK_TFLOPS.items() if name in gpu), None)
    forward_flops = count_flops(spec.unet_config).dense
    found: dict[str, dict[str, list[float]]] = {}
    trainers = {}
    x_NCHW, t = torch.randn(250, 3, size, size, device="cuda"), torch.tensor(500, device="cuda")
    for round_ in range(rounds + 1):  # the first warms up
        for precision in PRECISIONS:
            compute = Compute("cuda", precision)
            compute.use()
            trainer = trainers.setdefault(precision, trainer_of(spec, images_NCHW, compute))
            trainer.model.train()
            step_s = seconds(trainer.run_step, 20)
            trainer.model.eval()
            image_s = seconds(lambda trainer=trainer: denoise(trainer, x_NCHW, t), 8) / len(x_NCHW)
            if round_:
                into = found.setdefault(precision, {"step_s": [], "image_s": []})
                into["step_s"].append(step_s)
                into["image_s"].append(image_s)
    rows = {}
    for precision, times in found.items():
        step_s = statistics.median(times["step_s"])
        tflops = 3 * forward_flops * batch / step_s / 1e12
        rows[precision] = {
            "step_ms": round(step_s * 1e3, 2), "denoised_images_per_s": round(1 / statistics.median(times["image_s"])),
            "tflops": round(tflops, 1), "mfu": None if peak is None else round(tflops / peak[precision], 3),
        }  # fmt: skip
    memory = torch.cuda.max_memory_allocated() / 2**30
    return {"gpu": gpu, "torch": torch.__version__, "preset": preset, "batch": batch, "forward_gflops": forward_flops / 1e9,
            "peak_gib_of_all_three": round(memory, 1), "precisions": rows}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="ddpm-cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    found = measure(options.preset, options.batch, options.rounds)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
