"""A step under a mask beside a dense one, and the search's sampling beside DDIM in 250 steps. Rows of `benchmarks/price.py`."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from pairs import Row, compared

from raylt.diffusion.compute import Compute
from raylt.diffusion.sample import Sampling, sample_chunk
from raylt.diffusion.train import Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec import SweepSpec
from raylt.ticket.mask import Mask

SAMPLED = 16  # images


def step_rows(quick: bool) -> list[Row]:
    """Masked, at several densities, beside a training without masks: a mask costs two multiplications of all weights."""
    presets = [("digits", 32, (0.5, 0.05, 0.01)), *([] if quick else [("ddpm-cifar10", 2, (0.05,))])]
    rows = []
    for preset, batch_size, densities in presets:
        data = "digits" if preset == "digits" else "cifar10"
        spec = SweepSpec.model_validate({
            "schema": 1, "name": "steps", "data": {"name": data}, "model": {"preset": preset},
            "train": {"batch_size": batch_size},
        })  # fmt: skip
        images = torch.randint(0, 256, (500, spec.image_shape[0], *2 * (spec.image_shape[1],)), dtype=torch.uint8)
        times = 10 if preset == "digits" else 1
        for density in densities:
            masked, dense = _masked(spec, images, density), _dense(spec, images)
            part = f"training step of {preset} at {density:.0%}, beside dense"
            rows.append(compared(part, 1.03, partial(_steps, masked, times), partial(_steps, dense, times)))
    return [*rows, sampling_row()]


def _steps(trainer: Trainer, times: int) -> None:
    for _ in range(times):
        trainer.run_step()


def _dense(spec: SweepSpec, images: torch.Tensor) -> Trainer:
    model = build_unet(spec.unet_config, 0)
    return Trainer(model, images, Recipe(spec.train, Compute(), 0, True), TrainState.fresh(parameters_of(model)))


def _masked(spec: SweepSpec, images: torch.Tensor, density: float) -> Trainer:
    model, draw = build_unet(spec.unet_config, 0), torch.Generator().manual_seed(0)
    mask = Mask({la.name: torch.rand(la.shape, generator=draw) < density for la in layers_of(spec.unet_config)})
    state = TrainState.fresh(mask.apply(parameters_of(model)))
    return Trainer(model, images, Recipe(spec.train, Compute(), 0, True, mask.of_weights), state)


def sampling_row() -> Row:
    """As the quickstart scores, beside diffusers' pipeline in 250 steps: other images of the same model."""
    spec = SweepSpec.model_validate({"schema": 1, "name": "steps", "data": {"name": "digits"}})
    model, protocol = build_unet(spec.unet_config, 0).eval(), spec.protocol("search")
    how = Sampling(protocol.sampler, protocol.steps, "linear", Compute(), protocol.spacing)
    pipeline = DDIMPipeline(model, DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)

    def plain() -> None:
        pipeline(batch_size=SAMPLED, num_inference_steps=250, output_type="np", generator=torch.Generator().manual_seed(0))

    part = f"{SAMPLED} images by the search's sampler, beside DDIM in 250 steps"
    return compared(part, 1 / 12, lambda: sample_chunk(model, (1, 8, 8), 0, SAMPLED, how), plain, 3)
