"""`search.groups: auto`: which blocks share a parameter of the search, by how alike their profile is.

Blocks fall into classes of their sorted values by natural breaks: those that minimise the sum of squares within classes
(Fisher 1958, On grouping for maximum homogeneity, JASA 53, whose lemma is that they are contiguous; in cartography the method
of Jenks 1967). There are as few classes as reach a goodness of variance fit of `GOOD_FIT` (Jenks & Caspall 1971):
1 - the sum of squares within classes / that about the mean of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from operator import itemgetter

from raylt.spec import SweepSpec
from raylt.store.results import Measured

MAX_CLASSES = 4
GOOD_FIT = Fraction(9, 10)

Groups = dict[str, list[str]]
_Division = tuple[Fraction, list[int]]  # of the first values: the sum of squares within classes, and where each ends


def with_chosen_groups(spec: SweepSpec, measured: Measured) -> SweepSpec:
    """The spec with the groups it will have for good: in place of `auto`, those that were `measured` with the profile.

    For whoever needs groups. It is no sweep's spec: its identity is another.
    """
    if not spec.search.has_auto_groups:
        return spec
    return spec.model_copy(update={"search": spec.search.model_copy(update={"groups": measured["groups"]})})


def grouped(values: Mapping[str, float]) -> Groups:
    """g0, g1 ... by ascending value -> their blocks, in the order given; 2 to `MAX_CLASSES`, one where all values are equal."""
    ascending = sorted(values, key=lambda block: values[block])
    ends = _ends([Fraction(values[block]) for block in ascending])
    members = [set(ascending[start:end]) for start, end in itertools.pairwise([0, *ends])]
    return {f"g{index}": [block for block in values if block in inside] for index, inside in enumerate(members)}


def _ends(ascending: Sequence[Fraction]) -> list[int]:
    """Where each class ends, in as few classes as fit well.

    Fractions, so that neither rounding nor the scale of the values decides between two ways to divide them.
    """
    best: list[_Division] = [(_squares(ascending[:end]), [end]) for end in range(1, len(ascending) + 1)]
    total = best[-1][0]
    for _ in range(1, MAX_CLASSES):
        if best[-1][0] <= (1 - GOOD_FIT) * total:
            break
        best = [_with_one_more(best, ascending[:end]) for end in range(1, len(ascending) + 1)]
    return best[-1][1]


def _with_one_more(best: Sequence[_Division], values: Sequence[Fraction]) -> _Division:
    """The best division of `values` given those of their beginnings into fewer classes; a class more only where it helps."""
    end = len(values)
    more = ((best[cut - 1][0] + _squares(values[cut:]), [*best[cut - 1][1], end]) for cut in range(1, end))
    return min([best[end - 1], *more], key=itemgetter(0))


def _squares(values: Sequence[Fraction]) -> Fraction:
    """The sum of squares about the mean."""
    mean = sum(values, Fraction()) / len(values)
    return sum(((value - mean) ** 2 for value in values), Fraction())
