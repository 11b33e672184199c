"""The document that `raylt results --json` prints, key by key. docs/formats.md is made of the docstrings below.

It is JSON, which other programs read, so it stays a dict at run time. `null` stands where a number is not there: of a trial
that has not ended, of one that failed or was stopped, of a sweep whose raylt did not keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import (
    Any,
    Literal,
    NotRequired,  # as pydantic reads them below Python 3.12
    cast,
)

from typing_extensions import TypedDict


class Counts(TypedDict):
    """Trials by state."""

    asked: int
    """All that were submitted."""
    complete: int
    """Of them, those that ran to their end."""
    pruned: int
    """Those that were stopped between rounds."""
    failed: int
    """Those that an error ended, also where they were retried."""
    running: int
    """Those that have not ended, whether or not anybody runs them."""


class Steps(TypedDict):
    """Training steps."""

    asked: int
    """Those of all trainings that the trial needs."""
    trained: int
    """Those that its own worker did."""
    shared: int
    """Those that another trial had done."""


class Timing(TypedDict):
    """Seconds of a trial. They differ from run to run."""

    wall_s: float
    """From its start to its end, waiting for others included."""
    stages_s: float
    """What it was busy making stages that it found in no store."""
    hours: float
    """`stages_s` in hours: what the trial cost."""


class Similarity(TypedDict):
    """How alike the pilots' tickets are in a block or layer. Sweeps measured earlier have the first four numbers alone."""

    kappa: float | None
    """Agreement of two pilots' masks: 0 as by chance, 1 where one contains the other. The mean over pairs."""
    kappa_start: float | None
    """kappa of a pilot's mask with the largest weights of the rewind point. The mean over pilots."""
    movement: float | None
    """||w_T - w_k|| / ||w_k|| of the dense training from the rewind point: how far it moved the weights."""
    pairs: int | None
    """Pairs of pilots."""
    kappa_low: float | None
    """The lower end of kappa's 95 % interval."""
    kappa_high: float | None
    """The upper end."""
    excess: float | None
    """kappa - kappa_start. It errs on the low side of what training found."""
    kappa_partial: float | None
    """kappa among the largest weights of the rewind point, and among the others. It errs on the high side."""
    kappa_movement: float | None
    """kappa of the masks of what moved most in each pilot's dense training."""
    z: float | None
    """Overlap above chance, in standard deviations of chance. It grows with the number of weights."""
    jaccard: float | None
    """Intersection over union of two masks, not corrected for chance."""
    jaccard_chance: float | None
    """The Jaccard index that chance gives."""


class ProtocolRecord(TypedDict):
    """What stands behind a FID: a protocol of `metrics`, with every default written out."""

    samples: int
    """Images that are sampled."""
    sampler: str
    """DDIM, DDPM or DPM-Solver++."""
    steps: int
    """Denoising steps."""
    features: str | None
    """What FID compares."""
    spacing: NotRequired[str | None]
    """Which timesteps DDIM visits. Sweeps of the first code schema have no such key."""
    reference: int | None
    """Training images compared with; null: all."""


class RoundRecord(TypedDict):
    """One round of a trial, scored."""

    round: int
    """0 is the dense model."""
    density: float
    """Share of the prunable weights that the mask keeps."""
    fid: float | None
    """Frechet inception distance to the training images."""
    kid: float | None
    """Kernel inception distance."""
    kid_sd: float | None
    """Its standard deviation over subsets."""
    loss: float | None
    """Held-out denoising loss of the averaged weights."""
    flops: int
    """FLOPs of one forward pass of one image."""
    broken: bool | None
    """Whether the loss is above half of what predicting zero gives."""


class TrialRecord(TypedDict):
    """One trial. Its numbers are those of its last round."""

    id: int
    """Its number in the sweep."""
    kind: str
    """dense, pilot, baseline, search or control."""
    rule: str | None
    """How densities are spread over layers; null: the dense model."""
    control: str | None
    """What changes about the ticket, of a control."""
    seed: int
    """Seed of order, noise and timesteps."""
    state: str
    """RUNNING (not ended), COMPLETE, PRUNED (stopped between rounds) or FAIL."""
    protocol: str
    """`search` or `final`: numbers of the two do not compare."""
    retry_of: int | None
    """The failed trial that this one is, once more."""
    confirms: int | None
    """The trial whose allocation is trained anew, of a confirmation."""
    start_seed: int | None
    """Seed of the initialisation, where it is not the sweep's."""
    train_steps: int | None
    """The training budget, where it is not the sweep's."""
    density: float | None
    """Share of the prunable weights that the ticket keeps."""
    densities: dict[str, float] | None
    """Block -> density."""
    kept: dict[str, list[int]] | None
    """Block -> weights kept, weights in all."""
    layers: dict[str, list[int]] | None
    """Layer -> weights kept, weights in all."""
    loss: float | None
    """Held-out denoising loss of the averaged weights."""
    fid: float | None
    """Frechet inception distance to the training images."""
    kid: float | None
    """Kernel inception distance."""
    kid_sd: float | None
    """Its standard deviation over subsets."""
    flops: int | None
    """FLOPs of one forward pass of one image."""
    flops_dense: int | None
    """Those of the dense model."""
    ticket_bytes: int | None
    """Size of the ticket file."""
    broken: bool | None
    """Whether the loss is above half of what predicting zero gives; such a ticket is never ranked."""
    ticket: str | None
    """SHA-256 of the mask."""
    feasible: bool | None
    """Whether the ticket keeps every ceiling of `search.constraints`; null where it is not ranked."""
    pareto: bool
    """Whether it is on the Pareto front of the objectives."""
    rounds: list[RoundRecord]
    """Round after round; of a control, the dense round and those it controls."""
    steps: Steps | None
    """Training steps."""
    params: dict[str, float]
    """What the search proposed: `gamma`, `delta/GROUP`."""
    error: str | None
    """Why it failed or was stopped."""
    timing: Timing | None
    """How long it took."""
    mlflow_run_id: str | None
    """Its run in MLflow."""


class Summary(TypedDict):
    """A number over seeds."""

    n: int
    """Seeds that have it."""
    mean: float | None
    """The mean over them."""
    sd: float | None
    """The standard deviation from seed to seed."""
    low: float | None
    """The lower end of the mean's 95 % interval (Student t)."""
    high: float | None
    """The upper end."""


class Difference(Summary):
    """A difference paired by seed: this row less what it is compared with."""

    verdict: str
    """winning, not winning, better, worse or undecided: see docs/statistics.md."""
    margin: NotRequired[float | None]
    """By how much a ticket may lie above the dense model and still match it."""
    margin_of: NotRequired[str]
    """Where the margin comes from: `pooled` or `stated`; without the key, the dense model's own deviation."""
    margin_df: NotRequired[int | None]
    """Degrees of freedom of a pooled margin."""


class ConfirmationRow(TypedDict):
    """What a confirmation says of one budget, allocation, control and round, over its seeds."""

    train_steps: int
    """The training budget."""
    confirms: int
    """The trial whose allocation it is."""
    rule: str | None
    """How densities are spread over layers; null: the dense model."""
    control: str | None
    """What changes about the ticket, of a control."""
    round: int
    """The round."""
    seeds: list[int]
    """The seeds that have ended."""
    broken: int
    """How many of them are broken."""
    density: float | None
    """Mean density; of a smaller dense net, that of its ticket."""
    flops: float | None
    """Mean FLOPs of one forward pass of one image."""
    loss: Summary
    """Held-out denoising loss."""
    fid: Summary
    """Frechet inception distance."""
    kid: Summary
    """Kernel inception distance."""
    vs_dense: NotRequired[dict[str, Difference]]
    """loss, fid -> against the dense model of the same budget."""
    vs_ticket: NotRequired[dict[str, Difference]]
    """loss, fid -> of a control, against its ticket."""
    vs_uniform: NotRequired[dict[str, Difference]]
    """loss, fid -> of a rule, against the uniform one in the same round."""
    vs_uniform_at_flops: NotRequired[dict[str, Difference]]
    """loss, fid -> of a rule, against the uniform one at the same FLOPs, between its rounds."""


class SweepDocument(TypedDict):
    """Everything a sweep has found so far. Two runs of one spec differ in `steps`, `timing` and `mlflow_run_id` alone."""

    schema: int
    """The version of this document: 1."""
    name: str
    """The sweep's name."""
    digest: str
    """SHA-256 of what makes the sweep the sweep it is."""
    state: str
    """running, interrupted or complete."""
    objectives: list[str]
    """What is minimised."""
    protocols: dict[str, ProtocolRecord]
    """`search` and `final`: what stands behind a FID."""
    counts: Counts
    """Trials by state."""
    steps: Steps
    """Training steps of all trials."""
    similarity: dict[str, Similarity]
    """Block -> how alike the pilots' tickets are there."""
    similarity_layers: dict[str, Similarity]
    """Layer -> the same."""
    groups: dict[str, list[str]] | None
    """Group -> its blocks; null until `groups: auto` has chosen them."""
    confirmation: list[ConfirmationRow]
    """What was confirmed; empty before."""
    trials: list[TrialRecord]
    """By id."""


Judged = Literal["loss", "fid"]  # what verdicts are about; lower is better
JUDGED: tuple[Judged, ...] = ("loss", "fid")


def value_of(record: Mapping[str, object], name: str) -> Any:
    """A value by a name that is known only when the program runs: an objective, an axis, a sort key."""
    return cast(Mapping[str, Any], record)[name]
