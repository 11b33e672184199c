"""Checksums that the files of a store carry, so that damage is seen when they are read.

- A JSON object has a member `sha256` beside its others: the SHA-256 of the file's path in the store and of those, as canonical
  JSON. So a file that lies in another's place is damaged.
- A YAML file ends with a line `# sha256: ...` over all the bytes before it.
- Other bytes (checkpoints) begin with a line `raylt sealed SHA-256`.

A checksum finds damage, not malice: who can write a file can write its checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SUM = "sha256"
_HEADER = b"raylt sealed "
_YAML_SUM = re.compile(rb"# sha256: ([0-9a-f]{64})\n\Z")


class BadSeal(ValueError):
    """Content and checksum do not agree, or one of them is no more."""


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the bytes every digest in raylt is taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(record: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The record with its checksum. `path`: of its file, under the store's root."""
    content = {key: value for key, value in record.items() if key != SUM}
    return {**content, SUM: digest_of([path, content])}


def unseal(record: Any, path: str) -> tuple[dict[str, Any], bool]:
    """(the record without its checksum, whether it had one). Raises `BadSeal` where the two do not agree."""
    if not isinstance(record, dict):
        raise BadSeal("it is no JSON object")
    content = {key: value for key, value in record.items() if key != SUM}
    if SUM not in record:
        return content, False
    try:
        expected = digest_of([path, content])
    except ValueError as error:  # NaN is no JSON of ours
        raise BadSeal(str(error)) from None
    if record[SUM] != expected:
        raise BadSeal("its checksum is not that of its content in this place")
    return content, True


def seal_yaml(text: str) -> bytes:
    data = text.encode()
    data = data if data.endswith(b"\n") else data + b"\n"
    return data + f"# {SUM}: {hashlib.sha256(data).hexdigest()}\n".encode()


def unseal_yaml(data: bytes) -> tuple[str, bool]:
    """(the text, whether it had a checksum). Raises `BadSeal`."""
    found = _YAML_SUM.search(data)
    body = data if found is None else data[: found.start()]
    if found is not None and hashlib.sha256(body).hexdigest().encode() != found[1]:
        raise BadSeal("its checksum is not that of its content")
    try:
        return body.decode(), found is not None
    except UnicodeDecodeError as error:
        raise BadSeal("it is no UTF-8 text") from error


def seal_bytes(data: bytes) -> bytes:
    return _HEADER + hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def unseal_bytes(sealed: bytes) -> bytes:
    """What `seal_bytes` was given. Raises `BadSeal`."""
    header, mark, data = sealed[:96].partition(b"\n")
    if not mark or not header.startswith(_HEADER):
        raise BadSeal("it has no checksum, or was cut off")
    data = sealed[len(header) + 1 :]
    if hashlib.sha256(data).hexdigest().encode() != header[len(_HEADER) :]:
        raise BadSeal("its checksum is not that of its content")
    return data
