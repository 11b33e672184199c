"""Masks: exact counts, ties, nesting, bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raylt.diffusion.unet import Layer
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, pooled_counts, top_k

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    ),
    min_size=1,
    max_size=5,
)


def layers_and_weights(found: list[tuple[int, ...]], seed: int, levels: int) -> tuple[list[Layer], dict[str, Tensor]]:
    """Layers with weights of few distinct magnitudes: `levels` small means many ties."""
    draw = torch.Generator().manual_seed(seed)
    layers = [Layer(f"down_blocks.{i}.conv", shape) for i, shape in enumerate(found)]
    return layers, {
        f"{la.name}.weight": torch.randint(-levels, levels + 1, la.shape, generator=draw).float() / 3 for la in layers
    }


@given(shapes, st.integers(0, 10_000), st.integers(1, 6), st.data())
def test_top_k_keeps_exact_counts_of_the_largest_and_breaks_ties_by_position(found, seed, levels, data):
    layers, weights = layers_and_weights(found, seed, levels)
    counts = {layer.name: data.draw(st.integers(0, layer.size)) for layer in layers}
    scores = magnitude(weights, layers, Mask.dense(layers))
    mask = top_k(scores, counts)
    for layer in layers:
        keep, score = mask.layers[layer.name].flatten(), scores[layer.name].flatten()
        assert int(keep.sum()) == counts[layer.name]
        # Independent statement of the rule: sort by (-score, position), take the first k.
        expected = sorted(range(layer.size), key=lambda i, score=score: (-float(score[i]), i))[: counts[layer.name]]
        assert sorted(torch.nonzero(keep).flatten().tolist()) == sorted(expected)


@given(shapes, st.integers(0, 10_000), st.integers(1, 6), st.data())
def test_successive_masks_nest_whatever_the_weights_become(found, seed, levels, data):
    layers, _ = layers_and_weights(found, seed, levels)
    mask = Mask.dense(layers)
    for round_index in range(3):
        counts = {layer.name: data.draw(st.integers(0, mask.counts[layer.name][0])) for layer in layers}
        _, fresh = layers_and_weights(found, seed + round_index + 1, levels)
        smaller = top_k(magnitude(fresh, layers, mask), counts)
        assert smaller.is_nested_in(mask)
        assert smaller.kept == sum(counts.values())
        mask = smaller


@given(shapes, st.integers(0, 10_000), st.integers(1, 6), st.data())
def test_pooled_counts_are_those_of_one_ranking_over_all_layers_with_floors(found, seed, levels, data):
    layers, weights = layers_and_weights(found, seed, levels)
    scores = magnitude(weights, layers, Mask.dense(layers))
    floors = {layer.name: data.draw(st.integers(0, layer.size)) for layer in layers}
    least, most = sum(floors.values()), sum(layer.size for layer in layers)
    total = data.draw(st.integers(least, most))
    counts = pooled_counts(scores, total, floors)
    assert sum(counts.values()) == total
    assert all(counts[name] >= floors[name] for name in floors)
    # What was kept above a floor is nowhere smaller than what was left out anywhere.
    ranked = {name: torch.sort(score.flatten(), descending=True).values for name, score in scores.items()}
    extra = [float(ranked[n][counts[n] - 1]) for n in counts if counts[n] > floors[n]]
    left = [float(ranked[n][counts[n]]) for n in counts if counts[n] < len(ranked[n])]
    assert not extra or not left or min(extra) >= max(left)


@given(shapes, st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=50)
def test_masks_round_trip_and_digest_sees_every_bit(found, seed, density):
    draw = torch.Generator().manual_seed(seed)
    layers = [Layer(f"mid_block.{i}", shape) for i, shape in enumerate(found)]
    mask = Mask({layer.name: torch.rand(layer.shape, generator=draw) < density for layer in layers})
    bits = {n: torch.from_numpy(np.packbits(keep.numpy().reshape(-1))) for n, keep in mask.layers.items()}
    for again in (Mask.decoded(mask.coded(), layers), Mask.decoded({"mask": bits}, layers)):  # and as earlier versions wrote it
        assert all(torch.equal(again.layers[n], keep) for n, keep in mask.layers.items())
        assert again.digest == mask.digest
    first = layers[0].name
    flipped = {n: keep.clone() for n, keep in mask.layers.items()}
    flipped[first].view(-1)[0] ^= True
    assert Mask(flipped).digest != mask.digest


@given(shapes, st.integers(0, 10_000))
def test_apply_gives_positive_zero_and_leaves_the_rest_bit_for_bit(found, seed):
    layers, weights = layers_and_weights(found, seed, 5)
    draw = torch.Generator().manual_seed(seed)
    mask = Mask({layer.name: torch.rand(layer.shape, generator=draw) < 0.5 for layer in layers})
    weights["norm.weight"] = torch.tensor([-1.5, 2.5])
    applied = mask.apply(weights)
    assert torch.equal(applied["norm.weight"], weights["norm.weight"])
    for layer in layers:
        keep, before, after = mask.layers[layer.name], weights[f"{layer.name}.weight"], applied[f"{layer.name}.weight"]
        assert torch.equal(after[keep].view(torch.int32), before[keep].view(torch.int32))
        assert not after[~keep].view(torch.int32).any()  # +0.0: no bit is set


@given(shapes, st.integers(0, 10_000), st.integers(1, 6), st.data())
def test_pooled_counts_buy_from_the_highest_on_at_each_layers_price(found, seed, levels, data):
    """Against the plain form: all survivors in one ranking, ties by layer, bought one by one until one is too dear."""
    layers, weights = layers_and_weights(found, seed, levels)
    draw = torch.Generator().manual_seed(seed)
    within = Mask({layer.name: torch.rand(layer.shape, generator=draw) < 0.7 for layer in layers})
    scores = magnitude(weights, layers, within)
    survivors = {
        layer.name: sorted((s for s in scores[layer.name].flatten().tolist() if s >= 0), reverse=True) for layer in layers
    }
    costs = {layer.name: data.draw(st.integers(1, 5)) for layer in layers}
    floors = {name: data.draw(st.integers(0, len(values))) for name, values in survivors.items()}
    least = sum(floors[name] * costs[name] for name in floors)
    budget = least + data.draw(st.integers(0, 40))
    left, expected = budget - least, dict(floors)
    ranking = [(-s, place, name) for place, name in enumerate(survivors) for s in survivors[name][floors[name] :]]
    for _, _, name in sorted(ranking):
        left -= costs[name]
        if left < 0:
            break
        expected[name] += 1
    assert pooled_counts(scores, budget, floors, costs) == expected


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        top_k({"a": torch.tensor([[1.0, float("nan")]])}, {"a": 1})


@pytest.mark.parametrize("group", ["gaps", "mask"])
def test_a_file_without_the_mask_of_a_layer_names_the_layer(group):
    layers = [Layer("mid_block.0", (4, 4)), Layer("mid_block.1", (2, 9))]
    whole = Mask.dense(layers).coded()["gaps"] if group == "gaps" else {layer.name: torch.full((3,), 255) for layer in layers}
    for wrong in ({}, {"mid_block.0": whole["mid_block.0"]}, {**whole, "mid_block.1": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"no mask of layer mid_block\.[01]: "):
            Mask.decoded({group: wrong}, layers)
