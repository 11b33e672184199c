"""What must never happen, watched from below and from above raylt: what was lost, made twice, or believed though damaged."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from raylt.spec.canonical import canonical
from raylt.store import Lease, Ledger, Stage
from raylt.store import lease as lease_module
from raylt.store.damage import Damaged
from raylt.store.filesystem import Files
from raylt.store.layout import result_path
from raylt.store.seals import SUM, seal_bytes
from raylt.store.stages import CHECKPOINT, MANIFEST
from tests.chaos.simulation.world import World

KINDS = ("lost", "twice", "believed", "false alarm", "stuck", "traceback")
ONCE = re.compile(
    r"sweeps/[^/]+/(trials/\d+/(asked|result)|similarity|confirm(-\d+)?|spec\.lock|lease/\d+)\.json$|stages/../[^/]+/manifest\.json$"
)


class Watch:
    """`may_delete`: whether whoever runs right now mends or frees, so that what was committed may go."""

    def __init__(self, world: World, may_delete: Callable[[], bool]) -> None:
        self.world, self._may_delete = world, may_delete
        self.found: list[tuple[str, str]] = []
        self.intended: dict[str, set[bytes]] = {}  # path -> all that raylt ever wrote there
        self.committed: dict[str, bytes] = {}  # of what is created once
        self.kept: dict[str, bytes] = {}  # what raylt was told is on the disk, and has not been deleted by right
        self.mended: set[str] = set()  # paths that were deleted by right
        self.can_be_damaged = False  # whether anything was flipped
        self.flips: Counter[str] = Counter()  # path -> how often it was
        self.is_timely = True  # nobody was stopped, and no request was late
        self._signs: dict[str, tuple[Any, float, bool]] = {}  # sweep -> who gave the last sign of life, when, whether to leave
        self._given: set[tuple[str, int]] = set()
        self._epochs: dict[str, int] = {}  # sweep -> the newest epoch that somebody acquired

    def report(self, kind: str, what: str) -> None:
        self.world.say(f"!!! {kind}: {what}")
        if (kind, what) not in self.found:
            self.found.append((kind, what))

    # --- from below -------------------------------------------------------------------------------------------------

    def changed(self, path: str, data: bytes | None, by_disk: bool) -> None:
        """A file appeared, was replaced or went. `by_disk`: in a power cut."""
        if by_disk:
            self._check_kept(path, data)
            if ONCE.match(path):
                self.committed.pop(path, None)
        elif data is None:
            if ONCE.match(path):
                self._deleted(path)
            self.kept.pop(path, None)
        elif ONCE.match(path):
            if self._may_delete():  # a holder that nobody knows any more, or a lock from its copy
                self.mended.add(path)
                self.committed[path] = data
            elif self.committed.setdefault(path, data) != data:
                self.report("twice", f"{path} was committed with two contents")

    def _deleted(self, path: str) -> None:
        if not self._may_delete():
            self.report("lost", f"{path} was deleted")
        self.mended.add(path)
        self.committed.pop(path, None)

    def _check_kept(self, path: str, data: bytes | None) -> None:
        kept = self.kept.get(path)
        if kept is not None and data != kept and not (data is not None and data in self.intended.get(path, ())):
            self.report(
                "lost", f"{path} was said to be on the disk, and is {'gone' if data is None else 'another'} after a power cut"
            )

    def flipped(self, path: str) -> None:
        self.can_be_damaged = True
        self.flips[path] += 1
        self.kept.pop(path, None)
        if ONCE.match(path) and path in self.committed:
            self.committed.pop(path)

    # --- from above -------------------------------------------------------------------------------------------------

    def _believed(self, path: str, value: Any, of: Callable[[bytes], Any]) -> None:
        """What raylt made of a file must be what it makes of some bytes that were written there."""
        if not any(of(data) == value for data in self.intended.get(path, ())):
            self.report("believed", f"{path} was read as something that nobody wrote")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, raylt's reads, writes, leases and results are looked at as they happen."""
        watch, world = self, self.world
        with contextlib.ExitStack() as stack:

            def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
                original = getattr(owner, name)
                static = isinstance(vars(owner).get(name), staticmethod)
                wrapped = lambda *args, **options: around(original, *args, **options)  # noqa: E731
                stack.callback(setattr, owner, name, vars(owner)[name] if isinstance(owner, type) else original)
                setattr(owner, name, staticmethod(wrapped) if static else wrapped)

            def written(original: Any, files: Files, path: str, data: bytes) -> Any:
                watch.intended.setdefault(path, set()).add(data)
                flips = watch.flips[path]
                done = original(files, path, data)
                if done is not False and world.thread.process.is_alive and watch.flips[path] == flips:
                    watch.kept[path] = data
                return done

            def read_checked(original: Any, files: Files, path: str, **options: Any) -> Any:
                record, has_sum = original(files, path, **options)
                if record is not None and watch.can_be_damaged:
                    watch._believed(path, record, lambda data: _as_far_as_known(record, data, has_sum))
                return record, has_sum

            def read(original: Any, stage: Stage, name: str) -> bytes:
                data = original(stage, name)
                if not any(data in known for path, known in watch.intended.items() if path.startswith(stage.path)):
                    watch.report("believed", f"{stage.path}/{name} was read as something that nobody wrote")
                return data

            def load_checkpoint(original: Any, stage: Stage, name: str) -> bytes | None:
                data = original(stage, name)
                if data is not None:
                    path = f"{stage.path}/{CHECKPOINT}{name}"
                    watch._believed(
                        path,
                        seal_bytes(data, path),
                        lambda known: known,
                    )
                return data

            def make(original: Any, stage: Stage, compute: Any) -> Any:
                manifest = original(stage, compute)
                path = f"{stage.path}/{MANIFEST}"
                if watch.can_be_damaged:
                    watch._believed(path, (manifest.values, manifest.time_ms), lambda data: _numbers_of(data))
                if path in watch.committed:
                    watch.kept.setdefault(path, watch.committed[path])
                return manifest

            def finish(original: Any, ledger: Ledger, number: int, result: Any) -> Any:
                known = original(ledger, number, result)
                path = result_path(ledger.name, number)
                if path in watch.committed:
                    watch.kept.setdefault(path, watch.committed[path])
                return known

            def guard_for(original: Any, store: Any, name: str, epoch: int, token: str) -> Any:
                check = original(store, name, epoch, token)

                def checked() -> None:
                    newest = watch._epochs.get(name, 0)
                    check()
                    if newest > epoch:
                        watch.report("twice", f"epoch {epoch} may still write, though {newest} was acquired before it asked")

                return checked

            def sign(original: Any, lease: Lease, *, released: bool) -> None:
                original(lease, released=released)
                watch._signs[lease.name] = (world.thread.process, world.now, released)

            def acquire(original: Any, store: Any, name: str, *args: Any, **options: Any) -> Lease:
                before, began = watch._signs.get(name), world.now
                lease = original(store, name, *args, **options)
                epoch = lease.holder.epoch
                if (name, epoch) in watch._given:
                    watch.report("twice", f"epoch {epoch} was given again")
                watch._given.add((name, epoch))
                holder, when, released = before or (None, 0.0, True)
                if holder is not None and holder.is_alive and not released and began - when < 40 and watch.is_timely:
                    watch.report("twice", f"epoch {epoch} was taken while {holder.name} lived and had just said so")
                watch._epochs[name] = max(epoch, watch._epochs.get(name, 0))
                return lease

            wrap(Files, "write", written)
            wrap(Files, "create", written)
            wrap(Files, "read_checked", read_checked)
            wrap(Stage, "read", read)
            wrap(Stage, "load_checkpoint", load_checkpoint)
            wrap(Stage, "make", make)
            wrap(Ledger, "finish", finish)
            wrap(lease_module, "guard_for", guard_for)
            wrap(Lease, "acquire", acquire)
            wrap(Lease, "_sign", sign)
            yield

    # --- at the end --------------------------------------------------------------------------------------------------

    def check_kept(self, contents: dict[str, bytes]) -> None:
        """Everything that is created once, and was said to be there, is there."""
        for path, data in sorted(self.kept.items()):
            if ONCE.match(path) and path not in self.mended and contents.get(path) != data:
                self.report("lost", f"{path} is {'gone' if path not in contents else 'another'} at the end")

    def check_reported(self, contents: dict[str, bytes], damaged: list[Damaged]) -> None:
        """`raylt store verify` names every file whose value is not what was written."""
        named = {error.path for error in damaged}
        stages = {path.rpartition("/")[0] for path in named if path.startswith("stages/")}  # mended as a whole
        for path, data in contents.items():
            known = self.intended.get(path)
            if known and data not in known and ONCE.match(path) and path not in named and path.rpartition("/")[0] not in stages:
                value = _plain(data)
                if value is not None and all(_plain(other) != value for other in known):
                    self.report("believed", f"{path} is damaged, and verify says nothing of it")


@lru_cache(maxsize=4096)
def _plain(data: bytes) -> bytes | None:
    try:
        record = json.loads(data)
        return canonical({key: value for key, value in record.items() if key != SUM})
    except (ValueError, AttributeError):
        return None


def _as_far_as_known(record: Any, data: bytes, has_sum: bool) -> Any:
    """What was written; with the unknown members of a record that lost the name of its checksum, and is read unverified."""
    known = {key: value for key, value in json.loads(data).items() if key != SUM}
    return known if has_sum else {**record, **known}


def _numbers_of(data: bytes) -> Any:
    record = json.loads(data)
    return record["values"], record["time_ms"]
