"""What lies in a store, whose it is, and what may go: `raylt store du` and `raylt store gc`. Needs no torch.

A stage is needed by a sweep where one of its results that did not fail names it, where a trial of it that has not ended
made it, or where it belongs to the sweep's data set: images, Inception, classifier, reference. What a sweep needs stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from raylt.store.damage import Damaged
from raylt.store.lease import read_holder
from raylt.store.ledger import Ledger, existing, sweep_names
from raylt.store.ledger_files import read_lock
from raylt.store.results import FAIL
from raylt.store.stage_lock import CLAIM, Busy, read_claim, sole_maker
from raylt.store.stages import CHECKPOINT, FAILED, MANIFEST, STAGES, StageKey, Store, folder_of, is_leftover, within_stage
from raylt.store.sweep_lock import NO_LOCK, SweepLock

OF_A_DATA_SET = ("images", "inception", "classifier", "reference")  # kinds of stages that no result names


@dataclass
class StageFiles:
    """A stage's files in the store -> their bytes."""

    digest: str
    files: dict[str, int] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return MANIFEST in self.files

    @property
    def is_unfinished(self) -> bool:
        """Whether it would have to be made again anyhow: also where all that is there is the memory of a divergence."""
        return not self.is_complete

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def leftovers(self) -> dict[str, int]:
        """Checkpoints and half-written files that a maker left behind when it was done, or failed for good."""
        if self.is_unfinished:
            return {}
        return {name: size for name, size in self.files.items() if is_leftover(name) or name == CLAIM}


@dataclass(frozen=True)
class Usage:
    """Bytes of one sweep. `shared`: of `whole`, what other sweeps need too."""

    whole: int
    shared: int
    unfinished: int  # stages being made, or never finished, and what checkpoints were left behind
    ledger: int  # asked trials, results, logs, study.db


@dataclass(frozen=True)
class Garbage:
    """What may be deleted: whole folders of stages, and single files."""

    unfinished: list[StageFiles]
    failed: list[StageFiles]  # stages that failed trials alone name
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for stage in (*self.unfinished, *self.failed)) + sum(self.files.values())


class Survey:
    """One look at a store: its stages, its sweeps, and who needs what."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._names: dict[tuple[str, bool], set[str]] = {}
        self.stages: dict[str, StageFiles] = {}
        for path, size in store.all_files(STAGES):
            digest, name = within_stage(path) or ("", "")
            if name:
                self.stages.setdefault(digest, StageFiles(digest)).files[name] = size
        self.ledgers: dict[str, Ledger] = {}
        self.damaged: dict[str, Damaged] = {}  # sweeps whose needs nobody can tell
        for name in sweep_names(store):
            try:
                self.ledgers[name] = existing(store, name)
            except Damaged as error:
                self.damaged[name] = error
        self.locks = {name: read_lock(store, name) or NO_LOCK for name in self.ledgers}
        named = set[str]().union(*(self._named(name, failed) for name in self.ledgers for failed in (False, True)))
        unnamed = [stage.digest for stage in self.stages.values() if stage.is_complete and stage.digest not in named]
        self._keys = dict(zip(unnamed, store.each(self._key_of, unnamed), strict=True))

    def _key_of(self, digest: str) -> StageKey:
        """The key of a stage; {} where it is damaged."""
        try:
            return dict(self.store.find(digest).key)
        except Damaged:
            return {}

    def _named(self, name: str, failed: bool) -> set[str]:
        """The stages that a sweep's results name: of trials that failed, or of the others."""
        key = name, failed
        if key not in self._names:
            results = self.ledgers[name].results.values()
            self._names[key] = {digest for r in results if (r.state == FAIL) == failed for digest in r.stages}
        return self._names[key]

    @cached_property
    def needed(self) -> dict[str, set[str]]:
        """Sweep -> the complete stages that it needs."""
        return {name: self._needed(name) for name in self.ledgers}

    def _needed(self, name: str) -> set[str]:
        still_open = {f"{name}/{trial.id}" for trial in self.ledgers[name].open_trials()}
        of_open_trials = {digest for digest in self.stages if self.owner(digest) in still_open}
        data = {digest for digest, key in self._keys.items() if self._is_of_data_set(key, self.locks[name])}
        wanted = of_open_trials.union(data, self._named(name, False))
        return {digest for digest in wanted if digest in self.stages and self.stages[digest].is_complete}

    def _is_of_data_set(self, key: StageKey, lock: SweepLock) -> bool:
        if key.get("kind") not in OF_A_DATA_SET:
            return False
        return key.get("sha256", key.get("data", {}).get("sha256")) in (lock.images, lock.inception)

    def owner(self, digest: str) -> str:
        """Who made a stage that no result names, or started to: SWEEP/TRIAL, or nobody we know."""
        return self._owners.get(digest, "")

    @cached_property
    def _owners(self) -> dict[str, str]:
        return dict(zip(self.stages, self.store.each(self._owner_of, self.stages), strict=True))

    def _owner_of(self, digest: str) -> str:
        stage = self.stages[digest]
        if digest in self._keys:
            return self._owner_in(f"{folder_of(digest)}/{MANIFEST}")
        if FAILED in stage.files:
            return self._owner_in(f"{folder_of(digest)}/{FAILED}")
        claim = read_claim(self.store, folder_of(digest)) if stage.is_unfinished else None
        return "" if claim is None else claim.owner

    def _owner_in(self, path: str) -> str:
        try:
            return str((self.store.read_record(path) or {}).get("owner", ""))
        except Damaged:
            return ""

    def usage(self) -> dict[str, Usage]:
        """Sweep -> its bytes."""
        return {name: self._usage(name) for name in self.ledgers}

    def _usage(self, name: str) -> Usage:
        needed = self.needed[name]
        others = set[str]().union(*(needed for other, needed in self.needed.items() if other != name))
        garbage = self.garbage(name)
        unfinished = sum(stage.bytes for stage in garbage.unfinished) + sum(garbage.files.values())
        ledger = sum(size for _, size in self.store.all_files(f"sweeps/{name}"))
        return Usage(self._bytes(needed), self._bytes(needed & others), unfinished, ledger)

    def _bytes(self, digests: set[str]) -> int:
        return sum(self.stages[digest].bytes - sum(self.stages[digest].leftovers.values()) for digest in digests)

    def unnamed_bytes(self) -> int:
        """Stages that no sweep needs or has started: of `raylt ticket`, of failed trials, of sweeps that were deleted."""
        named = set[str]().union(*self.needed.values(), *(self._started_by(name) for name in self.ledgers))
        return sum(stage.bytes for digest, stage in self.stages.items() if digest not in named)

    def _started_by(self, name: str) -> set[str]:
        unfinished = (digest for digest, stage in self.stages.items() if stage.is_unfinished)
        return {digest for digest in unfinished if self.owner(digest).startswith(f"{name}/")}

    def garbage(self, name: str) -> Garbage:
        """What sweep `name` has left and no sweep needs."""
        needed = set[str]().union(*self.needed.values())
        unfinished = [self.stages[digest] for digest in sorted(self._started_by(name))]
        failed = sorted(digest for digest in self._of_failed_trials(name) if digest not in needed)
        touched = self.needed[name] | self._named(name, True)
        files = {
            f"{folder_of(digest)}/{file}": size
            for digest in sorted(touched - set(failed))
            if digest in self.stages
            for file, size in self.stages[digest].leftovers.items()
        }
        return Garbage(unfinished, [self.stages[digest] for digest in failed], files)

    def _of_failed_trials(self, name: str) -> Iterator[str]:
        """Whole stages that a failed trial names, or has made: one whose worker died could not name them."""
        ids = {f"{name}/{number}" for number, result in self.ledgers[name].results.items() if result.state == FAIL}
        named = self._named(name, True)
        for digest, stage in self.stages.items():
            if stage.is_complete and (digest in named or self.owner(digest) in ids):
                yield digest

    def runs_beside(self, name: str) -> list[str]:
        """Other sweeps on the same data that run right now: they may be about to name any stage."""
        data = self.locks[name].images
        beside = [other for other in self.ledgers if other != name and self.locks[other].images == data]
        holders = {other: read_holder(self.store, other) for other in beside}
        return [other for other, holder in holders.items() if holder is not None and holder.seems_alive]


def make_room(store: Store, name: str) -> int:
    """Checkpoints of the sweep's unfinished stages go without its lease; returns the bytes freed.

    For a full disk: there is no room for our lease's file, so none for any driver's that starts meanwhile.
    """
    freed = 0
    for stage in Survey(store).garbage(name).unfinished:
        for file, size in stage.files.items():
            if file.startswith(CHECKPOINT):
                store.delete(f"{folder_of(stage.digest)}/{file}")
                freed += size
    return freed


def delete(store: Store, garbage: Garbage) -> int:
    """Delete it, but for stages that somebody makes right now; returns the bytes freed. `store`: with the sweep's guard."""
    freed = 0
    for stage in (*garbage.unfinished, *garbage.failed):
        freed += _delete_stage(store, stage)
    for path, size in garbage.files.items():
        store.guard()
        store.delete(path)
        freed += size
    return freed


def _delete_stage(store: Store, stage: StageFiles) -> int:
    folder = folder_of(stage.digest)
    claim = read_claim(store, folder)
    sweep = store.owner.partition("/")[0]  # we hold its lease, so a claim of its trials is of the dead
    maker = claim.owner if claim is not None and claim.owner.partition("/")[0] == sweep else store.owner
    try:
        with sole_maker(store, stage.digest, folder, maker, store.guard, wait=False):
            if stage.is_unfinished and store.read(f"{folder}/{MANIFEST}") is not None:
                return 0  # made whole since we looked
            store.delete(f"{folder}/{MANIFEST}")  # first: without it, whatever is left is nothing
            store.delete_folder(folder)
    except Busy:
        return 0
    return stage.bytes
