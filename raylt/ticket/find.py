"""find_ticket(): rounds of prune, rewind and train over memoised stages.

A `TicketSearch` says what a search is; a `TicketRunner` does it. Each of its steps begins with "if it exists, return".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from raylt.diffusion.data import ImageSet
from raylt.diffusion.tensors import NamedTensors, losslessly_gathered, pack, scattered, unpack
from raylt.diffusion.train import Recipe, Trainer, TrainState, learning_rate_at, run
from raylt.diffusion.unet import Layer, build_unet, load_parameters, parameters_of
from raylt.spec import SweepSpec
from raylt.spec.presets import UnetConfig
from raylt.spec.sections import TrainSpec
from raylt.store import Manifest, Output, Stage, Store
from raylt.store.layout import MASK, START, TRAINED
from raylt.store.stages import StageKey
from raylt.ticket.criteria import AT_REWIND_POINT, CRITERIA, PruningContext
from raylt.ticket.mask import Mask
from raylt.ticket.prune import Scores
from raylt.ticket.ticket_search import TicketSearch

Progress = Callable[[int, int, float], None]  # round, step, mean loss since the last call


@dataclass(frozen=True)
class Round:
    """Round `index` of a search, trained: its mask and the stage that holds its weights and EMA."""

    index: int
    density: float  # the one asked for, of weights or of FLOPs; the mask's is the nearest there is
    mask: Mask
    start: Stage  # the rewind point it was trained from
    stage: Stage
    manifest: Manifest
    unet_config: UnetConfig
    mask_stage: Stage | None = None  # where the mask took more than a look at trained weights

    @cached_property
    def trained(self) -> dict[str, NamedTensors]:
        """Groups `weights` and `ema`: parameter name -> tensor."""
        return read_trained(self.stage, self.mask)

    @property
    def steps(self) -> int:
        return int(self.manifest.values["steps"])


def find_ticket(search: TicketSearch, images: ImageSet, store: Store, progress: Progress | None = None) -> Iterator[Round]:
    """Round after round of a search, each trained in isolation from the rewind point.

    Raises `InputError` where a density cannot be met, `Diverged` where a training does.
    """
    return TicketRunner(search, images, store, progress).rounds()


class TicketRunner:
    """Does what a `TicketSearch` says, on given images, in a store that remembers every step."""

    def __init__(self, search: TicketSearch, images: ImageSet, store: Store, progress: Progress | None = None) -> None:
        self.search, self.images, self.store, self.progress = search, images, store, progress

    def rounds(self) -> Iterator[Round]:
        dense = previous = self.train(0, Mask.dense(self.search.layers), None)
        yield dense
        for index in range(1, self.search.num_rounds):
            mask, mask_stage = self.prune(index, dense, previous)
            previous = replace(self.train(index, mask, previous), mask_stage=mask_stage)
            yield previous

    @cached_property
    def rewind_point(self) -> Stage:
        """The stage with weights and optimizer moments at the rewind step of the dense training of the start's seed.

        It is one for all searches of a sweep, whatever their seed. At step 0 it is the initialisation.
        """
        search, stop = self.search, self.search.rewind_step
        key: dict[str, object] = {"kind": "start", "model": search.unet_config, "seed": search.train.seed, "step": stop}
        if stop:
            key |= {"data": data_key(search.spec, self.images), **_train_key(search)}

        def compute(stage: Stage) -> Output:
            state = TrainState.fresh(parameters_of(build_unet(search.unet_config, search.train.seed)))
            if stop:
                state = self._run(stage, state, stop, self._recipe(search.train.seed, Mask.dense(search.layers)))
            return Output({"steps": stop}, {START: state.start_to_bytes()})

        stage = self.store.stage(key)
        stage.make(compute)
        return stage

    def prune(self, index: int, dense: Round, previous: Round) -> tuple[Mask, Stage | None]:
        """The mask of round `index`: the best of the round before by the criterion, as many a layer as the allocation says.

        And the stage that remembers it, where the criterion is costly. Raises `InputError` where a density cannot be met.
        """
        search, ticket = self.search, self.search.spec.ticket

        def choose(density: float, scores: Scores) -> Mask:
            return search.cut(index, density, scores, dense.trained["weights"])

        def make() -> Mask:
            scores = CRITERIA[ticket.criterion](self._context(index, previous, choose))
            return choose(ticket.density_of(index), scores)

        if ticket.criterion not in AT_REWIND_POINT:
            return make(), None
        stage = self.store.stage(self._mask_key(index, dense, previous))
        stage.make(lambda _: Output(files={MASK: pack(**make().coded())}))
        return read_mask(stage, search.layers), stage

    def train(self, index: int, mask: Mask, previous: Round | None) -> Round:
        """Round `index`: the ticket `mask` trained from the rewind step to the end.

        The rewind restores the start's weights, its moments under the mask, and its step of the schedule; the EMA restarts.
        The other modes go on from the previous round's trained weights with empty moments: learning-rate rewinding (Renda
        et al. 2020, arXiv 2003.02389) over the same steps, fine-tuning at the schedule's last learning rate.
        """
        search, start = self.search, self.rewind_point
        mode = "rewind" if previous is None else search.spec.ticket.mode
        origin = {"start": start.digest}
        if mode != "rewind" and previous is not None:
            origin |= {"from": previous.stage.digest, "moments": "fresh"}
        key = {
            "kind": "train", "data": data_key(search.spec, self.images), **_train_key(search), **origin, "mode": mode,
            "seed": search.seed, "mask": None if mask.is_dense else mask.digest,
        }  # fmt: skip

        def compute(stage: Stage) -> Output:
            state = TrainState.from_bytes(start.read(START))
            if mode != "rewind" and previous is not None:
                state = TrainState.fresh(previous.trained["weights"], state.step)
            first = state.step
            recipe = self._recipe(search.seed, mask)
            if mode == "fine-tune":
                recipe = replace(recipe, learning_rate=_last_learning_rate)
            state = self._run(stage, _masked(state, mask), search.train.steps, recipe, index)
            values = {"steps": state.step - first, "kept": mask.kept, "total": mask.total}
            return Output(values, {TRAINED: pack_trained(state, mask), MASK: pack(**mask.coded())})

        stage = self.store.stage(key)
        density = search.spec.ticket.density_of(index)
        return Round(index, density, mask, start, stage, stage.make(compute), search.unet_config)

    def _recipe(self, seed: int, mask: Mask) -> Recipe:
        return Recipe(self.search.train, self.search.compute, seed, self.search.spec.data.flip, mask.of_pruned)

    def _run(self, stage: Stage, state: TrainState, stop: int, recipe: Recipe, index: int | None = None) -> TrainState:
        """Train up to step `stop` from the stage's checkpoint, or from `state` where it has none; `index`: whom to tell of."""
        saved, progress = stage.load_checkpoint("state.safetensors"), self.progress
        state = state if saved is None else TrainState.from_bytes(saved, recipe.masks)
        model = build_unet(self.search.unet_config, self.search.train.seed)
        load_parameters(model, state.weights)
        trainer = Trainer(model, self.images.train_NCHW, recipe, state)
        tell = None if progress is None or index is None else lambda step, loss: progress(index, step, loss)
        return run(trainer, stop, save=lambda data: stage.checkpoint("state.safetensors", data), progress=tell)

    def _context(self, index: int, previous: Round, choose: Callable[[float, Scores], Mask]) -> PruningContext:
        start = self.rewind_point
        return PruningContext(
            self.search, self.images, previous.mask, index, choose, trained=lambda: previous.trained,
            rewound=lambda: TrainState.from_bytes(start.read(START)).weights,
        )  # fmt: skip

    def _mask_key(self, index: int, dense: Round, previous: Round) -> StageKey:
        """What a mask depends on that was not read off trained weights. (The dense stage's key has data, training and seed.)"""
        search, ticket = self.search, self.search.spec.ticket
        return {
            "kind": "mask", "criterion": ticket.criterion, "start": self.rewind_point.digest, "dense": dense.stage.digest,
            "within": previous.mask.digest, "allocation": asdict(search.allocation_of(index)), "costs": search.costs,
            "densities": [*(ticket.density_of(i) for i in (index - 1, index)), ticket.final_density],
            "scope": ticket.scope, "keep_dense": ticket.keep_dense, "min_kept": ticket.min_kept,
        }  # fmt: skip


def pack_trained(state: TrainState, mask: Mask) -> bytes:
    """Trained weights and EMA as `TRAINED`: of pruned layers the kept values alone. The mask lies beside it, as `MASK`."""
    groups = {"weights": state.weights, "ema": state.ema}
    return pack(**{group: losslessly_gathered(values, mask.of_pruned) for group, values in groups.items()})


def read_mask(stage: Stage, layers: Sequence[Layer]) -> Mask:
    return Mask.decoded(unpack(stage.read(MASK)), layers)


def read_trained(stage: Stage, mask: Mask) -> dict[str, NamedTensors]:
    """Groups `weights` and `ema` of a trained stage, whole, given its mask; also of one that keeps them whole."""
    return {group: scattered(values, mask.of_pruned) for group, values in unpack(stage.read(TRAINED)).items()}


def data_key(spec: SweepSpec, images: ImageSet) -> StageKey:
    return {"name": spec.data.name, "sha256": images.digest}


def _train_key(search: TicketSearch) -> StageKey:
    """What every training stage depends on. How often it is checkpointed and how `auto` was spelt decide nothing."""
    train = search.train.model_dump(exclude={"checkpoint_every", "compile", "precision", "seed"})
    return {"model": search.unet_config, "train": train, "flip": search.spec.data.flip, **search.compute.key()}


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


def _last_learning_rate(train: TrainSpec, step: int) -> float:
    return learning_rate_at(train, train.steps - 1)
