"""Named tensors <-> bytes, through safetensors: nothing in the store is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import load, save
from torch import Tensor

NamedTensors = dict[str, Tensor]


def pack(metadata: Mapping[str, str] | None = None, /, **groups: Mapping[str, Tensor]) -> bytes:
    """Groups of named tensors as one safetensors file: tensor NAME of group GROUP is stored as `GROUP/NAME`."""
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }
    return bytes(save(flat, metadata=dict(metadata) if metadata else None))


def unpack(data: bytes) -> dict[str, NamedTensors]:
    """The groups that `pack` wrote."""
    groups: dict[str, NamedTensors] = {}
    for full_name, tensor in load(data).items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
