"""The sweep's similarity, block by block, from its pilots; and the profile that gamma bends by, group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylt.diffusion.model import Layer, layers_of
from raylt.diffusion.noise import Draw, seed_of
from raylt.diffusion.train import TrainState
from raylt.ledger import Ledger
from raylt.results import SIMILARITY_FILE
from raylt.spec import SweepSpec, matches
from raylt.store import Store
from raylt.tensors import NamedTensors, unpack
from raylt.ticket.find import START, TRAINED
from raylt.ticket.mask import Mask
from raylt.ticket.similarity import kappa_between, kappa_with_start, movement


def measure(spec: SweepSpec, ledger: Ledger) -> dict[str, Any]:
    """`{"blocks": {block: numbers}, "profile": {group: s_g}}`, measured once and kept in the ledger.

    Call it when dense and pilots have ended; trials of them that failed are left out.
    """
    known = ledger.read(SIMILARITY_FILE)
    if known is not None:
        return dict(known)
    pilots, dense = ledger.complete("pilot"), ledger.complete("dense")
    store = ledger.store
    masks = [load_mask(store, result["final_stage"], layers_of(spec.unet_config)) for _, result in pilots]
    start, trained = _start_and_trained(store, dense[0][1]) if dense else (None, None)
    evidence = _Evidence(spec, masks, start, trained)
    found = {"blocks": evidence.by_block(), "profile": evidence.profile()}
    ledger.write(SIMILARITY_FILE, found)
    return found


def load_mask(store: Store, stage: str, layers: Sequence[Layer]) -> Mask:
    """The mask of a training stage."""
    return Mask.unpack(unpack(store.find(stage).read("mask.safetensors"))["mask"], layers)


def _start_and_trained(store: Store, dense: Mapping[str, Any]) -> tuple[NamedTensors, NamedTensors]:
    start = TrainState.from_bytes(store.find(dense["start_stage"]).read(START)).weights
    return start, unpack(store.find(dense["final_stage"]).read(TRAINED))["weights"]


class _Evidence:
    """Masks of the pilots' last rounds, and the dense training's beginning and end."""

    def __init__(self, spec: SweepSpec, masks: list[Mask], start: NamedTensors | None, trained: NamedTensors | None) -> None:
        self.spec, self.masks, self.start, self.trained = spec, masks, start, trained
        self.free = [layer for layer in layers_of(spec.unet_config) if not matches(layer.name, spec.ticket.keep_dense)]

    def numbers(self, layers: Sequence[Layer]) -> dict[str, float | int | None]:
        """kappa, kappa_start, movement and the number of pairs behind them, of some layers pooled."""
        pairs = len(self.masks) * (len(self.masks) - 1) // 2 if layers else 0
        return {
            "kappa": kappa_between(self.masks, layers) if layers else None,
            "kappa_start": kappa_with_start(self.masks, self.start, layers) if layers and self.start is not None else None,
            "movement": movement(self.start, self.trained, layers) if layers and self.start and self.trained else None,
            "pairs": pairs,
        }

    def by_block(self) -> dict[str, dict[str, float | int | None]]:
        return {block: self.numbers([layer for layer in self.free if layer.block == block]) for block in self.spec.blocks}

    def profile(self) -> dict[str, float]:
        """Group -> s_g: mean 0 and standard deviation 1 across groups; all 0 where there is nothing to tell them apart."""
        raw = {
            group: self._raw([layer for layer in self.free if layer.block in blocks])
            for group, blocks in self.spec.groups.items()
        }
        if any(value is None for value in raw.values()):
            return dict.fromkeys(raw, 0.0)
        values = np.array([value for value in raw.values() if value is not None])
        if self.spec.search.profile == "shuffled":
            values = np.random.default_rng(seed_of(self.spec.search.seed, Draw.PROFILE, 0)).permutation(values)
        spread = float(values.std())
        standard = (values - values.mean()) / spread if spread > 1e-12 else np.zeros(len(values))
        return dict(zip(raw, map(float, standard), strict=True))

    def _raw(self, layers: Sequence[Layer]) -> float | None:
        """The named quantity of one group's layers. `shuffled` is a permutation of `excess`, for placebo."""
        name, found = self.spec.search.profile, self.numbers(layers)
        if name == "size":
            return -math.log(sum(layer.size for layer in layers))
        if name == "movement":
            moved = found["movement"]
            return math.log(moved) if moved else None
        kappa, inherited = found["kappa"], found["kappa_start"]
        if name == "kappa":
            return kappa
        return kappa - inherited if kappa is not None and inherited is not None else None
