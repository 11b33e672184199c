"""Any `model.config`: its U-Net trains and samples, or the preflight (or already `validate`) names what is wrong with it."""

from __future__ import annotations

import inspect
import time
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raylt.diffusion.compute import Compute
from raylt.diffusion.flops import count_flops
from raylt.diffusion.unet import build_unet, layers_of
from raylt.diffusion.unet_rehearsal import rehearse
from raylt.errors import InputError, SpecError
from raylt.spec import dump_yaml, parse_spec
from raylt.spec.presets import PRESETS
from raylt.spec.unet_checks import KNOWN_KEYS, config_problems
from raylt.sweep.footprint import batch_bytes, refuse_too_large, training_bytes
from tests.conftest import TINY, merged

SHAPE = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
CONFIG = TINY["model"]["config"]


def text_of(**config: object) -> str:
    changed = {key: value for key, value in {**CONFIG, **config}.items() if value != "absent"}
    return dump_yaml({**TINY, "model": {"config": changed}})


def line_of(text: str, key: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(f"{key}:"))


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"num_class_embeds": 3}, "num_class_embeds", "told nothing but the timestep"),
        ({"class_embed_type": "timestep"}, "class_embed_type", "told nothing but the timestep"),
        ({"layers_per_block": 0}, "layers_per_block", "1 or more"),
        ({"layers": 3}, "layers", "unknown key; known here: act_fn, "),
        ({"layers_per_block": 10_000}, "layers_per_block", "at most 64"),
        ({"block_out_channels": [8, 10**8]}, "block_out_channels", "up to 65,536"),
        ({"layers_per_block": 1.5}, "layers_per_block", "a whole number"),
        ({"norm_num_groups": 0}, "norm_num_groups", "1 or more"),
        ({"norm_num_groups": None}, "norm_num_groups", "1 or more"),
        ({"norm_num_groups": 3}, "norm_num_groups", "does not divide all of [8, 16]"),
        ({"attention_head_dim": 0}, "attention_head_dim", "1 or more"),
        ({"act_fn": "nope"}, "act_fn", "silu or swish"),
        ({"dropout": 2.0}, "dropout", "from 0 to 1"),
        ({"norm_eps": "x"}, "norm_eps", "a number"),
        ({"block_out_channels": [8, "x"]}, "block_out_channels", "whole numbers"),
        ({"block_out_channels": [8, 16, 16]}, "block_out_channels", "2 entries"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types", "2 entries"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type", "divides by the timestep"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps", "1000 or more"),
        ({"freq_shift": 4}, "freq_shift", "0 or 1"),
        ({"mid_block_type": 7}, "mid_block_type", "null"),
    ],
    ids=str,
)
def test_what_the_file_alone_can_tell_is_told_by_validate(config, key, words):
    text = text_of(**config)
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "my.yaml")
    (problem,) = caught.value.problems
    assert problem.key == f"model.config.{key}" and words in str(problem)
    assert problem.line == (line_of(text, key) if key in config else line_of(text, "config"))


OTHERS = ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D", "KCrossAttnDownBlock2D", "DownEncoderBlock2D"]


@pytest.mark.parametrize("kind", OTHERS)
def test_blocks_of_other_nets_are_refused_by_name(kind):
    with pytest.raises(SpecError) as caught:
        parse_spec(text_of(down_block_types=["DownBlock2D", kind]), "my.yaml")
    assert caught.value.problems[0].key == "model.config.down_block_types.1"
    with pytest.raises(SpecError):  # and rightly: the U-Net cannot be had
        rehearse({**CONFIG, **SHAPE, "down_block_types": ["DownBlock2D", kind]})


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, None),
        ({"down_block_types": ["Nonsense", "DownBlock2D"]}, None),
        ({"down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2}, None),
        ({"foo": 1}, "foo"),
        ({"num_class_embeds": 3}, "num_class_embeds"),
        ({"norm_num_groups": 0}, None),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"norm_eps": "x"}, "norm_eps"),
        ({"attention_head_dim": 0, "add_attention": True}, None),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
    ],
    ids=str,
)
def test_whatever_diffusers_or_torch_raise_is_a_problem_of_the_spec(config, key, capfd):
    with pytest.raises(SpecError) as caught:
        rehearse({**CONFIG, **config, **SHAPE})
    (problem,) = caught.value.problems
    assert problem.key.startswith("model.config") and "\n" not in str(problem)
    assert key is None or problem.key == f"model.config.{key}"
    assert capfd.readouterr().err == ""  # torch logs tracebacks of what fails on fake tensors


def test_a_net_without_a_middle_is_a_net_with_a_block_less(tiny_spec):
    spec = tiny_spec(model={"config": {"mid_block_type": None}})
    assert "mid_block" not in spec.blocks
    rehearse(spec.unet_config)
    assert "mid_block" in tiny_spec().blocks


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_pass(name):
    began = time.monotonic()
    config = {**PRESETS[name], "sample_size": 32, "in_channels": 3, "out_channels": 3}
    rehearse(config)
    assert not list(config_problems(dict(PRESETS[name])))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("gpus", "is_fine"), [(0, True), (0.5, True), (1, True), (2.0, True), (1.5, False), (0.00001, False)])
def test_a_share_of_gpus_that_ray_would_refuse_is_refused_with_its_line(gpus, is_fine):
    text = dump_yaml({**TINY, "resources": {"gpus": gpus}})
    if is_fine:
        assert parse_spec(text, "my.yaml").resources.gpus == gpus
        return
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "my.yaml")
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("resources.gpus", line_of(text, "gpus"))


DOWN = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D", "KDownBlock2D"]
UP = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "KUpBlock2D"]
ODD = st.sampled_from([None, 0, -1, 1, 2, 3, 1.5, True, "x", [], {}])
KEYS = {
    "block_out_channels": st.lists(st.sampled_from([4, 8, 16, 32]), min_size=2, max_size=2),
    "down_block_types": st.lists(st.sampled_from(DOWN[:2]) | st.sampled_from(DOWN), min_size=2, max_size=2),
    "up_block_types": st.lists(st.sampled_from(UP[:2]) | st.sampled_from(UP), min_size=2, max_size=2),
    "layers_per_block": st.integers(1, 2),
    "norm_num_groups": st.sampled_from([1, 2, 4]),
    "add_attention": st.booleans(),
    "attention_head_dim": st.sampled_from([1, 4, 8, None]),
    "attn_norm_num_groups": st.sampled_from([None, 2, 4]),
    "mid_block_type": st.sampled_from(["UNetMidBlock2D", None]),
    "dropout": st.sampled_from([0.0, 0.1, 0]),
    "act_fn": st.sampled_from(["silu", "gelu", "nope"]),
    "downsample_type": st.sampled_from(["conv", "resnet", "nope"]),
    "upsample_type": st.sampled_from(["conv", "resnet"]),
    "downsample_padding": st.integers(0, 2),
    "resnet_time_scale_shift": st.sampled_from(["default", "scale_shift", "spatial"]),
    "time_embedding_type": st.sampled_from(["positional", "learned", "fourier"]),
    "num_train_timesteps": st.sampled_from([None, 10, 1000]),
    "time_embedding_dim": st.sampled_from([None, 8, 7]),
    "freq_shift": st.sampled_from([0, 1, 2, 4]),
    "flip_sin_to_cos": st.booleans(),
    "center_input_sample": st.booleans(),
    "norm_eps": st.sampled_from([1e-6, 1e-5]),
    "class_embed_type": st.none(),
    "num_class_embeds": st.sampled_from([None, 3]),
    "mid_block_scale_factor": st.sampled_from([1, 1.4]),
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, object]:
    """The tiny one with some keys drawn; now and then one of them nonsense, or one that nobody knows."""
    chosen = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=4, unique=True))
    config = {**CONFIG, **{key: draw(KEYS[key]) for key in chosen}}
    if draw(st.integers(0, 3)) == 0:
        config[draw(st.sampled_from([*sorted(KEYS), "unheard_of"]))] = draw(ODD)
    return config


@given(configs())
@settings(max_examples=50, derandomize=True)
def test_any_config_trains_and_samples_or_is_refused(config):
    try:
        parse_spec(dump_yaml(merged({**TINY, "model": {}}, {"model": {"config": config}})), "my.yaml")
        rehearse({**config, **SHAPE})
    except SpecError as error:
        assert all(problem.key.startswith("model.config") for problem in error.problems), str(error)
        return
    full = {**config, **SHAPE}
    assert count_flops(full).dense > 0
    model = build_unet(full, seed=0).train()
    x_BCHW, t_B = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
    loss = nn.functional.mse_loss(model(x_BCHW, t_B).sample, x_BCHW)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert bool(torch.isfinite(model(x_BCHW, torch.tensor(5)).sample).all())


def test_every_key_of_diffusers_is_known():
    assert set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"} == KNOWN_KEYS


@pytest.mark.parametrize(("memory", "fits"), [(10**5, False), (10**8, True)])
def test_a_model_that_this_machine_cannot_hold_is_refused(tiny_spec, monkeypatch, memory, fits):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))
    spec = tiny_spec()
    assert 24 * sum(layer.size for layer in layers_of(spec.unet_config)) < training_bytes(spec) < 10**8
    with nullcontext() if fits else pytest.raises(InputError, match="this machine has 100 kB of memory"):
        refuse_too_large(spec, Compute("cpu"))
    refuse_too_large(spec, Compute("cuda"))  # its memory is another


def test_a_batch_that_this_machine_cannot_hold_is_refused(tiny_spec, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10**8))
    spec = tiny_spec(train={"batch_size": 10**6})
    assert batch_bytes(spec) > 4 * 10**6 * 8 * 8 * 4  # the images themselves, four times
    with pytest.raises(SpecError, match=r"train.batch_size: is too large: .* 100 MB of memory \(got 1000000\)"):
        refuse_too_large(spec, Compute("cpu"))
