"""A U-Net tried out before anything starts: built, trained for a step and sampled from, on tensors that hold no numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from raylt.diffusion.unet import layers_of
from raylt.errors import Problem, SpecError, cause_of
from raylt.spec.presets import UnetConfig, block_names

BATCH = 2  # a batch of one passes where larger ones do not


def rehearse(config: UnetConfig) -> None:
    """Raises `SpecError`, naming the guilty key of `model.config` where one can be told, if the U-Net can not be trained."""
    try:
        _train_and_sample(config)
    except Exception as error:  # diffusers and torch raise whatever their parts do
        key = _guilty(config)
        where, value = ("model.config", None) if key is None else (f"model.config.{key}", config[key])
        what = f"gives no U-Net that can be trained: {cause_of(error)}"
        expected = "what diffusers' UNet2DModel takes, without conditions" if key is None else "another value"
        raise SpecError([Problem(where, what, expected, value, key is not None)]) from error
    missing = [block for block in block_names(dict(config)) if not any(layer.block == block for layer in layers_of(config))]
    if missing:
        what = f"has blocks without a weight to prune: {', '.join(missing)}"
        raise SpecError([Problem("model.config", what, "convolutions in every block")])


def _guilty(config: UnetConfig) -> str | None:
    """The one key without which it would do; None where none alone is at fault."""
    guilty = [key for key in config if key not in ("sample_size", "in_channels", "out_channels") and _would_do(config, key)]
    return guilty[0] if len(guilty) == 1 else None


def _would_do(config: UnetConfig, without: str) -> bool:
    try:
        _train_and_sample({key: value for key, value in config.items() if key != without})
    except Exception:  # whatever it is: the question is whether this key alone is at fault
        return False
    return True


def _train_and_sample(config: UnetConfig) -> None:
    """A forward and a backward pass as training does them, a forward pass as sampling does."""
    shape = (BATCH, config["in_channels"], config["sample_size"], config["sample_size"])
    with _silent(), FakeTensorMode():
        model = UNet2DModel(**config).train()
        noise_BCHW, t_B = torch.randn(shape), torch.zeros(BATCH, dtype=torch.long)
        loss = nn.functional.mse_loss(model(noise_BCHW, t_B).sample.float(), noise_BCHW)
        torch.autograd.grad(loss, list(model.parameters()))  # criteria and moments need one of every parameter
        with torch.no_grad():
            sample_BCHW = model(noise_BCHW, torch.zeros((), dtype=torch.long)).sample
    if sample_BCHW.shape != shape:
        raise ValueError(f"it makes {tuple(sample_BCHW.shape)} of {shape}")


@contextmanager
def _silent() -> Iterator[None]:
    """torch logs a traceback of whatever fails on tensors without numbers."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
