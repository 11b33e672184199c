"""What Ray knows about nodes that go away. The only place that asks Ray's private state for it; pinned by tests."""

from __future__ import annotations

import time
from typing import Any, Literal

import ray
from ray._private.state import state
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from raylt.errors import Preempted

SETTLES_WITHIN_S = 20.0  # how long Ray may need to find out what an actor died of

Culprit = Literal["process", "node", "memory"]


def drain_notice() -> str | None:
    """Why this worker's node goes away soon; None where it stays. Takes about a millisecond."""
    try:
        deadline_ms = state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
    except Exception:  # a head that cannot be asked announces nothing: no reason to end a trial
        return None
    if deadline_ms is None:
        return None
    left = f", {max(0, round(deadline_ms / 1000 - time.time()))} s left" if deadline_ms else ""
    return f"its node is being drained{left}"


class ActorGone(RayActorError):
    """An actor's end for which Ray has an error that Tune does not know; `error` is that one."""

    def __init__(self, error: RayError) -> None:
        super().__init__(error_msg=str(error))
        self.error = error


def culprit(error: BaseException | None) -> Culprit:
    """What took an actor: a fault of its process, the end of its node (or a notice to leave), or too little memory there."""
    if isinstance(error, RayTaskError):
        error = error.as_instanceof_cause()
    if isinstance(error, ActorGone):
        error = error.error
    if isinstance(error, OutOfMemoryError):  # what Ray's memory monitor kills
        return "memory"
    if isinstance(error, (Preempted, NodeDiedError, ObjectLostError, ActorPlacementGroupRemoved)):
        return "node"
    if not isinstance(error, RayActorError) or error.actor_init_failed:
        return "process"
    return "node" if error.preempted else _cause_of_death(error.actor_id)


def _cause_of_death(actor_id: str | None) -> Culprit:
    """Asks the cluster what the actor died of. An actor that it cannot tell about in time is out of reach: with its node."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while actor_id is not None:
        actor: dict[str, Any] = state.actor_table(actor_id)
        if actor.get("State") == "DEAD":
            cause = actor["DeathCause"]
            if cause.HasField("oom_context"):
                return "memory"
            return "node" if cause.actor_died_error_context.HasField("node_death_info") else "process"
        if time.monotonic() > deadline:
            return "node"
        time.sleep(0.2)
    return "process"


_task_failed = RayActorManager._actor_task_failed


def _actor_task_failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    """In place of the manager's own, which in Ray 2.60 knows two errors of a call to an actor and ends all at others.

    One of the others is `OutOfMemoryError`, of an actor that the node's memory monitor has killed.
    """
    is_known = isinstance(exception, (RayActorError, RayTaskError)) or not isinstance(exception, RayError)
    _task_failed(manager, tracked_actor_task, exception if is_known else ActorGone(exception))


RayActorManager._actor_task_failed = _actor_task_failed
