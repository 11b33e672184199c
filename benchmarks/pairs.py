"""Two forms of one thing, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

TURNS = 7


@dataclass(frozen=True)
class Row:
    """A ratio of ours to the plain form, in seconds or bytes."""

    part: str
    unit: str
    ours: float
    plain: float
    ratio: float
    goal: float  # at most


def compared(part: str, goal: float, ours: Callable[[], object], plain: Callable[[], object], turns: int = TURNS) -> Row:
    """CPU seconds of two forms in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    forms = [("ours", ours), ("plain", plain)]
    for turn in range(turns):
        for name, form in forms if turn % 2 else reversed(forms):
            before = time.process_time()
            form()
            seconds[name].append(time.process_time() - before)
    ratios = [one / other for one, other in zip(seconds["ours"], seconds["plain"], strict=True)]
    medians = [statistics.median(seconds[name]) for name in ("ours", "plain")]
    return Row(part, "s", *medians, statistics.median(ratios), goal)


def sizes(part: str, goal: float, ours: int, plain: int) -> Row:
    """Bytes of two forms."""
    return Row(part, "MB", ours / 1e6, plain / 1e6, ours / plain, goal)
