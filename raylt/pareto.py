"""The Pareto set: what no other candidate beats in every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pareto_ids(objectives: Sequence[str], candidates: Sequence[tuple[int, Mapping[str, Any]]]) -> set[int]:
    """Ids of the candidates no other dominates (all objectives are minimised). Equal ones are all in."""
    points = {number: [result[o] for o in objectives] for number, result in candidates}
    usable = {number: point for number, point in points.items() if all(value is not None for value in point)}

    def dominated(mine: list[float]) -> bool:
        return any(all(o <= m for o, m in zip(p, mine, strict=True)) and p != mine for p in usable.values())

    return {number for number, point in usable.items() if not dominated(point)}
