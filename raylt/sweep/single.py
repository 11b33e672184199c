"""One trial at a time: `raylt ticket` runs one here, without Ray; `raylt export` takes one out of the store."""

from __future__ import annotations

import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from rich.console import Console

from raylt.diffusion.compute import Compute
from raylt.diffusion.unet import layers_of
from raylt.errors import InputError, RayltError, StoreFailure
from raylt.report.document import trial_record
from raylt.report.records import TrialRecord
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.trials import TrainingRequest
from raylt.spec.vocabulary import Rule
from raylt.store import Ledger, Stage, Store
from raylt.store.layout import SAMPLES, TICKET
from raylt.store.ledger_files import missing_stages
from raylt.store.results import COMPLETE, FAIL
from raylt.store.stages import stage_of
from raylt.sweep import preflight
from raylt.sweep.footprint import refuse_too_large
from raylt.sweep.progress import ticket_progress
from raylt.sweep.step_form import refuse_without_compiler, tune_step
from raylt.ticket.find import read_mask, read_trained
from raylt.ticket.ticket_file import export_pipeline, read_ticket
from raylt.trial.run import TrialContext, TrialRun

INDEX = "model_index.json"  # of a pipeline, as diffusers names it
PARTIAL = ".raylt-"  # begins the name of a folder that an export is written to first, and of one that was killed


def run_ticket(spec: SweepSpec, rule: str, seed: int | None, console: Console) -> tuple[TrialRecord, int]:
    """One search of the spec under a rule; returns its record as in `results --json`, and the exit code."""
    if rule not in get_args(Rule):
        raise InputError(f"--rule: unknown (got {rule!r}); one of {', '.join(get_args(Rule))}")
    store = Store(spec.storage.root, owner=f"ticket/{uuid.uuid4().hex}")
    checked = preflight.check(spec, store)
    refuse_too_large(spec, Compute.local(spec))
    refuse_without_compiler(Compute.local(spec))
    for line in preflight.data_lines(spec, checked.inputs.images):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    tuned = tune_step(spec)
    for line in tuned.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    context = TrialContext.open(spec, tuned.compute, checked.inputs)
    trial = TrialSpec(0, "baseline", TrainingRequest(rule, spec.train.seed if seed is None else seed))
    run = TrialRun(trial, context, store, ticket_progress(spec, console))
    try:
        for report in run:
            line = f"round {report.round} scored: density {report.density:.4f}  loss {report.loss}  FID {report.fid}"
            console.print(line, markup=False, highlight=False)
        result = run.result
    except StoreFailure:
        raise
    except (RayltError, RuntimeError, MemoryError, OSError) as error:  # as a sweep would: the trial's end, not ours
        result = run.failed(error)
    return trial_record(trial, result), 1 if result.state == FAIL else 0


def _of_seed(ticket: bytes, start: Stage, number: int) -> bytes:
    """The same ticket with the seed of its initialisation. Raises `InputError` where it does not start there."""
    seed, step = start.key["seed"], start.key["step"]
    if step:
        raise InputError(f"--seed-ticket: trial {number} rewinds to step {step}; only one that rewinds to step 0 has a seed")
    try:
        return read_ticket(ticket).to_seed_bytes(seed)
    except ValueError as error:
        raise InputError(f"--seed-ticket: trial {number}: {error}; this torch initialises otherwise than it did") from error


def export_trial(spec: SweepSpec, ledger: Ledger, number: int, folder: Path, *, as_seed: bool = False) -> None:
    """A complete trial as a diffusers pipeline (EMA weights, pruned ones zero), its ticket file and its kept samples.

    `as_seed`: the ticket file has a seed in place of values.
    """
    result = ledger.results.get(number)
    if result is None or result.ticket is None:
        done = ", ".join(str(n) for n, r in sorted(ledger.results.items()) if r.state == COMPLETE) or "none"
        raise InputError(f"trial {number} of {ledger.name} has no ticket; those that have: {done}")
    if missing_stages(ledger.store, result):
        raise StoreFailure(
            f"trial {number} of {ledger.name} lacks stages, which were deleted: `raylt retry {ledger.name} {number}` "
            "and the same `raylt sweep` command make them again"
        )
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(PARTIAL) for path in folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty; give a new folder")
    store = ledger.store  # everything is read, and so checked, before anything is written
    config = result.ticket.unet_config or spec.unet_config
    trained = stage_of(store, result.stages, result.ticket.final_stage)
    weights = read_trained(trained, read_mask(trained, layers_of(config)))["ema"]
    files = {TICKET: stage_of(store, result.stages, result.ticket.ticket_stage).read(TICKET)}
    if as_seed:
        start = stage_of(store, result.stages, result.ticket.start_stage)
        files[TICKET] = _of_seed(files[TICKET], start, number)
    samples = stage_of(store, result.stages, result.ticket.sample_stage)
    if SAMPLES in samples.read_manifest().files:
        files[SAMPLES] = samples.read(SAMPLES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:  # half an export is none
            partial = Path(name)
            export_pipeline(partial, config, weights, spec.train.beta_schedule)
            for file, data in files.items():
                (partial / file).write_bytes(data)
            for path in partial.rglob("*.safetensors"):
                path.chmod((partial / INDEX).stat().st_mode)  # safetensors writes files that only their owner reads
            for path in sorted(partial.iterdir(), key=lambda path: path.name == INDEX):  # the index is last
                path.rename(folder / path.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; give another folder") from error
