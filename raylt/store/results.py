"""What trials have found, as records. Their JSON lies in the ledger; what older sweeps lack of it is None here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final, Literal, TypedDict

from raylt.spec.canonical import JsonObject
from raylt.spec.vocabulary import Objective

RUNNING: Final = "RUNNING"  # submitted, not finished
COMPLETE: Final = "COMPLETE"
PRUNED: Final = "PRUNED"  # stopped between two rounds
FAIL: Final = "FAIL"

State = Literal["COMPLETE", "PRUNED", "FAIL"]  # of a trial that has finished


class Measured(TypedDict, total=False):
    """What was measured between the pilots, and chosen by it: `similarity.json`."""

    blocks: Mapping[str, Mapping[str, float | None]]  # block -> its numbers
    layers: Mapping[str, Mapping[str, float | None]]
    profile: Mapping[str, float]  # group -> what gamma bends by
    groups: dict[str, list[str]]  # group -> its blocks, under `groups: auto`


@dataclass(frozen=True)
class RoundResult:
    """One round of a trial, scored. None: not finite, or not known."""

    round: int  # 0: the dense model
    density: float | None  # share of the prunable weights that the mask keeps
    loss: float | None  # held-out denoising loss of the EMA weights
    fid: float | None
    time_ms: int  # unix time at which the last of its stages became whole
    kid: float | None = None
    kid_sd: float | None = None
    broken: bool | None = None  # the loss is above half of what predicting zero gives
    flops: int | None = None  # of one forward pass of one image
    ticket_bytes: int | None = None
    shared: bool = False  # found in the store, trained by another trial

    def to_json(self) -> JsonObject:
        return asdict(self)

    @staticmethod
    def from_json(record: JsonObject) -> RoundResult:
        """What `to_json` made, or an earlier raylt wrote."""
        numbers = {name: value for name, value in record.items() if name in _ROUND_FIELDS}
        least: JsonObject = {"density": None, "loss": None, "fid": None, "time_ms": 0}
        return RoundResult(**least | numbers)


_ROUND_FIELDS = frozenset(known.name for known in fields(RoundResult))
NOT_SCORED = RoundResult(0, None, None, None, 0)


@dataclass(frozen=True)
class TicketSummary:
    """The ticket of a complete trial: its last round's. Blocks and layers -> [weights kept, weights in all]."""

    digest: str  # of its mask
    blocks: Mapping[str, Sequence[int]]
    layers: Mapping[str, Sequence[int]]
    flops_dense: int  # of the sweep's U-Net, which `flops` compares with
    start_stage: str  # where its weights were rewound to
    final_stage: str  # its training
    sample_stage: str
    ticket_stage: str  # its file
    violations: Mapping[str, float] = field(default_factory=dict)  # constraint -> by how much it is broken, as Optuna has it
    unet_config: JsonObject | None = None  # where it is not the sweep's: a smaller dense net

    @property
    def densities(self) -> dict[str, float]:
        """Block -> share of its weights that are kept."""
        return {block: kept / total for block, (kept, total) in self.blocks.items()}

    @property
    def is_feasible(self) -> bool:
        """Whether it keeps every ceiling of `search.constraints`."""
        return all(over <= 0 for over in self.violations.values())

    def to_json(self) -> JsonObject:
        numbers = {key: value for key, value in asdict(self).items() if key not in ("digest", "blocks", "unet_config")}
        other = {} if self.unet_config is None else {"unet_config": self.unet_config}
        return {**numbers, **other, "ticket": self.digest, "kept": dict(self.blocks), "densities": self.densities}

    @staticmethod
    def from_json(record: JsonObject) -> TicketSummary:
        """What `to_json` made, or an earlier raylt wrote."""
        same = {name: record[name] for name in _TICKET_FIELDS}
        optional = {name: record[name] for name in ("violations", "unet_config") if name in record}
        return TicketSummary(record["ticket"], record["kept"], **same, **optional)


_TICKET_FIELDS = ("layers", "flops_dense", "start_stage", "final_stage", "sample_stage", "ticket_stage")


@dataclass(frozen=True)
class StepCounts:
    """Training steps of a trial."""

    asked: int  # of all trainings that it needs
    trained: int  # by its own worker

    @property
    def shared(self) -> int:
        """Those that another trial had trained."""
        return self.asked - self.trained

    def to_json(self) -> JsonObject:
        return {"asked": self.asked, "trained": self.trained, "shared": self.shared}


@dataclass(frozen=True)
class Timing:
    """Seconds of a trial."""

    wall_s: float  # from the start of the attempt that finished
    stages_s: float  # of the stages that the trial made, in whichever attempt


@dataclass(frozen=True)
class TrialResult:
    """How a trial finished."""

    state: State
    cause: str | None  # why it did not run to its end
    rounds: tuple[RoundResult, ...]
    time_ms: int  # unix time of its last stage
    ticket: TicketSummary | None = None  # of a complete trial
    stages: Mapping[str, str] = field(default_factory=dict)  # every stage used -> digest of its manifest
    steps: StepCounts | None = None
    timing: Timing | None = None
    diverged: str | None = None  # the stage that did

    @property
    def scores(self) -> RoundResult:
        """Of a complete trial, those of its last round. Another trial has none: its rounds are of other densities."""
        return self.rounds[-1] if self.ticket is not None else NOT_SCORED

    def objective(self, name: Objective) -> float | None:
        value: float | None = getattr(self.scores, name)
        return value

    @property
    def is_feasible(self) -> bool:
        return self.ticket is None or self.ticket.is_feasible

    def kept_ticket(self) -> TicketSummary:
        """The ticket. Raises `ValueError` where the trial is not complete."""
        if self.ticket is None:
            raise ValueError(f"a trial that ended as {self.state} has no ticket")
        return self.ticket

    def to_json(self) -> JsonObject:
        """As the ledger keeps it."""
        numbers = {} if self.ticket is None else {**self.scores.to_json(), **self.ticket.to_json()}
        return {
            "state": self.state,
            "cause": self.cause,
            **({} if self.diverged is None else {"diverged": self.diverged}),
            **numbers,
            "rounds": [scored.to_json() for scored in self.rounds],
            "steps": None if self.steps is None else self.steps.to_json(),
            "stages": dict(self.stages),
            "timing": None if self.timing is None else asdict(self.timing),
            "time_ms": self.time_ms,
        }

    @staticmethod
    def from_json(record: JsonObject) -> TrialResult:
        """What `to_json` made, or an earlier raylt wrote. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        if record["state"] not in (COMPLETE, PRUNED, FAIL):
            raise ValueError("it does not say how the trial ended")
        rounds = tuple(RoundResult.from_json(scored) for scored in record["rounds"])
        if record["state"] == COMPLETE and not rounds:
            raise ValueError("it is of a complete trial without rounds")
        steps, timing = record.get("steps"), record.get("timing")
        return TrialResult(
            record["state"], record.get("cause"), rounds, record["time_ms"],
            TicketSummary.from_json(record) if record["state"] == COMPLETE else None,
            record["stages"],
            None if steps is None else StepCounts(steps["asked"], steps["trained"]),
            None if timing is None else Timing(timing["wall_s"], timing["stages_s"]),
            record.get("diverged"),
        )  # fmt: skip
