"""How far numbers agree on which allocation is better: with another seed, between rungs, with FID, without a shared round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Row = dict[str, Any]


def agreement(designs: Mapping[str, Row], unshared: str) -> Row:
    """Spearman's rank correlations over the allocations that are alive in every design; of several pairs, mean and extremes."""
    trials = {name: run["trials"] for name, run in designs.items()}
    num = min(map(len, trials.values()))
    alive = [i for i in range(num) if all(t[i]["state"] == "COMPLETE" and not t[i]["broken"] for t in trials.values())]
    shared = [[t[i] for i in alive] for name, t in trials.items() if name != unshared]
    found: Row = {"allocations": len(alive)}
    for label, key in (("loss, two seeds", _end), ("loss at the rung, two seeds", _rung), ("FID, two seeds", _fid)):
        found[label] = _summary([_rank(key(a), key(b)) for a, b in itertools.combinations(shared, 2)])
    found["loss at the rung and at the end"] = _summary([_rank(_rung(t), _end(t)) for t in shared])
    found["loss and FID, one seed"] = _summary([_rank(_end(t), _fid(t)) for t in shared])
    found["loss of one seed and mean FID of the others"] = _summary(
        [_rank(_end(t), np.mean([_fid(o) for o in shared if o is not t], axis=0)) for t in shared] if len(shared) > 1 else []
    )
    found["spread"] = {
        "loss": float(np.mean([np.std(_end(t)) / np.mean(_end(t)) for t in shared])),
        "FID": float(np.mean([np.std(_fid(t)) / np.mean(_fid(t)) for t in shared])),
    }
    if unshared in trials:
        found["sharing"] = _bias(shared[0], [trials[unshared][i] for i in alive])
    return found


def _bias(shared: Sequence[Row], apart: Sequence[Row]) -> Row:
    """What a shared round changes: the order, the losses, and what choosing by shared losses costs without sharing."""
    with_, without = _end(shared), _end(apart)
    return {
        "rank": _rank(with_, without),
        "mean change": float(np.mean(with_ / without - 1)),
        "regret": float(without[int(np.argmin(with_))] / without.min() - 1),
        "steps with": sum(t["steps"] for t in shared),
        "steps without": sum(t["steps"] for t in apart),
    }


def _end(trials: Sequence[Row]) -> Any:
    return np.array([t["loss"] for t in trials])


def _rung(trials: Sequence[Row]) -> Any:
    return np.array([t["losses"][2] for t in trials])


def _fid(trials: Sequence[Row]) -> Any:
    return np.array([t["fid"] for t in trials])


def _rank(a: Any, b: Any) -> float:
    return float(spearmanr(a, b).statistic)


def _summary(values: Sequence[float]) -> Row | None:
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values), "pairs": len(values)} if values else None
