"""Intervals of means: one confidence and one quantile for everything that raylt calls an interval."""

from __future__ import annotations

CONFIDENCE = 0.95  # two-sided


def student_t(degrees_of_freedom: int) -> float:
    """Half the width of the interval of a mean, in standard errors (Student 1908)."""
    from scipy.special import stdtrit  # here: what only reads a sweep without a confirmation need not load it

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
