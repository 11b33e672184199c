"""A store with a whole sweep that was confirmed, made of invented numbers: nothing is trained."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from safetensors.numpy import save

from raylt.search.confirm import Request, confirm
from raylt.spec import SweepSpec, TrialSpec, dump_yaml, plan
from raylt.store import Ledger, Output, Store
from raylt.store.layout import GRID, LOCK_FILE, SIMILARITY_FILE, SPEC_FILE
from tests.support.begun import write_start
from tests.support.results import a_result
from tests.support.trials import a_trial

BLOCKS = ["conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"]
LOCK = {"precision": "fp32", "device": "cpu", "threads": 1, "versions": {"torch": "9.8.7", "raylt": "1.2.3"}}
_WORSE = {"uniform": 0.02, "erk": 0.0, "searched": -0.01}


def begun(root: Any, spec: SweepSpec, *, trials: int = 1, first_schema: bool = False) -> Ledger:
    """A ledger whose planned trials and some search trials have ended."""
    store = Store(str(root))
    ledger = Ledger(store, spec.name, lambda: None)
    if first_schema:
        store.write(f"sweeps/{spec.name}/{SPEC_FILE}", dump_yaml(spec.dump()).encode())
        ledger.write(LOCK_FILE, LOCK)
    else:
        write_start(ledger, spec, **LOCK)
    planned = [item.trial for item in plan(spec)]
    searched = [a_trial(len(planned) + i, "search", "searched", 0, params={"gamma": 0.5 * i}) for i in range(trials)]
    for trial in [*planned, *searched]:
        end(spec, ledger, trial)
    if spec.search.pilots:
        numbers = {"kappa": 0.5, "kappa_start": 0.25, "movement": 0.1, "pairs": 1}
        ledger.write(SIMILARITY_FILE, {"blocks": dict.fromkeys(BLOCKS[1:-1], numbers)})
    return ledger


def confirmed(root: Any, spec: SweepSpec, request: Request | None = None, *, first_schema: bool = False) -> Ledger:
    """The same, and its confirmation has ended as well."""
    ledger = begun(root, spec, first_schema=first_schema)
    for item in confirm(spec, ledger, request or Request(top=1, seeds=3)):
        end(spec, ledger, item.trial)
    return ledger


def end(spec: SweepSpec, ledger: Ledger, trial: TrialSpec) -> None:
    """Loss and FID rise as density falls, and with every control."""
    draw = random.Random(str(trial.dump()))
    asked = trial.training
    worse = _WORSE.get(asked.rule or "", 0.0) + (0.5 if asked.control else 0.0) + (12 - (asked.steps or 12)) / 10
    rounds = [0] if trial.kind == "dense" else trial.training.control_rounds or list(range(spec.ticket.rounds + 1))
    scored = [_round(trial, index, spec.ticket.density_of(index), worse, draw) for index in rounds]
    stage = ledger.store.stage({"kind": "samples", "of": trial.id})
    images = np.random.default_rng(trial.id).integers(0, 256, (64, 1, 8, 8), np.uint8)
    stage.make(lambda _: Output(files={GRID: save({"images/first": images})}))
    last = scored[-1]
    ledger.submit(trial)
    ledger.finish(
        trial.id,
        a_result(
            rounds=scored,
            flops_dense=1_000_000,
            ticket_bytes=123_456,
            densities=dict.fromkeys(BLOCKS, last["density"]),
            ticket=f"{trial.id:064d}",
            steps={"asked": 3, "trained": 2, "shared": 1},
            timing={"wall_s": 1.5, "stages_s": 0.0},
            sample_stage=stage.digest,
        ),
    )


def _round(trial: TrialSpec, index: int, density: float, worse: float, draw: random.Random) -> dict[str, Any]:
    own = 1.0 if trial.kind == "dense" or trial.training.control == "small-dense" else density
    loss = 0.1 * (1 + worse * index + (1 - density)) + draw.gauss(0, 0.0005)
    numbers = {"loss": loss, "fid": 1000 * loss, "kid": loss / 10, "kid_sd": 0.001, "flops": int(1_000_000 * density)}
    return {"round": index, "density": own, "broken": False, "ticket_bytes": 1, "time_ms": 1, **numbers}
