"""How alike tickets are, layer by layer and block by block, beyond what chance and their common start give.

What two masks share is counted once a layer, as an `Overlap`; a block adds up the overlaps of its layers, so that chance
is taken per layer: densities that layers have in common would otherwise look like agreement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from torch import Tensor

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer, weight_name
from raylt.errors import InputError
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, top_k

NESTED_BY_CHANCE = 1e-9  # two masks that are nested against longer odds than this are of one search

Overlaps = Mapping[str, "Overlap"]  # layer -> what two masks share there
Pair = tuple[int, int]  # positions of two tickets, the smaller first


class NestedMasks(InputError):
    """Masks of one search: what they share was decided by how a search prunes, not by training."""


@dataclass(frozen=True)
class Overlap:
    """What two masks share, against masks drawn at random with the same counts: k1 and k2 of n weights.

    The null is the hypergeometric distribution of o = |A and B|, that of ticket distances in Grosse & Backes (SDM 2021).
    All five numbers add up over layers. Every property is None where chance leaves nothing open: all of the layers full
    or empty in one of the masks.
    """

    intersection: float = 0  # o
    chance: float = 0  # e = k1 k2 / n, the mean of o
    max_intersection: float = 0  # min(k1, k2)
    variance: float = 0  # k1 k2 (n - k1) (n - k2) / (n^2 (n - 1)), that of o
    kept: float = 0  # k1 + k2

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(x + y for x, y in zip(astuple(self), astuple(other), strict=True)))

    @property
    def is_open(self) -> bool:
        return self.max_intersection - self.chance > 1e-9

    @property
    def kappa(self) -> float | None:
        """(o - e) / (min(k1, k2) - e): 0 by chance, 1 where one mask contains the other.

        Cohen's kappa (1960) at equal counts, Loevinger's H (1948) at unequal ones. Its standard deviation by chance is
        sqrt(variance) / (min(k1, k2) - e).
        """
        return (self.intersection - self.chance) / (self.max_intersection - self.chance) if self.is_open else None

    @property
    def z(self) -> float | None:
        """(o - e) / sqrt(variance): mean 0 and standard deviation 1 by chance. Grows with the weights, unlike kappa."""
        return (self.intersection - self.chance) / math.sqrt(self.variance) if self.is_open else None

    @property
    def jaccard(self) -> float | None:
        """|A and B| / |A or B| = o / (k1 + k2 - o): not corrected for chance, so read it beside `jaccard_chance`."""
        return self.intersection / (self.kept - self.intersection) if self.is_open else None

    @property
    def jaccard_chance(self) -> float | None:
        """e / (k1 + k2 - e), which is d / (2 - d) at equal densities d.

        The mean by chance is higher by about variance (k1 + k2) / (k1 + k2 - e)^3, since o is in the denominator too: by
        0.4 % of itself where 100 of 1 000 weights are kept.
        """
        return self.chance / (self.kept - self.chance) if self.is_open else None


def overlap(a: Tensor, b: Tensor) -> Overlap:
    """Overlap of two boolean tensors of one shape."""
    n, k1, k2 = a.numel(), int(a.sum()), int(b.sum())
    if n == 0:
        return Overlap()
    variance = k1 * k2 * (n - k1) * (n - k2) / (n * n * (n - 1)) if n > 1 else 0.0
    return Overlap(int((a & b).sum()), k1 * k2 / n, min(k1, k2), variance, k1 + k2)


def layer_overlap(a: Mask, b: Mask, layer: str) -> Overlap:
    """Overlap of two masks in one layer."""
    return overlap(a.layers[layer], b.layers[layer])


def layer_overlap_given(a: Mask, b: Mask, starts: tuple[Mask, Mask], layer: str) -> Overlap:
    """Overlap in one layer within the strata of the start, whose `kappa` is the partial one.

    `starts`: the top-k of |rewind weights| at the counts of a and of b. With one such mask S (equal counts), the chance is
    e = k1_S k2_S / n_S + k1_N k2_N / n_N, and the most there can be min(k1_S, k2_S) + min(k1_N, k2_N), where S and N index
    the weights in S and outside: what each mask keeps on either side is given, not counted as agreement. Unequal counts
    have a third stratum, what one start keeps and the other does not.

    kappa = sum(o - e) / sum(most - e) is 0 in expectation for masks that agree only in how much of S they keep. As a
    measure of what training found it errs on the high side, since ranks within the strata are not seen: two top-k of
    |start + noise|, of independent noise of half the start's spread, have kappa 0.44 and a partial one of 0.15 (d = 0.1),
    all of it inherited.
    """
    s, t = (start.layers[layer] for start in starts)
    mask_a, mask_b = a.layers[layer], b.layers[layer]
    return add_up(overlap(mask_a[stratum], mask_b[stratum]) for stratum in (s & t, s ^ t, ~(s | t)))


def add_up(overlaps: Iterable[Overlap]) -> Overlap:
    return sum(overlaps, Overlap())


def pooled(overlaps: Overlaps, layers: Iterable[Layer]) -> Overlap:
    """What two masks share in several layers."""
    return add_up(overlaps[layer.name] for layer in layers)


def compare(a: Mask, b: Mask, layers: Iterable[Layer]) -> Overlaps:
    return {layer.name: layer_overlap(a, b, layer.name) for layer in layers}


def inherited(ticket: Mask, start: NamedTensors, layers: Sequence[Layer]) -> Mask:
    """The top-k of |rewind weights|, k being what the ticket keeps of each layer."""
    counts = {layer.name: ticket.counts[layer.name][0] for layer in layers}
    return top_k(magnitude(start, layers, Mask.dense(layers)), counts)


def most_moved(ticket: Mask, start: NamedTensors, trained: NamedTensors, layers: Sequence[Layer]) -> Mask:
    """The top-k of |w_T - w_k|, k being what the ticket keeps of each layer, of a dense training from w_k to w_T.

    The weights of the ticket itself would not do: what it pruned did not move. A weight that stayed where it was is never
    kept, so where training moves fewer than k the mask has fewer: ties would be broken alike in all of them.
    """
    distance = {name: trained[name] - start[name] for name in (weight_name(layer.name) for layer in layers)}
    scores = magnitude(distance, layers, Mask.dense(layers))
    return top_k(scores, {name: min(ticket.counts[name][0], int((score > 0).sum())) for name, score in scores.items()})


def movement(start: NamedTensors, trained: NamedTensors, layers: Sequence[Layer]) -> float | None:
    """||w_T - w_k|| / ||w_k|| over the prunable weights of some layers: how far training took them. Needs no pilots."""
    names = [weight_name(layer.name) for layer in layers]
    before = _norm([start[name] for name in names])
    return _norm([trained[name] - start[name] for name in names]) / before if before else None


def _norm(values: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in values))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are numbers."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def refuse_nested(tickets: Sequence[Mask], searches: Sequence[str] | None = None) -> None:
    """Raises `NestedMasks` where two of the tickets are of one search.

    `searches`: what tells the searches apart, one for each ticket (the digest of the dense training its masks were cut
    from); then it alone decides, and independent tickets may be equal. Without it, two tickets are taken for one search's
    where one contains the other in every layer, keeps fewer weights, and would do so by chance once in a billion times.
    """
    for i, j in itertools.combinations(range(len(tickets)), 2):
        if _is_nested(tickets[i], tickets[j]) if searches is None else searches[i] == searches[j]:
            raise NestedMasks(
                f"tickets {i} and {j} come from one search: its rounds are nested by construction, so the smaller mask lies in "
                "the larger one whatever training did; compare tickets of searches with different seeds"
            )


def _is_nested(a: Mask, b: Mask) -> bool:
    small, large = sorted((a, b), key=lambda mask: mask.kept)
    if small.kept == large.kept or not small.is_nested_in(large):
        return False
    # k1 weights drawn at random from n all lie among k2 with probability C(k2, k1) / C(n, k1)
    odds = (_log_choose(large.counts[name][0], k1) - _log_choose(n, k1) for name, (k1, n) in small.counts.items())
    return sum(odds) < math.log(NESTED_BY_CHANCE)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
