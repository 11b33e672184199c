"""What stands in for training: stages whose content is a hash of their key, of what they read, and of how far they are.

So a result is a function of its trial alone, whoever made it, in however many pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from raylt.errors import Diverged
from raylt.spec import SweepSpec, TrialSpec, dump_yaml, parse_spec
from raylt.spec.canonical import digest_of
from raylt.store import Ledger, Manifest, Output, Stage, Store
from raylt.store.layout import SIMILARITY_FILE
from raylt.store.results import TrialResult
from raylt.store.stages import stage_of
from tests.chaos.simulation.world import World
from tests.conftest import TINY, merged
from tests.support.results import a_result

FILE, STATE, STEPS, STEP_S = "trained.safetensors", "state.safetensors", 4, 6.0


@lru_cache
def spec_of(trials: int, pilots: int, concurrency: int, seed: int) -> SweepSpec:
    """A sweep of dense, pilots, one baseline and so many proposals."""
    search = {
        "trials": trials, "concurrency": concurrency, "sampler": "random", "seed": seed,
        "pilots": pilots, "baselines": ["uniform"],
    }  # fmt: skip
    confirm = {"controls": [], "seeds": 1, "top": 1}
    return SweepSpec.model_validate(merged(TINY, {"name": "s", "search": search, "confirm": confirm}))


_texts: dict[int, str] = {}


def yaml_of(spec: SweepSpec) -> str:
    """The text of a spec that `spec_of` gave."""
    return _texts.get(id(spec)) or _texts.setdefault(id(spec), dump_yaml(spec.dump()))


@lru_cache(maxsize=256)
def parsed(text: str, source: str, overrides: tuple[str, ...] = (), **options: bool) -> SweepSpec:
    """`parse_spec`, once a text: YAML would take most of a run's time."""
    return parse_spec(text, source, overrides, **options)


class Run:
    """A trial at work."""

    def __init__(self, trial: TrialSpec, store: Store, world: World, *, diverges: float) -> None:
        """`diverges`: the share of trained stages that diverge whenever they are made."""
        self.trial, self.store, self._world, self._share = trial, store, world, diverges
        self._manifests: dict[str, Manifest] = {}

    def result(self) -> TrialResult:
        asked = self.trial.training
        seed = asked.seed if asked.start_seed is None else asked.start_seed
        stage = self._trained({"kind": "train", "round": 0, "seed": asked.seed, "start": seed}, None)
        start = stage
        if asked.rule is not None:
            of = {"rule": asked.rule, "offsets": dict(self.trial.proposal.offsets), "start": start.digest}
            stage = self._trained({"kind": "train", "round": 1, "seed": asked.seed, **of}, start)
        score = self.store.stage({"kind": "score", "of": stage.digest, "protocol": self.trial.protocol})
        scores = self._made(score, lambda made: Output({"loss": _number(stage.read(FILE)), "digest": made.digest}))
        time_ms = max(manifest.time_ms for manifest in self._manifests.values())
        own = sum(manifest.owner == self.store.owner for manifest in self._manifests.values())
        numbers = {"loss": scores.values["loss"], "flops": 100 + self.trial.id, "broken": False}
        return a_result(
            rounds=[{"round": 1, "time_ms": time_ms, **numbers}],
            ticket=stage.digest,
            steps={"asked": STEPS, "trained": own},
            timing={"wall_s": self._world.now, "stages_s": 0.0},
            stages={digest: manifest.digest for digest, manifest in self._manifests.items()},
            time_ms=time_ms,
            start_stage=start.digest,
            final_stage=stage.digest,
        )

    def _trained(self, key: Mapping[str, Any], parent: Stage | None) -> Stage:
        stage = self.store.stage(key)
        self._made(stage, lambda made: self._train(made, parent))
        return stage

    def _made(self, stage: Stage, compute: Callable[[Stage], Output]) -> Manifest:
        self._manifests[stage.digest] = manifest = stage.make(compute)
        return manifest

    def _train(self, stage: Stage, parent: Stage | None) -> Output:
        kept = stage.load_checkpoint(STATE)
        step, value = (kept[0], kept[1:]) if kept is not None else (0, _hash(stage.digest.encode()))
        while step < STEPS:
            value = _hash(value + (parent.read(FILE) if parent is not None and step == 0 else b""))
            self._world.sleep(STEP_S)
            step += 1
            if step == STEPS // 2:
                stage.checkpoint(STATE, bytes([step]) + value)
        if int(stage.digest[:4], 16) < self._share * 0x10000:
            raise Diverged("training diverged")
        return Output({"steps": STEPS, "value": value.hex()}, {FILE: value * 4})


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _number(data: bytes) -> float:
    return int.from_bytes(data[:6]) / 2**48


def measure(spec: SweepSpec, ledger: Ledger) -> dict[str, Any]:
    """In place of `search.profile.measure_similarity`: reads what that reads, decides once what that decides."""
    known = ledger.read(SIMILARITY_FILE)
    if known is not None:
        return dict(known)
    ended = [*ledger.complete("dense"), *ledger.complete("pilot")]
    read = {
        digest: stage_of(ledger.store, result.stages, digest).read(FILE)
        for trial, result in ended
        for digest in dict.fromkeys(
            [result.ticket.final_stage, result.ticket.start_stage if trial.kind == "dense" else result.ticket.final_stage]
        )
    }
    seen = digest_of({digest: data.hex() for digest, data in read.items()})
    profile = {group: int(seen[2 * i : 2 * i + 2], 16) / 255 for i, group in enumerate(spec.groups)}
    found = {"blocks": {}, "layers": {}, "groups": spec.groups, "profile": profile}
    ledger.create(SIMILARITY_FILE, found)
    return found


def comparable(ledger: Ledger) -> dict[str, Any]:
    """Every trial in full, without what two runs of one sweep may differ in."""
    return {
        str(number): [trial.dump(), _lasting(ledger.results.get(number))] for number, trial in sorted(ledger.submitted.items())
    } | {"similarity": ledger.read(SIMILARITY_FILE)}


def _lasting(result: TrialResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    record = result.to_json()
    own = {key: value for key, value in record.items() if key not in ("steps", "timing", "time_ms", "rounds")}
    return own | {"rounds": [{key: value for key, value in r.items() if key != "time_ms"} for r in record["rounds"]]}
