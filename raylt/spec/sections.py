"""The sections of a spec: every key but `schema` and `name`, its default and its bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raylt.spec.vocabulary import (
    IMAGE_SHAPES,
    MAX_COUNT,
    TRAILING_UP_TO,
    Base,
    Budget,
    Channels,
    Control,
    Count,
    Criterion,
    DataName,
    Density,
    FeaturesName,
    GroupName,
    ImageSampler,
    Mode,
    Objective,
    PresetName,
    ProfileName,
    Rule,
    SamplerName,
    Scope,
    Share,
    Spacing,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DataSpec(Section):
    """Which images the model learns."""

    name: DataName = "digits"
    """A data set of torchvision, `digits` of scikit-learn, or `images`: a folder of pictures."""
    root: str | None = None
    """The folder where torchvision keeps the data set, or the folder of pictures. `null`: as docs/operating.md says."""
    size: Annotated[int, Field(ge=4, le=MAX_COUNT)] | None = None
    """Pixels of a side: padded to the next multiple and averaged down. `null`: as the data set has it."""
    channels: Channels = "auto"
    """1 is grey, 3 is RGB. `auto`: as the data set has it; a folder of pictures has 3."""
    flip: bool = False
    """Whether training images are flipped left to right at random."""

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, size in pixels) of the images the model sees; size 0 for a folder where none is given."""
        channels, size = IMAGE_SHAPES[self.name]
        return channels if self.channels == "auto" else self.channels, self.size or size


class ModelSpec(Section):
    """The dense U-Net that is pruned: a preset or a config, not both."""

    preset: PresetName | None = None
    """A U-Net that comes with raylt. `null`: the one that suits `data.name`."""
    config: dict[str, Any] | None = None
    """The arguments of diffusers' UNet2DModel, without those that the images decide."""


class TrainSpec(Section):
    """How every network is trained, dense or pruned."""

    steps: Count = 400
    """Training steps of the dense model. A rewound ticket trains from `ticket.rewind_step` to here."""
    batch_size: Count = 32
    """Images of a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    """The highest learning rate of the schedule."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Which of PyTorch's optimizers trains."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    """Adam's two decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """The optimizer's weight decay."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 50
    """Steps in which the learning rate rises to its highest."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up: down to 5 % along a cosine, or constant."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """The largest norm of a gradient. `null`: gradients are not clipped."""
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    """The noise schedule of the diffusion, by its name in diffusers."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights, which images are sampled with."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, order, noise and timesteps. Pilot i orders by this seed + i."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """`fp32` is IEEE's. `auto`: bf16 where a GPU has it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether steps run as one graph by torch.compile. `auto`: on a GPU, if that is faster when the sweep starts."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints. It decides no number, so it may change."""


class TicketSpec(Section):
    """How a ticket is found: rounds of prune, rewind and train."""

    rounds: Annotated[int, Field(ge=1, le=1000)] = 2
    """How often a network is pruned and trained again."""
    density: Density | None = None
    """Share of the weights, or of their FLOPs, after the last round. `null`: 0.1."""
    densities: Annotated[list[Density], Field(min_length=1)] | None = None
    """The density of every round, in place of `density` and `rounds`."""
    rewind_step: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """The step of the dense training to which the weights that stay are set back."""
    mode: Mode = "rewind"
    """After a pruning: rewind weights and learning rate, the learning rate alone, or fine-tune."""
    criterion: Criterion = "magnitude"
    """Which weights of a layer stay: by size, averaged size, movement, at random, SNIP or SynFlow."""
    scope: Scope = "layer"
    """Whether a layer's weights compete among themselves, or with all of their block."""
    keep_dense: list[str] = ["conv_in", "conv_out"]
    """Blocks or layers that are not pruned; `*` stands for any letters."""
    min_kept: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 1
    """Weights that every layer keeps for each of its output channels."""
    shared_rounds: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """First rounds that are pruned uniformly, and so are trained once for all trials."""

    @model_validator(mode="before")
    @classmethod
    def _count_rounds(cls, value: Any) -> Any:
        """A list of densities says by itself how many rounds there are."""
        if isinstance(value, dict) and isinstance(value.get("densities"), list) and "rounds" not in value:
            return {**value, "rounds": len(value["densities"])}
        return value

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
    """Ceilings on what a ticket may cost. What costs more is shown and never ranked."""

    flops: Annotated[float, Field(gt=0, le=1)] | None = None
    """As a share of the dense model's FLOPs. `null`: no ceiling."""
    ticket_bytes: Count | None = None
    """Bytes of the ticket file. `null`: no ceiling."""


class SearchSpec(Section):
    """Which allocations are tried, and what they are compared with."""

    sampler: SamplerName = "similarity"
    """Who proposes: TPE over gamma and deltas, TPE over deltas, a Gaussian process, NSGA-II, or chance."""
    base: Base = "erk"
    """The rule whose densities the search bends."""
    profile: ProfileName = "excess"
    """What gamma bends by. `size` and `shuffled` are placebos."""
    rungs: bool = False
    """Whether poor trials are stopped between rounds, by the median of the losses there."""
    trials: Annotated[int, Field(ge=0, le=1_000_000)] = 8
    """How many allocations are searched. Raising it extends a finished sweep."""
    startup: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """Proposals before the sampler's model counts. `null`: a third of the trials, at most 10."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 2
    """How many trials run at once, where there is room."""
    repeatable: bool = True
    """Whether trial n learns from those up to n - concurrency alone, so that a search repeats."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the proposals."""
    objectives: Annotated[list[Objective], Field(min_length=1)] = ["loss", "flops"]
    """What is minimised; several give a Pareto front."""
    constraints: ConstraintsSpec = ConstraintsSpec()
    budget: Budget = "density"
    """What a density is a share of: the prunable weights, or their FLOPs."""
    pilots: Annotated[int, Field(ge=0, le=1000)] = 2
    """Uniform tickets under several seeds, whose similarity is measured."""
    baselines: list[Rule] = ["uniform", "erk"]
    """Known rules that the search is compared with."""
    groups: Literal["auto"] | dict[GroupName, list[str]] | None = None
    """Group -> blocks that the search bends together. `null`: down, mid, up. `auto`: from the profile."""

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


class ProtocolSpec(Section):
    """How a ticket is scored. Numbers of two protocols do not compare."""

    samples: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 1000
    """Images that are sampled for FID and KID."""
    sampler: ImageSampler = "ddim"
    """How images are sampled: DDIM, DDPM or DPM-Solver++."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Denoising steps of an image."""
    features: FeaturesName | None = None
    """What FID compares. `null`: `digits-cnn` for digits, `inception` for all else."""
    spacing: Spacing | None = None
    """Which timesteps DDIM visits. `null`: `trailing` in up to 20 steps, else `leading`."""

    @property
    def own_spacing(self) -> Spacing | None:
        """What `spacing: null` stands for; None where the sampler has no choice."""
        # `leading` starts in 10 steps at 900 of 999, where the cosine schedule has a sixth of the signal left: some % of FID.
        if self.sampler != "ddim":  # DPM-Solver++ begins at the last timestep; DDPM's last step must be 0, or its noise stays
            return None
        return "trailing" if self.steps <= TRAILING_UP_TO else "leading"


class FinalProtocolSpec(ProtocolSpec):
    """How a confirmation scores: more images, in more steps, under noise of its own."""

    samples: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 50_000
    """Images that are sampled for FID and KID."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Denoising steps of an image."""


class MetricsSpec(Section):
    """What tickets are scored by."""

    search: ProtocolSpec = ProtocolSpec()
    final: FinalProtocolSpec = FinalProtocolSpec()
    reference: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    """Training images that samples are compared with. `null`: all."""
    keep_samples: bool = False
    """Whether the sampled images are kept, for `raylt export` and MLflow."""


class MarginSpec(Section):
    """By how much a ticket may lie above the dense model and still match it, as a share of the dense model's mean."""

    loss: Share | None = None
    """Of the held-out loss. `null`: the deviation from seed to seed, as docs/statistics.md says."""
    fid: Share | None = None
    """Of FID. `null`: the deviation from seed to seed."""


class ConfirmSpec(Section):
    """What `raylt confirm` trains anew, and how it is judged. Not identity: it adds trials and changes none."""

    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    """Fresh seeds: of initialisation, order, noise and timesteps. More extend a confirmation."""
    top: Annotated[int, Field(ge=0, le=1000)] = 3
    """Finalists: the best of the Pareto front in the first objective."""
    steps: Annotated[list[Count], Field(min_length=1)] | None = None
    """Training budgets, each confirmed by itself. `null`: `train.steps` alone."""
    controls: list[Control] = ["reinit", "shuffled", "random", "small-dense"]
    """What each finalist is compared with, to learn what its success rests on."""
    control_rounds: Annotated[list[Count], Field(min_length=1)] | None = None
    """The rounds whose tickets have controls. `null`: the last."""
    margin: MarginSpec = MarginSpec()


class ResourcesSpec(Section):
    """What a trial gets."""

    cpus: Count = 1
    """CPU cores, and threads of PyTorch."""
    gpus: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs; 0.5 puts two trials on one. `auto`: where there are any, as many trials on each as measured at the start."""


class StorageSpec(Section):
    """Where everything durable lies."""

    root: str = "./raylt-data"
    """A folder, or the URI of a bucket such as `s3://BUCKET/FOLDER`."""


class TrackingSpec(Section):
    """Where the record is shown."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow's tracking URI: an SQLite file or a server. $MLFLOW_TRACKING_URI comes first."""
