"""Groups by natural breaks: against every division there is, and what must not change them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.search.groups import GOOD_FIT, MAX_CLASSES, grouped, with_chosen_groups

VALUES = st.lists(st.integers(-50, 50) | st.integers(-3, 3), min_size=1, max_size=9)


def named(values):
    """Blocks in the order of the network, which is none of their values."""
    return {f"b{index}": float(value) for index, value in enumerate(values)}


def squares(values):
    mean = Fraction(sum(values), len(values))
    return sum((value - mean) ** 2 for value in values)


def within(classes):
    return sum(squares(members) for members in classes)


def every_division(values, count):
    """All ways to put sorted values into `count` classes that are contiguous."""
    for cuts in itertools.combinations(range(1, len(values)), count - 1):
        yield [values[start:end] for start, end in itertools.pairwise([0, *cuts, len(values)])]


@given(VALUES)
def test_it_is_the_best_of_all_divisions_into_the_fewest_classes_that_fit(values):
    found = [[values[int(block[1:])] for block in blocks] for blocks in grouped(named(values)).values()]
    total, best = squares(values), {}
    for count in range(1, min(MAX_CLASSES, len(values)) + 1):
        best[count] = min(within(division) for division in every_division(sorted(values), count))
        if best[count] <= (1 - GOOD_FIT) * total:
            break
    assert len(found) == max(best)
    assert within(found) == best[len(found)]


@given(VALUES)
def test_every_block_once_groups_by_ascending_value_blocks_in_their_order(values):
    blocks = named(values)
    found = grouped(blocks)
    assert list(found) == [f"g{index}" for index in range(len(found))]
    assert sorted(itertools.chain(*found.values())) == sorted(blocks)
    assert all(members == [block for block in blocks if block in members] for members in found.values())
    for lower, higher in itertools.pairwise(found.values()):
        assert max(blocks[block] for block in lower) < min(blocks[block] for block in higher)


@given(VALUES, st.integers(-1000, 1000), st.sampled_from([0.25, 1.0, 3.0, 1024.0]))
def test_neither_a_shift_nor_a_scale_changes_them(values, shift, scale):
    assert grouped({block: scale * value + shift for block, value in named(values).items()}) == grouped(named(values))


@given(VALUES)
def test_turned_over_they_are_named_from_the_other_end(values):
    """But where two divisions are equally good: of those one is taken, whichever way the values are turned."""
    found, turned = grouped(named(values)), grouped(named([-value for value in values]))
    assert len(found) == len(turned)
    within_of = [within([[values[int(b[1:])] for b in blocks] for blocks in groups.values()]) for groups in (found, turned)]
    assert within_of[0] == within_of[1]


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ([7], [1]),
        ([2, 2, 2], [3]),
        ([0, 1], [1, 1]),
        ([0, 0.1, 5, 5.1], [2, 2]),
        ([0, 0.1, 2, 2.1, 5, 5.1], [2, 2, 2]),
        ([*range(12)], [3, 3, 3, 3]),
        ([0, 1, 4, 9, 16, 25], [3, 2, 1]),
        ([0.1 + 0.2, 0.3, 1.0], [2, 1]),  # the rounding of a sum is no break
    ],
)
def test_as_one_would_by_eye(values, sizes):
    assert [len(blocks) for blocks in grouped({f"b{i}": value for i, value in enumerate(values)}).values()] == sizes


def test_a_settled_spec_has_the_groups_that_were_measured(tiny_spec):
    chosen = {"g0": ["mid_block", "up_blocks.0"], "g1": ["time_embedding", "down_blocks.0", "down_blocks.1", "up_blocks.1"]}
    spec = tiny_spec(search={"groups": "auto"})
    assert {group: sorted(blocks) for group, blocks in with_chosen_groups(spec, {"groups": chosen}).groups.items()} == {
        group: sorted(blocks) for group, blocks in chosen.items()
    }
    with pytest.raises(KeyError):
        with_chosen_groups(spec, {})
    fixed = tiny_spec()
    assert with_chosen_groups(fixed, {"groups": chosen}) is fixed
