"""What goes wrong: each fault has the number of the operation at which it is due, and strikes at the first one it fits.

It strikes before the operation, in the midst of it, or after it, when its effect stands and its answer is lost.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.chaos.simulation.world import Killed, Process, World

CHANGING = frozenset({"write", "fsync", "link", "rename", "unlink", "mkdir", "rmdir", "sync", "put", "put-new", "delete"})
SENT = frozenset({"put", "put-new", "delete"})  # requests that may still be under way when their client has given up
MOMENTS = ("before", "midst", "after")

# Kind -> the operations it may strike; None: any.
ON_DISK: dict[str, frozenset[str] | None] = {
    "refused": None, "no space": CHANGING, "torn write": frozenset({"write"}), "sync fails": frozenset({"fsync", "sync"}),
    "answer lost": CHANGING, "killed": None, "stopped": None, "host paused": None, "power cut": None, "flipped": None,
    "clock stepped": None, "second driver": None, "asked to stop": None, "reader": None,
}  # fmt: skip
IN_BUCKET: dict[str, frozenset[str] | None] = {
    "refused": None, "server away": None, "slow request": SENT, "answer lost": SENT, "killed": None, "stopped": None,
    "host paused": None, "power cut": None, "flipped": None, "clock stepped": None, "second driver": None,
    "asked to stop": None, "reader": None,
}  # fmt: skip


@dataclass
class Fault:
    kind: str
    due: int
    moment: str
    target: str = ""  # the kind of file that it waits for
    struck: str = ""  # the operation and the kind of file it struck


class Setting(Protocol):
    """What faults act upon beyond the operation they strike."""

    world: World
    watch: Any
    faults: list[Fault]
    is_calm: bool

    def power_cut(self) -> None: ...
    def flip(self) -> bool: ...
    def pause_host(self, seconds: float) -> None: ...
    def call(self, kind: str) -> None: ...
    def error(self, kind: str, op: str, path: str) -> OSError: ...
    def kind_of(self, path: str) -> str: ...


THEMES: tuple[tuple[str, ...], ...] = (  # what a run draws its faults from; (): all there are
    (), (), ("stopped", "host paused", "second driver", "slow request"),
    ("flipped", "flipped", "killed", "second driver", "stopped"),
    ("power cut", "killed", "sync fails", "answer lost"), ("refused", "no space", "torn write", "answer lost", "server away"),
)  # fmt: skip
# A fault may wait for a file of a kind: most operations are signs of life.
TARGETS = (
    "asked.json", "result.json", "manifest.json", "epoch", "lease.json", "spec.lock.json", "similarity.json",
    "claim.json", "checkpoint", "trained.safetensors", "key.json", "failed.json", "folder",
)  # fmt: skip


def drawn(
    draw: random.Random, kinds: dict[str, frozenset[str] | None], most: int, operations: int,
    theme: tuple[str, ...] = (), targets: tuple[str, ...] = TARGETS,
) -> list[Fault]:  # fmt: skip
    """Up to `most` faults at operations among so many: some alone, some close upon another."""
    theme = theme or draw.choice(THEMES)
    names = [name for name in theme if name in kinds] or sorted(kinds)
    found: list[Fault] = []
    due = 0
    for _ in range(draw.randint(0, most)):
        is_close = found and draw.random() < 0.5
        due = due + draw.randrange(30) if is_close else draw.randrange(1, operations)
        target = draw.choice(targets) if draw.random() < 0.5 else ""
        found.append(Fault(draw.choice(names), due, draw.choice(MOMENTS), target))
    return sorted(found, key=lambda fault: fault.due)


class Operations:
    """Every operation on the storage passes here: it takes time, others go on meanwhile, and what is due strikes."""

    def __init__(self, setting: Setting, kinds: dict[str, frozenset[str] | None], latency_s: tuple[float, float]) -> None:
        self.setting, self.kinds, self.latency_s = setting, kinds, latency_s
        self.world = setting.world

    def __call__(
        self, op: str, path: str, effect: Callable[[], Any] = lambda: None, half: Callable[[], None] = lambda: None
    ) -> Any:
        world = self.world
        world.operations += 1
        if world.trace is not None:
            world.say(f"{op} {path}")
        world.sleep(world.random.uniform(*self.latency_s))
        fault = self._due(op, path)
        if fault is None:
            return effect()
        fault.struck = f"{op} {self.setting.kind_of(path)}"
        world.say(f"*** {fault.kind} {fault.moment} {op} {path}")
        if fault.kind == "slow request":
            self._send_late(op, path, effect)
            raise self.setting.error(fault.kind, op, path)
        if fault.kind == "killed" and fault.moment == "midst" and op in SENT:
            self._send_late(op, path, effect, 0.0)
        if fault.moment == "after" or fault.kind == "answer lost":
            answer = effect()
            self._strike(fault.kind, op, path)
            return answer
        if fault.moment == "midst" or fault.kind == "torn write":
            half()
        self._strike(fault.kind, op, path)
        return effect()

    def _due(self, op: str, path: str) -> Fault | None:
        faults = self.setting.faults
        if not faults or self.setting.is_calm or faults[0].due > self.world.operations:
            return None
        for index, fault in enumerate(faults):
            if fault.due > self.world.operations:
                return None
            fitting = self.kinds[fault.kind]
            if (fitting is None or op in fitting) and fault.target in ("", self.setting.kind_of(path)):
                return faults.pop(index)
        return None

    def _send_late(self, op: str, path: str, effect: Callable[[], Any], waits_s: float = 10.0) -> None:
        """The request stays under way, perhaps longer than its client lives; the client hears nothing of it."""
        self.setting.watch.is_timely = False
        self.world.at(self.world.random.choice([1.0, 15.0, 40.0, 90.0]), lambda: self._land(op, path, effect))
        self.world.sleep(waits_s)

    def _land(self, op: str, path: str, effect: Callable[[], Any]) -> None:
        self.world.say(f"late {op} {path} lands")
        effect()

    def _strike(self, kind: str, op: str, path: str) -> None:
        setting, draw = self.setting, self.world.random
        process: Process = self.world.thread.process
        if kind == "killed":
            process.kill()
        elif kind == "stopped":
            setting.watch.is_timely = False
            process.stop(draw.choice([3.0, 45.0, 75.0, 130.0, 400.0]))
        elif kind == "host paused":
            setting.watch.is_timely = False
            setting.pause_host(draw.choice([3.0, 45.0, 75.0, 130.0, 400.0]))
        elif kind == "power cut":
            setting.power_cut()
        elif kind == "flipped":
            setting.flip()
        elif kind == "clock stepped":
            process.host.skew_s += draw.choice([-86_400.0, -3600.0, -61.0, -1.0, 1.0, 61.0, 3600.0, 86_400.0])
        elif kind in ("second driver", "asked to stop", "reader"):
            setting.call(kind)
        else:
            raise setting.error(kind, op, path)
        if not process.is_alive:
            raise Killed
        self.world.sleep(0.0)  # who was stopped stays so here


def disk_error(draw: random.Random, kind: str, op: str, path: str) -> OSError:
    numbers = {"no space": [errno.ENOSPC, errno.EDQUOT], "torn write": [errno.ENOSPC, errno.EIO], "sync fails": [errno.EIO]}
    others = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.EROFS]
    number = draw.choice(numbers.get(kind, others[:3] if kind == "answer lost" else others))
    return OSError(number, os.strerror(number), path)
