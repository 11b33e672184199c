"""Tickets of several independent searches, compared pair by pair: one record of numbers for any set of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer
from raylt.intervals import student_t
from raylt.ticket.mask import Mask
from raylt.ticket.overlap import Overlaps, Pair, compare, inherited, layer_overlap_given, mean, pooled, refuse_nested

Numbers = dict[str, float | int | None]


@dataclass(frozen=True)
class Comparison:
    """The overlaps of P tickets that began at one rewind point: of all P (P - 1) / 2 pairs, and of each with the start."""

    num_tickets: int
    pairs: Mapping[Pair, Overlaps]
    with_start: Sequence[Overlaps]  # each ticket, with the top-k of |rewind weights|
    given_start: Mapping[Pair, Overlaps]  # within the strata of that top-k
    by_movement: Mapping[Pair, Overlaps]  # between the masks of what moved most

    @staticmethod
    def of(
        tickets: Sequence[Mask], layers: Sequence[Layer], *, start: NamedTensors | None = None,
        moved: Sequence[Mask] | None = None, searches: Sequence[str] | None = None,
    ) -> Comparison:  # fmt: skip
        """Count what the tickets share in `layers`.

        `start`: the rewind weights; `moved`: the mask of what moved most for each ticket; what is left out has no numbers.
        `searches`: see `refuse_nested`. Raises `NestedMasks`.
        """
        refuse_nested(tickets, searches)
        starts = [inherited(ticket, start, layers) for ticket in tickets] if start is not None else []
        pairs = list(itertools.combinations(range(len(tickets)), 2))

        def given_start(i: int, j: int) -> Overlaps:
            both = starts[i], starts[j]
            return {layer.name: layer_overlap_given(tickets[i], tickets[j], both, layer.name) for layer in layers}

        return Comparison(
            len(tickets),
            {(i, j): compare(tickets[i], tickets[j], layers) for i, j in pairs},
            [compare(ticket, start, layers) for ticket, start in zip(tickets, starts, strict=True)] if starts else [],
            {(i, j): given_start(i, j) for i, j in pairs} if starts else {},
            {(i, j): compare(moved[i], moved[j], layers) for i, j in pairs} if moved is not None else {},
        )

    def numbers(self, layers: Sequence[Layer]) -> Numbers:
        """The means over pairs (over tickets: `kappa_start`), of some layers pooled; None where there is nothing to tell.

        `z` is the mean of the pairs' z, each of variance 1 by chance. `excess` is kappa - kappa_start: of what training
        found it errs on the low side, being below 0 where tickets follow the start each with noise of its own (-0.14 in the
        example of `layer_overlap_given`), as `kappa_partial` errs on the high side.
        """
        pairs = {pair: pooled(overlaps, layers) for pair, overlaps in self.pairs.items()}
        kappa = mean(overlap.kappa for overlap in pairs.values())
        kappa_start = mean(pooled(overlaps, layers).kappa for overlaps in self.with_start)
        low, high = jackknife_interval({pair: overlap.kappa for pair, overlap in pairs.items()}, self.num_tickets)
        return {
            "kappa": kappa,
            "kappa_low": low,
            "kappa_high": high,
            "kappa_start": kappa_start,
            "excess": None if kappa is None or kappa_start is None else kappa - kappa_start,
            "kappa_partial": mean(pooled(overlaps, layers).kappa for overlaps in self.given_start.values()),
            "kappa_movement": mean(pooled(overlaps, layers).kappa for overlaps in self.by_movement.values()),
            "z": mean(overlap.z for overlap in pairs.values()),
            "jaccard": mean(overlap.jaccard for overlap in pairs.values()),
            "jaccard_chance": mean(overlap.jaccard_chance for overlap in pairs.values()),
            "pairs": len(pairs) if layers else 0,
        }


def jackknife_interval(values: Mapping[Pair, float | None], num_tickets: int) -> tuple[float | None, float | None]:
    """95 % interval of the mean over all pairs of P tickets; (None, None) for P < 3 or where a pair has no number.

    Pairs that share a ticket are not independent, so neither the number of pairs nor their spread says how sure the mean is.
    Leaving out one ticket with all its pairs gives means m_i; SE^2 = (P - 1) / P sum (m_i - m)^2 (Arvesen 1969, jackknifing
    U-statistics), and the interval is m -+ t SE with Student's t at P - 1 degrees of freedom. The estimate of the variance is
    too high rather than too low (Efron & Stein 1981). The tickets share a start: it covers other seeds, not other starts.
    It is not cut off at 1.
    """
    defined = {pair: value for pair, value in values.items() if value is not None}
    if num_tickets < 3 or len(defined) < num_tickets * (num_tickets - 1) // 2:
        return None, None
    middle = sum(defined.values()) / len(defined)
    without = [mean(value for pair, value in defined.items() if left_out not in pair) for left_out in range(num_tickets)]
    squares = sum((value - middle) ** 2 for value in without if value is not None)
    error = math.sqrt((num_tickets - 1) / num_tickets * squares)
    reach = student_t(num_tickets - 1) * error
    return middle - reach, middle + reach
