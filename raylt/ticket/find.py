"""find_ticket(): rounds of prune, rewind and train over memoised stages.

What a search is, stands in a `TicketSearch`; this file does it. Every step begins with "if it exists, return".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from raylt.diffusion.data import ImageSet
from raylt.diffusion.tensors import NamedTensors, pack, unpack
from raylt.diffusion.train import Compute, Trainer, TrainState, learning_rate_at, run
from raylt.diffusion.unet import Layer, build_unet, layers_of, load_parameters, parameters_of, weight_name
from raylt.spec import SweepSpec
from raylt.spec.sections import TrainSpec
from raylt.store import Manifest, Output, Stage, Store
from raylt.store.layout import MASK, START, TRAINED
from raylt.ticket.allocation import Allocation, Pruning
from raylt.ticket.criteria import AT_REWIND_POINT, CRITERIA, Scores, Survivors
from raylt.ticket.mask import Mask
from raylt.ticket.prune import top_k

Progress = Callable[[int, int, float], None]  # round, step, mean loss since the last call


@dataclass(frozen=True)
class TicketSearch:
    """One lottery-ticket search. `seed` orders batches, noise and timesteps; the start is the spec's `train.seed`'s.

    `allocation` None: the dense model, round 0 alone. `costs`: layer -> FLOPs of one weight, where `search.budget` is flops.
    """

    spec: SweepSpec
    compute: Compute
    allocation: Allocation | None
    seed: int
    costs: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def layers(self) -> list[Layer]:
        return layers_of(self.spec.unet_config)

    @property
    def num_rounds(self) -> int:
        """Trainings: one for the dense model, one after each pruning."""
        return 1 + (self.spec.ticket.rounds if self.allocation is not None else 0)


@dataclass(frozen=True)
class Round:
    """Round `index` of a search, trained: its mask and the stage that holds its weights and EMA."""

    index: int
    density: float  # the one asked for, of weights or of FLOPs; the mask's is the nearest there is
    mask: Mask
    start: Stage  # the rewind point it was trained from
    stage: Stage
    manifest: Manifest
    unet_config: Mapping[str, Any]
    mask_stage: Stage | None = None  # where the mask took more than a look at trained weights

    @cached_property
    def trained(self) -> dict[str, NamedTensors]:
        """Groups `weights` and `ema`: parameter name -> tensor."""
        return unpack(self.stage.read(TRAINED))

    @property
    def steps(self) -> int:
        return int(self.manifest.values["steps"])


def find_ticket(search: TicketSearch, images: ImageSet, store: Store, progress: Progress | None = None) -> Iterator[Round]:
    """Round after round of a search, each trained in isolation from the rewind point.

    Raises `InputError` where a density cannot be met, `Diverged` where a training does.
    """
    start = rewind_point(search, images, store)
    mask = Mask.dense(search.layers)
    dense = previous = train_round(search, images, store, start, 0, mask, None, progress)
    yield dense
    for index in range(1, search.num_rounds):
        mask, mask_stage = prune(search, images, store, start, dense, previous, index)
        trained = train_round(search, images, store, start, index, mask, previous, progress)
        previous = replace(trained, mask_stage=mask_stage)
        yield previous


def prune(
    search: TicketSearch, images: ImageSet, store: Store, start: Stage, dense: Round, previous: Round, index: int
) -> tuple[Mask, Stage | None]:
    """The mask of round `index`: the best of round `index - 1` by the criterion, as many a layer as the allocation says.

    And the stage that remembers it, where the criterion is costly. Raises `InputError` where a density cannot be met.
    """
    spec, ticket = search.spec, search.spec.ticket
    assert bool(search.costs) == (spec.search.budget == "flops")

    def choose(density: float, scores: Scores) -> Mask:
        return cut(search, index, density, scores, dense.trained["weights"])

    def make() -> Mask:
        survivors = Survivors(
            spec, search.compute, images, search.layers, previous.mask, search.seed, index, choose=choose,
            trained=lambda: previous.trained, rewound=lambda: TrainState.from_bytes(start.read(START)).weights,
        )  # fmt: skip
        return choose(ticket.density_of(index), CRITERIA[ticket.criterion](survivors))

    if ticket.criterion not in AT_REWIND_POINT:
        return make(), None
    stage = store.stage(_mask_key(search, allocation_of(search, index), start, dense, previous, index))
    stage.make(lambda _: Output(files={MASK: pack(mask=make().pack())}))
    return Mask.unpack(unpack(stage.read(MASK))["mask"], search.layers), stage


def cut(search: TicketSearch, index: int, density: float, scores: Scores, dense_weights: NamedTensors) -> Mask:
    """The mask of round `index` at an overall density: the best scores of every layer, as many as the allocation says."""
    pruning = Pruning(search.layers, search.spec.ticket, scores, dense_weights, search.costs)
    return top_k(scores, allocation_of(search, index).at(density, pruning))


def allocation_of(search: TicketSearch, index: int) -> Allocation:
    """The rule of round `index`: uniform in the rounds that trials share."""
    assert search.allocation is not None
    return Allocation("uniform") if search.spec.ticket.is_shared(index) else search.allocation


# --- stages -----------------------------------------------------------------------------------------------------------


def data_key(spec: SweepSpec, images: ImageSet) -> dict[str, Any]:
    return {"name": spec.data.name, "sha256": images.digest}


def _train_key(search: TicketSearch) -> dict[str, Any]:
    """What every training stage depends on. How often it is checkpointed and how `auto` was spelt decide nothing."""
    train = search.spec.train.model_dump(exclude={"checkpoint_every", "precision", "seed"})
    return {"model": search.spec.unet_config, "train": train, "flip": search.spec.data.flip, **search.compute.key()}


def _mask_key(
    search: TicketSearch, allocation: Allocation, start: Stage, dense: Round, previous: Round, index: int
) -> dict[str, Any]:
    """What a mask depends on that was not read off trained weights. (The dense stage's key has data, training and seed.)"""
    ticket = search.spec.ticket
    return {
        "kind": "mask", "criterion": ticket.criterion, "start": start.digest, "dense": dense.stage.digest,
        "within": previous.mask.digest, "allocation": asdict(allocation), "costs": dict(search.costs),
        "densities": [*(ticket.density_of(i) for i in (index - 1, index)), ticket.final_density],
        "scope": ticket.scope, "keep_dense": ticket.keep_dense, "min_kept": ticket.min_kept,
    }  # fmt: skip


def rewind_point(search: TicketSearch, images: ImageSet, store: Store) -> Stage:
    """The stage with weights and optimizer moments at `rewind_step` of the dense training of `train.seed`.

    It is one for all searches of a sweep, whatever their seed. At step 0 it is the initialisation.
    """
    train, stop = search.spec.train, search.spec.ticket.rewind_step
    key: dict[str, Any] = {"kind": "start", "model": search.spec.unet_config, "seed": train.seed, "step": stop}
    if stop:
        key |= {"data": data_key(search.spec, images), **_train_key(search)}

    def compute(stage: Stage) -> Output:
        model = build_unet(search.spec.unet_config, train.seed)
        state = TrainState.fresh(parameters_of(model))
        if stop:
            state = _train(stage, model, search, images, state, stop, Mask.dense(search.layers), train.seed, None)
        return Output({"steps": stop}, {START: state.to_bytes()})

    stage = store.stage(key)
    stage.make(compute)
    return stage


def train_round(
    search: TicketSearch, images: ImageSet, store: Store, start: Stage, index: int, mask: Mask, previous: Round | None,
    progress: Progress | None,
) -> Round:  # fmt: skip
    """Round `index`: the ticket `mask` trained from step `rewind_step` to the end.

    The rewind restores the start's weights, its moments under the mask, and its step of the schedule; the EMA restarts.
    The other modes go on from the previous round's trained weights with empty moments: learning-rate rewinding (Renda
    et al. 2020, arXiv 2003.02389) over the same steps, fine-tuning at the schedule's last learning rate.
    """
    spec = search.spec
    mode = "rewind" if previous is None else spec.ticket.mode
    origin = (
        {"start": start.digest}
        if mode == "rewind" or previous is None
        else {"start": start.digest, "from": previous.stage.digest, "moments": "fresh"}
    )
    key = {
        "kind": "train", "data": data_key(spec, images), **_train_key(search), **origin, "mode": mode, "seed": search.seed,
        "mask": None if mask.is_dense else mask.digest,
    }  # fmt: skip

    def compute(stage: Stage) -> Output:
        state = TrainState.from_bytes(start.read(START))
        if mode != "rewind" and previous is not None:
            state = TrainState.fresh(previous.trained["weights"], state.step)
        first = state.step
        state = _masked(state, mask)
        report = None if progress is None else lambda step, loss: progress(index, step, loss)
        model = build_unet(spec.unet_config, spec.train.seed)
        state = _train(stage, model, search, images, state, spec.train.steps, mask, search.seed, report, mode)
        values = {"steps": state.step - first, "kept": mask.kept, "total": mask.total}
        return Output(values, {TRAINED: pack(weights=state.weights, ema=state.ema), MASK: pack(mask=mask.pack())})

    stage = store.stage(key)
    return Round(index, spec.ticket.density_of(index), mask, start, stage, stage.make(compute), spec.unet_config)


def round_0_among(store: Store, stages: Iterable[str]) -> Stage | None:
    """Of the stages that a result names, its search's round 0: the dense training that the first mask was cut from."""
    for stage in map(store.find, stages):
        if stage.key["kind"] == "train" and stage.key["mask"] is None and "from" not in stage.key:
            return stage
    return None


def _masked(state: TrainState, mask: Mask) -> TrainState:
    """The state of a rewound ticket: pruned weights and moments exactly zero, an EMA that starts from here."""
    weights = mask.apply(state.weights)
    first, second = mask.apply(state.first_moments), mask.apply(state.second_moments)
    return TrainState(state.step, weights, first, second, weights, 0, state.moment_updates)


def _train(
    stage: Stage, model: Any, search: TicketSearch, images: ImageSet, state: TrainState, stop: int, mask: Mask, seed: int,
    progress: Callable[[int, float], None] | None, mode: str = "rewind",
) -> TrainState:  # fmt: skip
    """Train from the stage's checkpoint, or from `state` where it has none."""
    saved = stage.load_checkpoint("state.safetensors")
    load_parameters(model, state.weights)
    trainer = Trainer(
        model, images.train_NCHW, search.spec.train, flip=search.spec.data.flip, seed=seed, compute=search.compute,
        masks={} if mask.is_dense else {weight_name(name): keep for name, keep in mask.layers.items()},
        state=state if saved is None else TrainState.from_bytes(saved),
        learning_rate=_last_learning_rate if mode == "fine-tune" else learning_rate_at,
    )  # fmt: skip
    return run(trainer, stop, save=lambda data: stage.checkpoint("state.safetensors", data), progress=progress)


def _last_learning_rate(train: TrainSpec, step: int) -> float:
    return learning_rate_at(train, train.steps - 1)
