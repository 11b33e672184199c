"""Work of hours whose result is one tensor, made and kept part by part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raylt.diffusion.tensors import pack, unpack
from raylt.store import Stage


def in_parts(stage: Stage, name: str, num: int, size: int, make: Callable[[int, int], Tensor], *, keep: bool) -> Tensor:
    """`num` rows, made `size` at a time by `make(index, count)`; a kill costs the part at work.

    With `keep`, each part but the last is written once, as a checkpoint of `stage`: what is written grows with the work, where
    all rows so far would grow with its square. Parts go when the stage is whole.
    """
    parts: list[Tensor] = []
    look = keep  # until the first part that is not there: the parts were made in this order
    for index in range(-(-num // size)):
        count, file = min(size, num - index * size), f"{name}-{index:05d}.safetensors"
        saved = stage.load_checkpoint(file) if look else None
        part = None if saved is None else unpack(saved)["part"]["rows"]
        if part is None or len(part) != count:
            look, part = False, make(index, count)
            if keep and (index + 1) * size < num:
                stage.checkpoint(file, pack(part={"rows": part}))
        parts.append(part)
    return torch.cat(parts)
