"""How long a training step and a denoised image take on this machine, measured on a sweep's own model and images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import ImageSet, to_float
from raylt.diffusion.sample import chunk_size
from raylt.diffusion.train import Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of, weight_name
from raylt.spec import SweepSpec
from raylt.ticket.mask import Mask

MEASURE_S = 1.0  # for each of the two, about, as the clock has it
PATIENCE_S = 20.0  # for each, by the wall: a busy machine takes longer
LEAST_OF = 3

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Speed:
    """`batch`: how many images of a training batch it was measured with; a step's time is in proportion."""

    step_s: float
    image_s: float  # one image, one denoising step
    batch: int


def measure_step_time(spec: SweepSpec, images: ImageSet, compute: Compute) -> Speed:
    """Trains a few steps and denoises a few images, a few seconds in all; nothing of it is kept."""
    threads = torch.get_num_threads()
    # The CPU time of this thread, which does its share of all: other processes do not change it. A GPU has no such clock.
    clock = time.thread_time if compute.device == "cpu" else time.monotonic
    compute.use()
    try:
        trainer = trainer_of(spec, images.train_NCHW, compute)

        def train(size: int) -> None:
            smaller = spec.train.model_copy(update={"batch_size": size})
            trainer.recipe = replace(trainer.recipe, train=smaller)
            float(trainer.run_step())  # waits for the device

        train_s, batch = _seconds_per_image(train, spec.train.batch_size, clock)
        chunk = min(chunk_size(images.train_NCHW.shape[1:]), spec.protocol("search").samples, len(images.train_NCHW))
        image_s, _ = _seconds_per_image(lambda size: _denoise(trainer, size), chunk, clock)
        return Speed(train_s * spec.train.batch_size, image_s, batch)
    finally:
        torch.set_num_threads(threads)


def trainer_of(spec: SweepSpec, images_NCHW: Tensor, compute: Compute) -> Trainer:
    """With a mask that keeps everything: it costs what any other does."""
    model = build_unet(spec.unet_config, spec.train.seed)
    masks = {weight_name(name): keep for name, keep in Mask.dense(layers_of(spec.unet_config)).layers.items()}
    recipe = Recipe(spec.train, compute, spec.train.seed, spec.data.flip, masks)
    return Trainer(model, images_NCHW, recipe, TrainState.fresh(parameters_of(model)))


@torch.no_grad()
def _denoise(trainer: Trainer, size: int) -> None:
    """One step of sampling, of images of which only the shape matters."""
    trainer.model.eval()
    t = torch.tensor(0, device=trainer.device)
    with trainer.recipe.compute.autocast():
        float(trainer.model(to_float(trainer.images_NCHW[:size]), t).sample.sum())


def _seconds_per_image(work: Callable[[int], None], largest: int, clock: Clock) -> tuple[float, int]:
    """(the least of several, the batch it was measured with): the largest batch, or as large a one as the time allows.

    What else runs on the machine makes some of them longer and none shorter.
    """

    def timed(size: int) -> float:
        before = clock()
        work(size)
        return clock() - before

    size, patience = 1, time.monotonic() + PATIENCE_S
    while True:
        timed(size)  # warms up: memory, and kernels for this shape
        taken = [timed(size)]
        if size == largest or 8 * taken[0] > MEASURE_S or time.monotonic() > patience:  # twice, and four times as large
            break
        size = min(4 * size, largest)
    while len(taken) < LEAST_OF or (sum(taken) < MEASURE_S / 4 and time.monotonic() < patience):
        taken.append(timed(size))
    return min(taken) / size, size
