"""Training: masks that hold everywhere, rewinding bit for bit, and runs that do not notice being cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.diffusion import train as train_module
from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.rng import Draw, batch_indices, generator, seed_of
from raylt.diffusion.train import Recipe, Trainer, TrainState, ema_decay_at, learning_rate_at, noise_schedule, run
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.errors import Diverged
from raylt.ticket.mask import Mask

NOWHERE = lambda data: None  # noqa: E731


def random_mask(layers, density, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Mask({layer.name: torch.rand(layer.shape, generator=draw) < density for layer in layers})


def trainer_for(spec, mask, state, seed=0):
    masks = {} if mask is None else {f"{name}.weight": keep for name, keep in mask.layers.items()}
    model = build_unet(spec.unet_config, 0)
    images = load_images(spec.data).train_NCHW
    return Trainer(model, images, Recipe(spec.train, Compute(), seed, spec.data.flip, masks), state)


def masked_start(spec, mask, warm=False):
    weights = parameters_of(build_unet(spec.unet_config, 3))
    if not warm:
        return TrainState.fresh(mask.apply(weights))
    dense = run(trainer_for(spec, None, TrainState.fresh(weights)), 3, save=NOWHERE)  # momentum everywhere
    weights = mask.apply(dense.weights)
    return TrainState(3, weights, mask.apply(dense.first_moments), mask.apply(dense.second_moments), weights, 0)


def pruned_bits(mask, values):
    """All bits of the pruned places: zero where every one of them is exactly +0.0."""
    return max(
        (int(values[f"{n}.weight"][~keep].view(torch.int32).abs().max()) for n, keep in mask.layers.items() if not keep.all()),
        default=0,
    )


@given(
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from(["adam", "adamw"]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=12)
def test_pruned_weights_are_exactly_zero_in_weights_moments_ema_and_file(density, optimizer, weight_decay, warm, seed):
    from raylt.spec import SweepSpec
    from tests.conftest import TINY, merged

    spec = SweepSpec.model_validate(
        merged(TINY, {"train": {"optimizer": optimizer, "weight_decay": weight_decay, "gradient_clip": 0.1}})
    )
    mask = random_mask(layers_of(spec.unet_config), density, seed)
    trainer = trainer_for(spec, mask, masked_start(spec, mask, warm))
    for _ in range(4):
        trainer.run_step()
        state = trainer.state()
        for values in (state.weights, state.ema, state.first_moments, state.second_moments):
            assert max(float(values[f"{n}.weight"][~keep].abs().sum()) for n, keep in mask.layers.items()) == 0.0
        assert pruned_bits(mask, state.weights) == 0
        assert pruned_bits(mask, state.ema) == 0
    again = TrainState.from_bytes(state.to_bytes())
    assert pruned_bits(mask, again.weights) == 0
    before = masked_start(spec, mask, warm).weights
    assert any(not torch.equal(value, before[name]) for name, value in state.weights.items())  # it did train


def test_a_run_that_is_cut_and_resumed_equals_the_run_that_was_not(tiny_spec):
    spec = tiny_spec(data={"flip": True}, model={"config": {"dropout": 0.2}})
    mask = random_mask(layers_of(spec.unet_config), 0.3)
    start = masked_start(spec, mask, warm=True)
    whole = run(trainer_for(spec, mask, start, seed=5), 12, save=NOWHERE)
    saved: list[bytes] = []
    run(trainer_for(spec, mask, start, seed=5), 12, save=saved.append)
    assert len(saved) == 2  # after steps 4 and 8
    for checkpoint in saved:
        torch.manual_seed(999)  # whatever the global generator was left at
        resumed = run(trainer_for(spec, mask, TrainState.from_bytes(checkpoint, mask.of_pruned), seed=5), 12, save=NOWHERE)
        assert resumed.to_bytes() == whole.to_bytes()


def test_another_seed_is_another_run(tiny_spec):
    spec = tiny_spec()
    start = TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0)))
    first, second = (run(trainer_for(spec, None, start, seed=seed), 4, save=NOWHERE) for seed in (0, 1))
    assert first.to_bytes() != second.to_bytes()


def test_a_loss_that_is_not_finite_names_its_step_and_saves_nothing(tiny_spec):
    spec = tiny_spec(train={"learning_rate": 1e20, "warmup_steps": 0, "gradient_clip": None})
    start = TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0)))
    saved: list[bytes] = []
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+; a smaller train.learning_rate"):
        run(trainer_for(spec, None, start), 12, save=saved.append)
    assert saved == []


def test_one_step_is_adam_on_the_epsilon_loss(tiny_spec):
    """The trainer's first step against a plain statement of it: torch's own Adam, autograd and eq. 4 and 14 of Ho et al."""
    spec = tiny_spec(train={"gradient_clip": None})
    trainer = trainer_for(spec, None, TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0))), seed=7)
    trainer.run_step()
    model = build_unet(spec.unet_config, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate_at(spec.train, 0), betas=(0.9, 0.99))
    images = load_images(spec.data).train_NCHW[batch_indices(7, 0, 8, 1437)]
    draw = generator(7, Draw.STEP, 0)
    x0 = images.float() / 127.5 - 1
    t = torch.randint(1000, (8,), generator=draw)
    noise = torch.randn(x0.shape, generator=draw)
    noisy = noise_schedule(spec.train.beta_schedule).add_noise(x0, noise, t)
    torch.nn.functional.mse_loss(model(noisy, t).sample, noise).backward()
    optimizer.step()
    for name, value in trainer.state().weights.items():
        torch.testing.assert_close(value, dict(model.named_parameters())[name].detach(), rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 60), st.integers(0, 30))
def test_batches_walk_through_every_image_once_an_epoch(seed, batch_size, num_images, first):
    steps = -(-2 * num_images // batch_size)
    walk = torch.cat([batch_indices(seed, step, batch_size, num_images) for step in range(steps)])
    for epoch in range(2):
        assert sorted(walk[epoch * num_images : (epoch + 1) * num_images].tolist()) == list(range(num_images))
    again = batch_indices(seed, first, batch_size, num_images)
    assert torch.equal(again, batch_indices(seed, first, batch_size, num_images))


def test_streams_of_one_seed_do_not_meet():
    seeds = {seed_of(seed, draw, index) for seed in range(5) for draw in Draw for index in range(50)}
    assert len(seeds) == 5 * len(Draw) * 50


def test_dropout_and_the_noise_of_a_step_draw_from_two_streams(tiny_spec):
    """Dropout draws from the global generator: whatever is there when the model is called is what it draws."""
    spec = tiny_spec(model={"config": {"dropout": 0.2}})
    trainer = trainer_for(spec, None, TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0))), seed=5)
    seen = []
    trainer.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_rng_state()))
    for step in range(3):
        trainer.run_step()
        for_dropout = torch.Generator()
        for_dropout.set_state(seen[step])
        drawn = {draw: torch.rand(8, generator=generator(5, draw, step)) for draw in Draw}
        first = torch.rand(8, generator=for_dropout)
        assert [draw for draw, numbers in drawn.items() if torch.equal(first, numbers)] == [Draw.DROPOUT]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_stream_of_dropout_decides_dropout_alone(tiny_spec, monkeypatch, dropout):
    """Without dropout, runs are what they were when both streams were one."""
    spec = tiny_spec(data={"flip": True}, model={"config": {"dropout": dropout}})
    start = TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0)))
    apart = run(trainer_for(spec, None, start, seed=5), 4, save=NOWHERE)
    monkeypatch.setattr(train_module, "seed_dropout", lambda seed, step, _: torch.manual_seed(seed_of(seed, Draw.STEP, step)))
    together = run(trainer_for(spec, None, start, seed=5), 4, save=NOWHERE)
    assert (together.to_bytes() == apart.to_bytes()) == (dropout == 0)


def test_learning_rate_warms_up_then_falls_to_a_twentieth(tiny_spec):
    train = tiny_spec(train={"steps": 1000, "warmup_steps": 50, "learning_rate": 1.0}).train
    rates = [learning_rate_at(train, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 51)
    assert max(rates) == rates[50] == pytest.approx(1.0)
    assert rates[999] == pytest.approx(0.05, abs=1e-4)
    assert all(b <= a for a, b in zip(rates[50:], rates[51:], strict=False))
    constant = train.model_copy(update={"schedule": "constant"})
    assert learning_rate_at(constant, 999) == 1.0


def test_ema_is_ramped(tiny_spec):
    train = tiny_spec(train={"ema_decay": 0.99}).train
    assert [ema_decay_at(train, k) for k in (0, 10)] == [pytest.approx(0.1), pytest.approx(11 / 20)]
    assert ema_decay_at(train, 10_000) == 0.99


def test_empty_moments_are_corrected_for_from_where_they_began(tiny_spec):
    """Adam's first step from empty moments is the learning rate wherever in the schedule it is, also through a checkpoint."""
    spec = tiny_spec(train={"learning_rate": 1e-3, "gradient_clip": None, "schedule": "constant", "warmup_steps": 0})
    weights = parameters_of(build_unet(spec.unet_config, 3))
    for step in (0, 7):
        trainer = trainer_for(spec, None, TrainState.fresh(weights, step))
        trainer.run_step()
        moved = torch.cat([(value - weights[name]).abs().flatten() for name, value in trainer.state().weights.items()])
        assert float(moved.quantile(0.9)) == pytest.approx(1e-3, rel=1e-2)
    whole = trainer_for(spec, None, TrainState.fresh(weights, 7))
    whole.run_step()
    resumed = trainer_for(spec, None, TrainState.from_bytes(whole.state().to_bytes()))
    for trainer in (whole, resumed):
        trainer.run_step()
    assert all(torch.equal(whole.state().weights[name], value) for name, value in resumed.state().weights.items())
