"""How long a training step and a denoised image take on this machine, measured on a sweep's own model and images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from raylt.diffusion.data import ImageSet, to_float
from raylt.diffusion.sample import chunk_size
from raylt.diffusion.train import Compute, Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of, weight_name
from raylt.spec import SweepSpec
from raylt.ticket.mask import Mask

MEASURE_S = 1.0  # for each of the two, about


@dataclass(frozen=True)
class Speed:
    """`batch`: how many images of a training batch it was measured with; a step's time is in proportion."""

    step_s: float
    image_s: float  # one image, one denoising step
    batch: int


def measure_step_time(spec: SweepSpec, images: ImageSet, compute: Compute) -> Speed:
    """Trains a few steps and denoises a few images, a few seconds in all; nothing of it is kept."""
    threads = torch.get_num_threads()
    compute.use()
    try:
        trainer = _trainer(spec, images, compute)

        def train(size: int) -> None:
            smaller = spec.train.model_copy(update={"batch_size": size})
            trainer.recipe = replace(trainer.recipe, train=smaller)
            float(trainer.run_step())  # waits for the device

        train_s, batch = _seconds_per_image(train, spec.train.batch_size)
        chunk = min(chunk_size(images.train_NCHW.shape[1:]), spec.protocol("search").samples, len(images.train_NCHW))
        image_s, _ = _seconds_per_image(lambda size: _denoise(trainer, size), chunk)
        return Speed(train_s * spec.train.batch_size, image_s, batch)
    finally:
        torch.set_num_threads(threads)


def _trainer(spec: SweepSpec, images: ImageSet, compute: Compute) -> Trainer:
    """With a mask that keeps everything: it costs what any other does."""
    model = build_unet(spec.unet_config, spec.train.seed)
    masks = {weight_name(name): keep for name, keep in Mask.dense(layers_of(spec.unet_config)).layers.items()}
    recipe = Recipe(spec.train, compute, spec.train.seed, spec.data.flip, masks)
    return Trainer(model, images.train_NCHW, recipe, TrainState.fresh(parameters_of(model)))


@torch.no_grad()
def _denoise(trainer: Trainer, size: int) -> None:
    """One step of sampling, of images of which only the shape matters."""
    trainer.model.eval()
    t = torch.tensor(0, device=trainer.device)
    with trainer.recipe.compute.autocast():
        float(trainer.model(to_float(trainer.images_NCHW[:size]), t).sample.sum())


def _seconds_per_image(work: Callable[[int], None], largest: int) -> tuple[float, int]:
    """(the median, the batch it was measured with): the largest batch, or as large a one as the time allows."""

    def timed(size: int) -> float:
        begin = time.monotonic()
        work(size)
        return time.monotonic() - begin

    size = 1
    while True:
        timed(size)  # warms up: memory, and kernels for this shape
        taken = [timed(size)]
        if size == largest or 8 * taken[0] > MEASURE_S:  # twice, and four times as large
            break
        size = min(4 * size, largest)
    while sum(taken) < MEASURE_S / 4:
        taken.append(timed(size))
    return statistics.median(taken) / size, size
