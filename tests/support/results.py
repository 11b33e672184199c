"""Results of trials that nobody trained: what a test asks for, and something plausible elsewhere."""

from __future__ import annotations

from typing import Any

from raylt.store.results import COMPLETE, RoundResult, TrialResult

NUMBERS = [name for name in RoundResult.__dataclass_fields__ if name != "time_ms"]
TICKET = {
    "ticket": "0" * 64, "kept": {}, "layers": {}, "flops_dense": 4000, "violations": {},
    "start_stage": "start", "final_stage": "final", "sample_stage": "sample", "ticket_stage": "ticket",
}  # fmt: skip


def a_result(**given: Any) -> TrialResult:
    """A result of the keys of its JSON. Numbers that are given beside `rounds` are those of the last round."""
    if "densities" in given:
        given = {**given, "kept": {block: density.as_integer_ratio() for block, density in given["densities"].items()}}
    record = {"state": COMPLETE, "cause": None, "rounds": [], "stages": {}, "time_ms": 1, **TICKET, **given}
    rounds = [dict(scored) for scored in record["rounds"]]
    if record["state"] == COMPLETE:
        numbers = {"broken": False, **(rounds[-1] if rounds else {"round": 0, "loss": 0.1, "fid": 50.0, "flops": 1000})}
        rounds[-1:] = [numbers | {name: given[name] for name in NUMBERS if name in given}]
    return TrialResult.from_json({**record, "rounds": rounds})
