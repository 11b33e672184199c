"""What MLflow shows of a sweep, as plain data: tags, params, metric points and files of its runs (FORMATS, MLflow).

Functions of spec, ledger and store alone, without mlflow. Points carry the times the ledger has, so a replay adds none.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raylt.errors import EnvironmentFailure, InputError, as_yaml_value, without_secrets
from raylt.report.document import protocol_record, results, trial_record
from raylt.report.records import SweepDocument
from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.spec.paths import EXPECTED
from raylt.spec.tracking_uri import absolute_uri, expanded_uri, uri_problem
from raylt.spec.vocabulary import Protocol
from raylt.store import Ledger, Store
from raylt.store.results import FAIL, RUNNING, RoundResult, TicketSummary, TrialResult
from raylt.store.stages import stage_of
from raylt.store.sweep_state import groups_of

log = logging.getLogger("raylt.tracking")

LEDGER_TAG = "raylt.ledger"  # tells two sweeps of one name and digest apart that share a tracking server
RECORD_TAG = "raylt.record"  # hash of what a run shows, its last write: a run that has it is whole
SWEEP_KIND = "sweep"
PARAMS_AT_ONCE, POINTS_AT_ONCE = 100, 800  # MLflow's limits on a batch: 100 params, 100 tags, 1000 in all
ROUND_METRICS = ("fid", "kid", "loss", "flops", "density", "ticket_bytes")
SIMILARITY_METRICS = ("kappa", "kappa_start", "excess", "kappa_partial", "kappa_movement", "z")  # of the parent, per block


def tracking_uri(spec: SweepSpec) -> str:
    """Where the record goes: MLFLOW_TRACKING_URI, else the spec's, which must be the user's own: see `record_address`.

    The path of an SQLite file is made absolute. Raises `InputError` where that can be no tracking URI.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return given_uri("MLFLOW_TRACKING_URI", uri)
    return _checked("tracking.uri", spec.tracking.uri)


def given_uri(source: str, uri: str) -> str:
    """A URI that the user gave by `source`, with `~` and variables replaced and the path of an SQLite file made absolute.

    Raises `InputError` as `tracking_uri`.
    """
    try:
        return _checked(source, expanded_uri(uri))
    except LookupError as error:
        raise InputError(f"{source}: {error}; {EXPECTED}") from None


def _checked(source: str, uri: str) -> str:
    problem = uri_problem(uri)
    if problem is not None:
        raise InputError(f"{source}: {problem[0]} (got {as_yaml_value(without_secrets(uri))}); {problem[1]}")
    return absolute_uri(uri)


class Point(NamedTuple):
    """One metric point. MLflow keys it by all four, so a point sent twice is one point."""

    key: str
    value: float
    time_ms: int
    step: int


def text_of(value: Any) -> str:
    """A value of a spec as a param: words as they are, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


class Batch(NamedTuple):
    """What one call of MLflow's log_batch takes."""

    points: Sequence[Point]
    params: Sequence[tuple[str, str]]
    tags: Sequence[tuple[str, str]]


@dataclass
class Run:
    """What is known of a run: what it has need not be sent again. A param, once there, cannot change."""

    id: str
    start_ms: int
    status: str
    tags: dict[str, str]
    params: set[str] = field(default_factory=set)
    points: set[Point] = field(default_factory=set)

    def lacks(self, tags: Mapping[str, str], params: Mapping[str, str], points: Collection[Point]) -> list[Batch]:
        """What is not known to be there yet, in batches that MLflow takes. Of tags there are never many."""
        new_points = [point for point in points if point not in self.points]
        new_params = [(key, value) for key, value in params.items() if key not in self.params]
        new_tags = [(key, value) for key, value in tags.items() if self.tags.get(key) != value]
        num = max(-(-len(new_points) // POINTS_AT_ONCE), -(-len(new_params) // PARAMS_AT_ONCE), 1 if new_tags else 0)
        return [
            Batch(
                new_points[i * POINTS_AT_ONCE : (i + 1) * POINTS_AT_ONCE],
                new_params[i * PARAMS_AT_ONCE : (i + 1) * PARAMS_AT_ONCE],
                () if i else new_tags,
            )
            for i in range(num)
        ]

    def has(self, tags: Mapping[str, str], params: Iterable[str], points: Iterable[Point]) -> None:
        """Remember what was sent."""
        self.tags |= tags
        self.params.update(params)
        self.points.update(points)


def sweep_tags(spec: SweepSpec, ledger: Ledger, ledger_id: str, protocol: Protocol = "search") -> dict[str, str]:
    """The tags every run of the sweep has: in MLflow a filter on a parent does not find its children."""
    behind = protocol_record(spec, protocol)
    reference = behind["reference"]
    return {
        LEDGER_TAG: ledger_id,
        "raylt.sweep": ledger.name,
        "raylt.digest": spec.digest,
        **{f"fid.{key}": str(behind[key]) for key in ("features", "samples", "sampler", "steps")},
        "fid.reference": "all" if reference is None else str(reference),
    }


def trial_tags(trial: TrialSpec, result: TrialResult | None) -> dict[str, str]:
    """The tags of a trial's run alone."""
    tags = {
        "raylt.trial": str(trial.id),
        "raylt.kind": trial.kind,
        "raylt.rule": rule_of(trial),
        "raylt.protocol": trial.protocol,
        "raylt.seed": str(trial.training.seed),
        "raylt.state": RUNNING if result is None else result.state,
    }
    if trial.training.control is not None:
        tags["raylt.control"] = trial.training.control
    if result is not None and result.state == FAIL:
        tags["raylt.cause"] = str(result.cause)
    if result is not None and result.scores.broken is not None:
        tags["raylt.broken"] = str(result.scores.broken).lower()
    return tags


def rule_of(trial: TrialSpec) -> str:
    return "dense" if trial.training.rule is None else trial.training.rule


def sweep_params(spec: SweepSpec) -> dict[str, str]:
    """The identity keys of the spec: what makes this sweep the sweep it is."""
    return {key: text_of(value) for key, value in spec.identity().items()}


def group_params(spec: SweepSpec, ledger: Ledger) -> dict[str, str]:
    """Params of the parent alone: `group/g0` ..., the blocks behind each delta of `groups: auto`, once they are chosen."""
    chosen = groups_of(spec, ledger.similarity()) if spec.search.has_auto_groups else None
    return {f"group/{group}": text_of(blocks) for group, blocks in (chosen or {}).items()}


def trial_params(spec: SweepSpec, trial: TrialSpec, result: TrialResult | None) -> dict[str, str]:
    """Params of a trial's run; densities once they are known, since a param can never change."""
    densities = {} if result is None or result.ticket is None else result.ticket.densities
    return {
        **sweep_params(spec),
        "rule": rule_of(trial),
        **{name: text_of(value) for name, value in trial.proposal.params.items()},
        **{f"density/{block}": text_of(density) for block, density in densities.items()},
    }


def round_points(report: RoundResult) -> list[Point]:
    """The points of one round, whether it was just reported or lies in a result."""
    return points_of(((name, getattr(report, name)) for name in ROUND_METRICS), report.time_ms, report.round)


def trial_points(result: TrialResult) -> list[Point]:
    """Every point of a trial that has finished."""
    points = [point for report in result.rounds for point in round_points(report)]
    densities = {} if result.ticket is None else result.ticket.densities
    named = ((f"density/{block}", density) for block, density in densities.items())
    return points + points_of(named, result.time_ms, result.scores.round)


def similarity_points(spec: SweepSpec, ledger: Ledger) -> list[Point]:
    """The parent's points of each block."""
    blocks = ledger.similarity().get("blocks", {})
    # the planned pilots alone: one that is retried later would move the time, and a replay would add points
    pilots = [p.trial.id for p in plan(spec) if p.trial.kind == "pilot"]
    if not all(number in ledger.results for number in pilots):
        return []  # read since this view of the ledger was: the next one has the pilots too, and so the points' time
    time_ms = max((ledger.results[number].time_ms for number in pilots), default=0)
    named = ((f"{name}/{block}", numbers.get(name)) for block, numbers in blocks.items() for name in SIMILARITY_METRICS)
    return points_of(named, time_ms, 0)


def points_of(values: Iterable[tuple[str, float | None]], time_ms: int, step: int) -> list[Point]:
    """Points of the values that are numbers: MLflow would store an infinity as 1.8e308."""
    return [Point(key, float(v), time_ms, step) for key, v in values if v is not None and math.isfinite(v)]


def trial_files(store: Store, trial: TrialSpec, result: TrialResult) -> dict[str, bytes]:
    """The files of a trial's run. What the store no longer has is left out, with a warning: the numbers are worth it."""
    from raylt.report.figures import allocation_png

    files: dict[str, bytes] = {}
    if result.ticket is None:
        return files
    try:
        files.update(_stage_files(store, result.ticket, result.stages))
    except EnvironmentFailure as error:
        log.warning("the run of trial %s lacks files: %s", trial.name, error)
    files["allocation.png"] = allocation_png(trial_record(trial, result))
    return files


def _stage_files(store: Store, ticket: TicketSummary, stages: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Files that lie in a ticket's stages."""
    from safetensors.numpy import load

    from raylt.report.figures import samples_png
    from raylt.store.layout import GRID, SAMPLES, TICKET

    yield TICKET, stage_of(store, stages, ticket.ticket_stage).read(TICKET)
    samples = stage_of(store, stages, ticket.sample_stage)
    yield "samples.png", samples_png(load(samples.read(GRID))["images/first"])
    if SAMPLES in samples.read_manifest().files:
        yield SAMPLES, samples.read(SAMPLES)


def sweep_files(spec: SweepSpec, ledger: Ledger, spec_yaml: str, state: str) -> dict[str, bytes]:
    """The files of the parent run. `state`: as the driver knows it, which still holds the lease when it ends."""
    from raylt.report.html_page import pictures_of, sweep_page

    document: SweepDocument = {**results(spec, ledger), "state": state}
    pictures = pictures_of(document)
    return {
        "spec.yaml": spec_yaml.encode(),
        **{f"{name}.png": picture for name, picture in pictures.items()},
        "report.html": sweep_page(document, ledger, spec_yaml, pictures).encode(),
    }
