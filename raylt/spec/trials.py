"""Which trials a sweep needs before it searches, and what each waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from raylt.spec.canonical import JsonObject
from raylt.spec.schema import SweepSpec
from raylt.spec.vocabulary import Control, Protocol

Kind = Literal["dense", "pilot", "baseline", "search", "control"]
SEARCHED = "searched"


@dataclass(frozen=True)
class TrainingRequest:
    """What a trial trains: a ticket search, or a control of its rounds."""

    rule: str | None  # None: dense
    seed: int  # of order, noise and timesteps
    start_seed: int | None = None  # of the initialisation; None: the sweep's
    steps: int | None = None  # training budget; None: the sweep's
    control: Control | None = None
    control_rounds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Proposal:
    """What the study proposed, and what follows from it. Empty for a trial that was planned."""

    params: Mapping[str, float] = field(default_factory=dict)  # gamma, delta/GROUP
    offsets: Mapping[str, float] = field(default_factory=dict)  # block -> what params and profile add to its logits
    sampler_attrs: Mapping[str, Any] = field(default_factory=dict)  # Optuna's notes on the proposal
    thresholds: Mapping[str, float] = field(default_factory=dict)  # rung -> the held-out loss above which it ends there, PRUNED


@dataclass(frozen=True)
class TrialSpec:
    """One trial, in full together with its sweep's spec and lock: what is asked is what is run, by whichever driver."""

    id: int
    kind: Kind
    training: TrainingRequest
    protocol: Protocol = "search"
    proposal: Proposal = Proposal()
    confirms: int | None = None  # the trial whose allocation is trained anew, under the final protocol
    retry_of: int | None = None  # the failed trial that this one is, once more

    @property
    def is_search(self) -> bool:
        """Whether the study proposed it: a finalist that is trained anew is of this kind too, and is no proposal."""
        return self.kind == "search" and not self.is_confirmation

    @property
    def is_confirmation(self) -> bool:
        return self.protocol == "final"

    @property
    def name(self) -> str:
        return f"{self.id:04d}-{self.kind}"

    def dump(self) -> JsonObject:
        """Flat, as `asked.json` has it."""
        flat = asdict(self)
        return {**flat.pop("training"), **flat.pop("proposal"), **flat}

    @staticmethod
    def load(content: JsonObject) -> TrialSpec:
        """What `dump` wrote. Raises `ValueError`, with the field, where it is something else."""
        flat = dict(content)
        groups = {group: {name: flat.pop(name) for name in names if name in flat} for group, names in _GROUPED.items()}
        unknown = sorted(set(flat) - _UNGROUPED)
        if unknown:
            raise ValueError(f"it has a field that this raylt does not know ({unknown[0]}): was it written by a newer one?")
        try:
            return _loader().validate_python({**flat, **groups})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if part not in groups)
            raise ValueError(f"{place or 'it'}: {first['msg'].lower()}") from None


_GROUPED = {
    group: [known.name for known in fields(record)] for group, record in (("training", TrainingRequest), ("proposal", Proposal))
}
_UNGROUPED = {known.name for known in fields(TrialSpec)} - _GROUPED.keys()


@lru_cache
def _loader() -> TypeAdapter[TrialSpec]:
    return TypeAdapter(TrialSpec)


@dataclass(frozen=True)
class Planned:
    trial: TrialSpec
    after: Sequence[int]  # trials that must have ended: they train what this one would train too

    def dump(self) -> JsonObject:
        return {"trial": self.trial.dump(), "after": list(self.after)}

    @staticmethod
    def load(content: JsonObject) -> Planned:
        """What `dump` wrote. Raises `ValueError`, `TypeError` or `KeyError` where it is something else."""
        return Planned(TrialSpec.load(content["trial"]), content["after"])


def plan(spec: SweepSpec) -> list[Planned]:
    """Dense, pilots, baselines, in the order of their ids.

    Pilot i has seed `train.seed + i`. The first has the dense trial's seed: it and the baselines continue the dense
    round. The others share only the rewind point with it and need not wait.
    """
    seed = spec.train.seed
    planned = [Planned(TrialSpec(0, "dense", TrainingRequest(None, seed)), ())]
    for index in range(spec.search.pilots):
        trial = TrialSpec(len(planned), "pilot", TrainingRequest("uniform", seed + index))
        planned.append(Planned(trial, (0,) if index == 0 else ()))
    for rule in spec.search.baselines:
        twin = spec.search.pilots > 0 and rule == "uniform"  # the first pilot is this very search
        trial = TrialSpec(len(planned), "baseline", TrainingRequest(rule, seed))
        planned.append(Planned(trial, (1,) if twin else (0,)))
    return planned
