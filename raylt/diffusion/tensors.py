"""Named tensors <-> bytes, through safetensors: nothing in the store is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from raylt.spec.canonical import JsonObject

NamedTensors = dict[str, Tensor]


def pack(metadata: Mapping[str, str] | None = None, /, **groups: Mapping[str, Tensor]) -> bytes:
    """Groups of named tensors as one safetensors file: tensor NAME of group GROUP is stored as `GROUP/NAME`."""
    flat = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }
    data = bytes(save(flat, metadata=dict(metadata) if metadata else None))
    return _in_order(data) if metadata else data


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, types, shapes and bytes of tensors, in the order of their names."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        hasher.update(tensor.detach().cpu().contiguous().numpy().data)
    return hasher.hexdigest()


def gathered(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> NamedTensors:
    """Of each tensor with a mask, the kept values alone, in C order (1-D); the others as they are.

    `masks`: name -> boolean tensor of two dimensions or more, True where a value is kept.
    """
    return {name: value[masks[name]] if name in masks else value for name, value in values.items()}


def losslessly_gathered(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> NamedTensors:
    """`gathered`, to the bit: a float32 tensor that is not +0.0 wherever it is pruned stays whole."""
    return gathered(values, {name: mask for name, mask in masks.items() if not _bits(values[name]).masked_fill(mask, 0).any()})


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().view(torch.int32)  # -0.0 has one that is set


def scattered(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> NamedTensors:
    """What was gathered, with 0 where it is pruned; tensors that are whole stay as they are."""
    full = dict(values)
    for name, mask in masks.items():
        if name in values and values[name].shape != mask.shape:
            full[name] = values[name].new_zeros(mask.shape)
            full[name][mask] = values[name]
    return full


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes it in an order that differs from process to process.

    A file is 8 bytes with the length of a JSON header, the header, filled up with blanks to a multiple of 8, and the tensors.
    """
    header, end = _header(data)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    packed = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed + data[end:]


def metadata_of(data: bytes) -> dict[str, str]:
    """What `pack` was given beside the tensors. Call `unpack` first: it raises for what is no safetensors file."""
    return dict(_header(data)[0].get("__metadata__", {}))


def _header(data: bytes) -> tuple[JsonObject, int]:
    """The JSON header of a file, and where it ends."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end


def unpack(data: bytes) -> dict[str, NamedTensors]:
    """The groups that `pack` wrote."""
    groups: dict[str, NamedTensors] = {}
    for full_name, tensor in load(data).items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups
