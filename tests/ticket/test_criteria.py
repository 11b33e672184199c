"""Criteria, each against its formula worked out anew; and that masks under every one of them nest and have exact counts."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.func import functional_call

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images, to_float
from raylt.diffusion.flops import count_flops
from raylt.diffusion.rng import Draw, batch_indices, generator
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of, weight_name
from raylt.errors import Diverged
from raylt.spec.trials import SEARCHED
from raylt.store import Store
from raylt.store.layout import START
from raylt.ticket import criteria
from raylt.ticket.allocation import Allocation
from raylt.ticket.budget import LayerBudget
from raylt.ticket.criteria import CRITERIA, PruningContext
from raylt.ticket.find import TicketRunner, find_ticket
from raylt.ticket.mask import Mask
from raylt.ticket.prune import PRUNED, top_k
from raylt.ticket.synflow import SynapticFlow
from raylt.ticket.ticket_search import TicketSearch
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, search_of
from tests.support.trials import a_trial


def noisy(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=draw) for name, value in weights.items()}


def survivors(spec, mask: Mask | None = None, rule: str = "global", seed: int = 0, index: int = 1) -> PruningContext:
    """A rewind point of the spec's seed and trained weights that are noise around it."""
    layers, start = layers_of(spec.unet_config), parameters_of(build_unet(spec.unet_config, spec.train.seed))

    def choose(density, scores):
        return top_k(scores, Allocation(rule).at(density, LayerBudget.among(layers, spec.ticket, scores, start)))

    return PruningContext(
        TicketSearch(spec, Compute(), Allocation(rule), seed), load_images(spec.data), mask or Mask.dense(layers), index,
        choose=choose, trained=lambda: {"weights": noisy(start, 1), "ema": noisy(start, 2)}, rewound=lambda: start,
    )  # fmt: skip


def some_mask(spec, density: float = 0.5) -> Mask:
    draw = torch.Generator().manual_seed(3)
    return Mask({layer.name: torch.rand(layer.shape, generator=draw) < density for layer in layers_of(spec.unet_config)})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_float64_of_the_weight_s_shape_and_pruned_weights_are_below_all(tiny_spec, criterion, monkeypatch):
    monkeypatch.setattr(criteria, "SYNFLOW_STEPS", 1)
    spec = tiny_spec(ticket={"criterion": criterion})
    mask = some_mask(spec)
    scores = CRITERIA[criterion](survivors(spec, mask))
    assert list(scores) == list(mask.layers)
    for name, keep in mask.layers.items():
        assert scores[name].dtype == torch.float64
        assert scores[name].shape == keep.shape
        assert bool((scores[name][~keep] == PRUNED).all())
        assert bool((scores[name][keep] >= 0).all())


def test_magnitudes_and_movement_follow_their_formulas(tiny_spec):
    spec = tiny_spec()
    found, mask = survivors(spec, some_mask(spec)), some_mask(spec)
    end, ema, start = found.trained()["weights"], found.trained()["ema"], found.rewound()
    for name, keep in mask.layers.items():
        key = f"{name}.weight"
        for criterion, expected in (
            ("magnitude", end[key].abs().double()),
            ("magnitude-ema", ema[key].abs().double()),
            ("movement", (end[key].double() - start[key].double()).abs()),
        ):
            assert torch.equal(CRITERIA[criterion](found)[name][keep], expected[keep])


def test_random_is_uniform_and_a_function_of_seed_and_round(tiny_spec):
    spec = tiny_spec()

    def drawn(**changes):
        scores = CRITERIA["random"](survivors(spec, **changes))
        return torch.cat([score.flatten() for score in scores.values()])

    first = drawn()
    assert torch.equal(first, drawn())
    assert torch.equal(first, drawn(rule="uniform"))
    for other in (drawn(seed=1), drawn(index=2)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 4 / math.sqrt(len(first))
    assert float(first.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * len(first)))


def test_snip_is_the_loss_s_derivative_in_a_connection_s_indicator(tiny_spec, monkeypatch):
    """Lee et al. 2019, eq. 4: |dL(c * w) / dc| at c = 1, over the batches that the ticket will be trained on."""
    monkeypatch.setattr(criteria, "SNIP_BATCHES", 3)
    spec = tiny_spec(ticket={"rewind_step": 2})
    found = survivors(spec, seed=5)
    model, start = build_unet(spec.unet_config, spec.train.seed), found.rewound()
    indicators = {weight_name(la.name): torch.ones(la.shape, requires_grad=True) for la in found.search.layers}
    schedule = DDPMScheduler(num_train_timesteps=1000, beta_schedule=spec.train.beta_schedule)
    loss = torch.zeros(())
    for step in (2, 3, 4):
        chosen = batch_indices(5, step, spec.train.batch_size, len(found.images.train_NCHW))
        images_BCHW, draw = to_float(found.images.train_NCHW[chosen]), generator(5, Draw.STEP, step)
        t_B = torch.randint(1000, (len(images_BCHW),), generator=draw)
        noise_BCHW = torch.randn(images_BCHW.shape, generator=draw)
        network = {name: start[name] * indicators.get(name, 1.0) for name in start}
        noised_BCHW = schedule.add_noise(images_BCHW, noise_BCHW, t_B)
        loss = loss + (functional_call(model, network, (noised_BCHW, t_B)).sample - noise_BCHW).square().mean() / 3
    expected = dict(zip(indicators, torch.autograd.grad(loss, list(indicators.values())), strict=True))
    scores = CRITERIA["snip"](found)
    for name, score in scores.items():
        assert torch.allclose(score, expected[weight_name(name)].abs().double(), rtol=1e-3, atol=1e-7)
    assert max(float(score.max()) for score in scores.values()) > 1e-4  # far above the tolerance


def test_snip_of_a_network_without_a_finite_gradient_says_so(tiny_spec):
    found = survivors(tiny_spec())
    found.rewound()["conv_in.weight"].fill_(1e38)
    with pytest.raises(Diverged, match="snip"):
        CRITERIA["snip"](found)


CONFIGS = {
    "plain": {},
    "attention": {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "add_attention": True, "attention_head_dim": 4},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_synflow_s_score_is_what_r_loses_without_the_weight(tiny_spec, kind):
    """R is linear in every single weight, so theta dR/dtheta is a difference; and what flows in flows out."""
    spec = tiny_spec(model={"config": CONFIGS[kind]})
    layers, mask = layers_of(spec.unet_config), some_mask(spec, 0.7)
    flow = SynapticFlow(spec.unet_config, parameters_of(build_unet(spec.unet_config, 0)), layers)
    scores, total = flow.scores(mask), float(flow.total(mask).detach())
    for layer in layers:
        score = scores[layer.name].flatten()
        assert bool((score >= 0).all())
        assert not score[~mask.layers[layer.name].flatten()].any()
        index = int(score.argmax())
        without = {name: keep.clone() for name, keep in mask.layers.items()}
        without[layer.name].view(-1)[index] = False
        lost = total - float(flow.total(Mask(without)).detach())
        assert lost == pytest.approx(float(score[index]), rel=1e-6, abs=1e-14 * total)  # a difference of large numbers
        assert float(score[index]) > 0  # attention's queries and keys too
    assert float(scores["conv_out"].sum()) == pytest.approx(total, rel=1e-12)
    ins = float(scores["conv_in"].sum() + scores["time_embedding.linear_1"].sum())
    assert ins == pytest.approx(total, rel=1e-12)


def test_synflow_s_r_is_the_sum_over_paths(tiny_spec):
    """Where a block's convolutions are cut, its skip connections carry all: R worked out by matrix products."""
    spec = tiny_spec()
    layers, start = layers_of(spec.unet_config), parameters_of(build_unet(spec.unet_config, 0))
    kept = {"conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_out", "up_blocks.1.resnets.1.conv_shortcut"}
    mask = Mask({layer.name: torch.full(layer.shape, layer.name in kept) for layer in layers})
    ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)

    def conv(x_BCHW, name):
        w = start[f"{name}.weight"].double().abs()
        return torch.nn.functional.conv2d(x_BCHW, w, padding=w.shape[-1] // 2)

    stem = conv(ones, "conv_in")  # the only skip connection that is not cut on its way; above it nothing arrives
    nothing = torch.zeros(1, start["up_blocks.1.resnets.1.conv_shortcut.weight"].shape[1] - stem.shape[1], 8, 8)
    joined = conv(torch.cat([nothing.double(), stem], dim=1), "up_blocks.1.resnets.1.conv_shortcut")
    flow = SynapticFlow(spec.unet_config, start, layers)
    assert float(flow.total(mask).detach()) == pytest.approx(float(conv(joined, "conv_out").sum()), rel=1e-12)


def test_synflow_is_algorithm_1_and_paths_survive(tiny_spec, monkeypatch):
    monkeypatch.setattr(criteria, "SYNFLOW_STEPS", 20)
    spec = tiny_spec(ticket={"criterion": "synflow", "rounds": 1, "density": 0.01, "keep_dense": [], "min_kept": 0})
    found = survivors(spec)
    flow = SynapticFlow(spec.unet_config, found.rewound(), found.search.layers)
    mask, total = Mask.dense(found.search.layers), sum(layer.size for layer in found.search.layers)
    for step in range(1, 21):  # keep the best rho^(-k/n) of all, whatever their layer
        flows = flow.scores(mask)
        scores = {n: torch.where(keep, flows[n], -1.0) for n, keep in mask.layers.items()}
        flat = torch.cat([score.flatten() for score in scores.values()])
        keep = torch.zeros_like(flat, dtype=torch.bool)
        keep[flat.sort(descending=True, stable=True).indices[: round(0.01 ** (step / 20) * total)]] = True
        pieces = keep.split([layer.size for layer in found.search.layers])
        mask = Mask({la.name: piece.reshape(la.shape) for la, piece in zip(found.search.layers, pieces, strict=True)})
    ours = found.choose(0.01, CRITERIA["synflow"](found))
    assert ours.digest == mask.digest
    assert float(flow.total(ours).detach()) > 0
    assert ours.counts["conv_out"][0] > 0


@pytest.mark.parametrize("budget", ["density", "flops"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_rounds_nest_and_meet_their_budget_under_every_criterion(tiny_spec, tmp_path, monkeypatch, criterion, budget):
    monkeypatch.setattr(criteria, "SYNFLOW_STEPS", 5)
    monkeypatch.setattr(criteria, "SNIP_BATCHES", 2)
    spec = tiny_spec(ticket={"criterion": criterion, "rounds": 3, "density": 0.1}, search={"budget": budget})
    store, search = Store(str(tmp_path)), TicketSearch(spec, Compute(), Allocation("global"), 0)
    rounds = list(find_ticket(search, load_images(spec.data), store))
    flops, total = count_flops(spec.unet_config), sum(layer.size for layer in search.layers)
    for index, found in enumerate(rounds):
        if budget == "density":
            assert found.mask.kept == round(spec.ticket.density_of(index) * total)
        else:
            prunable = sum(flops.layers.values())
            kept = flops.of(found.mask.counts) - (flops.dense - prunable)
            assert 0 <= round(spec.ticket.density_of(index) * prunable) - kept < max(search.costs.values())
        assert all(
            not found.trained[g][f"{n}.weight"][~k].any() for g in ("weights", "ema") for n, k in found.mask.layers.items()
        )
    assert all(later.mask.is_nested_in(earlier.mask) for earlier, later in zip(rounds, rounds[1:], strict=False))
    monkeypatch.setattr(TicketRunner, "_run", lambda *a: pytest.fail("trained again"))
    if criterion in criteria.AT_REWIND_POINT:
        monkeypatch.setitem(CRITERIA, criterion, lambda _: pytest.fail("scored again"))
    again = list(find_ticket(search, load_images(spec.data), store))
    assert [r.stage.digest for r in again] == [r.stage.digest for r in rounds]
    stages = [r.mask_stage.digest for r in again if r.mask_stage is not None]
    assert len(set(stages)) == (3 if criterion in criteria.AT_REWIND_POINT else 0)


def test_a_trial_s_search_has_the_costs_that_its_spec_asks_for(tiny_spec):
    for budget in ("density", "flops"):
        spec = tiny_spec(search={"budget": budget})
        bench = TrialContext(spec, Compute(), Inputs(load_images(spec.data)))
        for rule in (None, "erk", SEARCHED):
            costs = search_of(bench, a_trial(0, "baseline", rule, 0)).costs
            flops = count_flops(spec.unet_config).layers
            sizes = {layer.name: layer.size for layer in layers_of(spec.unet_config)}
            assert {name: cost * sizes[name] for name, cost in costs.items()} == (flops if budget == "flops" else {})


def test_baselines_at_initialisation_do_not_see_what_was_trained(tiny_spec, tmp_path, monkeypatch):
    """SNIP's scores are the same in every round, so under rule global the last mask is the one-shot mask."""
    monkeypatch.setattr(criteria, "SNIP_BATCHES", 2)

    def last_mask(rounds, folder):
        ticket = {"criterion": "snip", "rounds": rounds, "density": 0.1, "shared_rounds": 0}
        spec = tiny_spec(ticket=ticket)
        search = TicketSearch(spec, Compute(), Allocation("global"), 0)
        store = Store(str(tmp_path / folder))
        runner = TicketRunner(search, load_images(spec.data), store)
        point = TrainState.from_bytes(runner.rewind_point.read(START)).weights
        return list(runner.rounds())[-1].mask, point

    (one, point), (three, same) = last_mask(1, "one"), last_mask(3, "three")
    assert all(torch.equal(point[name], same[name]) for name in point)
    assert one.digest == three.digest
