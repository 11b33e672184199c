"""What raylt takes from inside Ray, which promises none of it. All of it was read in Ray 2.60.0, the version that is pinned.

Look through this file at every upgrade. What is changed in Ray is changed by `patch`, never by an import.

| part                                      | why                                             | pinned by |
|-------------------------------------------|-------------------------------------------------|-----------|
| `state.get_draining_nodes`                | a worker asks whether its node goes away        | chaos/test_nodes |
| `state.actor_table`                       | what an actor died of                           | chaos/test_nodes |
| `worker._global_node.raylet_socket_name`  | whether this machine's raylet lives             | cluster/test_ray_watch |
| `RayActorManager._actor_task_failed`      | Tune ends all at a kill by the memory monitor   | sweep/test_searcher |
| `Trial.handle_error`                      | Tune tells its callbacks no error               | sweep/test_searcher |
| `class_cache.ENV_VARS_TO_PROPAGATE`       | Tune copies AWS keys where Ray logs them        | integration/test_secrets |
"""

from __future__ import annotations

import time
from typing import Any, Literal

import ray
from ray._private import worker
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
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

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


def raylet_socket() -> str:
    """The path of the socket of this machine's raylet; "" where there is none."""
    node = worker._global_node
    return "" if node is None else str(node.raylet_socket_name).removeprefix("unix://").removeprefix("ipc://")


# --- changes to Tune ----------------------------------------------------------------------------------------------------

_task_failed, _handle_error = RayActorManager._actor_task_failed, Trial.handle_error
_errors: dict[str, BaseException] = {}  # Tune's trial -> what it failed with, until its callback takes it


def patch() -> None:
    """Change what a driver's Tune does. Again does no harm."""
    RayActorManager._actor_task_failed = _actor_task_failed
    Trial.handle_error = _keep_error
    # Workers have what their node's environment has, as everything else on it.
    kept = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = kept


def take_error(trial_id: str) -> BaseException | None:
    """What Tune's trial failed with, once; None where that is not known."""
    return _errors.pop(trial_id, None)


def _keep_error(trial: Any, exc: BaseException | None = None) -> None:
    """In place of `Trial.handle_error`, whose callbacks are not told the error.

    Tune leaves it in a pickle below Ray's temporary folder, which others on the machine may write to.
    """
    if exc is not None:
        _errors[trial.trial_id] = exc
    _handle_error(trial, exc)


def _actor_task_failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    """In place of the manager's own, which knows two errors of a call to an actor and ends all at others.

    One of the others is `OutOfMemoryError`, of an actor that the node's memory monitor has killed.
    """
    is_known = isinstance(exception, (RayActorError, RayTaskError)) or not isinstance(exception, RayError)
    _task_failed(manager, tracked_actor_task, exception if is_known else ActorGone(exception))
