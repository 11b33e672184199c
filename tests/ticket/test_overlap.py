"""Similarity of two masks: chance is 0, equality is 1, inheritance can be told apart, and one search is refused."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylt.diffusion.unet import Layer
from raylt.errors import InputError
from raylt.ticket.mask import Mask
from raylt.ticket.overlap import (
    NestedMasks,
    Overlap,
    add_up,
    compare,
    inherited,
    layer_overlap,
    layer_overlap_given,
    most_moved,
    movement,
    overlap,
    pooled,
    refuse_nested,
)
from raylt.ticket.prune import magnitude, top_k
from tests.support.kappas import kappa_between, kappa_with_start, pooled_kappa

LAYERS = [Layer("mid_block.a", (50, 40)), Layer("mid_block.b", (30, 20, 3, 3))]


PAIRS = 200


def random_mask(density, seed, layers=LAYERS):
    """`density`: of all layers, or one for each."""
    draw = torch.Generator().manual_seed(seed)
    densities = density if isinstance(density, tuple) else (density,) * len(layers)
    scores = {layer.name: torch.rand(layer.shape, generator=draw) for layer in layers}
    return top_k(scores, {layer.name: round(d * layer.size) for layer, d in zip(layers, densities, strict=True)})


def random_start(seed):
    draw = torch.Generator().manual_seed(seed)
    return {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) for layer in LAYERS}


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_independent_masks_have_kappa_zero_and_equal_ones_one(density):
    masks = [random_mask(density, seed) for seed in range(6)]
    assert abs(kappa_between(masks, LAYERS)) < 0.02
    assert pooled_kappa(masks[0], masks[0], LAYERS) == pytest.approx(1.0)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 1000))
def test_overlap_is_counted_and_chance_has_the_hypergeometric_mean_and_variance(k1, k2, seed):
    draw = torch.Generator().manual_seed(seed)
    layer = Layer("mid_block.x", (4, 5))
    a, b = (top_k({layer.name: torch.rand(layer.shape, generator=draw)}, {layer.name: k}) for k in (k1, k2))
    found = layer_overlap(a, b, layer.name)
    both = sum(int(x and y) for x, y in zip(a.layers[layer.name].flatten(), b.layers[layer.name].flatten(), strict=True))
    assert (found.intersection, found.chance, found.max_intersection, found.kept) == (both, k1 * k2 / 20, min(k1, k2), k1 + k2)
    law = [math.comb(k1, o) * math.comb(20 - k1, k2 - o) / math.comb(20, k2) for o in range(k2 + 1)]
    average = sum(o * p for o, p in enumerate(law))
    variance = sum((o - average) ** 2 * p for o, p in enumerate(law))
    assert (found.chance, found.variance) == pytest.approx((average, variance), abs=1e-9)
    kappa = found.kappa
    if kappa is None:
        assert {k1, k2} & {0, 20}
    else:
        assert kappa <= 1


def test_layers_are_pooled_by_their_sums_not_by_their_means():
    a, b = random_mask(0.2, 1), random_mask(0.2, 2)
    parts = [layer_overlap(a, b, layer.name) for layer in LAYERS]
    expected = sum(p.intersection - p.chance for p in parts) / sum(p.max_intersection - p.chance for p in parts)
    assert pooled_kappa(a, b, LAYERS) == pytest.approx(expected)


def test_a_dense_block_has_no_kappa_and_one_ticket_has_no_pair():
    dense = Mask.dense(LAYERS)
    assert kappa_between([dense, dense], LAYERS) is None
    assert kappa_between([random_mask(0.1, 0)], LAYERS) is None


def test_kappa_with_the_start_is_one_for_the_start_s_own_largest_weights():
    start = random_start(0)
    counts = {layer.name: layer.size // 10 for layer in LAYERS}
    inherited = top_k(magnitude(start, LAYERS, Mask.dense(LAYERS)), counts)
    assert kappa_with_start([inherited], start, LAYERS) == pytest.approx(1.0)
    assert abs(kappa_with_start([random_mask(0.1, 5)], start, LAYERS)) < 0.05


def test_movement_is_relative_to_where_the_weights_began():
    start = {f"{layer.name}.weight": torch.ones(layer.shape) for layer in LAYERS}
    moved = {name: value * 1.5 for name, value in start.items()}
    assert movement(start, moved, LAYERS) == pytest.approx(0.5)
    assert movement(start, start, LAYERS) == 0.0


# --- what chance gives ------------------------------------------------------------------------------------------------

DENSITIES = [(0.1, 0.1), (0.5, 0.5), (0.02, 0.3), ((0.05, 0.6), (0.4, 0.1))]  # equal, unequal, and unequal by layer


def pairs_by_chance(first, second):
    """The overlaps of 200 pairs of independent random masks, pooled over two layers of unlike size."""
    for seed in range(PAIRS):
        a, b = random_mask(first, 2 * seed), random_mask(second, 2 * seed + 1)
        yield pooled(compare(a, b, LAYERS), LAYERS)


def assert_centred(values, sd):
    """Mean 0 and standard deviation `sd` within 3.5 standard errors of 200 draws."""
    assert abs(statistics.mean(values)) < 3.5 * sd / math.sqrt(PAIRS)
    assert statistics.stdev(values) == pytest.approx(sd, rel=3.5 / math.sqrt(2 * PAIRS))


@pytest.mark.parametrize(("first", "second"), DENSITIES)
def test_200_pairs_of_random_masks_have_the_kappa_z_and_jaccard_of_the_hypergeometric_law(first, second):
    found = list(pairs_by_chance(first, second))
    sd, reach, kept = 0.0, 0.0, 0
    for layer, d1, d2 in zip(LAYERS, *(d if isinstance(d, tuple) else (d, d) for d in (first, second)), strict=True):
        n, k1, k2 = layer.size, round(d1 * layer.size), round(d2 * layer.size)
        sd += n * (k1 / n) * (1 - k1 / n) * (k2 / n) * (1 - k2 / n) * n / (n - 1)
        reach += min(k1, k2) - k1 * k2 / n
        kept += k1 + k2
    sd = math.sqrt(sd)
    assert_centred([o.z for o in found], 1.0)
    assert_centred([o.kappa for o in found], sd / reach)
    chance = found[0].jaccard_chance
    assert {o.jaccard_chance for o in found} == {chance}
    e = chance * kept / (1 + chance)
    off = statistics.mean(o.jaccard for o in found) - chance
    error = statistics.stdev(o.jaccard for o in found) / math.sqrt(PAIRS)
    assert abs(off - sd**2 * kept / (kept - e) ** 3) < 3.5 * error
    assert abs(off) < 0.02 * chance


def test_jaccard_s_chance_at_equal_densities_is_that_of_the_paper_notes():
    for density in (0.5, 0.1, 0.01):
        a, b = random_mask(density, 0), random_mask(density, 1)
        expected = density / (2 - density)
        assert pooled(compare(a, b, LAYERS), LAYERS).jaccard_chance == pytest.approx(expected)


def test_identical_masks_agree_wholly():
    mask = random_mask((0.05, 0.3), 3)
    found = pooled(compare(mask, mask, LAYERS), LAYERS)
    assert found.kappa == pytest.approx(1.0) and found.jaccard == 1.0
    assert found.z == pytest.approx((found.max_intersection - found.chance) / math.sqrt(found.variance))


@pytest.mark.parametrize("kept", [0, 20])
def test_a_full_or_an_empty_layer_has_no_numbers_and_adds_none_to_its_block(kept):
    settled = overlap(torch.arange(20) < kept, torch.arange(20) < 7)
    assert (settled.kappa, settled.z, settled.jaccard, settled.jaccard_chance) == (None,) * 4
    assert overlap(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool)) == Overlap()
    other = layer_overlap(random_mask(0.1, 0), random_mask(0.3, 1), LAYERS[0].name)
    assert (add_up([settled, other]).kappa, add_up([settled, other]).z) == pytest.approx((other.kappa, other.z))


# --- what the start gives ---------------------------------------------------------------------------------------------


def like_the_start(start, seed, inside=0.6):
    """A ticket of density 0.1 that agrees with others only in how many of the start's largest weights it keeps."""
    draw = torch.Generator().manual_seed(seed)
    keep = {}
    for name, largest in start.layers.items():
        scores, count = torch.rand(largest.shape, generator=draw).double(), int(largest.sum())
        from_inside = top_k({name: torch.where(largest, scores, -1.0)}, {name: round(inside * count)}).layers[name]
        rest = top_k({name: torch.where(largest, -1.0, scores)}, {name: count - round(inside * count)}).layers[name]
        keep[name] = from_inside | rest
    return Mask(keep)


def test_partial_kappa_is_zero_for_masks_that_agree_only_through_the_start():
    start = inherited(random_mask(0.1, 0), random_start(1), LAYERS)
    plain, partial, errors = [], [], []
    for seed in range(PAIRS):
        a, b = like_the_start(start, 2 * seed), like_the_start(start, 2 * seed + 1)
        plain.append(pooled_kappa(a, b, LAYERS))
        given = add_up(layer_overlap_given(a, b, (start, start), layer.name) for layer in LAYERS)
        partial.append(given.kappa)
        errors.append(math.sqrt(given.variance) / (given.max_intersection - given.chance))
    assert min(plain) > 0.2
    assert_centred(partial, errors[0])
    assert add_up(layer_overlap_given(a, a, (start, start), layer.name) for layer in LAYERS).kappa == pytest.approx(1.0)


def test_partial_kappa_is_its_formula_counted_weight_by_weight():
    start = inherited(random_mask(0.2, 0), random_start(1), LAYERS)
    a, b = like_the_start(start, 5), random_mask(0.2, 6)
    above, below = 0.0, 0.0
    for layer in LAYERS:
        first, second, largest = ({i for i, keep in enumerate(m.layers[layer.name].flatten()) if keep} for m in (a, b, start))
        for stratum in (largest, set(range(layer.size)) - largest):
            chance = len(first & stratum) * len(second & stratum) / len(stratum)
            above += len(first & second & stratum) - chance
            below += min(len(first & stratum), len(second & stratum)) - chance
    found = add_up(layer_overlap_given(a, b, (start, start), layer.name) for layer in LAYERS)
    assert found.kappa == pytest.approx(above / below)


def test_partial_kappa_of_unequal_tickets_is_given_both_their_starts():
    """Both tickets favour the larger start, and within it the smaller: neither start alone explains that they agree."""
    weights, draw = random_start(1), torch.Generator().manual_seed(0)
    small, large = (inherited(random_mask(density, 0), weights, LAYERS) for density in (0.1, 0.3))
    found = []
    for _ in range(PAIRS):
        tickets = []
        for start in (small, large):
            lure = {n: 0.5 * large.layers[n] + 0.35 * small.layers[n] for n in large.layers}
            scores = {n: value + torch.rand(value.shape, generator=draw) for n, value in lure.items()}
            tickets.append(top_k(scores, {n: kept for n, (kept, _) in start.counts.items()}))
        assert pooled_kappa(*tickets, LAYERS) > 0.4
        found.append(add_up(layer_overlap_given(*tickets, (small, large), layer.name) for layer in LAYERS).kappa)
    assert abs(statistics.mean(found)) < 3.5 * statistics.stdev(found) / math.sqrt(PAIRS)


def test_what_moved_most_is_ranked_by_distance_and_never_holds_what_stayed():
    start = random_start(0)
    trained = {name: value.clone() for name, value in start.items()}
    a, b = (f"{layer.name}.weight" for layer in LAYERS)
    trained[a].view(-1)[[3, 5, 8]] += torch.tensor([0.1, -3.0, 2.0])
    trained[b] -= torch.arange(LAYERS[1].size).reshape(LAYERS[1].shape)
    ticket = top_k({layer.name: torch.rand(layer.shape) for layer in LAYERS}, {LAYERS[0].name: 2, LAYERS[1].name: 100})
    moved = most_moved(ticket, start, trained, LAYERS)
    assert moved.layers[LAYERS[0].name].flatten().nonzero().flatten().tolist() == [5, 8]
    assert moved.layers[LAYERS[1].name].flatten().nonzero().flatten().tolist() == list(range(5300, 5400))
    assert most_moved(ticket, start, start, LAYERS).kept == 0
    assert most_moved(random_mask(0.5, 0), start, trained, LAYERS).counts[LAYERS[0].name][0] == 3


# --- rounds of one search are no two tickets --------------------------------------------------------------------------


def later_round(mask, seed, keep=0.5):
    """A mask within `mask`, as pruning makes it."""
    draw = torch.Generator().manual_seed(seed)
    scores = {n: torch.where(m, torch.rand(m.shape, generator=draw).double(), -1.0) for n, m in mask.layers.items()}
    return top_k(scores, {name: round(keep * count) for name, (count, _) in mask.counts.items()})


def test_rounds_of_one_search_are_refused_and_the_error_says_why():
    first = random_mask(0.4, 0)
    second = later_round(first, 1)
    for pair in ([first, second], [second, first]):
        with pytest.raises(NestedMasks, match="nested by construction") as refused:
            kappa_between(pair, LAYERS)
        assert isinstance(refused.value, InputError)
    with pytest.raises(NestedMasks, match="tickets 1 and 2"):
        kappa_between([random_mask(0.3, 9), first, second], LAYERS)
    with pytest.raises(NestedMasks):
        pooled_kappa(first, second, LAYERS)


def test_a_layer_that_is_kept_whole_does_not_hide_that_rounds_are_nested():
    whole = Layer("conv_in", (5, 5))
    first, second = random_mask(0.4, 0), later_round(random_mask(0.4, 0), 1)
    with pytest.raises(NestedMasks):
        kappa_between([Mask({**Mask.dense([whole]).layers, **mask.layers}) for mask in (first, second)], LAYERS)


def test_one_search_given_twice_is_refused_by_where_it_comes_from():
    a, b = random_mask(0.2, 0), random_mask(0.2, 1)
    refuse_nested([a, b], ["one", "other"])
    with pytest.raises(NestedMasks):
        refuse_nested([a, b], ["one", "one"])
    with pytest.raises(NestedMasks):
        refuse_nested([a, a], ["one", "one"])


def test_independent_tickets_may_be_equal_and_where_known_to_be_independent_even_nested():
    mask = random_mask(0.2, 0)
    assert kappa_between([mask, mask], LAYERS) == pytest.approx(1.0)
    refuse_nested([mask, mask], ["one", "other"])
    refuse_nested([mask, later_round(mask, 1)], ["one", "other"])


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 10_000))
def test_masks_that_are_nested_by_accident_are_no_offence(k1, k2, seed):
    layer = Layer("mid_block.x", (2, 3))
    draw = torch.Generator().manual_seed(seed)
    refuse_nested([top_k({layer.name: torch.rand(layer.shape, generator=draw)}, {layer.name: k}) for k in (k1, k2)])


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 10_000))
def test_random_masks_of_any_densities_are_no_offence(d1, d2, seed):
    refuse_nested([random_mask(d1, seed), random_mask(d2, seed + 10_001)])
