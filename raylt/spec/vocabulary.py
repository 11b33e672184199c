"""The words that a spec may use, and the bounds of its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

PresetName = Literal["digits", "tiny", "small", "ddpm-cifar10"]  # the keys of PRESETS
DataName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "images"]
Rule = Literal["uniform", "uniform+", "er", "erk", "lamp", "global"]
Mode = Literal["rewind", "learning-rate-rewind", "fine-tune"]
Scope = Literal["layer", "block"]
Criterion = Literal["magnitude", "magnitude-ema", "movement", "random", "snip", "synflow"]
Budget = Literal["density", "flops"]
Base = Literal["uniform", "erk", "lamp"]
ProfileName = Literal["excess", "kappa", "movement", "cost", "size", "shuffled"]
SamplerName = Literal["similarity", "tpe", "gp", "nsga2", "random"]
Objective = Literal["loss", "fid", "kid", "flops", "ticket_bytes", "density"]
FeaturesName = Literal["inception", "digits-cnn", "mnist-cnn"]
ImageSampler = Literal["ddim", "ddpm", "dpm++"]
Spacing = Literal["leading", "trailing"]  # the timesteps that DDIM visits: every n-th from the first one, or from the last
GROUP_NAME_LENGTH = 200  # delta/GROUP is a param of MLflow's, whose names have 250 characters at most
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=GROUP_NAME_LENGTH)]
Protocol = Literal["search", "final"]  # what a trial is scored under; numbers of two do not compare
NAME_LENGTH = 100
Control = Literal["reinit", "shuffled", "random", "small-dense"]  # what each is: ticket/controls.py

MAX_COUNT = 1_000_000_000  # far above what anybody means: a typing slip is named before it is planned or allocated
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]

IMAGE_SHAPES: dict[str, tuple[int, int]] = {  # data set -> (channels, size), as the data set has it
    "digits": (1, 8),
    "mnist": (1, 28),
    "fashion-mnist": (1, 28),
    "cifar10": (3, 32),
    "cifar100": (3, 32),
    "images": (3, 0),  # a folder of pictures: RGB unless told otherwise, of no size of its own
}


def _no_truth_or_fraction(value: object) -> object:
    """`true` and `1.0` equal 1 in Python, so that `Literal[1]` would take them."""
    if isinstance(value, (bool, float)):
        raise PydanticCustomError("literal_error", "is not one of them")
    return value


AsWritten = BeforeValidator(_no_truth_or_fraction)  # for a `Literal` with numbers

Channels = Annotated[Literal[1, 3, "auto"], AsWritten]
Density = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0)]
TRAILING_UP_TO = 20  # steps of DDIM
