"""How numbers are computed: device, precision, threads, and the form in which a training step is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from raylt.diffusion.device import gpu_abilities, use_tf32
from raylt.spec import SweepSpec

EAGER, CHANNELS_LAST, COMPILED, GRAPHED = "eager", "channels_last", "compiled", "graphed"
# Of a training step, each with what those before it have: NHWC in place of NCHW; forward, loss and backward as one graph
# by torch.compile; that graph replayed by CUDA.
FORMS = (EAGER, CHANNELS_LAST, COMPILED, GRAPHED)


@dataclass(frozen=True)
class Compute:
    """How numbers are computed; fixed once per sweep, part of every stage's key."""

    device: str = "cpu"  # cpu | cuda
    precision: str = "fp32"  # fp32: IEEE's | tf32 | bf16
    threads: int = 1
    form: str = EAGER  # of a training step: one of FORMS

    @staticmethod
    def resolve(spec: SweepSpec, has_cuda: bool, has_bf16: bool) -> Compute:
        """For a process that can this. `train.precision: auto` is bf16 where a GPU has it, else fp32.

        Without a GPU, TF32 is fp32, and called so. Which form is fastest on a GPU only a trial shows (sweep/step_form.py).
        """
        wanted, auto = spec.train.precision, "bf16" if has_bf16 else "fp32"
        precision = auto if wanted == "auto" else "fp32" if wanted == "tf32" and not has_cuda else wanted
        form = COMPILED if spec.train.compile == "on" else EAGER
        return Compute("cuda" if has_cuda else "cpu", precision, spec.resources.cpus, form)

    @staticmethod
    def local(spec: SweepSpec) -> Compute:
        """That of a search on this machine."""
        return Compute.resolve(spec, *(gpu_abilities() if spec.resources.gpus != 0 else (False, False)))

    def __str__(self) -> str:
        words = {"fp32": "fp32 (IEEE)", "tf32": "tf32", "bf16": "bf16 (autocast)"}
        form = "" if self.form == EAGER else f", steps {self.form.replace('_', ' ')}"
        return f"on {self.device} in {words[self.precision]}{form}"

    def use(self) -> None:
        """Make this process compute so: sums depend on how many threads share them, fp32 on whether TF32 stands in for it."""
        torch.set_num_threads(self.threads)
        use_tf32(self.precision == "tf32")
        cudnn: Any = torch.backends.cudnn
        cudnn.benchmark = self.device == "cuda" and self.form != EAGER

    def release_memory(self) -> None:
        """Give a GPU's memory that nothing uses back to it: other trials may share it."""
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def key(self) -> dict[str, str | int]:
        form = {} if self.form == EAGER else {"form": self.form}  # what there was before there were forms
        return {"device": self.device, "precision": self.precision, "threads": self.threads, **form}

    @property
    def layout(self) -> torch.memory_format:
        """Of the weights and images of a training."""
        return torch.contiguous_format if self.form == EAGER else torch.channels_last

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
