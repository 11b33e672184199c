"""Rules of where the weights stay, by their names in a spec. Static ones give every free layer a density, score rules scores.

Where the static ones differ from what was published: they share out what the layers kept dense leave; earlier rounds bend
the final round's densities instead of solving the rule anew, so that masks nest; and a layer that a rule fills or empties
counts as 0.999 or 0.001 before it is bent (`allocation.CLIP`), which costs a full layer up to one weight in a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from raylt.ticket.budget import LayerBudget, least_kept
from raylt.ticket.mask import Mask
from raylt.ticket.prune import Scores, magnitude, pooled_counts

# --- static rules: density of every free layer at the final density ---------------------------------------------------


def uniform(budget: LayerBudget) -> dict[str, float]:
    """The same density in every layer. For uniform+ too, whose first and last layer are floors (`least_kept`)."""
    return dict.fromkeys((layer.name for layer in budget.free), budget.final_free_density)


def erdos_renyi(budget: LayerBudget) -> dict[str, float]:
    """ER: density proportional to (n_in + n_out) / (n_in n_out) (Mocanu et al. 2018, arXiv 1707.04780)."""
    return _solve_proportional(budget, lambda shape: sum(shape[:2]) / math.prod(shape[:2]))


def erdos_renyi_kernel(budget: LayerBudget) -> dict[str, float]:
    """ERK: ER with the kernel's dimensions, sum(shape) / prod(shape) (Evci et al. 2020, RigL, arXiv 1911.11134, section 3)."""
    return _solve_proportional(budget, lambda shape: sum(shape) / math.prod(shape))


def _solve_proportional(budget: LayerBudget, share: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """density_l = min(1, epsilon share_l), with epsilon solved again for the others whenever a layer reaches 1."""
    price = {layer.name: layer.size * budget.costs.get(layer.name, 1) for layer in budget.free}
    total = budget.final_free_density * sum(price.values())
    full: set[str] = set()
    while True:
        open_layers = [layer for layer in budget.free if layer.name not in full]
        taken = sum(price[name] for name in full)
        epsilon = (total - taken) / sum(share(layer.shape) * price[layer.name] for layer in open_layers) if open_layers else 0.0
        over = {layer.name for layer in open_layers if epsilon * share(layer.shape) > 1}
        if not over:
            return {layer.name: 1.0 if layer.name in full else max(epsilon, 0.0) * share(layer.shape) for layer in budget.free}
        full |= over


def lamp_base(budget: LayerBudget) -> dict[str, float]:
    """The densities LAMP gives |w| of the dense trained weights at the final density: a static base to bend.

    By magnitude whatever the criterion: it says how many weights a layer needs, the criterion which.
    """
    scores = lamp(magnitude(budget.dense_weights, budget.layers, Mask.dense(budget.layers)))
    total = budget.total(budget.ticket.final_density)
    counts = pooled_counts(scores, total, least_kept(budget.layers, budget.ticket), budget.costs)
    return {layer.name: counts[layer.name] / layer.size for layer in budget.free}


# --- score rules: the surviving weights compete -----------------------------------------------------------------------


def global_(scores: Scores) -> Scores:
    """One threshold on the criterion over all layers.

    On |w|: Han et al. 2015 (arXiv 1506.02626), Frankle & Carbin 2019 for deep nets. SNIP and SynFlow are published so.
    """
    return scores


def lamp(scores: Scores) -> Scores:
    """LAMP: w_u^2 / sum of w_v^2 over the weights of the layer at least as large (Lee et al. 2021, arXiv 2010.07611).

    It is defined on |w|. Under another criterion that one's scores take the place of |w|: the order within a layer stays,
    and layers are compared by what each would lose of its own sum of squares. Pruned weights stay below all others.
    """
    lamp_scores = {}
    for name, score in scores.items():
        ranked = torch.sort(score.reshape(-1), descending=True, stable=True)
        squares = ranked.values.clamp(min=0).square()
        ratio = squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        lamp_score = torch.empty_like(ratio)
        lamp_score[ranked.indices] = torch.where(ranked.values < 0, ranked.values, ratio)
        lamp_scores[name] = lamp_score.reshape(score.shape)
    return lamp_scores


BASES: dict[str, Callable[[LayerBudget], dict[str, float]]] = {
    "uniform": uniform,
    "uniform+": uniform,  # Gale et al. 2019 (arXiv 1902.09574): first layer whole, at least 20 % of the last, else uniform
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "lamp": lamp_base,
}
SCORES: dict[str, Callable[[Scores], Scores]] = {"lamp": lamp, "global": global_}
