"""Tickets of several searches: the record of their pairs, and the interval that knows that pairs share tickets."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
import torch

from raylt.diffusion.unet import Layer
from raylt.ticket.mask import Mask
from raylt.ticket.overlap import NestedMasks, inherited
from raylt.ticket.prune import top_k
from raylt.ticket.similarity import Comparison, jackknife_interval
from tests.support.kappas import kappa_between, kappa_with_start

LAYERS = [Layer("mid_block.a", (50, 40)), Layer("mid_block.b", (30, 20, 3, 3))]
T_975 = {2: 4.302653, 3: 3.182446, 4: 2.776445}  # Student's t, from a table


def around(weights, noise, seed, density=0.1):
    """A ticket that follows |weights|, as far as noise lets it."""
    draw = torch.Generator().manual_seed(seed)
    scores = {layer.name: weights[f"{layer.name}.weight"].double().abs() for layer in LAYERS}
    scores = {name: score + noise * torch.rand(score.shape, generator=draw) for name, score in scores.items()}
    return top_k(scores, {layer.name: round(density * layer.size) for layer in LAYERS})


@pytest.fixture(scope="module")
def start():
    draw = torch.Generator().manual_seed(7)
    return {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) for layer in LAYERS}


def test_the_record_of_some_layers(start):
    tickets = [around(start, 2.0, seed) for seed in range(4)]
    moved = [around(start, 5.0, seed) for seed in range(10, 14)]
    comparison = Comparison.of(tickets, LAYERS, start=start, moved=moved, searches=list("abcd"))
    for layers in (LAYERS, LAYERS[:1]):
        found = comparison.numbers(layers)
        assert found["kappa"] == kappa_between(tickets, layers)
        assert found["kappa_start"] == kappa_with_start(tickets, start, layers)
        assert found["excess"] == found["kappa"] - found["kappa_start"]
        assert found["kappa_movement"] == kappa_between(moved, layers)
        assert found["pairs"] == 6
        assert found["kappa_low"] < found["kappa"] < found["kappa_high"]
        assert 0 < found["kappa_partial"] < found["kappa"]
        assert found["z"] > 5 and found["jaccard"] > found["jaccard_chance"] == pytest.approx(0.1 / 1.9)


def test_what_there_is_nothing_to_tell_of_is_none(start):
    tickets = [around(start, 2.0, seed) for seed in range(2)]
    two = Comparison.of(tickets, LAYERS).numbers(LAYERS)
    assert {name for name, value in two.items() if value is not None} == {"kappa", "z", "jaccard", "jaccard_chance", "pairs"}
    one = Comparison.of(tickets[:1], LAYERS, start=start, moved=tickets[:1]).numbers(LAYERS)
    assert {name: value for name, value in one.items() if value is not None} == {
        "kappa_start": kappa_with_start(tickets[:1], start, LAYERS),
        "pairs": 0,
    }
    for nothing in (
        Comparison.of([], LAYERS, start=start, moved=[]).numbers(LAYERS),
        Comparison.of(tickets, LAYERS, start=start, moved=tickets).numbers([]),
        Comparison.of([Mask.dense(LAYERS)] * 3, LAYERS, start=start).numbers(LAYERS) | {"pairs": 0},
    ):
        assert {name: value for name, value in nothing.items() if value is not None} == {"pairs": 0}


def test_one_search_twice_is_refused(start):
    tickets = [around(start, 2.0, seed) for seed in range(3)]
    with pytest.raises(NestedMasks, match="tickets 0 and 2"):
        Comparison.of(tickets, LAYERS, searches=["a", "b", "a"])
    with pytest.raises(NestedMasks):
        Comparison.of([inherited(Mask.dense(LAYERS), start, LAYERS), *tickets, around(start, 2.0, 0, 0.05)], LAYERS)


@pytest.mark.parametrize("num_tickets", [3, 4, 5])
def test_the_interval_is_that_of_the_jackknife_s_pseudo_values(num_tickets):
    draw = random.Random(num_tickets)
    values = {pair: draw.random() for pair in itertools.combinations(range(num_tickets), 2)}
    whole = statistics.mean(values.values())
    pseudo = []
    for left_out in range(num_tickets):
        rest = statistics.mean(v for (i, j), v in values.items() if i != left_out and j != left_out)
        pseudo.append(num_tickets * whole - (num_tickets - 1) * rest)
    reach = T_975[num_tickets - 1] * statistics.stdev(pseudo) / math.sqrt(num_tickets)
    assert jackknife_interval(values, num_tickets) == pytest.approx((whole - reach, whole + reach), rel=1e-6)


def test_two_tickets_have_no_interval_nor_do_pairs_without_a_number():
    assert jackknife_interval({(0, 1): 0.5}, 2) == (None, None)
    assert jackknife_interval({}, 0) == (None, None)
    assert jackknife_interval({(0, 1): 0.5, (0, 2): None, (1, 2): 0.4}, 3) == (None, None)


@pytest.mark.parametrize(("num_tickets", "own", "lowest", "highest"), [(3, 1, 0.93, 1), (5, 1, 0.93, 0.99), (5, 0, 0.95, 1)])
def test_the_interval_covers_where_pairs_share_their_tickets(num_tickets, own, lowest, highest):
    """A pair's value is the sum of what its tickets are like (`own`) and of its own; the naive interval would fall short."""
    draw, covered, naive, runs = random.Random(0), 0, 0, 1500
    for _ in range(runs):
        like = [own * draw.gauss(0, 1) for _ in range(num_tickets)]
        values = {(i, j): like[i] + like[j] + draw.gauss(0, 0.5) for i, j in itertools.combinations(range(num_tickets), 2)}
        low, high = jackknife_interval(values, num_tickets)
        covered += low <= 0 <= high
        naive += abs(statistics.mean(values.values())) <= 1.96 * statistics.stdev(values.values()) / math.sqrt(len(values))
    assert lowest <= covered / runs <= highest
    assert own == 0 or naive / runs < 0.8
