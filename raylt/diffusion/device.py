"""What is particular to a GPU: how exact fp32 is there, and when it is lost to a process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from raylt.errors import chain_of


def _multipliers() -> list[Any]:
    """Whatever multiplies on a GPU. All are set alike, in torch's new words alone: old and new ones do not mix."""
    cudnn: Any = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


def use_tf32(allowed: bool) -> None:
    """For this process from here on: TF32, of 10 bits, wherever a GPU has it, or IEEE's fp32.

    torch's own default is IEEE in matrix products and TF32 in convolutions.
    """
    for multiplier in _multipliers():
        multiplier.fp32_precision = "tf32" if allowed else "ieee"


@contextmanager
def exact() -> Iterator[None]:
    """Inside: IEEE's fp32 and deterministic convolutions, whatever this process computes with."""
    cudnn: Any = torch.backends.cudnn
    before = [multiplier.fp32_precision for multiplier in _multipliers()]
    flags = cudnn.benchmark, cudnn.deterministic
    use_tf32(False)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = flags
        for multiplier, precision in zip(_multipliers(), before, strict=True):
            multiplier.fp32_precision = precision


_OF_A_GPU = re.compile(r"CUDA error|(CUBLAS|CUDNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)")
_OF_MEMORY = re.compile(r"out of memory|ALLOC_FAILED")


def is_lost(error: BaseException) -> bool:
    """Whether a GPU's context is dead: an illegal access, a failed assertion there, a fault of its memory.

    Whatever else this process asks of the GPU then fails too, also for other trials; in a new process it may not. A want of
    memory is none of these.
    """
    for link in chain_of(error):
        text = str(link)
        is_its = isinstance(link, torch.AcceleratorError) or (isinstance(link, RuntimeError) and _OF_A_GPU.search(text))
        if is_its and not _OF_MEMORY.search(text):
            return True
    return False


def gpu_abilities() -> tuple[bool, bool]:
    """(whether this process has a GPU, whether that computes in bf16)."""
    has_cuda = torch.cuda.is_available()
    return has_cuda, has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
