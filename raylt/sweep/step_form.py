"""Which form of a training step is fastest: tried once per sweep, on a worker's GPU, and then part of every stage's key."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from raylt.diffusion.compute import CHANNELS_LAST, COMPILED, EAGER, FORMS, GRAPHED, Compute
from raylt.diffusion.train import Trainer
from raylt.errors import Problem, SpecError, cause_of
from raylt.spec import SweepSpec
from raylt.sweep.step_time import trainer_of

COMPILERS = [os.environ.get("CXX") or "g++", "clang++", "c++"]
PROFILED = 5
STEPS = 20  # timed, after the first, which compiles
CANDIDATES = {"auto": FORMS, "off": (EAGER, CHANNELS_LAST), "on": (COMPILED, GRAPHED)}


CONTEXT_BYTES = 600_000_000  # of a GPU, that a process takes before it has tensors
MEMORY_SHARE = 0.9  # of a GPU that its trials may fill together: scoring, and others, want some
MOST_A_GPU = 16


@dataclass(frozen=True)
class TimedForm:
    """A form that was tried. `first_s`: the first step, with its compilation; `step_s`: a later one.

    `busy`: the share of a step in which the GPU computes; `bytes`: of its memory, at most.
    """

    form: str
    first_s: float
    step_s: float
    busy: float = 1.0
    bytes: int = 0

    def seconds(self, steps: int) -> float:
        return self.first_s + steps * self.step_s


@dataclass(frozen=True)
class Tuned:
    """How a sweep computes, and what was tried. `trials_a_gpu`: how many share one under `resources.gpus: auto`."""

    compute: Compute
    lines: tuple[str, ...] = ()
    trials_a_gpu: int = 1


def tune_step(spec: SweepSpec) -> Tuned:
    """For this process. Without a GPU nothing is tried: a step is eager, or compiled where `train.compile` is `on`."""
    compute = Compute.local(spec)
    return chosen(spec, compute, CANDIDATES[spec.train.compile]) if compute.device == "cuda" else Tuned(compute)


def refuse_without_compiler(compute: Compute) -> None:
    """Raises `SpecError` where steps are to be compiled for this machine's CPU, and it has no compiler."""
    if compute.device == "cpu" and compute.form == COMPILED and not any(map(shutil.which, COMPILERS)):
        needed = "a C++ compiler, which this machine lacks (g++ or clang++)"
        raise SpecError([Problem("train.compile", f"needs {needed}", "auto, or a compiler", "on", True)])


def chosen(spec: SweepSpec, compute: Compute, forms: tuple[str, ...]) -> Tuned:
    """The form with which the trainings of one ticket search end first, their compilation counted.

    A form that fails here is none. Raises what the last one raised where all fail.
    """
    tried, lines, failure = [], [], None
    for form in forms:
        try:
            tried.append(_timed(spec, replace(compute, form=form)))
            lines.append(f"step     {form}: {1000 * tried[-1].step_s:.1f} ms, the first one {tried[-1].first_s:.1f} s")
        except Exception as error:  # no compiler, a graph that breaks, no memory for it
            failure = error
            lines.append(f"step     {form}: {cause_of(error)}")
    if not tried:
        assert failure is not None
        raise failure
    steps = spec.train.steps * (1 + spec.ticket.rounds)
    best = min(tried, key=lambda form: form.seconds(steps))
    at_once = trials_a_gpu(best, _memory(compute))
    if at_once > 1:
        lines.append(f"gpu      {at_once} trials on each: one keeps it busy for {best.busy:.0%} of a step")
    return Tuned(replace(compute, form=best.form), tuple(lines), at_once)


def trials_a_gpu(form: TimedForm, memory: int) -> int:
    """As many as the GPU has time for, and memory. More would only wait for each other."""
    by_time = math.floor(1 / max(form.busy, 1 / MOST_A_GPU))
    by_memory = math.floor(MEMORY_SHARE * memory / (form.bytes + CONTEXT_BYTES))
    return max(1, min(by_time, by_memory))


def _memory(compute: Compute) -> int:
    """Of this process's GPU, in bytes."""
    return int(torch.cuda.get_device_properties(0).total_memory) if compute.device == "cuda" else 0


def _timed(spec: SweepSpec, compute: Compute) -> TimedForm:
    """Trains some steps on images of which only the shape matters."""
    channels, size = spec.image_shape
    compute.use()
    trainer = trainer_of(spec, torch.zeros((spec.train.batch_size, channels, size, size), dtype=torch.uint8), compute)
    taken = []
    for _ in range(1 + STEPS):
        before = time.monotonic()
        float(trainer.run_step())  # waits for the device
        taken.append(time.monotonic() - before)
    step_s = statistics.median(taken[1:])
    if compute.device != "cuda":
        return TimedForm(compute.form, taken[0], step_s)
    busy, peak = _busy_s(trainer) / step_s, torch.cuda.max_memory_reserved()
    compute.release_memory()
    torch.cuda.reset_peak_memory_stats()
    return TimedForm(compute.form, taken[0], step_s, busy, peak)


def _busy_s(trainer: Trainer) -> float:
    """Seconds of a step in which the GPU computes."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            float(trainer.run_step())
    events: Any = profiled.key_averages()
    return float(sum(event.self_device_time_total for event in events)) / 1e6 / PROFILED
