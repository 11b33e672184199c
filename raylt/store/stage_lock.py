"""One maker at a time of a stage, on whatever the store lies.

Where the filesystem has locks, a file lock: exact, and it dies with its process. Also on NFS, whose server drops the locks
of a client that has vanished (NFS 4: after 90 s). Elsewhere, as on S3, a claim in the stage's folder that its maker keeps
fresh. Claims save work and decide nothing: a stage is created once, so should two make it, the first that is done made it.

On either, `claim.json` stays in the folder of a stage that was never finished, and says whose it was.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import filelock

from raylt.errors import Diverged, EnvironmentFailure
from raylt.store.damage import Damaged
from raylt.store.filesystem import Files

CLAIM = "claim.json"
STALE_AFTER_S = 60.0  # its maker is taken for dead when a claim has not changed for so long
HEARTBEAT_EVERY_S = 10.0
SETTLE_S = 0.2  # two that claim at once look, after this, who wrote last
POLL_S = 1.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Busy(Exception):
    """Another process makes this stage right now."""


@dataclass(frozen=True)
class Claim:
    owner: str  # SWEEP/TRIAL
    token: str
    heartbeat: float  # new with each sign of life; 0: nobody is at it any more

    @staticmethod
    def by(owner: str, heartbeat: float) -> Claim:
        return Claim(owner, uuid.uuid4().hex, heartbeat)


def read_claim(files: Files, folder: str) -> Claim | None:
    """The claim on a stage; None where there is none, or none of ours."""
    try:
        content = files.read_record(f"{folder}/{CLAIM}")
        return None if content is None else Claim(**content)
    except (TypeError, Damaged):
        return None


@contextlib.contextmanager
def sole_maker(
    files: Files, digest: str, folder: str, owner: str, guard: Callable[[], None], *, wait: bool = True
) -> Iterator[None]:
    """Inside, nobody else makes the stage `digest`. Waits for whoever does; with `wait=False` raises `Busy` instead.

    A claim of `owner` itself is taken over at once: the same trial, started over after its process or node was lost.
    """
    guard()
    lock = _file_lock(files, digest, guard, wait) if files.is_local else None
    claim = Claim.by(owner, 0) if lock is not None else _claimed(files, folder, owner, guard, wait)
    heart = None if lock is not None else _Heart(files, folder, claim)
    try:
        if lock is not None:
            _write(files, folder, claim)
        yield
        finished = True
    except BaseException as error:
        finished = isinstance(error, Diverged)  # the store remembers that: nobody will go on with the stage
        raise
    finally:
        try:
            if heart is not None:
                heart.stop()
            with contextlib.suppress(EnvironmentFailure):  # the store is away: the claim goes stale by itself
                _leave(files, folder, claim, finished)
        finally:
            if lock is not None:
                lock.release()


def _leave(files: Files, folder: str, claim: Claim, finished: bool) -> None:
    current = read_claim(files, folder)
    if current is not None and current.token == claim.token:
        if finished:
            files.delete(f"{folder}/{CLAIM}")
        else:
            _write(files, folder, replace(claim, heartbeat=0))


def _write(files: Files, folder: str, claim: Claim) -> None:
    files.write_record(f"{folder}/{CLAIM}", asdict(claim))


def _file_lock(files: Files, digest: str, guard: Callable[[], None], wait: bool) -> filelock.BaseFileLock | None:
    """The stage's lock, held; None where the filesystem has no locks."""
    path = files.local_path(f"locks/{digest}")
    with files.in_words("lock", f"locks/{digest}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
        while True:
            try:
                lock.acquire(timeout=1 if wait else 0, poll_interval=0.1)
                return lock
            except filelock.Timeout:
                if not wait:
                    raise Busy from None
                guard()
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return None


def _claimed(files: Files, folder: str, owner: str, guard: Callable[[], None], wait: bool) -> Claim:
    """A claim of ours on the stage, once nobody living has one."""
    watched, since = None, time.monotonic()
    while True:
        current = read_claim(files, folder)
        if current != watched:
            watched, since = current, time.monotonic()
        if current is None or _may_take(current, owner, time.monotonic() - since):
            claim = Claim.by(owner, time.time())
            _write(files, folder, claim)
            time.sleep(SETTLE_S)
            written = read_claim(files, folder)
            if written is not None and written.token == claim.token:
                return claim
        elif not wait:
            raise Busy
        time.sleep(POLL_S)
        guard()


def _may_take(claim: Claim, owner: str, unchanged_s: float) -> bool:
    """Whether nobody living holds a claim, by the time that it was seen unchanged: two hosts' clocks are never compared."""
    is_same_trial = owner != "" and claim.owner == owner
    return is_same_trial or claim.heartbeat == 0 or unchanged_s > STALE_AFTER_S


class _Heart:
    """Keeps a claim fresh from a thread, until it is stopped or another has taken the claim."""

    def __init__(self, files: Files, folder: str, claim: Claim) -> None:
        self.files, self.folder, self.claim = files, folder, claim
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_EVERY_S):
            with contextlib.suppress(EnvironmentFailure):  # the store is away: what is made will say so
                current = read_claim(self.files, self.folder)
                if current is None or current.token != self.claim.token:
                    return
                _write(self.files, self.folder, replace(self.claim, heartbeat=time.time()))
