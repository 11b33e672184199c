"""What Ray knows about nodes that go away. The only place that asks Ray's private state for it; pinned by tests."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayActorError, RayTaskError

from raylt.errors import Preempted

SETTLES_WITHIN_S = 20.0  # how long Ray may need to find out what an actor died of


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


def left_with_its_node(error: BaseException | None) -> bool:
    """Whether an actor is gone because its node is, or because it was told to leave; not by a fault of its own."""
    if isinstance(error, RayTaskError):
        error = error.as_instanceof_cause()
    if isinstance(error, Preempted):
        return True
    if not isinstance(error, RayActorError) or error.actor_init_failed:
        return False
    return error.preempted or _node_is_gone(error.actor_id)


def _node_is_gone(actor_id: str | None) -> bool:
    """Asks the cluster what the actor died of. An actor that it cannot tell about in time is out of reach: gone too."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while actor_id is not None:
        actor: dict[str, Any] = state.actor_table(actor_id)
        if actor.get("State") == "DEAD":
            cause = actor["DeathCause"].actor_died_error_context
            return bool(cause.HasField("node_death_info"))
        if time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False
