"""How long a proposal takes once a study has a thousand trials."""

from __future__ import annotations

import statistics
import time
from typing import Any, get_args

import numpy as np

from guidance.arms import ARMS, spec_of
from guidance.simulate import as_result
from raylt.search.proposal import Proposer
from raylt.spec import TrialSpec, dump_yaml, parse_spec
from raylt.spec.trials import SEARCHED, Proposal, TrainingRequest
from raylt.spec.vocabulary import SamplerName
from raylt.store.results import COMPLETE

PROPOSALS = 5  # timed, the first of them left out: it reads the history in


def proposal_times(trials: int) -> dict[str, Any]:
    """Sampler -> median seconds of a proposal after so many trials, each knowing one trial more than the last."""
    return {"trials": trials, "seconds": {sampler: _median(sampler, trials) for sampler in get_args(SamplerName)}}


def _median(sampler: str, trials: int) -> float:
    keys = {**ARMS["similarity"][1], "sampler": sampler, "trials": trials + PROPOSALS}
    spec = parse_spec(dump_yaml(spec_of("times", 0, keys, quick=False)), "times", ())
    draw, names = np.random.default_rng(0), [f"delta/{group}" for group in spec.groups]
    history, seconds = [], []
    for number in range(trials + PROPOSALS):
        params = {"gamma": float(draw.uniform(-1.5, 1.5)), **{name: float(draw.uniform(-1, 1)) for name in names}}
        loss, flops = 0.1 + sum(value**2 for value in params.values()) / 100, 3e5 + 5e4 * params["gamma"]
        scored = {"round": 3, "loss": loss, "flops": flops, "broken": False}
        result = as_result({"state": COMPLETE, "rounds": [scored]})
        history.append((TrialSpec(number, "search", TrainingRequest(SEARCHED, 0), proposal=Proposal(params)), result))
    proposer = Proposer(spec, 10)
    for number in range(trials, trials + PROPOSALS):
        began = time.perf_counter()
        proposer.propose(number, history[:number])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
