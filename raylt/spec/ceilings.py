"""`search.constraints`: what a ticket may cost at most. One that costs more is shown, told to the sampler, and never ranked."""

from __future__ import annotations

from raylt.spec.canonical import JsonObject
from raylt.spec.schema import SweepSpec


def violations(spec: SweepSpec, numbers: JsonObject) -> dict[str, float]:
    """Constraint -> by how much of the ceiling a ticket lies above it; 0 or less where it keeps it. Optuna's convention."""
    limits = spec.search.constraints
    costs = {"flops": numbers["flops"] / numbers["flops_dense"], "ticket_bytes": numbers["ticket_bytes"]}
    ceilings = {"flops": limits.flops, "ticket_bytes": limits.ticket_bytes}
    return {name: violation(costs[name], ceiling) for name, ceiling in ceilings.items() if ceiling is not None}


def violation(cost: float, ceiling: float) -> float:
    """By how much of a ceiling a cost lies above it."""
    return cost / ceiling - 1


def is_feasible(result: JsonObject) -> bool:
    """Whether a complete trial keeps every ceiling."""
    return all(over <= 0 for over in result.get("violations", {}).values())
