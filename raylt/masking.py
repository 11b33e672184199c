"""Passwords and tokens that stand in a text, as URLs have them: whether there are any, and the text without them."""

from __future__ import annotations

import re

MASK = "***"

_CREDENTIALS = re.compile(r"(://)(?:[^/\s]+|[^/\s:]*:[^\s@]*)@")  # also a password with an unescaped slash
_SECRET_OPTIONS = re.compile(
    r"([?&][\w.-]*(?:password|passwd|token|secret|access_key|api_key)[\w.-]*=)([^&\s'\"]+)", re.IGNORECASE
)
_PASSWORD = re.compile(r"://[^/\s:@]*:(?!\d+(?:[/?#]|$))[^\s@]*@")  # a port is none


def without_secrets(text: str) -> str:
    """A text without the user names, passwords and tokens that its URLs may carry."""
    return _SECRET_OPTIONS.sub(rf"\1{MASK}", _CREDENTIALS.sub(rf"\1{MASK}@", text))


def has_secret(text: str) -> bool:
    """Whether a URL in it carries a password or token; what `without_secrets` leaves has none."""
    return bool(_PASSWORD.search(text)) or any(found[2] != MASK for found in _SECRET_OPTIONS.finditer(text))
