"""Which weights of a layer stay: criteria, one signature. A higher score is kept; scores are float64 and never negative.

Four score what the last round trained. SNIP and SynFlow prune at initialisation: they score the rewind point, whatever
was trained since, and are baselines. What is pruned already scores `PRUNED`, below all others, so masks nest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raylt.diffusion.data import ImageSet
from raylt.diffusion.rng import Draw, generator
from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.train import Compute, Trainer, TrainState
from raylt.diffusion.unet import Layer, build_unet, weight_name
from raylt.errors import Diverged
from raylt.spec import SweepSpec
from raylt.spec.sections import Criterion
from raylt.ticket.mask import Mask
from raylt.ticket.prune import PRUNED, magnitude
from raylt.ticket.synflow import SynapticFlow

SNIP_BATCHES = 32  # training batches behind SNIP's gradient; one is too noisy: a batch has few of the 1 000 timesteps
SYNFLOW_STEPS = 100  # prunings of a round, as in the paper

Scores = dict[str, Tensor]  # layer -> scores of its weight's shape


@dataclass(frozen=True)
class Survivors:
    """The weights that survive so far, and what a criterion may ask about them. Tensors are read when they are asked for."""

    spec: SweepSpec
    compute: Compute
    images: ImageSet
    layers: Sequence[Layer]
    mask: Mask  # the previous round's
    seed: int  # the search's
    round_index: int  # of the mask that is being made
    trained: Callable[[], Mapping[str, NamedTensors]]  # the previous round's groups `weights` and `ema`
    rewound: Callable[[], NamedTensors]  # weights of the rewind point, dense
    choose: Callable[[float, Scores], Mask]  # what the search's allocation keeps at a density, by given scores


def weights(found: Survivors) -> Scores:
    """magnitude: |w| of the trained weights (Han et al. 2015, arXiv 1506.02626)."""
    return magnitude(found.trained()["weights"], found.layers, found.mask)


def averaged_weights(found: Survivors) -> Scores:
    """magnitude-ema: |w| of the EMA, which is what samples are drawn with (Ho et al. 2020, arXiv 2006.11239, appendix B)."""
    return magnitude(found.trained()["ema"], found.layers, found.mask)


def movement(found: Survivors) -> Scores:
    """movement: |w - w_k|, how far a weight went from the rewind point (Zhou et al. 2019, arXiv 1905.01067, "movement").

    Not the movement pruning of Sanh et al. 2020, which sums -w dL/dw while it trains.
    """
    end, start = found.trained()["weights"], found.rewound()
    moved = {name: end[name].double() - start[name].double() for name in map(weight_name, found.mask.layers)}
    return magnitude(moved, found.layers, found.mask)


def random(found: Survivors) -> Scores:
    """random: uniform on [0, 1), drawn for (search seed, round) (Liu et al. 2022, arXiv 2202.02643)."""
    draw = generator(found.seed, Draw.CRITERION, found.round_index)
    drawn = {weight_name(la.name): torch.rand(la.shape, generator=draw, dtype=torch.float64) for la in found.layers}
    return magnitude(drawn, found.layers, found.mask)


def snip(found: Survivors) -> Scores:
    """snip: |w dL/dw| of the dense network at the rewind point (Lee et al. 2019, arXiv 1810.02340, eq. 4 and 5).

    The gradient is the mean over the first `SNIP_BATCHES` batches that the ticket will be trained on. The paper divides by
    the sum over all weights, which changes no order. Single-shot: every round ranks the same scores, so that under rule
    global the last ticket is the paper's at the last density. Raises `Diverged` where a gradient is not finite.
    """
    start, step = found.rewound(), found.spec.ticket.rewind_step
    trainer = Trainer(
        build_unet(found.spec.unet_config, found.spec.train.seed), found.images.train_NCHW, found.spec.train,
        flip=found.spec.data.flip, seed=found.seed, compute=found.compute, masks={}, state=TrainState.fresh(start, step),
    )  # fmt: skip
    gradient = trainer.gradient(range(step, step + SNIP_BATCHES))
    sensitivity = {name: start[name].double() * gradient[name] for name in map(weight_name, found.mask.layers)}
    if not all(bool(torch.isfinite(value).all()) for value in sensitivity.values()):
        raise Diverged("snip: the loss at the rewind point has a gradient that is not finite")
    return magnitude(sensitivity, found.layers, found.mask)


def synflow(found: Survivors) -> Scores:
    """synflow: theta dR/dtheta with R = 1^T prod |theta_l| 1, no data (Tanaka et al. 2020, arXiv 2006.05467, algorithm 1).

    Iterative: `SYNFLOW_STEPS` prunings down from the previous round's density, evenly spaced in its logarithm, each by the
    scores of what the one before left. The search's allocation says how many each keeps; the paper's is rule global. The
    last pruning is the caller's: the scores are those it is made by. How the U-Net is made linear: see `synflow.py`.
    """
    flow = SynapticFlow(found.spec.unet_config, found.rewound(), found.layers)
    before, after = (found.spec.ticket.density_of(index) for index in (found.round_index - 1, found.round_index))
    mask = found.mask
    for step in range(1, SYNFLOW_STEPS):
        mask = found.choose(before * (after / before) ** (step / SYNFLOW_STEPS), _within(mask, flow.scores(mask)))
    return _within(mask, flow.scores(mask))


def _within(mask: Mask, scores: Scores) -> Scores:
    return {name: torch.where(keep, scores[name], PRUNED) for name, keep in mask.layers.items()}


CRITERIA: dict[Criterion, Callable[[Survivors], Scores]] = {
    "magnitude": weights,
    "magnitude-ema": averaged_weights,
    "movement": movement,
    "random": random,
    "snip": snip,
    "synflow": synflow,
}
AT_REWIND_POINT: tuple[Criterion, ...] = ("snip", "synflow")  # costly: the masks they lead to are stages
