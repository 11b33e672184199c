"""Allocations: each rule against its published formula, worked out anew here; budgets of weights and of FLOPs; nesting."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import get_args

import pytest
import torch

from raylt.diffusion.flops import count_flops
from raylt.diffusion.unet import Layer, layers_of
from raylt.errors import InputError
from raylt.spec.presets import PRESETS
from raylt.spec.schema import matches
from raylt.spec.sections import TicketSpec
from raylt.spec.vocabulary import Base, Rule
from raylt.ticket.allocation import Allocation, bend
from raylt.ticket.budget import LayerBudget, smallest_density
from raylt.ticket.density_rules import BASES, lamp
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude, top_k

CONFIG = {**PRESETS["digits"], "sample_size": 8, "in_channels": 1, "out_channels": 1}
LAYERS = layers_of(CONFIG)
TOTAL = sum(layer.size for layer in LAYERS)
FLOPS = {layer.name: count_flops(CONFIG).layers[layer.name] // layer.size for layer in LAYERS}
RULES = list(get_args(Rule))  # a new one is tried as well
NO_FLOORS = {"keep_dense": [], "min_kept": 0}


def some_weights(layers=LAYERS, seed: int = 0, levels: int = 0) -> dict[str, torch.Tensor]:
    """Normal weights of layer-dependent size; with `levels`, few distinct ones, so that there are ties."""
    draw = torch.Generator().manual_seed(seed)
    if levels:
        return {f"{la.name}.weight": torch.randint(-levels, levels + 1, la.shape, generator=draw).float() for la in layers}
    return {f"{la.name}.weight": torch.randn(la.shape, generator=draw) / math.sqrt(la.size) for la in layers}


def pruning(
    ticket: TicketSpec, layers=LAYERS, costs: Mapping[str, int] | None = None, previous: Mask | None = None, weights=None
):
    weights = weights or some_weights(layers)
    return LayerBudget.among(layers, ticket, magnitude(weights, layers, previous or Mask.dense(layers)), weights, costs)


# --- budgets, floors, nesting: 1 000 random cases ---------------------------------------------------------------------


def random_layers(draw: random.Random) -> list[Layer]:
    blocks = ["conv_in", "time_embedding", "down_blocks.0", "mid_block", "up_blocks.0", "conv_out"]
    found = []
    for index in range(draw.randint(2, 9)):
        kernel = draw.choice([(), (1, 1), (3, 3)])
        found.append(Layer(f"{draw.choice(blocks)}.layer{index}", (draw.randint(1, 12), draw.randint(1, 12), *kernel)))
    return found


def random_allocation(draw: random.Random, layers: list[Layer]) -> Allocation:
    if draw.random() < 0.3:
        bends = {block: draw.uniform(-4, 4) for block in {layer.block for layer in layers}}
        return Allocation("searched", draw.choice(get_args(Base)), bends)
    return Allocation(draw.choice(RULES))


def least_of(layers: list[Layer], ticket: TicketSpec, rule: str) -> dict[str, int]:
    """The floors, said once more: whole layers, `min_kept` a channel, and uniform+'s own."""
    least = {}
    for index, layer in enumerate(layers):
        least[layer.name] = min(layer.size, ticket.min_kept * layer.shape[0])
        if rule == "uniform+" and index == len(layers) - 1:
            least[layer.name] = max(least[layer.name], math.ceil(0.2 * layer.size))
        if layer.name in ticket.keep_dense or (rule == "uniform+" and index == 0):
            least[layer.name] = layer.size
    return least


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_1000_random_cases_meet_their_budget_hold_their_floors_and_nest(start):
    outcomes = {"feasible": 0, "infeasible": 0}
    for seed in range(start, start + 100):
        draw = random.Random(seed)
        layers = random_layers(draw)
        ticket = TicketSpec(
            densities=sorted((draw.choice([draw.uniform(0.01, 1), 0.5]) for _ in range(draw.randint(1, 4))), reverse=True),
            keep_dense=[layer.name for layer in layers[1:] if draw.random() < 0.2],
            min_kept=draw.randint(0, 2),
            scope=draw.choice(["layer", "block"]),
        )
        costs = draw.choice([{}, {layer.name: draw.choice([1, 2, 7, 32, 128]) for layer in layers}])
        allocation = random_allocation(draw, layers)
        ends = run_case(seed, layers, ticket, costs, allocation)
        outcomes[ends] += 1
    assert min(outcomes.values()) > 10  # both kinds were met


def run_case(seed: int, layers: list[Layer], ticket: TicketSpec, costs: dict[str, int], allocation: Allocation) -> str:
    price = {layer.name: costs.get(layer.name, 1) for layer in layers}
    dense = sum(price[layer.name] * layer.size for layer in layers)
    least = least_of(layers, ticket, allocation.rule)
    needed = sum(price[name] * count for name, count in least.items())
    mask = Mask.dense(layers)
    for index in range(1, ticket.rounds + 1):
        wanted = ticket.density_of(index)
        weights = some_weights(layers, 10 * seed + index, levels=seed % 3 and 4)
        about = pruning(ticket, layers, costs, mask, weights)
        if round(wanted * dense) < needed:
            with pytest.raises(InputError, match="too small for keep_dense") as refusal:
                allocation.at(wanted, about)
            named = float(str(refusal.value).rpartition(" ")[2])
            assert needed <= round(named * dense) <= needed + max(1, 2e-6 * dense)  # the smallest that there is
            return "infeasible"
        counts = allocation.at(wanted, about)
        spent = sum(price[name] * count for name, count in counts.items())
        if costs:
            assert 0 <= round(wanted * dense) - spent < max(price.values()), (seed, index)
        else:
            assert spent == round(wanted * dense), (seed, index)
        for name, count in counts.items():
            assert min(least[name], mask.counts[name][0]) <= count <= mask.counts[name][0], (seed, index, name)
        smaller = top_k(about.scores, counts)
        assert smaller.is_nested_in(mask)
        mask = smaller
    return "feasible"


@pytest.mark.parametrize("costs", [{}, FLOPS], ids=["density", "flops"])
@pytest.mark.parametrize("rule", RULES)
def test_more_density_is_more_of_every_layer(rule, costs):
    ticket = TicketSpec(rounds=1, density=0.05)
    before = dict.fromkeys((layer.name for layer in LAYERS), 0)
    exact = rule in ("lamp", "global")  # static rules round to whole weights: one more or less
    for density in (0.05, 0.0501, 0.06, 0.1, 0.3, 0.7, 0.99, 1.0):
        counts = Allocation(rule).at(density, pruning(ticket, costs=costs))
        assert all(counts[name] >= before[name] - (not exact) for name in counts)
        before = counts
    assert all(before[layer.name] == layer.size for layer in LAYERS)


@pytest.mark.parametrize("costs", [{}, FLOPS], ids=["density", "flops"])
@pytest.mark.parametrize("rule", ["erk", "uniform+"])
def test_smallest_density_is_the_edge_of_what_is_feasible(rule, costs):
    ticket = TicketSpec(density=0.5, keep_dense=["mid_block"])
    least = smallest_density(LAYERS, ticket, costs, [rule])
    Allocation(rule).at(least, pruning(ticket, costs=costs))
    with pytest.raises(InputError, match=f"the smallest is {least:g}"):
        Allocation(rule).at(least - 1e-5, pruning(ticket, costs=costs))


# --- each rule against its formula ------------------------------------------------------------------------------------


def test_uniform_is_uniform_over_the_free_layers():
    counts = Allocation("uniform").at(0.3, pruning(TicketSpec(rounds=1, density=0.3)))
    ends = 2 * 144  # conv_in and conv_out, whole
    density = (round(0.3 * TOTAL) - ends) / (TOTAL - ends)
    for layer in LAYERS:
        whole = layer.name in ("conv_in", "conv_out")
        assert abs(counts[layer.name] - (1 if whole else density) * layer.size) < 1


@pytest.mark.parametrize("budgets", ["density", "flops"])
def test_uniform_plus_keeps_the_first_layer_whole_and_a_fifth_of_the_last(budgets):
    costs = FLOPS if budgets == "flops" else dict.fromkeys(FLOPS, 1)
    counts = Allocation("uniform+").at(0.05, pruning(TicketSpec(rounds=1, density=0.05, **NO_FLOORS), costs=costs))
    assert counts["conv_in"] == 144
    assert counts["conv_out"] == 29  # of 144: 20 %, rounded up
    middle = [layer for layer in LAYERS if layer.name not in ("conv_in", "conv_out")]
    dense = sum(costs[layer.name] * layer.size for layer in LAYERS)
    left = round(0.05 * dense) - costs["conv_in"] * 144 - costs["conv_out"] * 29
    density = left / sum(costs[layer.name] * layer.size for layer in middle)
    assert all(abs(counts[layer.name] - density * layer.size) < 1 for layer in middle)


def published_densities(
    layers: list[Layer], raw: Mapping[str, float], costs: Mapping[str, int], budget: float
) -> dict[str, float]:
    """epsilon raw_l, filling the fullest layer and solving again until none is above 1: RigL's algorithm, layer by layer."""
    full: list[Layer] = []
    while True:
        rest = [layer for layer in layers if layer not in full]
        left = budget - sum(costs[layer.name] * layer.size for layer in full)
        epsilon = left / sum(raw[layer.name] * costs[layer.name] * layer.size for layer in rest)
        fullest = max(rest, key=lambda layer: raw[layer.name])
        if epsilon * raw[fullest.name] <= 1:
            return {layer.name: 1.0 if layer in full else epsilon * raw[layer.name] for layer in layers}
        full.append(fullest)


@pytest.mark.parametrize("budgets", ["density", "flops"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("rule", ["er", "erk"])
def test_er_and_erk_follow_their_formula_where_layers_saturate_too(rule, density, budgets):
    """ER: (n_in + n_out) / (n_in n_out). ERK: (n_in + n_out + w + h) / (n_in n_out w h)."""
    costs = FLOPS if budgets == "flops" else dict.fromkeys(FLOPS, 1)
    raw = {}
    for layer in LAYERS:
        n_out, n_in, *kernel = layer.shape
        raw[layer.name] = (n_in + n_out) / (n_in * n_out)
        if rule == "erk" and kernel:
            raw[layer.name] = (n_in + n_out + kernel[0] + kernel[1]) / (n_in * n_out * kernel[0] * kernel[1])
    about = pruning(TicketSpec(rounds=1, density=density, **NO_FLOORS), costs=costs)
    budget = round(density * sum(costs[layer.name] * layer.size for layer in LAYERS))
    expected = published_densities(LAYERS, raw, costs, budget)
    assert any(value == 1.0 for value in expected.values()) == (density >= 0.1)
    assert BASES[rule](about) == pytest.approx(expected, rel=1e-9)
    counts = Allocation(rule).at(density, about)
    for layer in LAYERS:  # within a weight, and within the thousandth that a full layer is kept off 1
        assert abs(counts[layer.name] - expected[layer.name] * layer.size) < 1.5 + 0.0015 * layer.size


def test_lamp_on_an_example_worked_by_hand():
    score = lamp({"a": torch.tensor([[3.0, -1.0], [2.0, 0.0]]).double().abs(), "b": torch.tensor([5.0, -1.0, -1.0]).double()})
    assert score["a"].flatten().tolist() == pytest.approx([9 / 9, 1 / 14, 4 / 13, 0])
    assert score["b"].tolist() == [1.0, -1.0, -1.0]  # pruned ones stay below all others; the best of a layer scores 1


def lamp_scores(weights: torch.Tensor) -> list[float]:
    """w_u^2 over the sum of w_v^2 of all v with |w_v| >= |w_u|, as the paper says it."""
    squares = [float(w) ** 2 for w in weights.flatten()]
    return [square / sum(other for other in squares if other >= square) for square in squares]


@pytest.mark.parametrize("rule", ["lamp", "global"])
@pytest.mark.parametrize("budgets", ["density", "flops"])
def test_score_rules_are_one_threshold_over_all_layers(rule, budgets):
    layers = [layer for layer in LAYERS if layer.size <= 1200]
    costs = FLOPS if budgets == "flops" else dict.fromkeys(FLOPS, 1)
    about = pruning(TicketSpec(rounds=1, density=0.3, **NO_FLOORS), layers, costs)
    ranking = []
    for layer in layers:
        w = about.dense_weights[f"{layer.name}.weight"]
        values = lamp_scores(w) if rule == "lamp" else [abs(float(value)) for value in w.flatten()]
        ranking += [(-value, layer.name) for value in values]
    left = round(0.3 * sum(costs[layer.name] * layer.size for layer in layers))
    expected = dict.fromkeys((layer.name for layer in layers), 0)
    for _, name in sorted(ranking):  # the best first, until the next one does not fit
        left -= costs[name]
        if left < 0:
            break
        expected[name] += 1
    assert Allocation(rule).at(0.3, about) == expected


def test_a_search_s_lamp_base_is_lamp_of_the_dense_weights_in_every_round():
    ticket = TicketSpec(rounds=2, density=0.1)
    dense = Allocation("lamp").at(0.1, pruning(ticket))
    later = LayerBudget.among(LAYERS, ticket, magnitude(some_weights(seed=1), LAYERS, Mask.dense(LAYERS)), some_weights())
    base = BASES["lamp"](later)
    assert base == {la.name: dense[la.name] / la.size for la in LAYERS if not matches(la.name, ticket.keep_dense)}


# --- bends and scopes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("costs", [{}, FLOPS], ids=["density", "flops"])
def test_no_bend_is_the_base_itself_and_a_constant_bend_changes_nothing(costs):
    about = pruning(TicketSpec(rounds=1, density=0.1), costs=costs)
    blocks = {layer.block for layer in LAYERS}
    plain = Allocation("erk").at(0.1, about)
    assert Allocation("searched", "erk", dict.fromkeys(blocks, 0.0)).at(0.1, about) == plain
    bent = Allocation("searched", "erk", dict.fromkeys(blocks, 0.7)).at(0.1, about)
    assert all(abs(bent[name] - count) <= bool(costs) for name, count in plain.items())  # layers of one shape tie for a weight


@pytest.mark.parametrize("costs", [{}, FLOPS], ids=["density", "flops"])
def test_a_bend_moves_weights_to_its_block(costs):
    about = pruning(TicketSpec(rounds=1, density=0.1), costs=costs)
    plain = Allocation("erk").at(0.1, about)
    bent = Allocation("searched", "erk", {"up_blocks.1": 1.0}).at(0.1, about)
    for layer in about.free:
        assert (bent[layer.name] > plain[layer.name]) == (layer.block == "up_blocks.1")


def test_block_scope_keeps_each_block_its_number_but_ranks_within_the_block():
    whole, pooled = (
        Allocation("uniform").at(0.1, pruning(TicketSpec(rounds=1, density=0.1, scope=scope))) for scope in ("layer", "block")
    )
    assert pooled != whole
    for block in {layer.block for layer in LAYERS}:
        own = [layer for layer in LAYERS if layer.block == block]
        assert sum(pooled[la.name] for la in own) == sum(whole[la.name] for la in own)
        if block in ("conv_in", "conv_out"):
            continue
        # One threshold in the block: what was kept above a floor is nowhere smaller than what was left out anywhere.
        ranked = {la.name: some_weights()[f"{la.name}.weight"].abs().flatten().sort(descending=True).values for la in own}
        kept = [float(ranked[la.name][pooled[la.name] - 1]) for la in own if pooled[la.name] > la.num_outputs]
        left = [float(ranked[la.name][pooled[la.name]]) for la in own]
        assert min(kept) >= max(left)


def test_block_scope_keeps_each_block_its_flops():
    counts = {}
    for scope in ("layer", "block"):
        counts[scope] = Allocation("erk").at(0.1, pruning(TicketSpec(rounds=1, density=0.1, scope=scope), costs=FLOPS))
    costliest = max(FLOPS.values())
    for block in {layer.block for layer in LAYERS}:
        names = [layer.name for layer in LAYERS if layer.block == block]
        spent = [sum(FLOPS[name] * counts[scope][name] for name in names) for scope in ("layer", "block")]
        assert abs(spent[0] - spent[1]) < 2 * costliest


def test_bend_reaches_both_ends():
    about = pruning(TicketSpec(rounds=1, density=0.5))
    logits = {layer.name: 40.0 * (-1) ** i for i, layer in enumerate(about.free)}
    for kept in (sum(about.floors().values()), TOTAL - 1, TOTAL):
        assert sum(bend(about, logits, kept, about.floors()).values()) == kept
