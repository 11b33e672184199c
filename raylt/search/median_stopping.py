"""Rungs: which search trials are stopped between two rounds, by a rule that looks at the ledger alone.

A round is a rung: at it all tickets have one density, so held-out losses compare. What a trial must reach at each rung is
decided when it is asked, from the trials it may know of, and is written down with it (`Proposal.thresholds`). So neither
a crash nor who finishes first changes who is stopped, and no scheduler has to remember anything. (Optuna's pruners and
Tune's schedulers decide when a round ends, by who has ended then; Optuna's refuse several objectives.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from raylt.spec import SweepSpec
from raylt.store.results import FAIL, RoundResult, TrialResult

MIN_SEEN = 4  # trials at a rung before it stops any


def thresholds(spec: SweepSpec, ended: Iterable[TrialResult], flops_at: Callable[[int], float]) -> dict[str, float]:
    """Round -> the loss above which a trial ends there: the median of those that were at the rung.

    The median stopping rule (Golovin et al. 2017, Vizier) on the loss itself, which is measured once a rung. Where FLOPs are
    an objective too, a trial is held against those alone that cost no more: else the cheap end of the front would be stopped.

    `ended`: results of baselines and search trials. A broken ticket counts as infinitely bad; where half of them are, there
    is no threshold. Rounds that trials share are no rungs, nor is the last. `flops_at`: what the trial itself will cost at one.
    """
    if not spec.search.rungs:
        return {}
    trials = [result.rounds for result in ended if result.state != FAIL]
    limits = {}
    for rung in range(spec.ticket.shared_rounds + 1, spec.ticket.rounds):
        most = flops_at(rung) if "flops" in spec.search.objectives else math.inf
        losses = _losses_at(rung, trials, most)
        threshold = statistics.median_high(losses) if len(losses) >= MIN_SEEN else math.inf
        if math.isfinite(threshold):
            limits[str(rung)] = threshold
    return limits


def _losses_at(rung: int, trials: Sequence[Sequence[RoundResult]], most_flops: float) -> list[float]:
    at_rung = (scored for rounds in trials for scored in rounds if scored.round == rung)
    rivals = [scored for scored in at_rung if scored.flops is not None and scored.flops <= most_flops]
    return [math.inf if scored.loss is None or scored.broken else scored.loss for scored in rivals]
