"""A sweep of many finished trials, written to a store as a driver would have left it; nothing in it was trained."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from raylt.search.space import offsets, parameter_names
from raylt.spec import SweepSpec, TrialSpec, dump_yaml, plan
from raylt.spec.canonical import canonical, digest_of
from raylt.spec.trials import SEARCHED, Proposal, TrainingRequest
from raylt.store.filesystem import dump_json
from raylt.store.layout import LOCK_COPY, LOCK_FILE, SIMILARITY_FILE, SPEC_FILE, asked_path, result_path
from raylt.store.results import COMPLETE, FAIL, PRUNED
from raylt.store.seals import place_of, seal, seal_yaml
from raylt.store.stages import CODE_SCHEMA, KEY, MANIFEST, folder_of

STARTUP = 10
PROFILE = {"down": -1.0, "mid": -0.2, "up": 1.2}
_LAYER = 2304


def spec_of(trials: int, **search: Any) -> SweepSpec:
    """A sweep of so many trials in all: the dense one, and proposals."""
    known = {"trials": trials - 1, "pilots": 0, "baselines": [], **search}
    return SweepSpec.model_validate({"schema": 1, "name": "long", "search": known})


def trial_of(spec: SweepSpec, number: int) -> TrialSpec:
    """Trial `number` as it was asked."""
    planned = [item.trial for item in plan(spec)]
    if number < len(planned):
        return planned[number]
    draw = random.Random(number)
    params = {name: draw.uniform(-1, 1) for name in parameter_names(spec)}
    attrs = {"NSGAIISampler:generation": (number - len(planned)) // STARTUP}  # other samplers do not look at it
    bend = offsets(spec, params, PROFILE)
    return TrialSpec(number, "search", TrainingRequest(SEARCHED, spec.train.seed), proposal=Proposal(params, bend, attrs))


def result_of(spec: SweepSpec, trial: TrialSpec) -> dict[str, Any]:
    """How it ended: about 6 kB, as `TrialRun` leaves it. One in 50 failed, one in 25 was stopped."""
    draw, number = random.Random(-trial.id), trial.id
    loss, flops = draw.uniform(0.1, 0.2), draw.randrange(400_000, 1_800_000)
    report = {"shared": False, "density": 0.2, "fid": draw.uniform(1, 90), "kid": draw.uniform(1, 9), "kid_sd": 0.1}
    report |= {"loss": loss, "flops": flops, "broken": False, "ticket_bytes": 65_536, "time_ms": 1_700_000_000_000 + number}
    rounds = [{"round": index, **report} for index in range(spec.ticket.rounds + 1)]
    stages = [hashlib.sha256(f"{number}/{index}".encode()).hexdigest() for index in range(12)]
    record = {
        "rounds": rounds, "stages": dict(zip(stages, reversed(stages), strict=True)),
        "steps": {"asked": 1000, "trained": 500, "shared": 500}, "timing": {"wall_s": 60.0, "stages_s": 50.0},
        "time_ms": report["time_ms"],
    }  # fmt: skip
    if number % 50 == 49:
        return {"state": FAIL, "cause": "an objective is not finite: {'loss': None, 'flops': 387286}", **record}
    if number % 25 == 24:
        return {"state": PRUNED, "cause": "stopped at round 2: loss 0.2, above 0.15, the median there", **record}
    kept = {block: [draw.randrange(100, 9216), 9216] for block in spec.blocks}
    layers = {f"{block}.resnets.{i}.conv{j}": [_LAYER // 5, _LAYER] for block in spec.blocks for i in (0, 1) for j in (1, 2)}
    return {
        "state": COMPLETE, "cause": None, **report, "round": spec.ticket.rounds, "flops_dense": 1_889_280, "layers": layers,
        "kept": kept, "densities": {block: some / total for block, (some, total) in kept.items()},
        "violations": {}, "ticket": stages[0], "start_stage": stages[1], "final_stage": stages[2], "sample_stage": stages[3],
        "ticket_stage": stages[4], **record,
    }  # fmt: skip


def write_sweep(root: Path, trials: int) -> SweepSpec:
    """The sweep with all its trials finished, without an index."""
    spec = spec_of(trials)
    yaml = dump_yaml(spec.dump())
    lock = {"code_schema": CODE_SCHEMA, "digest": spec.digest, "spec": yaml, "startup": STARTUP, "data_sha256": "0" * 64}
    groups = {group: list(blocks) for group, blocks in spec.groups.items()}
    similarity = {"blocks": {}, "layers": {}, "groups": groups, "profile": PROFILE}
    folder = f"sweeps/{spec.name}"

    def put(path: str, record: dict[str, Any], sweep: str = digest_of(lock)) -> None:
        _put(root, path, dump_json(seal(record, place_of(path, sweep))))

    for name in (LOCK_FILE, LOCK_COPY):
        put(f"{folder}/{name}", lock, "")
    put(f"{folder}/{SIMILARITY_FILE}", similarity)
    _put(root, f"{folder}/{SPEC_FILE}", seal_yaml(yaml, f"{folder}/{SPEC_FILE}"))
    for number in range(trials):
        trial = trial_of(spec, number)
        put(asked_path(spec.name, number), trial.dump())
        put(result_path(spec.name, number), result_of(spec, trial))
    return spec


def write_stages(root: Path, number: int) -> None:
    """Whole stages that no sweep names: each has to be asked whose it is."""
    for index in range(number):
        key = {"schema": CODE_SCHEMA, "kind": "train", "index": index}
        digest = digest_of(key)
        manifest = {"stage": digest, "values": {}, "files": {}, "time_ms": 0, "duration_s": 1.0, "owner": f"gone/{index}"}
        _put(root, f"{folder_of(digest)}/{KEY}", canonical(key))
        path = f"{folder_of(digest)}/{MANIFEST}"
        _put(root, path, dump_json(seal(manifest, path)))


def _put(root: Path, path: str, data: bytes) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
