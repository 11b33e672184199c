"""Ten thousand proposals: each meets its budget exactly, keeps what must be kept, and its masks nest over the rounds."""

from __future__ import annotations

import random

import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.unet import layers_of
from raylt.search.proposal import Proposer
from raylt.search.space import offsets
from raylt.ticket.allocation import Allocation
from raylt.ticket.budget import least_kept
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude
from raylt.ticket.ticket_search import TicketSearch

PROFILE = {"down": -1.2, "mid": 0.1, "up": 1.1}


def masks_of(spec, layers, weights, params):
    """The mask of every round, each cut from the one before it."""
    allocation = Allocation("searched", spec.search.base, offsets(spec, params, PROFILE))
    search, mask = TicketSearch(spec, Compute(), allocation, 0), Mask.dense(layers)
    for index in range(1, spec.ticket.rounds + 1):
        mask = search.cut(index, spec.ticket.density_of(index), magnitude(weights, layers, mask), weights)
        yield index, mask


def check(spec, proposals, seed):
    layers = layers_of(spec.unet_config)
    draw = torch.Generator().manual_seed(seed)
    weights = {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) for layer in layers}
    total, least = sum(layer.size for layer in layers), least_kept(layers, spec.ticket)
    for number in range(proposals):
        params, _ = Proposer(spec, 5).propose(number, [])
        last = Mask.dense(layers)
        for index, mask in masks_of(spec, layers, weights, params):
            assert mask.kept == round(spec.ticket.density_of(index) * total)
            assert all(kept >= least[name] for name, (kept, _) in mask.counts.items())
            assert mask.is_nested_in(last)
            last = mask


@pytest.mark.parametrize("base", ["uniform", "erk", "lamp"])
@pytest.mark.parametrize("shared", [0, 2])
def test_proposals_meet_their_budget_and_nest(tiny_spec, base, shared):
    density = random.Random(base).uniform(0.08, 0.3)
    spec = tiny_spec(ticket={"rounds": 3, "density": density, "shared_rounds": shared}, search={"base": base})
    check(spec, 20, seed=shared)


@pytest.mark.slow  # minutes
@pytest.mark.timeout(3000)
def test_ten_thousand_of_them(tiny_spec):
    for part in range(100):
        base, sampler = ["uniform", "erk", "lamp"][part % 3], ["similarity", "random", "nsga2", "tpe"][part % 4]
        ticket = {"rounds": 3, "density": random.Random(part).uniform(0.08, 0.3), "shared_rounds": part % 3}
        check(tiny_spec(ticket=ticket, search={"base": base, "sampler": sampler, "seed": part}), 100, seed=part)
