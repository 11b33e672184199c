"""Trials, written flat as `asked.json` has them."""

from __future__ import annotations

from typing import Any

from raylt.spec import TrialSpec
from raylt.spec.trials import Kind


def a_trial(number: int, kind: Kind, rule: str | None, seed: int, **given: Any) -> TrialSpec:
    """`given`: further fields of a trial and of what it groups: params, thresholds, confirms ..."""
    return TrialSpec.load({"id": number, "kind": kind, "rule": rule, "seed": seed, **given})
