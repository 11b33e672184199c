"""Controls: each changes the one thing it is for and leaves the rest, paired with its ticket."""

from __future__ import annotations

import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.flops import count_flops, narrower_unet
from raylt.diffusion.rng import Draw, generator
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec.presets import PRESETS
from raylt.store import Store
from raylt.store.layout import START
from raylt.ticket.allocation import Allocation
from raylt.ticket.controls import control_round, random_within_blocks, shuffled_within_layers
from raylt.ticket.find import TicketRunner
from raylt.ticket.mask import Mask
from raylt.ticket.ticket_search import TicketSearch


@pytest.fixture(params=[0, 2], ids=["from the initialisation", "from step 2"])
def searched(request, tiny_spec, tmp_path):
    """(runner, its last round) of a search under seed 3."""
    spec = tiny_spec(ticket={"rewind_step": request.param}, train={"seed": 3})
    search = TicketSearch(spec, Compute(), Allocation("erk"), 3)
    runner = TicketRunner(search, load_images(spec.data), Store(str(tmp_path)))
    return runner, list(runner.rounds())[-1]


@pytest.fixture
def trainings(monkeypatch):
    """(state it starts from, mask, order's seed) of every training of a round."""
    seen = []
    real, round_of = TicketRunner._run, TicketRunner.train
    masks = []

    def spy(self, stage, state, stop, recipe, *index):
        if index:
            assert recipe.masks == ({} if masks[-1].is_dense else {f"{n}.weight": k for n, k in masks[-1].layers.items()})
            seen.append((state, masks[-1], recipe.seed))
        return real(self, stage, state, stop, recipe, *index)

    monkeypatch.setattr(TicketRunner, "_run", spy)
    monkeypatch.setattr(
        TicketRunner, "train", lambda self, i, mask, *rest: (masks.append(mask), round_of(self, i, mask, *rest))[1]
    )
    return seen


def differs(a, b, layers):
    return [n for n in layers if not torch.equal(a.layers[n], b.layers[n])]


def test_the_same_mask_on_another_initialisation(searched, trainings):
    runner, ticket = searched
    search, control = runner.search, control_round(runner, ticket, "reinit")
    [(state, mask, seed)] = trainings
    assert mask.digest == ticket.mask.digest == control.mask.digest
    assert seed == search.seed  # paired: the same order, noise and timesteps
    assert state.step == 0  # all steps that dense training and ticket had together
    own = parameters_of(build_unet(search.spec.unet_config, search.spec.train.seed))
    for name, keep in ticket.mask.layers.items():
        weight = state.weights[f"{name}.weight"]
        assert not weight[~keep].any()
        assert not torch.isclose(weight[keep], own[f"{name}.weight"][keep]).all()


@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_another_mask_on_the_rewound_weights(searched, trainings, kind):
    runner, ticket = searched
    search, control = runner.search, control_round(runner, ticket, kind)
    [(state, mask, seed)] = trainings
    assert seed == search.seed and state.step == search.spec.ticket.rewind_step
    start = TrainState.from_bytes(ticket.start.read(START))
    assert control.start.digest == ticket.start.digest
    for name, keep in mask.layers.items():
        assert torch.equal(state.weights[f"{name}.weight"], torch.where(keep, start.weights[f"{name}.weight"], 0.0))
    pruned = [n for n, (kept, total) in ticket.mask.counts.items() if kept < total]
    assert len(differs(mask, ticket.mask, pruned)) > 0.8 * len(pruned)
    assert all(mask.layers[layer].all() for layer in ("conv_in", "conv_out"))
    assert mask.kept == ticket.mask.kept
    same_layers = mask.counts == ticket.mask.counts
    assert same_layers == (kind == "shuffled")


def test_a_narrower_dense_net(searched, trainings):
    runner, ticket = searched
    search, control = runner.search, control_round(runner, ticket, "small-dense")
    [(state, mask, seed)] = trainings
    assert mask.is_dense and state.step == 0 and seed == search.seed
    wanted, own = count_flops(search.spec.unet_config).of(ticket.mask.counts), count_flops(control.unet_config).dense
    assert 0.5 < own / wanted < 2  # whole channels of a net of 8 and 16
    assert control.index == ticket.index
    assert len(state.weights) == len(ticket.trained["ema"])


def test_random_masks_keep_what_they_say(tiny_spec):
    spec = tiny_spec()
    search, layers = TicketSearch(spec, Compute(), Allocation("erk"), 0), layers_of(spec.unet_config)
    draw = torch.Generator().manual_seed(0)
    mask = Mask(
        {
            la.name: torch.rand(la.shape, generator=draw)
            < (1 if la.block in spec.ticket.keep_dense else 0.02 + 0.9 * (i % 3 == 0))
            for i, la in enumerate(layers)
        }
    )
    within = shuffled_within_layers(mask, generator(0, Draw.CONTROL, 1))
    assert within.counts == mask.counts
    spread = random_within_blocks(search, mask, generator(0, Draw.CONTROL, 1))
    for block in spec.blocks:
        names = [la.name for la in layers if la.block == block]
        assert sum(spread.counts[n][0] for n in names) == sum(mask.counts[n][0] for n in names)
        density = sum(mask.counts[n][0] for n in names) / sum(mask.counts[n][1] for n in names)
        for name in names:  # every layer of a block has its block's density, up to chance
            kept, total = spread.counts[name]
            assert abs(kept - density * total) <= 4.5 * (total * density * (1 - density)) ** 0.5 + 1e-9
    assert shuffled_within_layers(mask, generator(0, Draw.CONTROL, 2)).digest != within.digest


@pytest.mark.parametrize("preset", ["digits", "small", "ddpm-cifar10"])
@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.05])
def test_narrower_nets_are_nets_of_these_flops(preset, share):
    size, channels = {"digits": (8, 1), "small": (16, 1), "ddpm-cifar10": (32, 3)}[preset]
    config = {**PRESETS[preset], "sample_size": size, "in_channels": channels, "out_channels": channels}
    dense = count_flops(config).dense
    found = narrower_unet(config, share * dense)
    widths = found["block_out_channels"]
    step = max(widths) / (max(widths) - 1) if max(widths) > 8 else 2.0
    assert 1 / step**2 < count_flops(found).dense / (share * dense) < step**2 or min(widths) == 4
    assert widths == sorted(widths)
    net = build_unet(found, 0)  # one that runs, not only one that can be counted
    noise = net(torch.randn(2, channels, size, size), torch.tensor([0, 999])).sample
    assert noise.shape == (2, channels, size, size) and noise.isfinite().all()


def test_heads_stay_whole_where_there_is_attention():
    config = {
        **PRESETS["tiny"], "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"], "add_attention": True,
        "sample_size": 16, "in_channels": 1, "out_channels": 1,
    }  # fmt: skip
    found = narrower_unet(config, 0.5 * count_flops(config).dense)
    assert all(width % 8 == 0 for width in found["block_out_channels"])  # diffusers' default: heads of 8
    assert build_unet(found, 0)(torch.randn(1, 1, 16, 16), torch.tensor([1])).sample.isfinite().all()
