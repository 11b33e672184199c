"""What a sweep asks for, what is left of it, and how long that takes at a measured speed: `--dry-run`'s account."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from itertools import pairwise

import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.sample import HELD_OUT_DRAWS, held_out_part
from raylt.report.text import counted, hours_text
from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.spec.trials import Planned
from raylt.store import Ledger
from raylt.store.ledger_files import read_lock
from raylt.store.sweep_state import next_free_id
from raylt.sweep.completed_trainings import CompletedTrainings, completed_trainings
from raylt.sweep.step_time import Speed, measure_step_time
from raylt.sweep.trainings import Training, proposals, trainings_of
from raylt.trial.inputs import Inputs


@dataclass
class Amount:
    trainings: int = 0
    steps: int = 0
    samples: int = 0

    def add(self, training: Training, samples: int, *, trained: bool = True, scored: bool = True) -> None:
        self.trainings += trained and training.round is not None
        self.steps += trained * training.steps
        self.samples += scored * samples

    def __str__(self) -> str:
        return ", ".join(
            [counted(self.trainings, "training"), counted(self.steps, "training step"), counted(self.samples, "sample")]
        )


@dataclass
class Work:
    """What trials ask for; `distinct`: without what is made already, and what they share counted once."""

    asked: Amount = field(default_factory=Amount)
    distinct: Amount = field(default_factory=Amount)
    denoised: int = 0  # images through the network, to sample and for losses
    seconds: dict[int, float] = field(default_factory=dict)  # trial -> for what no trial before it makes


def all_trials(spec: SweepSpec, ledger: Ledger) -> list[Planned]:
    """The sweep's trials, asked or not, as they will be started, and what each waits for."""
    planned, confirming = plan(spec), ledger.confirmations()
    planned_ids = {item.trial.id for item in [*planned, *confirming]}
    asked = [trial for number, trial in sorted(ledger.submitted.items()) if number not in planned_ids]
    num_searched = sum(trial.is_search and trial.retry_of is None for trial in asked)
    search = [*asked, *proposals(spec, next_free_id(spec, ledger), num_searched)]
    before = [*(item.trial.id for item in planned), *(trial.id for trial in search)]
    return [
        *planned,
        *(Planned(trial, _waits_for(spec, trial, len(planned))) for trial in search),
        *(Planned(item.trial, [*before, *item.after]) for item in confirming),
    ]


def _waits_for(spec: SweepSpec, trial: TrialSpec, num_planned: int) -> range:
    """Of a search trial: the dispatcher's rule."""
    if not trial.is_search or trial.retry_of is not None:
        return range(0)
    return range(max(num_planned, trial.id - spec.search.concurrency + 1) if spec.search.repeatable else num_planned)


def work_of(
    spec: SweepSpec, trials: Iterable[TrialSpec], made: CompletedTrainings | None = None, speed: Speed | None = None,
    num_held_out: int = 0,
) -> Work:  # fmt: skip
    """What trials ask for, each running to its end. `num_held_out`: images that losses are measured on."""
    work, done = Work(), CompletedTrainings() if made is None else CompletedTrainings(set(made.trained), set(made.scored))
    for trial in trials:
        part = held_out_part(num_held_out, trial.protocol)
        losses = HELD_OUT_DRAWS * (part.stop - part.start)
        protocol, before = spec.protocol(trial.protocol), (work.distinct.steps, work.denoised)
        for training in trainings_of(spec, trial):
            scored = (trial.protocol, training)
            samples = protocol.samples if training.is_scored else 0
            is_scored = training.is_scored and scored not in done.scored
            work.asked.add(training, samples)
            work.distinct.add(training, samples, trained=training not in done.trained, scored=is_scored)
            work.denoised += is_scored * (samples * protocol.steps + losses)
            done.trained.add(training)
            done.scored |= {scored} if is_scored else set()
        if speed is not None:
            steps, denoised = work.distinct.steps - before[0], work.denoised - before[1]
            work.seconds[trial.id] = steps * speed.step_s + denoised * speed.image_s
    return work


def makespan_s(trials: Sequence[Planned], seconds: Mapping[int, float], at_once: int) -> float:
    """How long trials take, `at_once` at most at a time, each after those it waits for, in the dispatcher's order."""
    places = {item.trial.id: place for place, item in enumerate(trials)}
    graph, now = _who_waits(trials), 0.0
    ready: list[int] = []  # heap of places
    busy: list[tuple[float, int]] = []  # heap of (when it ends, trial)
    graph.prepare()
    while graph.is_active():
        while nodes := graph.get_ready():
            for node in nodes:
                if node in places:
                    heappush(ready, places[node])
                else:
                    graph.done(node)
        if ready and len(busy) < at_once:
            number = trials[heappop(ready)].trial.id
            heappush(busy, (now + seconds[number], number))
        elif busy:
            now, number = heappop(busy)
            graph.done(number)
    return now


def _who_waits(trials: Sequence[Planned]) -> TopologicalSorter[int]:
    """Trial -> those it waits for. `~n` stands for all up to n: thousands wait for thousands, by one edge each."""
    graph: TopologicalSorter[int] = TopologicalSorter()
    numbers = sorted(item.trial.id for item in trials)
    ids = set(numbers)
    for before, number in pairwise(numbers):
        graph.add(~number, number, ~before)
    for number in numbers[:1]:
        graph.add(~number, number)
    for item in trials:
        if isinstance(item.after, range):
            lower = bisect_left(numbers, item.after.stop)
            graph.add(item.trial.id, *([~numbers[lower - 1]] if lower else []))
        else:
            graph.add(item.trial.id, *(number for number in item.after if number in ids))
    return graph


# --- in words ---------------------------------------------------------------------------------------------------------


def describe_cost(spec: SweepSpec, ledger: Ledger, inputs: Inputs, compute: Compute) -> list[str]:
    """What the sweep asks for, what of it is left, and how long that takes, in plain lines. Writes nothing."""
    trials, locked = all_trials(spec, ledger), _compute_of(ledger)
    if locked is not None and locked.device == compute.device:
        compute = replace(compute, form=locked.form)
    speed = measure_step_time(spec, inputs.images, compute)
    whole = work_of(spec, (item.trial for item in trials))
    still_open = [item for item in trials if item.trial.id not in ledger.results]
    made = completed_trainings(spec, ledger, inputs, locked or compute, [item.trial for item in still_open])
    left = work_of(spec, (item.trial for item in still_open), made, speed, len(inputs.images.test_NCHW))
    at_most = "at most " if spec.search.rungs else ""
    lines = [
        f"asked    {at_most}{counted(len(trials), 'trial')}, {whole.asked}",
        f"distinct {at_most}{whole.distinct}: what trials share is made once",
    ]
    if made.trained or ledger.submitted:
        whole_words = "; a training that has started counts whole" if ledger.open_trials() else ""
        lines.append(f"left     {at_most}{counted(len(still_open), 'trial')}, {left.distinct}{whole_words}")
    if ledger.num_searched > spec.search.trials:
        have = counted(ledger.num_searched, "search trial")
        lines.append(f"warning: search.trials is {spec.search.trials}, but the sweep has {have} already; they stay in it")
    return [*lines, *(_time_lines(spec, compute, speed, still_open, left) if still_open else [])]


def _compute_of(ledger: Ledger) -> Compute | None:
    """As the sweep was started with, and its stages' keys have it."""
    lock = read_lock(ledger.store, ledger.name)
    return None if lock is None or lock.computed is None else Compute(*lock.computed)


def _time_lines(spec: SweepSpec, compute: Compute, speed: Speed, trials: Sequence[Planned], left: Work) -> list[str]:
    about = "at most " if spec.search.rungs else "about "
    train_s, denoise_s = left.distinct.steps * speed.step_s, left.denoised * speed.image_s
    at_once, held = min(spec.search.concurrency, max(1, len(trials))), held_here(spec, compute)
    part = f" (from batches of {speed.batch})" if speed.batch < spec.train.batch_size else ""
    history = (
        f"that of trial n knows the trials up to n - {spec.search.concurrency}"
        if spec.search.repeatable
        else "it knows those that have ended"
    )

    def hours(num: int) -> str:
        return f"{about}{hours_text(makespan_s(trials, left.seconds, num))} hours"

    here = f": {hours(held)}" if 0 < held < at_once else ""

    return [
        f"speed    {_ms(speed.step_s)} a step{part}, {_ms(speed.image_s)} a denoised image: measured here, "
        f"{compute}, {counted(compute.threads, 'thread')}",
        f"hours    {about}{hours_text(train_s + denoise_s)}, one trial after another: {hours_text(train_s)} to train, "
        f"{hours_text(denoise_s)} to sample and for losses; start-up and FID not counted",
        f"at once  {counted(at_once, 'trial')} (search.concurrency): {hours(at_once)}; dense first, then pilots and baselines, "
        "then the search",
        f"search   a proposal learns from those before it: {history}",
        f"machine  holds {counted(held, 'trial')} at once ({_holdings(spec, compute)}){here}",
        *([] if held else ["warning: no trial can start on this machine; resources asks for more than it has"]),
    ]


def held_here(spec: SweepSpec, compute: Compute) -> int:
    """Trials that this machine's CPUs and GPUs hold at once, as Ray counts them; 0: not even one."""
    held, gpus = (os.cpu_count() or 1) // spec.resources.cpus, _gpus_of(spec)
    if compute.device != "cuda":
        return held if spec.resources.gpus in ("auto", 0) else 0
    have = torch.cuda.device_count()
    return min(held, have * int(1 / gpus + 1e-6) if gpus < 1 else int(have // gpus))


def _gpus_of(spec: SweepSpec) -> float:
    return 1.0 if spec.resources.gpus == "auto" else spec.resources.gpus


def _holdings(spec: SweepSpec, compute: Compute) -> str:
    cpus = f"{counted(os.cpu_count() or 1, 'CPU')}, {spec.resources.cpus} a trial"
    return (
        cpus if compute.device != "cuda" else f"{cpus}; {counted(torch.cuda.device_count(), 'GPU')}, {_gpus_of(spec):g} a trial"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 1 else f"{seconds:.3g} s"
