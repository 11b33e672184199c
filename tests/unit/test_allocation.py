"""Allocations: budgets met exactly, floors and caps held, densities that fall, and each rule against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.diffusion.model import layers_of
from raylt.errors import InputError
from raylt.presets import PRESETS
from raylt.spec import TicketSpec, matches
from raylt.ticket.allocation import Allocation, Pruning, bend, erdos_renyi_kernel, smallest_density
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, top_k

CONFIG = {**PRESETS["digits"], "sample_size": 8, "in_channels": 1, "out_channels": 1}
LAYERS = layers_of(CONFIG)
TOTAL = sum(layer.size for layer in LAYERS)
RULES = ["uniform", "uniform+", "er", "erk", "lamp", "global"]


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) / math.sqrt(layer.size) for layer in LAYERS}


def pruning(ticket: TicketSpec, previous: Mask | None = None) -> Pruning:
    weights = some_weights()
    return Pruning(LAYERS, ticket, previous or Mask.dense(LAYERS), weights, weights)


@given(
    st.sampled_from(RULES),
    st.floats(0.03, 1.0),
    st.integers(1, 4),
    st.sampled_from([[], ["conv_in", "conv_out"], ["mid_block"], ["time_embedding", "up_blocks.*"]]),
    st.integers(0, 2),
    st.lists(st.floats(-3, 3), min_size=8, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_every_round_meets_its_budget_exactly_and_masks_nest(rule, density, rounds, keep_dense, min_kept, bends):
    ticket = TicketSpec(rounds=rounds, density=density, keep_dense=keep_dense, min_kept=min_kept)
    blocks = dict.fromkeys(layer.block for layer in LAYERS)
    allocation = Allocation("searched", "erk", dict(zip(blocks, bends, strict=True))) if rule == "erk" else Allocation(rule)
    mask = Mask.dense(LAYERS)
    for index in range(1, rounds + 1):
        wanted, about = ticket.density_of(index), pruning(ticket, mask)
        if round(wanted * TOTAL) < sum(about.floors.values()):
            with pytest.raises(InputError, match="the smallest is"):
                allocation.at(wanted, about)
            return
        counts = allocation.at(wanted, about)
        assert sum(counts.values()) == round(wanted * TOTAL)
        for layer in LAYERS:
            kept, before = counts[layer.name], mask.counts[layer.name][0]
            assert kept <= before
            if matches(layer.name, keep_dense):
                assert kept == layer.size
            else:
                assert kept >= min(before, min(layer.size, min_kept * layer.num_outputs))
        smaller = top_k(magnitude(some_weights(index), LAYERS, mask), counts)
        assert smaller.is_nested_in(mask)
        mask = smaller


def test_smallest_density_is_the_edge_of_what_is_feasible():
    ticket = TicketSpec(density=0.5)
    least = smallest_density(LAYERS, ticket)
    kept = round(least * TOTAL)
    assert sum(Allocation("erk").at(kept / TOTAL, pruning(ticket)).values()) == kept
    with pytest.raises(InputError):
        Allocation("erk").at((kept - 1) / TOTAL, pruning(ticket))


def test_uniform_is_uniform_over_the_free_layers():
    about = pruning(TicketSpec(rounds=1, density=0.3))
    counts = Allocation("uniform").at(0.3, about)
    densities = [counts[layer.name] / layer.size for layer in about.free]
    assert max(abs(d - about.final_free_density) for d in densities) < 1 / min(layer.size for layer in about.free)


def test_erk_is_proportional_to_sum_over_product_of_the_shape_where_it_is_not_full():
    about = pruning(TicketSpec(rounds=1, density=0.1))
    base = erdos_renyi_kernel(about)
    ratios = [base[la.name] / (sum(la.shape) / math.prod(la.shape)) for la in about.free if base[la.name] < 1]
    assert max(ratios) - min(ratios) < 1e-9 * max(ratios)
    kept = sum(base[layer.name] * layer.size for layer in about.free)
    assert kept == pytest.approx(about.final_free_density * sum(layer.size for layer in about.free))
    counts = Allocation("erk").at(0.1, about)
    assert max(abs(counts[la.name] / la.size - base[la.name]) for la in about.free) < 0.01  # c is near 0 at the final density


def test_no_bend_is_the_base_itself_and_a_constant_bend_changes_nothing():
    about = pruning(TicketSpec(rounds=1, density=0.1))
    blocks = {layer.block for layer in LAYERS}
    plain = Allocation("erk").at(0.1, about)
    assert Allocation("searched", "erk", dict.fromkeys(blocks, 0.0)).at(0.1, about) == plain
    assert Allocation("searched", "erk", dict.fromkeys(blocks, 0.7)).at(0.1, about) == plain


def test_a_bend_moves_weights_to_its_block():
    about = pruning(TicketSpec(rounds=1, density=0.1))
    plain = Allocation("erk").at(0.1, about)
    bent = Allocation("searched", "erk", {"up_blocks.1": 1.0}).at(0.1, about)
    for layer in about.free:
        assert (bent[layer.name] > plain[layer.name]) == (layer.block == "up_blocks.1")


def test_global_is_one_threshold_and_lamp_follows_its_formula():
    ticket = TicketSpec(rounds=1, density=0.3, keep_dense=[], min_kept=0)
    about = pruning(ticket)
    flat = torch.cat([about.weights[f"{la.name}.weight"].abs().flatten() for la in LAYERS])
    threshold = torch.sort(flat, descending=True).values[round(0.3 * TOTAL) - 1]
    counts = Allocation("global").at(0.3, about)
    assert counts == {la.name: int((about.weights[f"{la.name}.weight"].abs() >= threshold).sum()) for la in LAYERS}

    scores = {}
    for layer in LAYERS:  # Lee et al. 2021, eq. 4, as written: sorted by ascending magnitude
        w = about.weights[f"{layer.name}.weight"].double().flatten().square().sort().values
        scores[layer.name] = w / torch.flip(torch.cumsum(torch.flip(w, [0]), 0), [0])
    every = torch.cat(list(scores.values())).sort(descending=True).values
    edge = every[round(0.3 * TOTAL) - 1]
    assert Allocation("lamp").at(0.3, about) == {name: int((score >= edge).sum()) for name, score in scores.items()}


def test_block_scope_keeps_each_block_its_number_but_ranks_within_the_block():
    about = pruning(TicketSpec(rounds=1, density=0.1, scope="block"))
    counts = Allocation("uniform").at(0.1, about)
    pooled = about.pooled_by_block(counts, magnitude(about.weights, LAYERS, about.previous))
    for block in {layer.block for layer in LAYERS}:
        names = [layer.name for layer in LAYERS if layer.block == block]
        assert sum(pooled[n] for n in names) == sum(counts[n] for n in names)
    assert pooled != counts
    assert all(pooled[n] >= about.floors[n] for n in pooled)


def test_bend_reaches_both_ends():
    about = pruning(TicketSpec(rounds=1, density=0.5))
    logits = {layer.name: 40.0 * (-1) ** i for i, layer in enumerate(about.free)}
    for kept in (sum(about.floors.values()), TOTAL - 1, TOTAL):
        assert sum(bend(about, logits, kept).values()) == kept
