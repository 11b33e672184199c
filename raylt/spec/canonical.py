"""Canonical JSON, and the digest over it by which raylt tells specs, stages and records apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

JsonObject = dict[str, Any]  # as json.loads gives it


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the bytes every digest in raylt is taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()
