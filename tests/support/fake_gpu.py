"""A GPU without a GPU: tensors on `cuda` that have shapes and no values (PyTorch's FakeTensorMode), and who may meet whom.

What cannot be seen so: kernels, numbers, memory, streams, and the ops of autograd's backward half, whose engine wants a real
device. Their devices follow from the forward half's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from raylt.diffusion.rng import Draw, _epoch_order, seed_of

COPIES = ("aten._to_copy", "aten.copy_")


@dataclass
class Crossings:
    """What went between the host and the device."""

    to_device: int = 0
    to_host: int = 0  # each makes the host wait
    items: int = 0  # numbers that Python asked a device for: each makes the host wait

    def clear(self) -> None:
        self.to_device = self.to_host = self.items = 0


class Strict(TorchDispatchMode):
    """Refuses an op that is given tensors of two devices, which a real GPU would refuse too; counts what crosses.

    A tensor without dimensions may be of any device, as in eager torch. FakeTensorMode alone lets foreach and fused ops mix.
    What is on the CPU alone stays real: schedules and indices have values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossings = Crossings()
        self.on_device: set[int] = set()  # seeds of generators that stand for some of the device

    def generator(self, seed: int, draw: Draw, index: int, device: Any = "cpu") -> torch.Generator:
        """In place of `rng.generator`: a real one even for the device, known again by its seed."""
        number = seed_of(seed, draw, index)
        if torch.device(device).type != "cpu":
            self.on_device.add(number)
        return torch.Generator().manual_seed(number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        leaves = _pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        target = torch.device(kwargs.get("device") or "cpu").type
        self._check_generators(name, leaves, target if not tensors else tensors[0].device.type)
        if target == "cpu" and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if name.startswith(COPIES):
            out = func(*args, **kwargs)
            source = tensors[-1] if name.startswith("aten.copy_") else tensors[0]
            self._count(source.device.type, out.device.type)
            return out
        if name.startswith("aten._local_scalar_dense") and tensors[0].device.type != "cpu":
            self.crossings.items += 1
        devices = {tensor.device.type for tensor in tensors if tensor.dim() > 0}
        if len(devices) > 1:
            raise AssertionError(f"{name} is given tensors on {' and '.join(sorted(devices))}")
        return func(*args, **kwargs)

    def _check_generators(self, name: str, leaves: list[Any], device: str) -> None:
        for leaf in leaves:
            if isinstance(leaf, torch.Generator) and (leaf.initial_seed() in self.on_device) != (device != "cpu"):
                raise AssertionError(f"{name} on {device} draws from a generator of another device")

    def _count(self, source: str, target: str) -> None:
        if source != target:
            self.crossings.to_host += target == "cpu"
            self.crossings.to_device += target != "cpu"


def moved(module: nn.Module, device: Any = None, **_: Any) -> nn.Module:
    """In place of `nn.Module.to`, which cannot swap fake parameters."""
    for part in module.modules():
        for values, make in ((part._parameters, nn.Parameter), (part._buffers, lambda tensor: tensor)):
            for name, value in values.items():
                if value is not None and device is not None:
                    values[name] = make(torch.empty(value.shape, dtype=value.dtype, device=device))
    return module


def gradients_of_nothing(loss: Tensor, parameters: list[Tensor]) -> None:
    """In place of the backward half: gradients where the parameters are."""
    assert loss.requires_grad and loss.device == parameters[0].device
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def _drawn(shape: Any, generator: torch.Generator, device: Any, dtype: torch.dtype) -> Tensor:
    """In place of diffusers' `randn_tensor`, for a generator that stands for one of the device."""
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


@contextmanager
def fake_gpu() -> Iterator[Crossings]:
    """Tensors made inside on `cuda` are fake. Build models before, from real numbers."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)  # else autocast is off
        patch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
        inference_mode = torch.inference_mode  # in which fake tensors are not asked
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else inference_mode(mode))
        patch.setattr(nn.Module, "to", moved)
        with FakeTensorMode(allow_non_fake_inputs=True), Strict() as strict:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", _drawn)  # it asks where the generator is
            for module in ("raylt.diffusion.train", "raylt.diffusion.sample"):
                patch.setattr(f"{module}.generator", strict.generator)
            try:
                yield strict.crossings
            finally:
                _epoch_order.cache_clear()  # of fake ones
