"""What trials have found, as records. Their JSON lies in the ledger; what older sweeps lack of it is None here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypedDict

from raylt.spec.canonical import JsonObject


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
        known = {field.name for field in fields(RoundResult)}
        least: JsonObject = {"density": None, "loss": None, "fid": None, "time_ms": 0}
        return RoundResult(**least | {name: value for name, value in record.items() if name in known})
