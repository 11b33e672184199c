"""The token that a Ray cluster asks of whoever connects (RAY_AUTH_MODE=token)."""

from __future__ import annotations

import os
from pathlib import Path

from raylt.errors import EnvironmentFailure

ANSWERS_WITHIN_S = 15.0  # a cluster's GCS, which all who connect ask first

ADVICE = "put the cluster's (~/.ray/auth_token where it was brought up) into ~/.ray/auth_token here, or into RAY_AUTH_TOKEN"


def find_token() -> str | None:
    """Where Ray itself looks: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def refusal(has_token: bool) -> str:
    """What to say where the cluster turned us away."""
    if has_token:
        return f"it refuses the token found here (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token); {ADVICE}"
    return f"it asks for a token, and there is none here; {ADVICE}"


def asks_for_token(address: str) -> bool:
    """Whether the Ray cluster at HOST:PORT does.

    Ray would try for minutes, and not tell a wrong token from silence. Imports no Ray, whose settings depend on the answer.
    Raises `EnvironmentFailure` where nobody answers, and where we have not the right token.
    """
    token = find_token()
    if os.environ.get("RAY_USE_TLS") == "1":
        return token is not None
    if _lets_in(address, None):
        return False
    if token is None or not _lets_in(address, token):
        raise EnvironmentFailure(f"Ray at {address}: {refusal(token is not None)}")
    return True


def _lets_in(address: str, token: str | None) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")  # whose request is an empty message
        try:
            ask(b"", timeout=ANSWERS_WITHIN_S, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise EnvironmentFailure(f"no Ray at {address}: {error.details()}") from None
        return True
