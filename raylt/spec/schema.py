"""What a sweep is: its sections together, what follows from them, and which keys make its identity.

Nothing here imports torch: `raylt validate` reads a spec in well under a second. How a YAML file becomes a
`SweepSpec`, and how errors name its lines, is in `load.py`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from raylt.spec.canonical import JsonObject, digest_of
from raylt.spec.presets import PRESETS, UnetConfig, block_names, block_of, default_groups
from raylt.spec.sections import (
    ConfirmSpec,
    DataSpec,
    MetricsSpec,
    ModelSpec,
    ProtocolSpec,
    ResourcesSpec,
    SearchSpec,
    Section,
    StorageSpec,
    TicketSpec,
    TrackingSpec,
    TrainSpec,
)
from raylt.spec.vocabulary import IMAGE_SHAPES, NAME_LENGTH, AsWritten, FeaturesName, Protocol

SCHEMA = 1


class SweepSpec(Section):
    schema_: Annotated[Literal[1], AsWritten, Field(alias="schema")]
    """The version of the spec's format: 1. Required."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=NAME_LENGTH)]
    """The sweep's name: letters, digits, `_` and `-`. Required."""
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    ticket: TicketSpec = TicketSpec()
    search: SearchSpec = SearchSpec()
    metrics: MetricsSpec = MetricsSpec()
    confirm: ConfirmSpec = ConfirmSpec()
    resources: ResourcesSpec = ResourcesSpec()
    storage: StorageSpec = StorageSpec()
    tracking: TrackingSpec = TrackingSpec()

    @property
    def image_shape(self) -> tuple[int, int]:
        """(channels, size in pixels) of the images the model sees."""
        return self.data.shape

    @property
    def unet_config(self) -> UnetConfig:
        """The `UNet2DModel` configuration in full: preset or config, with channels and size of the data set."""
        channels, size = self.image_shape
        config = self.model.config
        base = dict(config) if config is not None else dict(PRESETS[self.model.preset or _default_preset(self)])
        return {**base, "sample_size": size, "in_channels": channels, "out_channels": channels}

    @property
    def blocks(self) -> list[str]:
        return block_names(self.unet_config)

    @property
    def free_blocks(self) -> list[str]:
        """The blocks not kept dense, in the order of the forward pass."""
        return [block for block in self.blocks if not matches(block, self.ticket.keep_dense)]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its blocks, without those kept dense; `default_groups` where none are given.

        Raises `LookupError` for `auto`, which names no group by itself: `search/groups.py` settles such a spec.
        """
        groups, free = self.search.groups, self.free_blocks
        if isinstance(groups, str):
            raise LookupError("search.groups: auto has no groups before the profile is measured")
        chosen = {g: [b for b in free if matches(b, patterns)] for g, patterns in (groups or {}).items()}
        return default_groups(free) if groups is None else {group: blocks for group, blocks in chosen.items() if blocks}

    def protocol(self, name: Protocol) -> ProtocolSpec:
        """A metrics protocol with its features and its spacing named."""
        protocol: ProtocolSpec = getattr(self.metrics, name)
        default: FeaturesName = "digits-cnn" if self.data.name == "digits" else "inception"
        resolved = {"features": protocol.features or default, "spacing": protocol.spacing or protocol.own_spacing}
        return protocol.model_copy(update=resolved)

    def dump(self) -> JsonObject:
        """The whole spec as plain data, as `spec.yaml` in the store and MLflow show it."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> JsonObject:
        """What makes this sweep the sweep it is: dotted key -> value. Changing one of these is another sweep."""
        flat = flatten(self.dump())
        if self.ticket.densities is None:  # a default that is written out is still the default
            flat["ticket.density"] = self.ticket.final_density
        if self.model.config is None:
            flat["model.preset"] = self.model.preset or _default_preset(self)
        if self.data.shape[0] == IMAGE_SHAPES[self.data.name][0]:  # sweeps started before there was such a key stay the same
            del flat["data.channels"]
        if self.train.compile == "auto":
            del flat["train.compile"]
        names: tuple[Protocol, ...] = ("search", "final")
        flat |= {f"metrics.{name}.features": self.protocol(name).features for name in names}
        for name in names:
            if self.protocol(name).spacing == getattr(self.metrics, name).own_spacing:  # also so in specs that lack the key
                del flat[f"metrics.{name}.spacing"]
        return {key: value for key, value in flat.items() if not _is_free(key)}

    @property
    def digest(self) -> str:
        return digest_of(self.identity())


# Keys that may change between two runs of one sweep: they decide where and how long, never what comes out of a trial.
# `search.concurrency` decides which trials a later proposal knows, though: what has been asked stays as it is.
FREE = (
    *("schema", "name", "data.root", "train.checkpoint_every", "search.trials", "search.concurrency"),
    *("confirm.*", "resources.*", "storage.*", "tracking.*"),
)


def _is_free(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in FREE)


def _default_preset(spec: SweepSpec) -> str:
    return {"digits": "digits", "mnist": "tiny", "fashion-mnist": "tiny"}.get(spec.data.name, "ddpm-cifar10")


def flatten(tree: JsonObject, prefix: str = "") -> JsonObject:
    """Nested mappings -> {dotted key: leaf}; lists are leaves."""
    flat: JsonObject = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a block or layer is named by one of `patterns`: its own name, its block's, or a wildcard."""
    return any(fnmatchcase(name, p) or fnmatchcase(block_of(name), p) for p in patterns)
