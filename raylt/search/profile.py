"""The sweep's similarity, block by block, from its pilots; the groups; and the profile that gamma bends by, group by group."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from raylt.diffusion.flops import count_flops
from raylt.diffusion.rng import Draw, seed_of
from raylt.diffusion.tensors import NamedTensors, unpack
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import Layer, layers_of
from raylt.search.groups import Groups, grouped
from raylt.spec import SweepSpec
from raylt.spec.presets import default_groups
from raylt.spec.schema import matches
from raylt.store import Ledger, Stage, Store
from raylt.store.layout import SIMILARITY_FILE, START, TRAINED
from raylt.store.results import Measured, TrialResult
from raylt.store.stages import stage_of
from raylt.ticket.find import read_mask, round_0_among
from raylt.ticket.mask import Mask
from raylt.ticket.overlap import most_moved, movement
from raylt.ticket.similarity import Comparison, Numbers

log = logging.getLogger("raylt.profile")

LEAST_SPREAD = 1e-12  # of raw values: below, there is nothing to tell them apart


def measure_similarity(spec: SweepSpec, ledger: Ledger) -> Measured:
    """`{"blocks": {block: numbers}, "layers": {layer: numbers}, "groups": {group: blocks}, "profile": {group: s_g}}`.

    Measured once, then in the ledger. Call it when dense and pilots have ended; trials of them that failed are left out.
    Sweeps measured by an earlier raylt have no `groups`: theirs are the spec's.
    """
    measured = ledger.similarity()
    if measured:
        return measured
    evidence = _Evidence(spec, ledger)
    groups = evidence.groups()
    measured = {
        "blocks": evidence.by_block(),
        "layers": evidence.by_layer(),
        "groups": groups,
        "profile": evidence.profile(groups),
    }
    ledger.create(SIMILARITY_FILE, measured)
    return measured


def standardised(raw: Mapping[str, float]) -> dict[str, float]:
    """The values with mean 0 and standard deviation 1; all 0 where there is nothing to tell them apart."""
    values = np.array([*raw.values()])
    spread = float(values.std())
    standard = (values - values.mean()) / spread if spread > LEAST_SPREAD else np.zeros(len(values))
    return dict(zip(raw, map(float, standard), strict=True))


def load_mask(store: Store, result: TrialResult, layers: Sequence[Layer]) -> Mask:
    """The mask of a trial's last training."""
    return read_mask(stage_of(store, result.stages, result.kept_ticket().final_stage), layers)


def _start_and_trained(store: Store, dense: TrialResult) -> tuple[NamedTensors, NamedTensors]:
    ticket = dense.kept_ticket()
    start = TrainState.from_bytes(stage_of(store, dense.stages, ticket.start_stage).read(START)).weights
    return start, unpack(stage_of(store, dense.stages, ticket.final_stage).read(TRAINED))["weights"]


class _Evidence:
    """What the pilots' last masks share, and the dense training's beginning and end."""

    def __init__(self, spec: SweepSpec, ledger: Ledger) -> None:
        self.spec, self.layers = spec, layers_of(spec.unet_config)
        self.free = [layer for layer in self.layers if not matches(layer.name, spec.ticket.keep_dense)]
        store, dense = ledger.store, ledger.complete("dense")
        self.start: NamedTensors | None = None
        self.trained: NamedTensors | None = None
        if dense:
            self.start, self.trained = _start_and_trained(store, dense[0][1])
        pilots = [result for _, result in ledger.complete("pilot")]
        masks = [load_mask(store, result, self.layers) for result in pilots]
        origins = [round_0_among(store, result.stages) for result in pilots]
        self.comparison = Comparison.of(
            masks,
            self.free,
            start=self.start,
            moved=self._moved(masks, origins),
            searches=[
                result.kept_ticket().final_stage if origin is None else origin.digest
                for result, origin in zip(pilots, origins, strict=True)
            ],
        )

    def _moved(self, masks: Sequence[Mask], origins: Sequence[Stage | None]) -> list[Mask] | None:
        """What moved most in each pilot's dense training, as much as its ticket keeps; None unless all are there to see."""
        moved = []
        for mask, origin in zip(masks, origins, strict=True):
            if origin is None or self.start is None:
                return None
            trained = unpack(origin.read(TRAINED))["weights"]  # one at a time: they are as large as the model
            moved.append(most_moved(mask, self.start, trained, self.free))
        return moved

    def numbers(self, layers: Sequence[Layer]) -> Numbers:
        """What `Comparison.numbers` says of some layers pooled, and how far the dense training moved them."""
        moved = movement(self.start, self.trained, layers) if self.start and self.trained else None
        return {**self.comparison.numbers(layers), "movement": moved}

    def by_block(self) -> dict[str, Numbers]:
        return {block: self.numbers(self._free_of([block])) for block in self.spec.blocks}

    def by_layer(self) -> dict[str, Numbers]:
        """Of every prunable layer; those kept dense have no numbers."""
        return {layer.name: self.numbers([layer] if layer in self.free else []) for layer in self.layers}

    def groups(self) -> Groups:
        """Group -> its blocks: the spec's, or chosen from the raw profile of each block that has anything to prune."""
        if not self.spec.search.has_auto_groups:
            return self.spec.groups
        raw = self._raw_of({block: [block] for block in self.spec.free_blocks if self._free_of([block])})
        if raw is not None and np.std([*raw.values()]) > LEAST_SPREAD:
            return grouped(raw)
        default = default_groups(self.spec.free_blocks)
        why = "is not known of every block" if raw is None else "is the same in all blocks"
        log.warning("search.groups: auto: the profile %s %s; groups are %s", self.spec.search.profile, why, ", ".join(default))
        return default

    def profile(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Group -> s_g: mean 0 and standard deviation 1 across groups; all 0 where there is nothing to tell them apart."""
        raw = self._raw_of(groups)
        if raw is None:
            return dict.fromkeys(groups, 0.0)
        if self.spec.search.profile == "shuffled":
            order = np.random.default_rng(seed_of(self.spec.search.seed, Draw.PROFILE, 0))
            raw = dict(zip(raw, order.permutation([*raw.values()]), strict=True))
        return standardised(raw)

    def _free_of(self, blocks: Sequence[str]) -> list[Layer]:
        return [layer for layer in self.free if layer.block in blocks]

    def _raw_of(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float] | None:
        """Group -> the named quantity of its layers; None where one of them has no number."""
        raw = {group: self._raw(self._free_of(blocks)) for group, blocks in groups.items()}
        numbers = {group: value for group, value in raw.items() if value is not None}
        return numbers if len(numbers) == len(raw) else None

    def _raw(self, layers: Sequence[Layer]) -> float | None:
        """The named quantity of some layers. `shuffled` is a permutation of `excess` over the groups, for placebo.

        `cost`: the log of the FLOPs that a weight causes, of which training knows nothing: gamma then trades loss for FLOPs.
        """
        name, numbers = self.spec.search.profile, self.numbers(layers)
        if name == "cost":
            flops = count_flops(self.spec.unet_config).layers
            return math.log(sum(flops[la.name] for la in layers) / sum(la.size for la in layers)) if layers else None
        if name == "size":
            return -math.log(sum(layer.size for layer in layers)) if layers else None
        if name == "movement":
            moved = numbers["movement"]
            return math.log(moved) if moved else None
        return numbers["excess" if name == "shuffled" else name]
