"""The Pareto set: what no other candidate beats in every objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def pareto_ids(points: Mapping[int, Sequence[float | None]]) -> set[int]:
    """Ids of the points no other dominates (all objectives are minimised). Equal ones are all in, those with a None are not."""
    usable: dict[int, tuple[float, ...]] = {}
    for number, point in points.items():
        values = tuple(value for value in point if value is not None)
        if len(values) == len(point):
            usable[number] = values
    front: list[tuple[float, ...]] = []
    lowest = math.inf  # in the last objective so far: what is below it nothing beats
    for point in sorted(set(usable.values())):  # what beats a point comes before it, and is in the front or beaten from there
        if point[-1] < lowest or not any(all(o <= m for o, m in zip(p, point, strict=True)) for p in reversed(front)):
            front.append(point)
            lowest = min(lowest, point[-1])
    best = set(front)
    return {number for number, point in usable.items() if point in best}
