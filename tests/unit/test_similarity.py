"""Similarity: chance is 0, equality is 1, inheritance is shown beside it; the profile of a sweep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylt.diffusion.model import Layer
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, top_k
from raylt.ticket.similarity import kappa_between, kappa_with_start, layer_overlap, movement, pooled_kappa

LAYERS = [Layer("mid_block.a", (50, 40)), Layer("mid_block.b", (30, 20, 3, 3))]


def random_mask(density, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = {layer.name: torch.rand(layer.shape, generator=draw) for layer in LAYERS}
    return top_k(scores, {layer.name: round(density * layer.size) for layer in LAYERS})


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_independent_masks_have_kappa_zero_and_equal_ones_one(density):
    masks = [random_mask(density, seed) for seed in range(6)]
    assert abs(kappa_between(masks, LAYERS)) < 0.02
    assert pooled_kappa(masks[0], masks[0], LAYERS) == pytest.approx(1.0)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 1000))
def test_overlap_is_counted_and_chance_is_the_hypergeometric_mean(k1, k2, seed):
    draw = torch.Generator().manual_seed(seed)
    layer = Layer("mid_block.x", (4, 5))
    a, b = (top_k({layer.name: torch.rand(layer.shape, generator=draw)}, {layer.name: k}) for k in (k1, k2))
    found = layer_overlap(a, b, layer.name)
    both = sum(int(x and y) for x, y in zip(a.layers[layer.name].flatten(), b.layers[layer.name].flatten(), strict=True))
    assert (found.both, found.chance, found.most) == (both, k1 * k2 / 20, min(k1, k2))
    kappa = found.kappa
    if kappa is None:
        assert {k1, k2} & {0, 20}
    else:
        assert kappa <= 1


def test_layers_are_pooled_by_their_sums_not_by_their_means():
    a, b = random_mask(0.2, 1), random_mask(0.2, 2)
    parts = [layer_overlap(a, b, layer.name) for layer in LAYERS]
    expected = sum(p.both - p.chance for p in parts) / sum(p.most - p.chance for p in parts)
    assert pooled_kappa(a, b, LAYERS) == pytest.approx(expected)


def test_a_dense_block_has_no_kappa_and_one_ticket_has_no_pair():
    dense = Mask.dense(LAYERS)
    assert kappa_between([dense, dense], LAYERS) is None
    assert kappa_between([random_mask(0.1, 0)], LAYERS) is None


def test_kappa_with_the_start_is_one_for_the_start_s_own_largest_weights():
    draw = torch.Generator().manual_seed(0)
    start = {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) for layer in LAYERS}
    counts = {layer.name: layer.size // 10 for layer in LAYERS}
    inherited = top_k(magnitude(start, LAYERS, Mask.dense(LAYERS)), counts)
    assert kappa_with_start([inherited], start, LAYERS) == pytest.approx(1.0)
    assert abs(kappa_with_start([random_mask(0.1, 5)], start, LAYERS)) < 0.05


def test_movement_is_relative_to_where_the_weights_began():
    start = {f"{layer.name}.weight": torch.ones(layer.shape) for layer in LAYERS}
    moved = {name: value * 1.5 for name, value in start.items()}
    assert movement(start, moved, LAYERS) == pytest.approx(0.5)
    assert movement(start, start, LAYERS) == 0.0
