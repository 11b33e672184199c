"""Which form of a training step is fastest: tried once per sweep, on a worker's GPU, and then part of every stage's key."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from raylt.diffusion.compute import CHANNELS_LAST, COMPILED, EAGER, FORMS, GRAPHED, Compute
from raylt.errors import cause_of
from raylt.spec import SweepSpec
from raylt.sweep.step_time import trainer_of

STEPS = 20  # timed, after the first, which compiles
CANDIDATES = {"auto": FORMS, "off": (EAGER, CHANNELS_LAST), "on": (COMPILED, GRAPHED)}


@dataclass(frozen=True)
class Trial:
    """A form that was tried. `first_s`: the first step, with its compilation; `step_s`: a later one."""

    form: str
    first_s: float
    step_s: float

    def seconds(self, steps: int) -> float:
        return self.first_s + steps * self.step_s


@dataclass(frozen=True)
class Tuned:
    """How a sweep computes, and what was tried."""

    compute: Compute
    lines: tuple[str, ...] = ()


def tune_step(spec: SweepSpec) -> Tuned:
    """For this process. Without a GPU nothing is tried: a step is eager, or compiled where `train.compile` is `on`."""
    compute = Compute.local(spec)
    return chosen(spec, compute, CANDIDATES[spec.train.compile]) if compute.device == "cuda" else Tuned(compute)


def chosen(spec: SweepSpec, compute: Compute, forms: tuple[str, ...]) -> Tuned:
    """The form with which the trainings of one ticket search end first, their compilation counted.

    A form that fails here is none. Raises what the last one raised where all fail.
    """
    tried, lines, failure = [], [], None
    for form in forms:
        try:
            tried.append(_try(spec, replace(compute, form=form)))
            lines.append(f"step     {form}: {1000 * tried[-1].step_s:.1f} ms, the first one {tried[-1].first_s:.1f} s")
        except Exception as error:  # no compiler, a graph that breaks, no memory for it
            failure = error
            lines.append(f"step     {form}: {cause_of(error)}")
    if not tried:
        assert failure is not None
        raise failure
    steps = spec.train.steps * (1 + spec.ticket.rounds)
    best = min(tried, key=lambda trial: trial.seconds(steps))
    return Tuned(replace(compute, form=best.form), tuple(lines))


def _try(spec: SweepSpec, compute: Compute) -> Trial:
    """Trains some steps on images of which only the shape matters."""
    channels, size = spec.image_shape
    compute.use()
    trainer = trainer_of(spec, torch.zeros((spec.train.batch_size, channels, size, size), dtype=torch.uint8), compute)
    taken = []
    for _ in range(1 + STEPS):
        before = time.monotonic()
        float(trainer.run_step())  # waits for the device
        taken.append(time.monotonic() - before)
    compute.release_memory()
    return Trial(compute.form, taken[0], statistics.median(taken[1:]))
