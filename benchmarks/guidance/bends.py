"""What a profile is worth before any search: one ticket at gamma = 0.7 beside its base, paired by seed.

Trials run one after another in this process, through raylt's dispatcher and trial but without Ray; all are stages in one store.
Run again, it goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from raylt.spec import TrialSpec
from raylt.spec.trials import SEARCHED, Proposal, TrainingRequest
from raylt.store.results import TrialResult

Row = dict[str, Any]
Profile = Mapping[str, float | None]  # block -> raw value

GAMMA = 0.7
PERMUTATIONS = 2  # of the excess, for placebo
SEEDS, SEEDS_OF_FIRST = 2, 3  # fresh ones; the first problem is that of the searches
FIRST = "digits, ERK, 5 %"

TRAIN = {
    "batch_size": 32, "learning_rate": 3e-3, "beta_schedule": "linear", "precision": "fp32", "checkpoint_every": 600,
}  # fmt: skip
DIGITS = {
    "data": {"name": "digits"}, "model": {"preset": "digits"},
    "train": {**TRAIN, "steps": 400},
}  # fmt: skip
MNIST = {
    "data": {"name": "mnist", "size": 16}, "model": {"preset": "tiny"}, "features": {"features": "mnist-cnn"},
    "train": {**TRAIN, "steps": 600},
}  # fmt: skip

# problem -> (data and training, densities, base, budget)
PROBLEMS: dict[str, tuple[Row, list[float], str, str]] = {
    FIRST: (DIGITS, [0.2, 0.1, 0.05], "erk", "density"),
    "digits, ERK, 5 % of FLOPs": (DIGITS, [0.2, 0.1, 0.05], "erk", "flops"),
    "digits, LAMP, 5 %": (DIGITS, [0.2, 0.1, 0.05], "lamp", "density"),
    "digits, uniform, 5 %": (DIGITS, [0.2, 0.1, 0.05], "uniform", "density"),
    "digits, ERK, 2 %": (DIGITS, [0.2, 0.05, 0.02], "erk", "density"),
    "MNIST 16x16, ERK, 5 %": (MNIST, [0.2, 0.05], "erk", "density"),
    "quick": ({**DIGITS, "train": {**DIGITS["train"], "steps": 40}}, [0.2, 0.05], "erk", "density"),
}


def measure_all(jobs: list[tuple[str, int]], root: Path, processes: int) -> list[Row]:
    """One row a (problem, seed), in the order given; each is kept below `root` as soon as it is there."""
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(_measured, jobs, [root] * len(jobs)))


def _measured(job: tuple[str, int], root: Path) -> Row:
    problem, seed = job
    name = f"{''.join(c if c.isalnum() else '-' for c in problem)}-{seed}"
    file = root / "bends" / f"{name}.json"
    if not file.exists():
        row = {"problem": problem, "seed": seed, **_measure(problem, seed, name, root)}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row, indent=1))
        print(f"{problem}, seed {seed}: measured", flush=True)
    found: Row = json.loads(file.read_text())
    return found


def _measure(problem: str, seed: int, name: str, root: Path) -> Row:
    from raylt.diffusion.compute import Compute
    from raylt.search.profile import measure_similarity
    from raylt.spec import dump_yaml, parse_spec
    from raylt.store import Ledger, Store
    from raylt.sweep import preflight
    from raylt.sweep.dispatch import Dispatcher
    from raylt.trial.run import TrialContext

    data, densities, base, budget = PROBLEMS[problem]
    spec = parse_spec(
        dump_yaml(
            {
                "schema": 1, "name": name, "data": data["data"], "model": data["model"],
                "train": {**data["train"], "seed": seed},
                "ticket": {"densities": densities, "shared_rounds": 1},
                "search": {"base": base, "budget": budget, "pilots": 2, "baselines": ["uniform"], "trials": 0},
                "metrics": {"search": {"samples": 16, "steps": 2, **data.get("features", {})}, "reference": 1000},
                "resources": {"cpus": 1, "gpus": 0}, "storage": {"root": str(root / "store")},
            }
        ),
        name, (),
    )  # fmt: skip
    store = Store(spec.storage.root, owner=f"bends/{name}")
    bench = TrialContext.open(spec, Compute.local(spec), preflight.check(spec, store).inputs)
    ledger = Ledger(store, name, lambda: None)
    dispatcher = Dispatcher(spec, ledger, 0, lambda trial, result: None)
    while isinstance(trial := dispatcher.next_trial(()), TrialSpec):
        dispatcher.finish(trial.id, _run(trial, bench, store))
    blocks = measure_similarity(spec, ledger)["blocks"]
    sizes = _sizes(spec)
    free = [block for block in spec.blocks if blocks[block]["kappa"] is not None]
    bends = {"base": dict.fromkeys(free, 0.0)}
    for profile, values in _profiles({block: blocks[block] for block in free}, sizes, seed):
        bends[profile] = {block: GAMMA * values[block] for block in free}
    found = {}
    for index, (profile, bend) in enumerate(bends.items()):
        trial = TrialSpec(100 + index, "search", TrainingRequest(SEARCHED, seed), proposal=Proposal(offsets=bend))
        result = _run(trial, bench, store)
        found[profile] = {"state": result.state, "bend": bend} | {
            key: getattr(result.scores, key) for key in ("broken", "loss", "flops", "density")
        }
    dense = ledger.results[0].scores
    return {"dense": {"loss": dense.loss, "flops": dense.flops}, "blocks": blocks, "sizes": sizes, "bends": found}


def _run(trial: TrialSpec, bench: Any, store: Any) -> TrialResult:
    from raylt.trial.run import TrialRun

    run = TrialRun(trial, bench, store)
    for _ in run:
        pass
    return run.result


def _sizes(spec: Any) -> dict[str, int]:
    from raylt.diffusion.unet import layers_of

    sizes = dict.fromkeys(spec.blocks, 0)
    for layer in layers_of(spec.unet_config):
        sizes[layer.block] += layer.size
    return sizes


def _profiles(blocks: Mapping[str, Row], sizes: Mapping[str, int], seed: int) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Profile -> its value in every block, with mean 0 and standard deviation 1."""
    from raylt.search.profile import standardised

    raw = {
        name: {block: numbers[name] for block, numbers in blocks.items()}
        for name in ("excess", "kappa", "kappa_partial", "kappa_movement")
    }
    raw["movement"] = {block: math.log(numbers["movement"]) for block, numbers in blocks.items()}
    raw["size"] = {block: -math.log(sizes[block]) for block in blocks}
    standard = {name: standardised(values) for name, values in raw.items()}
    yield from standard.items()
    yield "excess and movement", standardised({b: standard["excess"][b] + standard["movement"][b] for b in blocks})
    for index in range(PERMUTATIONS):
        order = np.random.default_rng([seed, index]).permutation([*standard["excess"].values()])
        yield f"shuffled {index}", dict(zip(blocks, map(float, order), strict=True))


def jobs(first_seed: int, *, quick: bool) -> list[tuple[str, int]]:
    """(problem, seed), all problems of one seed before the next; seeds that no search of the benchmark uses."""
    if quick:
        return [("quick", first_seed)]
    counts = {problem: SEEDS_OF_FIRST if problem == FIRST else SEEDS for problem in PROBLEMS if problem != "quick"}
    return [(problem, first_seed + 10 + s) for s in range(SEEDS_OF_FIRST) for problem, count in counts.items() if s < count]
