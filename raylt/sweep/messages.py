"""What a worker tells its driver after every step. As text, because Tune flattens nested results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from raylt.spec.canonical import JsonObject
from raylt.store.results import RoundResult, TrialResult

KEY = "raylt"  # of a result of Tune's


@dataclass(frozen=True)
class RoundReported:
    """A round was scored; the trial goes on."""

    report: RoundResult


@dataclass(frozen=True)
class TrialFinished:
    """The trial has its result; `report` is of the round that was scored in the same step, if one was."""

    result: TrialResult
    report: RoundResult | None = None


@dataclass(frozen=True)
class LeaseLost:
    """Another driver has taken over; the trial stays open."""

    why: str


@dataclass(frozen=True)
class StoreUnavailable:
    """The store cannot be read or written; the trial stays open."""

    why: str


Message = RoundReported | TrialFinished | LeaseLost | StoreUnavailable
_KINDS = {kind.__name__: kind for kind in (RoundReported, TrialFinished, LeaseLost, StoreUnavailable)}


def as_result(message: Message) -> JsonObject:
    """As Tune takes it from a step."""
    content = {"kind": type(message).__name__, **asdict(message)}
    if isinstance(message, TrialFinished):
        content["result"] = message.result.to_json()
    text = json.dumps(content, allow_nan=False)
    return {KEY: text, "done": not isinstance(message, RoundReported)}


def message_of(result: JsonObject) -> Message:
    """What `as_result` was made of."""
    content = json.loads(result[KEY])
    if content.get("report") is not None:
        content["report"] = RoundResult.from_json(content["report"])
    if content.get("result") is not None:
        content["result"] = TrialResult.from_json(content["result"])
    message: Message = _KINDS[content.pop("kind")](**content)
    return message
