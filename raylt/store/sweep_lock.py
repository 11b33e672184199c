"""What is resolved once, when a sweep starts, and then holds for its life: `spec.lock.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from raylt.spec.canonical import digest_of
from raylt.store.stages import FIRST_SEALED


class Origin(NamedTuple):
    """What the files that a sweep has written since it was started are checked by."""

    is_sealed: bool  # they must have checksums
    sweep: str  # which sweep it is: the digest of its lock


class Computed(NamedTuple):
    """How a sweep's numbers are computed."""

    device: str
    precision: str
    threads: int
    form: str  # of a training step


@dataclass(frozen=True)
class SweepLock:
    """The one place that knows what locks of earlier sweeps lack: there, a property is None, or says what held then."""

    record: Mapping[str, Any]  # as it lies in the store, since its digest says which sweep a file belongs to

    @property
    def code_schema(self) -> int:
        """The `CODE_SCHEMA` that the sweep was started with."""
        return int(self.record.get("code_schema", 1))

    @property
    def is_sealed(self) -> bool:
        """Whether the sweep's files have checksums."""
        return self.code_schema >= FIRST_SEALED

    @property
    def origin(self) -> Origin:
        return Origin(self.is_sealed, digest_of(self.record) if self.is_sealed else "")

    @property
    def digest(self) -> str | None:
        """Of the spec."""
        return self.record.get("digest")

    @property
    def spec(self) -> str | None:
        """The spec as the sweep was started with it, as YAML."""
        return self.record.get("spec")

    @property
    def computed(self) -> Computed | None:
        if "device" not in self.record:
            return None
        form = self.record.get("form", "eager")  # there was no other
        return Computed(self.record["device"], self.record["precision"], self.record["threads"], form)

    @property
    def trials_a_gpu(self) -> int:
        """How many share a GPU under `resources.gpus: auto`."""
        return int(self.record.get("trials_a_gpu", 1))

    @property
    def startup(self) -> int:
        """Of the sampler."""
        return int(self.record["startup"])

    @property
    def images(self) -> str | None:
        """SHA-256 of the images."""
        return self.record.get("data_sha256")

    @property
    def knows_inception(self) -> bool:
        return "inception_sha256" in self.record

    @property
    def inception(self) -> str | None:
        """SHA-256 of Inception's weights, where its features are used."""
        return self.record.get("inception_sha256")

    @property
    def versions(self) -> Mapping[str, str]:
        """Library -> its version then."""
        return self.record.get("versions") or {}


NO_LOCK = SweepLock({})  # of what was started by nobody yet, or by the first raylt
