"""The addresses of stages: a stage's digest is that of its key, and what a store has is found by it alone.

tests/data/stage-keys.json has the keys of every kind of stage, by every criterion, mode, rule and control. What is changed
here retrains everything that users have; it needs a new `CODE_SCHEMA`, and `python -m tests.trial.test_keys` writes the file.

A mask's digest is in the key of what is trained under it. So that no processor's rounding decides it, trainings, costly
criteria and the classifier are replaced by numbers drawn from names.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.train import Recipe, TrainState
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.canonical import digest_of
from raylt.store import Stage, Store
from raylt.ticket import criteria
from raylt.ticket.criteria import PruningContext
from raylt.ticket.find import TicketRunner
from raylt.ticket.prune import magnitude
from raylt.trial import score
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from tests.conftest import TINY, merged

GOLDEN = Path(__file__).parents[1] / "data" / "stage-keys.json"

BASE = merged(TINY, {"metrics": {"final": {"samples": 80, "steps": 2}}})
TICKET = {"kind": "baseline", "rule": "erk"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"criterion {name}": ({"ticket": {"criterion": name}}, TICKET) for name in criteria.CRITERIA},
    **{f"mode {name}": ({"ticket": {"mode": name}}, TICKET) for name in ("learning-rate-rewind", "fine-tune")},
    **{f"rule {name}": ({}, {**TICKET, "rule": name}) for name in ("uniform", "uniform+", "er", "erk", "lamp", "global")},
    **{
        f"control {name}": ({}, {**TICKET, "control": name, "control_rounds": [2]})
        for name in ("reinit", "shuffled", "random", "small-dense")
    },
    "dense": ({}, {"kind": "dense", "rule": None}),
    "pilot": ({}, {"kind": "pilot", "rule": "uniform", "seed": 1}),
    "searched": ({}, {"kind": "search", "rule": "searched", "offsets": {"down_blocks.0": 0.5, "mid_block": -0.25}}),
    "initialisation": ({"ticket": {"rewind_step": 0}}, TICKET),
    "scope block": ({"ticket": {"scope": "block"}}, {**TICKET, "rule": "uniform"}),
    "budget flops": ({"search": {"budget": "flops"}, "ticket": {"criterion": "synflow"}}, TICKET),
    "confirmed": ({}, {**TICKET, "protocol": "final", "start_seed": 4, "seed": 4, "steps": 6, "confirms": 3}),
    "sampler ddpm": ({"metrics": {"search": {"sampler": "ddpm", "steps": 50}}}, {"kind": "dense", "rule": None}),
}


def drawn(name: str, shape: Any, of: str) -> torch.Tensor:
    """Small numbers that every processor draws alike."""
    return torch.from_numpy(np.random.default_rng(zlib.crc32(f"{of}/{name}".encode())).random(shape) / 50).float()


def trained(runner: TicketRunner, stage: Stage, state: TrainState, stop: int, recipe: Recipe, *_: Any) -> TrainState:
    """In place of a training: weights by seed and length of training."""
    weights = {name: drawn(name, value.shape, f"{recipe.seed}/{stop}") for name, value in state.weights.items()}
    kept = {name: value * recipe.masks[name] if name in recipe.masks else value for name, value in weights.items()}
    ema = {name: value.clone() for name, value in kept.items()}
    return TrainState(stop, kept, state.first_moments, state.second_moments, ema, stop, state.moment_updates)


def scores(context: PruningContext) -> Any:
    """In place of a criterion that looks at gradients."""
    values = {name: drawn(name, value.shape, "scores") for name, value in context.rewound().items()}
    return magnitude(values, context.search.layers, context.mask)


def classifier(images: Any, seed: int, epochs: int) -> NamedTensors:
    return {name: drawn(name, value.shape, "cnn") for name, value in real_classifier(images, seed, 0).items()}


real_classifier = score.train_small_cnn


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """The keys of the stages that are looked for inside, each once, in order."""
    keys: list[dict[str, Any]] = []
    plain = Store.stage

    def stage(store: Store, key: Any) -> Stage:
        found = plain(store, key)
        if found.key not in keys:
            keys.append(json.loads(json.dumps(found.key)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "stage", stage)
        patch.setattr(TicketRunner, "_run", trained)
        patch.setattr(score, "train_small_cnn", classifier)
        for name in criteria.AT_REWIND_POINT:
            patch.setitem(criteria.CRITERIA, name, scores)
        yield keys


def keys_of(case: str, root: Path) -> dict[str, dict[str, Any]]:
    """Digest -> key, of the stages of a trial."""
    changes, trial = CASES[case]
    spec = SweepSpec.model_validate(merged(BASE, changes))
    with recorded() as keys:
        inputs, store = Inputs(load_images(spec.data)), Store(str(root))
        inputs.put(store)
        run = TrialRun(TrialSpec.load({"id": 9, "seed": 0, **trial}), TrialContext.open(spec, Compute(), inputs), store)
        for _ in run:
            pass
    assert run.result.state == "COMPLETE"
    return {digest_of(key): key for key in keys}


@pytest.fixture(scope="module")
def golden() -> dict[str, list[str]]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.mark.parametrize("case", CASES)
def test_what_a_store_has_is_found_under_the_same_address(case: str, golden: Any, root: Path) -> None:
    found = keys_of(case, root)
    expected = {digest: golden["keys"][digest] for digest in golden["cases"][case]}
    assert [*found.values()] == [*expected.values()]
    assert [*found] == [*expected]


def test_every_kind_of_stage_is_there(golden: Any) -> None:
    kinds = {key["kind"] for key in golden["keys"].values()}
    assert kinds == {"images", "start", "train", "mask", "loss", "classifier", "reference", "sample", "ticket"}
    assert set(golden["cases"]) == set(CASES)


def write() -> None:
    """Make the file anew."""
    with tempfile.TemporaryDirectory() as folder:
        found = {case: keys_of(case, Path(folder)) for case in CASES}
    keys = {digest: key for case in found.values() for digest, key in case.items()}
    GOLDEN.write_text(json.dumps({"cases": {case: [*those] for case, those in found.items()}, "keys": keys}, indent=1) + "\n")


if __name__ == "__main__":
    write()
