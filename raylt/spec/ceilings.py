"""`search.constraints`: what a ticket may cost at most. One that costs more is shown, told to the sampler, and never ranked."""

from __future__ import annotations

from raylt.spec.sections import ConstraintsSpec


def violations(limits: ConstraintsSpec, flops: float, ticket_bytes: int) -> dict[str, float]:
    """Constraint -> by how much of the ceiling a ticket lies above it; 0 or less where it keeps it. Optuna's convention.

    `flops`: as a share of the dense model's.
    """
    costs = {"flops": flops, "ticket_bytes": ticket_bytes}
    ceilings = {"flops": limits.flops, "ticket_bytes": limits.ticket_bytes}
    return {name: violation(costs[name], ceiling) for name, ceiling in ceilings.items() if ceiling is not None}


def violation(cost: float, ceiling: float) -> float:
    """By how much of a ceiling a cost lies above it."""
    return cost / ceiling - 1
