"""What needs shapes, data or weights, checked before a sweep starts anything; and what `--dry-run` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raylt.diffusion.data import ImageSet
from raylt.diffusion.flops import Flops, count_flops
from raylt.diffusion.unet import Layer, layers_of
from raylt.diffusion.unet_rehearsal import rehearse
from raylt.errors import Problem, SpecError, in_units
from raylt.spec import SweepSpec, plan
from raylt.spec.schema import matches
from raylt.store import Ledger, Store
from raylt.store.sweep_state import groups_of
from raylt.sweep.footprint import footprint
from raylt.ticket.budget import cost_of, costs_of, demands, least_kept, smallest_density
from raylt.trial.inputs import InputDigests, Inputs, gather


@dataclass(frozen=True)
class Preflight:
    inputs: Inputs
    layers: list[Layer]
    flops: Flops


def check(spec: SweepSpec, store: Store, started_with: InputDigests | None = None, stored_images: bool = False) -> Preflight:
    """Everything that can be known before Ray starts. Raises `SpecError` with all of what is wrong.

    `started_with`: the inputs of a sweep that is resumed, which the store has where this machine may not. `stored_images`:
    `data.root` is not to be looked at.
    """
    rehearse(spec.unet_config)
    layers, flops = layers_of(spec.unet_config), count_flops(spec.unet_config)
    problems = _density_problems(spec, layers) or _ceiling_problems(spec, layers, flops)
    inputs = None
    try:
        inputs = gather(spec, store, started_with, stored_images)
        problems += _image_problems(spec, inputs.images)
    except SpecError as error:
        problems += error.problems
    if problems or inputs is None:
        raise SpecError(problems)
    return Preflight(inputs, layers, flops)


def _density_problems(spec: SweepSpec, layers: list[Layer]) -> list[Problem]:
    ticket = spec.ticket
    names = [layer.name for layer in layers]
    problems = [
        Problem(f"ticket.keep_dense.{i}", "names neither a block nor a layer", f"for example {names[0]}", pattern, True)
        for i, pattern in enumerate(ticket.keep_dense)
        if not any(matches(name, [pattern]) for name in names)
    ]
    costs, rules = costs_of(spec), spec.search.baselines
    total = cost_of({layer.name: layer.size for layer in layers}, costs)
    key = "ticket.densities" if ticket.densities is not None else "ticket.density"
    if round(ticket.final_density * total) < cost_of(least_kept(layers, ticket, rules), costs):
        what = f"is too small for {demands(rules)}{', as a share of FLOPs' if costs else ''}"
        expected = f"{smallest_density(layers, ticket, costs, rules):g} or more (the smallest there is)"
        problems.append(Problem(key, what, expected, ticket.final_density, True, about=("search.budget",) if costs else ()))
    return problems


def _ceiling_problems(spec: SweepSpec, layers: list[Layer], flops: Flops) -> list[Problem]:
    """Ceilings that no ticket of the final density keeps."""
    limits = spec.search.constraints
    if costs_of(spec):  # a budget of FLOPs is met whatever the allocation, and with how many weights is not known
        return []
    least: dict[str, tuple[float | None, float]] = {
        "flops": (limits.flops, math.ceil(_least_flops(spec, layers, flops) / flops.dense * 1e4) / 1e4),
        "ticket_bytes": (limits.ticket_bytes, _least_bytes(spec, layers)),
    }
    return [
        Problem(
            f"search.constraints.{name}", "is less than any ticket of the final density needs",
            f"{lowest:,} or more (the least there is at that density)", ceiling, True, about=("ticket.density",),
        )
        for name, (ceiling, lowest) in least.items()
        if ceiling is not None and ceiling < lowest
    ]  # fmt: skip


def _least_bytes(spec: SweepSpec, layers: list[Layer]) -> int:
    """A ticket file has four bytes for each weight that is kept, and their places. Which cost least in whole layers."""
    return 4 * round(spec.ticket.final_density * sum(layer.size for layer in layers))


def _least_flops(spec: SweepSpec, layers: list[Layer], flops: Flops) -> int:
    """FLOPs where all that `keep_dense` and `min_kept` leave open goes to the layers whose weights cost least."""
    counts = dict(least_kept(layers, spec.ticket))
    left = round(spec.ticket.final_density * sum(layer.size for layer in layers)) - sum(counts.values())
    for layer in sorted(layers, key=lambda layer: flops.layers[layer.name] / layer.size):
        taken = min(left, layer.size - counts[layer.name])
        counts[layer.name] += taken
        left -= taken
    return flops.of({layer.name: (counts[layer.name], layer.size) for layer in layers})


def _image_problems(spec: SweepSpec, images: ImageSet) -> list[Problem]:
    count, reference = len(images.train_NCHW), spec.metrics.reference
    if reference is not None and reference > count:
        return [
            Problem("metrics.reference", f"more than the {count} training images", f"at most {count}, or null", reference, True)
        ]
    return []


def data_lines(spec: SweepSpec, images: ImageSet) -> list[str]:
    """What was left out or altered of the data, and what they are too few for; each a line of its own."""
    lines, count = [f"data     {note}" for note in images.notes], len(images.train_NCHW)
    if spec.train.batch_size > count:
        lines.append(f"data     a batch of {spec.train.batch_size} has images twice: there are {count} to train on")
    return lines


def describe_plan(spec: SweepSpec, store: Store, checked: Preflight) -> list[str]:
    """What the sweep would do, in plain lines."""
    ticket, total, mflops = spec.ticket, sum(layer.size for layer in checked.layers), checked.flops.dense / 1e6
    planned = [item.trial for item in plan(spec)]
    kinds = {kind: sum(trial.kind == kind for trial in planned) for kind in ("dense", "pilot", "baseline")}
    channels, size = spec.image_shape
    num_train, num_test = len(checked.inputs.images.train_NCHW), len(checked.inputs.images.test_NCHW)
    rounds = ", ".join(f"{ticket.density_of(r):.4g}" for r in range(ticket.rounds + 1))
    protocol = spec.protocol("search")
    lines = [
        f"sweep    {spec.name} ({spec.digest[:12]})",
        f"data     {spec.data.name}: {num_train} training and {num_test} held-out images, {channels} x {size} x {size}",
        *data_lines(spec, checked.inputs.images),
        f"model    {total:,} prunable weights in {len(checked.layers)} layers; {mflops:,.1f} MFLOPs an image",
        f"train    {spec.train.steps} steps of {spec.train.batch_size}; rounds restart at step {ticket.rewind_step}",
        *_warm_up_lines(spec),
        f"rounds   {_budget_words(spec, checked, rounds)}",
        f"trials   {kinds['dense']} dense, {kinds['pilot']} pilots, {kinds['baseline']} baselines "
        f"({', '.join(spec.search.baselines)}), {spec.search.trials} search trials ({spec.search.sampler})",
        *_ceiling_lines(spec),
        f"score    {protocol.samples} samples, {protocol.sampler} {protocol.steps} steps"
        f"{f' ({protocol.spacing})' if protocol.spacing else ''}, {protocol.features} features",
        f"store    {spec.storage.root}",
        *_disk_lines(spec, store, checked),
    ]
    return lines + _group_lines(spec, store, checked.layers)


def _warm_up_lines(spec: SweepSpec) -> list[str]:
    train = spec.train
    if train.warmup_steps < train.steps:
        return []
    return [f"warning: the warm-up of {train.warmup_steps} steps outlasts the training: {train.learning_rate:g} is not reached"]


def _group_lines(spec: SweepSpec, store: Store, layers: list[Layer]) -> list[str]:
    groups = groups_of(spec, Ledger(store, spec.name).similarity())
    if groups is None:
        ended = "the pilots have" if spec.search.has_similarity_profile else "the dense training has"
        return [f"groups   chosen from the profile once {ended} ended"]
    weights = {group: sum(layer.size for layer in layers if layer.block in blocks) for group, blocks in groups.items()}
    return [f"group    {group}: {', '.join(blocks)} ({weights[group]:,} weights)" for group, blocks in groups.items()]


def _ceiling_lines(spec: SweepSpec) -> list[str]:
    limits = spec.search.constraints
    flops = [] if limits.flops is None else [f"{100 * limits.flops:g} % of the dense model's FLOPs"]
    size = [] if limits.ticket_bytes is None else [in_units(limits.ticket_bytes)]
    return [f"ceiling  {' and '.join([*flops, *size])}: what costs more is not ranked"] if flops or size else []


def _budget_words(spec: SweepSpec, checked: Preflight, rounds: str) -> str:
    sizes, costs = {layer.name: layer.size for layer in checked.layers}, costs_of(spec)
    left = spec.ticket.final_density * cost_of(sizes, costs)
    if costs:
        return f"{rounds} of the prunable layers' FLOPs ({left / 1e6:,.4g} MFLOPs at the end)"
    return f"densities {rounds} ({round(left):,} weights at the end)"


def _disk_lines(spec: SweepSpec, store: Store, checked: Preflight) -> list[str]:
    """What the sweep will need of its store, should it start with nothing there; and a warning where that is not to be had."""
    need, free = footprint(spec, checked.inputs), store.free_bytes()
    there = "" if free is None else f"; {in_units(free)} are free"
    lines = [f"disk     {in_units(need.end)} when it has ended, {in_units(need.peak)} at most while it runs{there}"]
    if free is not None and free < need.peak:
        lines.append(f"warning: {in_units(need.peak - free)} may be missing; free them there, or choose another storage.root")
    return lines
