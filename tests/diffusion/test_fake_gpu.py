"""The GPU path on any machine: no op mixes devices, and the training loop waits for the device nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from raylt.diffusion import rng
from raylt.diffusion import train as train_module
from raylt.diffusion.compute import CHANNELS_LAST, EAGER, Compute
from raylt.diffusion.sample import Sampling, held_out_loss, sample_chunk
from raylt.diffusion.train import Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec import load_spec
from raylt.ticket.mask import Mask
from raylt.trial.features import CnnFeatures, SmallCnn
from raylt.trial.fid import Statistics, fid, statistics
from raylt.trial.kid import RealFeatures, kid
from tests.support.fake_gpu import fake_gpu, gradients_of_nothing

PRECISIONS = ["fp32", "bf16"]  # TF32 differs in no tensor
STEPS = 3


def ingredients(name):
    spec = load_spec(name)
    model = build_unet(spec.unet_config, 0)
    draw = torch.Generator().manual_seed(0)
    mask = Mask({layer.name: torch.rand(layer.shape, generator=draw) < 0.5 for layer in layers_of(spec.unet_config)})
    images = torch.zeros((300, spec.image_shape[0], *2 * [spec.image_shape[1]]), dtype=torch.uint8)
    return spec, model, mask, images, TrainState.fresh(mask.apply(parameters_of(model)), 3)


@pytest.fixture(scope="module")
def digits():
    return ingredients("digits")


def trained(made, precision, sabotage=lambda trainer: None, form=EAGER):
    """(crossings of some steps, the state after them) on a fake GPU."""
    spec, _, mask, images, state = made
    model = build_unet(spec.unet_config, 0)
    with pytest.MonkeyPatch.context() as patch, fake_gpu() as crossings:
        recipe = Recipe(spec.train, Compute("cuda", precision, 1, form), 0, True, mask.of_weights)
        trainer = Trainer(model, images, recipe, state)
        patch.setattr(torch.autograd, "backward", lambda loss: gradients_of_nothing(loss, trainer.parameters))
        sabotage(trainer)
        crossings.clear()
        for _ in range(STEPS):
            assert trainer.run_step().device.type == "cuda"
        counted = (crossings.to_device, crossings.to_host, crossings.items)
        return counted, trainer.state()


@pytest.mark.parametrize("form", [EAGER, CHANNELS_LAST])  # what compiles needs a real one
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_of_training_mixes_no_devices_and_waits_for_none(digits, precision, form):
    (to_device, to_host, items), state = trained(digits, precision, form=form)
    assert to_device <= 1  # the order of an epoch
    assert (to_host, items) == (0, 0)
    assert {value.device.type for value in [*state.weights.values(), *state.ema.values()]} == {"cpu"}


def test_nor_does_that_of_the_large_unet():
    (to_device, to_host, items), _ = trained(ingredients("cifar10"), "bf16")
    assert (to_device <= 2, to_host, items) == (True, 0, 0)  # two epochs


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++"])
def test_sampling_mixes_no_devices(digits, sampler, precision):
    model, how = build_unet(digits[0].unet_config, 0), Sampling(sampler, 4, "linear", Compute("cuda", precision), "trailing")
    with fake_gpu() as crossings:
        model.to("cuda")
        crossings.clear()
        images = sample_chunk(model, (1, 8, 8), 0, 8, how)
        assert (images.device.type, images.dtype, images.shape) == ("cpu", torch.uint8, (8, 1, 8, 8))
        assert (crossings.to_host, crossings.items) == (1, 0)  # the images


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_held_out_loss_mixes_no_devices(digits, precision):
    model, images = build_unet(digits[0].unet_config, 0), digits[3]
    with pytest.MonkeyPatch.context() as patch, fake_gpu() as crossings:
        model.to("cuda")
        patch.setattr(torch.Tensor, "__float__", lambda self: 0.0)  # what was copied to the host has no values here
        crossings.clear()
        held_out_loss(model, images, "linear", Compute("cuda", precision))
        assert crossings.items == 0


def test_features_mix_no_devices(digits):
    with torch.random.fork_rng(devices=[]):
        state = SmallCnn().state_dict()
    images = digits[3]
    with fake_gpu() as crossings:
        features = CnnFeatures(state, "digits-cnn", "cuda")
        crossings.clear()
        assert features(images).device.type == "cuda"
        assert (crossings.to_host, crossings.items) == (0, 0)


@pytest.mark.parametrize("num", [40, 200])  # fewer and more than dimensions
def test_fid_and_kid_mix_no_devices(num):
    with pytest.MonkeyPatch.context() as patch, fake_gpu() as crossings:
        features, real = (torch.zeros(n, 64, device="cuda") for n in (num, 300))
        for name, value in (("__float__", 0.0), ("__bool__", False), ("__int__", 0)):  # each waits; here they have no value
            patch.setattr(torch.Tensor, name, lambda self, value=value: value)
        patch.setattr(Statistics, "factor_DD", real.T @ real)
        patch.setattr("raylt.trial.fid._check_finite", lambda of: None)
        crossings.clear()
        assert fid(features, statistics(real)) == 0.0
        assert kid(features, RealFeatures(real), 5, 30) == (0.0, 0.0)
        assert crossings.to_host == 0


# --- planted faults: what the tests above are worth ---------------------------------------------------------------------


def on_cpu(name):
    def left(value):
        return torch.zeros(value.shape, dtype=value.dtype)

    def sabotage(trainer):
        value = getattr(trainer, name)
        setattr(trainer, name, [left(v) for v in value] if isinstance(value, list) else left(value))

    return sabotage


def moment_on_cpu(trainer):
    state = trainer.optimizer.state[trainer.parameters[0]]
    state["exp_avg"] = torch.zeros(state["exp_avg"].shape)


@pytest.mark.parametrize("name", ["masks", "ema", "images_NCHW", "alpha_bars_T"])
def test_what_was_left_on_the_cpu_is_refused(digits, name):
    with pytest.raises((AssertionError, RuntimeError), match=r"given tensors on|device"):
        trained(digits, "fp32", on_cpu(name))


def test_a_moment_on_the_cpu_is_refused(digits):
    with pytest.raises((AssertionError, RuntimeError), match=r"given tensors on|device"):
        trained(digits, "fp32", moment_on_cpu)


def test_a_generator_of_the_cpu_is_refused(digits, monkeypatch):
    def sabotage(trainer):
        monkeypatch.setattr(train_module, "generator", lambda seed, draw, index, device: rng.generator(seed, draw, index))

    with pytest.raises(AssertionError, match="generator of another device"):
        trained(digits, "fp32", sabotage)


@pytest.mark.parametrize("planted", [Tensor.cpu, lambda x: x.sum().cpu()], ids=["all of it", "a number"])
def test_a_copy_to_the_host_in_the_step_is_counted(digits, monkeypatch, planted):
    plain = train_module.add_noise
    monkeypatch.setattr(train_module, "add_noise", lambda *of: (planted(of[0]), plain(*of))[1])
    (_, to_host, _), _ = trained(digits, "fp32")
    assert to_host == STEPS


def test_an_item_in_the_step_is_refused(digits, monkeypatch):
    plain = train_module.add_noise
    monkeypatch.setattr(train_module, "add_noise", lambda *of: plain(*of) * of[0].sum().item())
    with pytest.raises(DataDependentOutputException):
        trained(digits, "fp32")
