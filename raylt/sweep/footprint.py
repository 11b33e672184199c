"""How much of a store and of memory a sweep will need, from the shapes of its model and the number of its stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from raylt.diffusion.compute import Compute
from raylt.diffusion.unet import build_unet, prunable_layers
from raylt.errors import Problem, SpecError, in_units
from raylt.spec import SweepSpec, plan
from raylt.sweep.trainings import proposals, trainings_of
from raylt.trial.features import CNN_DIMS, INCEPTION_DIMS, SmallCnn
from raylt.trial.inputs import Inputs
from raylt.trial.score import GRID_IMAGES, KID_REFERENCES, REFERENCE_CHUNK, SAVE_SAMPLES_ABOVE

FLOAT = 4  # bytes
HEADER = 100  # of safetensors, a tensor
MASK_CODE = 1.05  # bits written for a bit of entropy, at most
STAGE_JSON = 2_000  # key and manifest
TRIAL_JSON, LAYER_JSON = 8_000, 70  # asked, result and log of a trial; a layer's line in its result
STUDY_DB = 200_000


@dataclass(frozen=True)
class Footprint:
    """Bytes of a sweep in its store: when it has ended, and at most while it runs (checkpoints come and go)."""

    end: int
    peak: int


def footprint(spec: SweepSpec, inputs: Inputs) -> Footprint:
    """An estimate from above: every trial runs to its end and shares only what the plan says it does."""
    sizes = _Sizes(spec, inputs)
    planned = [item.trial for item in plan(spec)]
    trials = [*planned, *proposals(spec, len(planned))]
    trainings = {training for trial in trials for training in trainings_of(spec, trial)}
    stages = sum(sizes.of_round(training.round) for training in trainings if training.round is not None)
    ledger = STUDY_DB + len(trials) * (TRIAL_JSON + LAYER_JSON * sizes.num_layers)
    end = sizes.inputs + sizes.reference + sizes.start + stages + ledger
    return Footprint(end, end + sizes.reference_checkpoint + spec.search.concurrency * sizes.checkpoint)


def training_bytes(spec: SweepSpec) -> int:
    """Bytes that a training holds whatever its batch: weights, gradients, two moments, EMA and masks, all fp32."""
    total: int = sum(parameter.numel() for parameter in build_unet(spec.unet_config).parameters())
    return 6 * FLOAT * total


def batch_bytes(spec: SweepSpec) -> int:
    """The least that one training step holds besides: images, noise, both mixed, prediction, first and last feature maps."""
    channels, size = spec.image_shape
    maps: int = build_unet(spec.unet_config).config.block_out_channels[0]  # a config may leave diffusers' own
    return FLOAT * spec.train.batch_size * size**2 * (4 * channels + 2 * maps)


def refuse_too_large(spec: SweepSpec, compute: Compute) -> None:
    """Raises `SpecError` where this machine has not even the memory for that, on a CPU."""
    if compute.device != "cpu":
        return
    model, batch, have = training_bytes(spec), batch_bytes(spec), psutil.virtual_memory().total
    there = f"and this machine has {in_units(have)} of memory"
    if model > have:
        what = f"is too large: a trial holds {in_units(model)} of weights, gradients, moments, EMA and masks, {there}"
        raise SpecError([Problem("model", what, "a smaller model, or a larger machine")])
    if model + batch > have:
        what, batch_size = f"is too large: one step needs {in_units(model + batch)} or more, {there}", spec.train.batch_size
        raise SpecError([Problem("train.batch_size", what, "a smaller batch, or a larger machine", batch_size, has_given=True)])


class _Sizes:
    """Bytes of the files of one sweep's stages."""

    def __init__(self, spec: SweepSpec, inputs: Inputs) -> None:
        model = build_unet(spec.unet_config)
        layers = prunable_layers(model)
        self.spec, self.num_layers = spec, len(layers)
        self.num_tensors = sum(1 for _ in model.parameters())
        self.total = sum(parameter.numel() for parameter in model.parameters())
        self.prunable = sum(layer.size for layer in layers)
        self.image = spec.image_shape[0] * spec.image_shape[1] ** 2
        self.num_images = len(inputs.images.train_NCHW) + len(inputs.images.test_NCHW)
        weights = inputs.inception or {}
        self.inputs = self.num_images * (self.image + 8) + sum(t.numel() * t.element_size() for t in weights.values())
        self.count = spec.metrics.reference or len(inputs.images.train_NCHW)
        self.dims = INCEPTION_DIMS if weights else CNN_DIMS

    def _tensors(self, groups: int, values: float) -> int:
        return round(groups * self.num_tensors * HEADER + values * FLOAT)

    @property
    def state(self) -> int:
        """A whole training state: weights, two moments, EMA."""
        return self._tensors(4, 4 * self.total) + STAGE_JSON

    @property
    def start(self) -> int:
        """A rewind point: weights, and moments where there are any."""
        groups = 3 if self.spec.ticket.rewind_step else 1
        return self._tensors(groups, groups * self.total) + STAGE_JSON

    def mask(self, density: float) -> int:
        """Entropy of a mask that keeps so many weights, however they are spread over its layers, and what its code adds."""
        shares = [share for share in (density, 1 - density) if share > 0]
        bits = -self.prunable * sum(share * math.log2(share) for share in shares)
        return round(MASK_CODE * bits / 8) + self.num_layers * HEADER

    def of_round(self, index: int) -> int:
        """A training, its loss, its samples and its ticket."""
        spec = self.spec
        groups = 3 if spec.ticket.rewind_step else 1
        density = spec.ticket.density_of(index) if spec.search.budget == "density" else 1.0  # FLOPs do not say how many weights
        kept = self.total - self.prunable * (1 - density)
        is_last = index in (0, spec.ticket.rounds)  # the dense trial ends with its round 0
        mask = self.mask(density if spec.search.budget == "density" else 0.5)
        ticket = self._tensors(groups, groups * kept) + mask if is_last else STAGE_JSON
        trained = self._tensors(2, 2 * kept) + 2 * mask  # SNIP and SynFlow keep the mask alone too
        samples = spec.protocol("search").samples
        images = min(GRID_IMAGES, samples) + (samples if spec.metrics.keep_samples else 0)
        return trained + ticket + images * self.image + 4 * STAGE_JSON

    @property
    def reference(self) -> int:
        """Statistics and KID's features of the reference, and the small classifier where there is one."""
        classifier = 0 if self.dims == INCEPTION_DIMS else sum(p.numel() for p in SmallCnn().parameters()) * FLOAT
        statistics = (self.dims**2 + self.dims) * 8
        return classifier + statistics + min(self.count, KID_REFERENCES) * self.dims * FLOAT + 2 * STAGE_JSON

    @property
    def reference_checkpoint(self) -> int:
        return self.count * self.dims * FLOAT if self.count > REFERENCE_CHUNK else 0

    @property
    def checkpoint(self) -> int:
        """Of one trial: its state, twice, because the old one stays until the new one is whole; or the parts of its samples."""
        samples = self.spec.protocol("search").samples
        return max(2 * self.state, samples * self.image if samples > SAVE_SAMPLES_ABOVE else 0)
