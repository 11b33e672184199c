"""A store through which a computation sees what is there, and makes nothing."""

from __future__ import annotations

from collections.abc import Callable

from raylt.store.stages import CODE_SCHEMA, Manifest, Output, Stage, StageKey, Store


class NotComplete(Exception):
    """A stage would have to be made."""


class ReadOnlyStore(Store):
    """Whoever walks over it as if to compute ends, by `NotComplete`, at the first stage that is not there."""

    def stage(self, key: StageKey) -> Stage:
        return _ReadOnlyStage(self, {"schema": CODE_SCHEMA, **key})


class _ReadOnlyStage(Stage):
    def make(self, compute: Callable[[Stage], Output]) -> Manifest:
        manifest = self.manifest()
        if manifest is None:
            raise NotComplete
        return manifest
