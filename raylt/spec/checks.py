"""What no single key of a spec can know: keys that contradict each other.

Everything here needs the file alone, no torch; what needs shapes or data is checked by `sweep/preflight.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from raylt.errors import Problem
from raylt.spec.paths import CREDENTIALS_ADVICE, has_credentials, root_problem
from raylt.spec.schema import SweepSpec, matches
from raylt.spec.tracking_uri import uri_problem
from raylt.spec.unet_checks import config_problems
from raylt.spec.vocabulary import IMAGE_SHAPES

LEAST_GPU = 0.0001
_TRACKING_ADVICE = (
    "a URI without; a server's come from the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN), a database's with its whole URI in MLFLOW_TRACKING_URI, which nothing keeps"
)
_MODEL = ("model", "data.name")  # what the names of the blocks rest on: the default preset is the data set's


def cross_key_problems(spec: SweepSpec) -> list[Problem]:
    """What no single key can know: pairs of keys that contradict each other. Lines are added by the caller."""
    config = list(config_problems(spec.model.config or {}))
    blocks = [] if config else [*_size_problems(spec), *_keep_dense_problems(spec), *_group_problems(spec)]
    rest = [*_search_problems(spec), *_metrics_problems(spec), *_confirm_problems(spec), *_storage_problems(spec)]
    rest += _resource_problems(spec)
    return [*_data_problems(spec), *config, *_ticket_problems(spec), *blocks, *rest]


def _problem(key: str, what: str, expected: str, given: object, *about: str) -> Problem:
    """`about`: the other keys it rests on."""
    return Problem(key, what, expected, given, has_given=True, about=about)


def _data_problems(spec: SweepSpec) -> Iterator[Problem]:
    if spec.data.name == "images" and spec.data.size is None:
        yield Problem("data.size", "is needed for a folder of images", "for example size: 32", about=("data.name",))
    if spec.data.name == "images" and spec.data.root is None:
        yield Problem("data.root", "is needed for a folder of images", "the folder", about=("data.name",))
    if spec.data.name == "digits" and spec.data.root is not None:
        expected = "no data.root, or the data.name of what lies there, such as images"
        what = "is never looked at: the digits come with scikit-learn"
        yield _problem("data.root", what, expected, spec.data.root, "data.name")
    channels = IMAGE_SHAPES[spec.data.name][0]
    if spec.data.name != "images" and spec.data.channels not in ("auto", channels):
        what, expected = f"is not what {spec.data.name} has", f"{channels}, or auto"
        yield _problem("data.channels", what, expected, spec.data.channels, "data.name")
    yield from _overruled_problems(spec)
    if spec.model.preset is not None and spec.model.config is not None:
        yield Problem("model", "has both preset and config", "one of them")


def _overruled_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Keys of `model.config` that the data decide: there as well, they must say the same."""
    channels, size = spec.image_shape
    for key, right in (("in_channels", channels), ("out_channels", channels), ("sample_size", size)):
        value = (spec.model.config or {}).get(key, right)
        same = [right] if key != "sample_size" else [right, [right, right], None]  # as diffusers takes it
        if right and (isinstance(value, bool) or value not in same):
            expected, about = f"{right}, or no such key: the images say it", ("data.name", "data.size", "data.channels")
            yield _problem(f"model.config.{key}", "contradicts the images", expected, value, *about)


def _resource_problems(spec: SweepSpec) -> Iterator[Problem]:
    gpus = spec.resources.gpus
    if isinstance(gpus, float) and gpus > 1 and not gpus.is_integer():
        what = "is more than one GPU and no whole number of them"
        yield _problem("resources.gpus", what, "a fraction below 1 (trials share a GPU), or a whole number", gpus)
    elif isinstance(gpus, float) and 0 < gpus < LEAST_GPU:
        yield _problem("resources.gpus", "is too small a share", f"{LEAST_GPU} or more, which Ray counts in, or 0", gpus)


def _size_problems(spec: SweepSpec) -> Iterator[Problem]:
    levels = len(spec.unet_config.get("down_block_types", [1] * 4))
    size = spec.image_shape[1]
    if size % 2 ** (levels - 1):
        what = f"does not halve {levels - 1} times, once per level of the U-Net but the last"
        expected = f"a data.size divisible by {2 ** (levels - 1)}, or a U-Net with fewer levels"
        yield _problem("data.size", what, expected, size, *_MODEL)


def _ticket_problems(spec: SweepSpec) -> Iterator[Problem]:
    ticket = spec.ticket
    if ticket.rewind_step >= spec.train.steps:
        expected = f"less than train.steps, which is {spec.train.steps}"
        what = "lies at or after the end of training"
        yield _problem("ticket.rewind_step", what, expected, ticket.rewind_step, "train.steps")
    if ticket.density is not None and ticket.densities is not None:
        yield Problem("ticket.densities", "is given beside ticket.density", "one of them", about=("ticket.density",))
    if ticket.densities is not None:
        if len(ticket.densities) != ticket.rounds:
            expected = f"{ticket.rounds} densities, one for each of ticket.rounds"
            what = "has another length than ticket.rounds"
            yield _problem("ticket.densities", what, expected, ticket.densities, "ticket.rounds")
        if any(later > earlier for earlier, later in zip(ticket.densities, ticket.densities[1:], strict=False)):
            yield _problem("ticket.densities", "rise", "a list that never rises", ticket.densities)
    if ticket.shared_rounds >= ticket.rounds:
        expected = f"less than ticket.rounds, which is {ticket.rounds}: else nothing is left to search"
        yield _problem("ticket.shared_rounds", "covers every round", expected, ticket.shared_rounds, "ticket.rounds")
    if ticket.criterion in ("snip", "synflow") and ticket.mode != "rewind":
        expected = f"rewind: {ticket.criterion} scores the weights of the rewind point, which another mode does not go back to"
        yield _problem("ticket.mode", "does not fit ticket.criterion", expected, ticket.mode, "ticket.criterion")


def _keep_dense_problems(spec: SweepSpec) -> Iterator[Problem]:
    """A pattern may name blocks, or layers of one block: of those, the block is known here."""
    keep_dense = spec.ticket.keep_dense
    for index, pattern in enumerate(keep_dense):
        first = ".".join(pattern.split(".")[:2]) if pattern.startswith(("down_blocks", "up_blocks")) else pattern.split(".")[0]
        if not any(fnmatchcase(block, pattern) or fnmatchcase(block, first) for block in spec.blocks):
            expected = f"one of {', '.join(spec.blocks)}, or a pattern"
            yield _problem(f"ticket.keep_dense.{index}", "names no block", expected, pattern, *_MODEL)
    if all(matches(block, keep_dense) for block in spec.blocks):
        what = "keeps every block: nothing is left to prune"
        yield _problem("ticket.keep_dense", what, "fewer blocks", keep_dense, *_MODEL)


def _group_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Every block not kept dense has one group; every group has a block, every pattern names one."""
    groups, free = spec.search.groups, spec.free_blocks
    about = ("search.groups", "ticket.keep_dense", *_MODEL)
    if not isinstance(groups, dict) or not free:
        return
    for group, patterns in groups.items():
        strange = [i for i, p in enumerate(patterns) if not any(matches(block, [p]) for block in spec.blocks)]
        for index in strange:
            expected = f"one of {', '.join(spec.blocks)}, or a pattern"
            yield _problem(f"search.groups.{group}.{index}", "names no block", expected, patterns[index], *about)
        if not strange and not any(matches(block, patterns) for block in free):
            expected = f"some of {', '.join(free)}"
            yield _problem(f"search.groups.{group}", "holds no block to prune", expected, patterns, *about)
    for block in spec.blocks:
        owners = [g for g, patterns in groups.items() if matches(block, patterns)]
        if len(owners) > 1:
            what = f"block {block} has more than one group"
            yield _problem(f"search.groups.{owners[1]}", what, "each block once", owners, *about)
        if not owners and block in free:
            what = f"block {block} has no group"
            yield _problem("search.groups", what, "every block not kept dense, once", list(groups), *about)


def _search_problems(spec: SweepSpec) -> Iterator[Problem]:
    search, ticket = spec.search, spec.ticket
    for key, values in (("objectives", search.objectives), ("baselines", search.baselines)):
        if len(set(values)) < len(values):
            yield _problem(f"search.{key}", "names one twice", "each once", list(values))
    if search.rungs and search.trials and ticket.rounds - ticket.shared_rounds < 2:
        what = "leaves no round to stop at: a rung is a round between the shared ones and the last"
        expected = f"false, or ticket.rounds of {ticket.shared_rounds + 2} or more"
        yield _problem("search.rungs", what, expected, search.rungs, "ticket.rounds", "ticket.shared_rounds")
    # Whatever proposes, groups: auto are chosen from the profile; fixed ones need it where it guides the proposals.
    needs_profile = search.has_auto_groups or search.sampler == "similarity"
    if not needs_profile or not search.trials or not search.has_similarity_profile:
        return
    about = ("search.sampler", "search.trials", "search.groups")
    purpose, without = (" (groups: auto)", "") if search.has_auto_groups else ("", ", or sampler: tpe")
    if not search.has_profile:
        what = f"are too few for profile: {search.profile}{purpose}"
        expected = f"2 or more: similarity is measured between pilots (or profile: movement or cost{without})"
        yield _problem("search.pilots", what, expected, search.pilots, *about, "search.profile")
    if ticket.criterion == "synflow":
        what = f"cannot be measured{purpose}: under criterion: synflow all pilots have one mask"
        yield _problem("search.profile", what, f"movement, cost or size{without}", search.profile, *about, "ticket.criterion")


def _metrics_problems(spec: SweepSpec) -> Iterator[Problem]:
    needs = {"digits-cnn": "digits", "mnist-cnn": "mnist"}
    for name, protocol in (("search", spec.metrics.search), ("final", spec.metrics.final)):
        features = protocol.features
        if features in needs and spec.data.name != needs[features]:
            expected = f"inception, or data.name: {needs[features]}"
            what = f"know nothing of {spec.data.name}"
            yield _problem(f"metrics.{name}.features", what, expected, features, "data.name")
        if protocol.sampler == "dpm++" and protocol.steps < 2:
            what = "is too few for dpm++"
            yield _problem(f"metrics.{name}.steps", what, "2 or more", protocol.steps, f"metrics.{name}.sampler")
        if protocol.sampler != "ddim" and protocol.spacing is not None:
            what, expected = f"is of no use to {protocol.sampler}", "null, or sampler: ddim"
            yield _problem(f"metrics.{name}.spacing", what, expected, protocol.spacing, f"metrics.{name}.sampler")


def _confirm_problems(spec: SweepSpec) -> Iterator[Problem]:
    confirm, rewind_step, rounds = spec.confirm, spec.ticket.rewind_step, spec.ticket.rounds
    for key, values in (("steps", confirm.steps), ("controls", confirm.controls), ("control_rounds", confirm.control_rounds)):
        if values is not None and len(set(values)) < len(values):
            yield _problem(f"confirm.{key}", "names one twice", "each once", list(values))
    for index, steps in enumerate(confirm.steps or []):
        if steps <= rewind_step:
            what, expected = "ends at or before the rewind point", f"more than ticket.rewind_step, which is {rewind_step}"
            yield _problem(f"confirm.steps.{index}", what, expected, steps, "ticket.rewind_step")
    for index, number in enumerate(confirm.control_rounds or []):
        if number > rounds:
            expected = f"1 to {rounds}, the prunings of ticket.rounds"
            yield _problem(f"confirm.control_rounds.{index}", "is no round of a search", expected, number, "ticket.rounds")


def _storage_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Secrets where everybody may read them. They are not shown: whoever sees the message need not see them."""
    for key, uri, advice in (
        ("storage.root", spec.storage.root, CREDENTIALS_ADVICE),
        ("tracking.uri", spec.tracking.uri, _TRACKING_ADVICE),
    ):
        if has_credentials(uri):
            yield Problem(key, "holds a user name, password or token", advice)


def place_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Where nothing can ever be kept or recorded. Of a sweep that is to run: one that a store has may be read all the same."""
    if (problem := root_problem(spec.storage.root)) is not None:
        yield _problem("storage.root", *problem, spec.storage.root)
    if (problem := uri_problem(spec.tracking.uri)) is not None and not has_credentials(spec.tracking.uri):
        yield _problem("tracking.uri", *problem, spec.tracking.uri)
