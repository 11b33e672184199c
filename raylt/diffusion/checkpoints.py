"""Checkpoints that a training on a GPU does not wait for: copied there, moved to the host and written meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor


class Checkpoints:
    """Saves what it is given, in the order given; in the background one at a time, the next one waits for it."""

    def __init__(self, save: Callable[[bytes], None], *, in_background: bool) -> None:
        self._save = save
        self._thread = ThreadPoolExecutor(1, "checkpoints") if in_background else None
        self._pending: Future[None] | None = None

    def write(self, make: Callable[[], bytes]) -> None:
        """Save what `make` gives. Raises what saving the one before it raised."""
        self.wait()
        if self._thread is None:
            self._save(make())
        else:
            self._pending = self._thread.submit(lambda: self._save(make()))

    def wait(self) -> None:
        """Until nothing is being saved. Raises what saving raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is written any more once this returns: a stage that is whole deletes its checkpoints."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if error is None:
            self.wait()


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Copies as they are now, contiguous; from a GPU they are there once the result is called, and nothing waits before."""
    if not tensors or tensors[0].device.type == "cpu":
        copies = [on_host(tensor) for tensor in tensors]
        return lambda: copies
    snapshots = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]  # training goes on
    cuda: Any = torch.cuda
    side, arrived = cuda.Stream(), cuda.Event()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        pinned = [torch.empty(s.shape, dtype=s.dtype, pin_memory=True).copy_(s, non_blocking=True) for s in snapshots]
        arrived.record(side)
    for snapshot in snapshots:
        snapshot.record_stream(side)

    def there() -> list[Tensor]:
        arrived.synchronize()
        return pinned

    return there


def on_host(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
