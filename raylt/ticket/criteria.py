"""Which weights of a layer stay: criteria, one signature. A higher score is kept; scores are float64 and never negative.

Four score what the last round trained. SNIP and SynFlow prune at initialisation: they score the rewind point, whatever
was trained since, and are baselines. What is pruned already scores `PRUNED`, below all others, so masks nest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from raylt.diffusion.data import ImageSet
from raylt.diffusion.rng import Draw, generator
from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.train import Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, weight_name
from raylt.errors import Diverged
from raylt.spec.vocabulary import Criterion
from raylt.ticket.mask import Mask
from raylt.ticket.prune import PRUNED, Scores, magnitude
from raylt.ticket.synflow import SynapticFlow
from raylt.ticket.ticket_search import TicketSearch

SNIP_BATCHES = 32  # training batches behind SNIP's gradient; one is too noisy: a batch has few of the 1 000 timesteps
SYNFLOW_STEPS = 100  # prunings of a round, as in the paper


@dataclass(frozen=True)
class PruningContext:
    """What a criterion may look at. Tensors are read when they are asked for."""

    search: TicketSearch
    images: ImageSet
    mask: Mask  # the previous round's: the weights that survive so far
    round_index: int  # of the mask that is being made
    choose: Callable[[float, Scores], Mask]  # what the search's allocation keeps at a density, by given scores
    trained: Callable[[], Mapping[str, NamedTensors]]  # the previous round's groups `weights` and `ema`
    rewound: Callable[[], NamedTensors]  # weights of the rewind point, dense


def weights(context: PruningContext) -> Scores:
    """magnitude: |w| of the trained weights (Han et al. 2015, arXiv 1506.02626)."""
    return magnitude(context.trained()["weights"], context.search.layers, context.mask)


def averaged_weights(context: PruningContext) -> Scores:
    """magnitude-ema: |w| of the EMA, which is what samples are drawn with (Ho et al. 2020, arXiv 2006.11239, appendix B)."""
    return magnitude(context.trained()["ema"], context.search.layers, context.mask)


def movement(context: PruningContext) -> Scores:
    """movement: |w - w_k|, how far a weight went from the rewind point (Zhou et al. 2019, arXiv 1905.01067, "movement").

    Not the movement pruning of Sanh et al. 2020, which sums -w dL/dw while it trains.
    """
    end, start = context.trained()["weights"], context.rewound()
    moved = {name: end[name].double() - start[name].double() for name in map(weight_name, context.mask.layers)}
    return magnitude(moved, context.search.layers, context.mask)


def random(context: PruningContext) -> Scores:
    """random: uniform on [0, 1), drawn for (search seed, round) (Liu et al. 2022, arXiv 2202.02643)."""
    draw = generator(context.search.seed, Draw.CRITERION, context.round_index)
    drawn = {weight_name(la.name): torch.rand(la.shape, generator=draw, dtype=torch.float64) for la in context.search.layers}
    return magnitude(drawn, context.search.layers, context.mask)


def snip(context: PruningContext) -> Scores:
    """snip: |w dL/dw| of the dense network at the rewind point (Lee et al. 2019, arXiv 1810.02340, eq. 4 and 5).

    The gradient is the mean over the first `SNIP_BATCHES` batches that the ticket will be trained on. The paper divides by
    the sum over all weights, which changes no order. Single-shot: every round ranks the same scores, so that under rule
    global the last ticket is the paper's at the last density. Raises `Diverged` where a gradient is not finite.
    """
    search, start = context.search, context.rewound()
    step, recipe = search.rewind_step, Recipe(search.train, search.compute, search.seed, search.spec.data.flip)
    model = build_unet(search.unet_config, search.train.seed)
    trainer = Trainer(model, context.images.train_NCHW, recipe, TrainState.fresh(start, step))
    gradient = trainer.gradient(range(step, step + SNIP_BATCHES))
    sensitivity = {name: start[name].double() * gradient[name] for name in map(weight_name, context.mask.layers)}
    if not all(bool(torch.isfinite(value).all()) for value in sensitivity.values()):
        raise Diverged("snip: the loss at the rewind point has a gradient that is not finite")
    return magnitude(sensitivity, context.search.layers, context.mask)


def synflow(context: PruningContext) -> Scores:
    """synflow: theta dR/dtheta with R = 1^T prod |theta_l| 1, no data (Tanaka et al. 2020, arXiv 2006.05467, algorithm 1).

    Iterative: `SYNFLOW_STEPS` prunings down from the previous round's density, evenly spaced in its logarithm, each by the
    scores of what the one before left. The search's allocation says how many each keeps; the paper's is rule global. The
    last pruning is the caller's: the scores are those it is made by. How the U-Net is made linear: see `synflow.py`.
    """
    search, index, mask = context.search, context.round_index, context.mask
    flow = SynapticFlow(search.unet_config, context.rewound(), search.layers)
    before, after = (search.spec.ticket.density_of(i) for i in (index - 1, index))
    for step in range(1, SYNFLOW_STEPS):
        mask = context.choose(before * (after / before) ** (step / SYNFLOW_STEPS), _within(mask, flow.scores(mask)))
    return _within(mask, flow.scores(mask))


def _within(mask: Mask, scores: Scores) -> Scores:
    return {name: torch.where(keep, scores[name], PRUNED) for name, keep in mask.layers.items()}


CRITERIA: dict[Criterion, Callable[[PruningContext], Scores]] = {
    "magnitude": weights,
    "magnitude-ema": averaged_weights,
    "movement": movement,
    "random": random,
    "snip": snip,
    "synflow": synflow,
}
AT_REWIND_POINT: tuple[Criterion, ...] = ("snip", "synflow")  # costly: the masks they lead to are stages
