"""The sections of a spec: every key but `schema` and `name`, its default and its bounds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raylt.errors import MASK, has_secret

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


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _no_truth_or_fraction(given: object) -> object:
    """`true` and `1.0` equal 1 in Python, so that `Literal[1]` would take them."""
    if isinstance(given, (bool, float)):
        raise PydanticCustomError("literal_error", "is not one of them")
    return given


AsWritten = BeforeValidator(_no_truth_or_fraction)  # for a `Literal` with numbers

Channels = Annotated[Literal[1, 3, "auto"], AsWritten]
Density = Annotated[float, Field(gt=0, le=1)]


class DataSpec(Section):
    name: DataName = "digits"
    root: str | None = None  # where torchvision keeps it; not identity
    size: Annotated[int, Field(ge=4, le=MAX_COUNT)] | None = None  # pad to the next multiple, average down; null: as it is
    channels: Channels = "auto"  # as the data set has it; a folder of pictures has 3, whatever they show
    flip: bool = False  # random horizontal flips

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, size in pixels) of the images the model sees; size 0 for a folder where none is given."""
        channels, size = IMAGE_SHAPES[self.name]
        return channels if self.channels == "auto" else self.channels, self.size or size


class ModelSpec(Section):
    preset: PresetName | None = None
    config: dict[str, Any] | None = None  # a diffusers UNet2DModel config


class TrainSpec(Section):
    steps: Count = 400
    batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    optimizer: Literal["adam", "adamw"] = "adam"
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"  # fp32: IEEE's; auto: bf16 where a GPU has it, else fp32
    checkpoint_every: Count = 100  # not identity: it decides nothing


class TicketSpec(Section):
    rounds: Annotated[int, Field(ge=1, le=1000)] = 2
    density: Density | None = None
    densities: Annotated[list[Density], Field(min_length=1)] | None = None
    rewind_step: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    mode: Mode = "rewind"
    criterion: Criterion = "magnitude"
    scope: Scope = "layer"
    keep_dense: list[str] = ["conv_in", "conv_out"]
    min_kept: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 1
    shared_rounds: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0

    @model_validator(mode="before")
    @classmethod
    def _count_rounds(cls, given: Any) -> Any:
        """A list of densities says by itself how many rounds there are."""
        if isinstance(given, dict) and isinstance(given.get("densities"), list) and "rounds" not in given:
            return {**given, "rounds": len(given["densities"])}
        return given

    def density_of(self, round_index: int) -> float:
        """Overall density of round `round_index`: 1 for the dense round 0, then the schedule."""
        if round_index == 0:
            return 1.0
        if self.densities is not None:
            return self.densities[round_index - 1]
        return float((self.density if self.density is not None else 0.1) ** (round_index / self.rounds))

    def is_shared(self, round_index: int) -> bool:
        """Whether a pruning is uniform, and so one for all trials."""
        return round_index <= self.shared_rounds

    @property
    def final_density(self) -> float:
        return self.density_of(self.rounds)


class ConstraintsSpec(Section):
    """Ceilings on a ticket's cost; null: none."""

    flops: Annotated[float, Field(gt=0, le=1)] | None = None  # share of the dense model's, as the tables show it
    ticket_bytes: Count | None = None


class SearchSpec(Section):
    sampler: SamplerName = "similarity"
    base: Base = "erk"
    profile: ProfileName = "excess"
    rungs: bool = False  # poor trials are stopped between rounds: search/median_stopping.py
    trials: Annotated[int, Field(ge=0, le=1_000_000)] = 8
    startup: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 2
    repeatable: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    objectives: Annotated[list[Objective], Field(min_length=1)] = ["loss", "flops"]
    constraints: ConstraintsSpec = ConstraintsSpec()
    budget: Budget = "density"  # what a density is a share of: the prunable weights, or their FLOPs
    pilots: Annotated[int, Field(ge=0, le=1000)] = 2
    baselines: list[Rule] = ["uniform", "erk"]
    groups: Literal["auto"] | dict[GroupName, list[str]] | None = None  # auto: from the profile, once it is measured

    @property
    def has_auto_groups(self) -> bool:
        return self.groups == "auto"

    @property
    def has_similarity_profile(self) -> bool:
        """Whether gamma bends by similarity, which is measured between pilots; movement and size need none."""
        return self.profile in ("excess", "kappa", "shuffled")

    @property
    def has_profile(self) -> bool:
        """Whether there is anything that gamma can bend by."""
        return not self.has_similarity_profile or self.pilots > 1


TRAILING_UP_TO = 20  # steps of DDIM


class ProtocolSpec(Section):
    samples: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 1000
    sampler: ImageSampler = "ddim"
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    features: FeaturesName | None = None  # null: digits-cnn for digits, inception for all else
    spacing: Spacing | None = None  # null: `own_spacing`

    @property
    def own_spacing(self) -> Spacing | None:
        """What `spacing: null` stands for; None where the sampler has no choice.

        With `leading`, sampling starts below the last timestep: at 900 of 999 in 10 steps, where the cosine schedule has a
        sixth of the signal left, which pure noise has not. It costs a few per cent of FID, and nothing in many steps.
        """
        if self.sampler != "ddim":  # DPM-Solver++ begins at the last timestep; DDPM's last step must be 0, or its noise stays
            return None
        return "trailing" if self.steps <= TRAILING_UP_TO else "leading"


class FinalProtocolSpec(ProtocolSpec):
    samples: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 50_000
    steps: Annotated[int, Field(ge=1, le=1000)] = 50


class MetricsSpec(Section):
    search: ProtocolSpec = ProtocolSpec()
    final: FinalProtocolSpec = FinalProtocolSpec()
    reference: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    keep_samples: bool = False


Share = Annotated[float, Field(ge=0)]


class MarginSpec(Section):
    """By how much a ticket may lie above dense and match it, as a share of dense's mean; null: see report/verdicts.py."""

    loss: Share | None = None
    fid: Share | None = None


class ConfirmSpec(Section):
    """What `raylt confirm` trains anew, and how it is judged. Not identity: it adds trials and changes none."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = 5  # fresh ones: of start, order, noise and timesteps
    top: Annotated[int, Field(ge=0, le=1000)] = 3  # finalists: the best of the Pareto front in the first objective
    steps: Annotated[list[Count], Field(min_length=1)] | None = None  # budgets; null: train.steps alone
    controls: list[Control] = ["reinit", "shuffled", "random", "small-dense"]
    control_rounds: Annotated[list[Count], Field(min_length=1)] | None = None  # null: the last
    margin: MarginSpec = MarginSpec()


class ResourcesSpec(Section):
    cpus: Count = 1
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"


CREDENTIALS_ADVICE = "credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from ~/.aws"


def has_credentials(uri: str) -> bool:
    """Whether a URI carries a password, a token or a server's user name, which would then stand in specs, logs and runs."""
    scheme, mark, rest = uri.partition("://")
    user, at, _ = re.split(r"[/?#]", rest)[0].rpartition("@")
    is_named = bool(mark and at) and user != MASK  # which stands in specs that older stores keep
    return has_secret(uri) or (is_named and (":" in user or scheme in ("s3", "http", "https")))  # abfs://container@account


class StorageSpec(Section):
    root: str = "./raylt-data"


class TrackingSpec(Section):
    uri: str = "sqlite:///mlflow.db"
