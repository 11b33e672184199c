"""The preflight's word on densities: which key, and the smallest value that would do."""

from __future__ import annotations

import pytest

from raylt.diffusion.data import load_images
from raylt.diffusion.flops import count_flops
from raylt.diffusion.unet import layers_of
from raylt.store import Ledger, Store
from raylt.store.layout import SIMILARITY_FILE
from raylt.sweep.footprint import _Sizes
from raylt.sweep.preflight import Preflight, _budget_words, _density_problems, _group_lines
from raylt.trial.inputs import Inputs


@pytest.mark.parametrize("budget", ["density", "flops"])
@pytest.mark.parametrize("baselines", [["erk"], ["erk", "uniform+"]])
def test_a_density_below_the_floors_is_refused_with_the_smallest_there_is(tiny_spec, budget, baselines):
    def problems(density):
        ticket = {"density": density, "keep_dense": ["mid_block"]}
        spec = tiny_spec(ticket=ticket, search={"budget": budget, "baselines": baselines})
        return _density_problems(spec, layers_of(spec.unet_config))

    (problem,) = problems(0.01)
    assert problem.key == "ticket.density"
    assert ("uniform+" in problem.what) == ("uniform+" in baselines)
    assert ("FLOPs" in problem.what) == (budget == "flops")
    least = float(problem.expected.split()[0])
    assert problems(least) == []
    assert len(problems(least - 1e-4)) == 1


def test_lists_of_densities_are_named_by_their_key(tiny_spec):
    spec = tiny_spec(ticket={"densities": [0.5, 0.001], "density": None})
    assert [problem.key for problem in _density_problems(spec, layers_of(spec.unet_config))] == ["ticket.densities"]


def test_a_dry_run_says_which_groups_there_are_or_what_they_wait_for(tiny_spec, tmp_path):
    def lines(**search):
        spec = tiny_spec(search=search)
        return _group_lines(spec, Store(str(tmp_path)), layers_of(spec.unet_config))

    assert [line.split(" (")[0] for line in lines()] == [
        "group    down: down_blocks.0, down_blocks.1",
        "group    mid: time_embedding, mid_block",
        "group    up: up_blocks.0, up_blocks.1",
    ]
    assert lines(groups="auto") == ["groups   chosen from the profile once the pilots have ended"]
    assert lines(groups="auto", profile="size") == ["groups   chosen from the profile once the dense training has ended"]
    ledger = Ledger(Store(str(tmp_path)), "tiny", lambda: None)
    ledger.write(SIMILARITY_FILE, {"groups": {"g0": ["mid_block", "up_blocks.0"]}})
    assert [line.split(" (")[0] for line in lines(groups="auto")] == ["group    g0: mid_block, up_blocks.0"]


def test_a_dry_run_says_what_a_density_is_a_share_of(tiny_spec):
    for budget, words in (("density", "weights at the end"), ("flops", "prunable layers' FLOPs")):
        spec = tiny_spec(search={"budget": budget})
        layers, flops = layers_of(spec.unet_config), count_flops(spec.unet_config)
        found = Preflight(Inputs(load_images(spec.data), None), layers, flops)
        assert words in _budget_words(spec, found, "1, 0.5, 0.2")
        assert _Sizes(spec, found.inputs).of_round(2) > 0
