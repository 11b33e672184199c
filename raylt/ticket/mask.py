"""Mask: which prunable weights of each layer are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from raylt.diffusion.tensors import NamedTensors
from raylt.diffusion.unet import Layer, weight_name
from raylt.ticket.mask_code import Bools, Bytes, decode, encode


@dataclass(frozen=True)
class Mask:
    """Layer name -> boolean tensor of the weight's shape, True where the weight is kept. On the CPU."""

    layers: Mapping[str, Tensor]

    @staticmethod
    def dense(layers: Iterable[Layer]) -> Mask:
        return Mask({layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in layers})

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Layer -> (kept, total)."""
        return {name: (int(keep.sum()), keep.numel()) for name, keep in self.layers.items()}

    @property
    def kept(self) -> int:
        return sum(kept for kept, _ in self.counts.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.counts.values())

    @property
    def density(self) -> float:
        return self.kept / self.total

    @property
    def is_dense(self) -> bool:
        return self.kept == self.total

    @cached_property
    def of_weights(self) -> NamedTensors:
        """The same by the names of the weights."""
        return {weight_name(name): keep for name, keep in self.layers.items()}

    @property
    def of_pruned(self) -> NamedTensors:
        """`of_weights`; empty where the mask keeps everything, and so decides nothing."""
        return {} if self.is_dense else self.of_weights

    def apply(self, values: Mapping[str, Tensor]) -> NamedTensors:
        """A copy of named parameters with every pruned weight exactly +0.0."""
        masks = self.of_weights
        return {n: torch.where(masks[n], v, torch.zeros_like(v)) if n in masks else v.clone() for n, v in values.items()}

    def is_nested_in(self, other: Mask) -> bool:
        """Whether every weight kept here is kept in `other` too."""
        return all(bool((~keep | other.layers[name]).all()) for name, keep in self.layers.items())

    def coded(self) -> dict[str, NamedTensors]:
        """As a group of tensors: `gaps/LAYER`, the code of a layer's bits in C order (uint8; mask_code.py)."""
        return {"gaps": {name: torch.from_numpy(encode(_flat(keep))) for name, keep in self.layers.items()}}

    @staticmethod
    def decoded(groups: Mapping[str, NamedTensors], layers: Iterable[Layer]) -> Mask:
        """The mask that `coded` made, given the shapes of the layers. Raises `ValueError` for bytes that it does not make.

        Earlier versions wrote `mask/LAYER`: eight bits to a byte, the most significant first.
        """
        name = "gaps" if "gaps" in groups else "mask"
        read, codes, masks = decode if name == "gaps" else _unpacked, groups.get(name, {}), {}
        for layer in layers:
            try:
                code = codes[layer.name]
                if code.dtype != torch.uint8 or code.dim() != 1:
                    raise ValueError("its code is no bytes")
                masks[layer.name] = torch.from_numpy(read(code.numpy(), layer.size)).reshape(layer.shape)
            except (KeyError, ValueError) as error:
                cause = "it is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"no mask of layer {layer.name}: {cause}") from error
        return Mask(masks)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the layers' names, shapes and bits, in module order."""
        hasher = hashlib.sha256()
        for name, keep in self.layers.items():
            hasher.update(f"{name} {tuple(keep.shape)}\n".encode())
            hasher.update(np.packbits(_flat(keep)).tobytes())
        return hasher.hexdigest()


def _flat(keep: Tensor) -> Bools:
    bits: Bools = keep.contiguous().numpy().reshape(-1)
    return bits


def _unpacked(code: Bytes, size: int) -> Bools:
    if len(code) != -(-size // 8):
        raise ValueError(f"it has {len(code)} bytes for {size} bits")
    return np.unpackbits(code, count=size).astype(np.bool_)
