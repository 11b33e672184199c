"""Simulated time: hosts with clocks of their own, processes that are stopped and killed, and who goes on next.

Each thread of a process is a greenlet. It gives way at every operation on the storage and whenever it sleeps; a queue ordered
by simulated time says who goes on. Nothing else switches, so a seed decides the order of everything.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import greenlet

DAY_S = 86_400.0


class Killed(BaseException):
    """The process is no more. Whatever its `finally` clauses still try, they come here again."""


class StuckError(Exception):
    """Simulated days went by, or more operations than a sweep can need, and nobody came to an end."""


class Host:
    """A machine: its wall clock is wrong by `skew_s`, and steps; its monotonic clock began somewhere."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.boots = world, name, 0
        self.skew_s = world.random.choice([0.0, 0.0, -3600.0, -61.0, 1.5, 61.0, 3600.0, 86_400.0 * 400])
        self.rate = 1 + world.random.uniform(-1e-3, 1e-3)
        self.frozen_s = 0.0  # how long its monotonic clock has stood still
        self.up_since = world.random.uniform(-1e6, 0)

    @property
    def boot(self) -> str:
        return f"{self.name} boot {self.boots}"

    def wall(self) -> float:
        return 1.7e9 + self.world.now * self.rate + self.skew_s

    def monotonic(self) -> float:
        return (self.world.now - self.frozen_s - self.up_since) * self.rate


class Process:
    """A process on a host; its pid is that of others before it."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.ticks = next(host.world.counter)
        self.pid = 100 + self.ticks % 7
        self.is_alive, self.stopped_until = True, 0.0
        self.threads: list[Thread] = []
        self.ended = Event(host.world)

    def kill(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self.host.world.say(f"{self.name} is killed")
            for thread in self.threads:
                self.host.world.wake(thread)  # to unwind
            self.ended.set()

    def stop(self, seconds: float) -> None:
        self.stopped_until = max(self.stopped_until, self.host.world.now + seconds)
        self.host.world.say(f"{self.name} is stopped for {seconds:.0f} s")

    def exit(self) -> None:
        """It has done what it was for; its daemon threads end with it."""
        self.is_alive = False
        for thread in self.threads:
            self.host.world.wake(thread)
        self.ended.set()


class Thread:
    """A thread of a process: a greenlet, and which of its wakings is the one that counts."""

    def __init__(self, process: Process, target: Callable[..., Any], *args: Any) -> None:
        world = process.host.world
        self.process, self.target, self.args, self.is_done = process, target, args, False
        self.done, self.waking = Event(world), 0
        self.greenlet = greenlet.greenlet(self._run, world.hub)
        process.threads.append(self)
        world.wake(self)

    def _run(self) -> None:
        world = self.process.host.world
        try:
            if self.process.is_alive:
                self.target(*self.args)
        except Killed:
            pass
        except Exception as error:
            world.on_traceback(self, error)
        self.is_done = True
        self.process.threads.remove(self)
        self.done.set()


class Event:
    """`threading.Event` in simulated time."""

    def __init__(self, world: World) -> None:
        self.world, self.is_set_, self.waiting = world, False, []

    def is_set(self) -> bool:
        return self.is_set_

    def set(self) -> None:
        self.is_set_ = True
        for thread in self.waiting:
            self.world.wake(thread)
        self.waiting = []

    def clear(self) -> None:
        self.is_set_ = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set_:
            self.waiting.append(self.world.thread)
            self.world.sleep(DAY_S * 30 if timeout is None else timeout)
            if self.world.thread in self.waiting:
                self.waiting.remove(self.world.thread)
        return self.is_set_


class World:
    """The queue, the clock and the dice. `most`: operations after which nobody can be said to get on."""

    def __init__(self, seed: int, *, traced: bool = False, most: int = 60_000) -> None:
        self.random = random.Random(seed)
        self.now, self.operations, self.most = 0.0, 0, most
        self.counter = itertools.count(1)
        self.hub = greenlet.getcurrent()
        self.thread: Any = None  # the one that runs
        self.trace: list[str] | None = [] if traced else None
        self.on_traceback: Callable[[Thread, Exception], None] = lambda thread, error: None
        self._queue: list[tuple[float, int, Any, int]] = []

    def say(self, what: str) -> None:
        if self.trace is not None:
            who = self.thread.process.name if self.thread is not None else "-"
            self.trace.append(f"{self.now:10.3f} {self.operations:6d} {who}: {what}")

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later, whoever is alive then."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self.counter), action, 0))

    def wake(self, thread: Thread, delay_s: float = 0.0) -> None:
        thread.waking += 1
        heapq.heappush(self._queue, (self.now + delay_s, next(self.counter), thread, thread.waking))

    def sleep(self, seconds: float) -> None:
        """The running thread goes on after so long, or later. Raises `Killed` where its process has died meanwhile."""
        thread = self.thread
        process = thread.process
        until = self.now + seconds
        if not process.is_alive:
            raise Killed
        if (self._queue and self._queue[0][0] <= until) or process.stopped_until > self.now:
            self.wake(thread, seconds)
            self.hub.switch()
            if not process.is_alive:
                raise Killed
        else:
            self.now = until

    def run(self) -> None:
        """Until nobody has anything left to do. Raises `StuckError`."""
        while self._queue:
            when, _, item, waking = heapq.heappop(self._queue)
            if isinstance(item, Thread):
                if item.is_done or item.waking != waking:
                    continue
                if item.process.is_alive and item.process.stopped_until > max(when, self.now):
                    heapq.heappush(self._queue, (item.process.stopped_until, next(self.counter), item, waking))
                    continue
            if when > 20 * DAY_S or self.operations > self.most:
                raise StuckError(f"at {when / 3600:.1f} h, after {self.operations} operations")
            self.now = max(self.now, when)
            if isinstance(item, Thread):
                self.thread = item
                item.greenlet.switch()
                self.thread = None
            else:
                item()

    def end(self) -> None:
        """Unwind whoever is left, so that no greenlet outlives its world."""
        self.now, self.most = 0.0, 10**9
        threads = [item for _, _, item, _ in self._queue if isinstance(item, Thread) and not item.is_done]
        self._queue = []
        for thread in threads:
            thread.process.is_alive = False
            self.thread = thread
            while not thread.is_done:
                thread.greenlet.switch()
        self.thread, self._queue = None, []
