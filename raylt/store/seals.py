"""Checksums that the files of a store carry, so that damage is seen when they are read.

A checksum is the SHA-256 of the file's place and of its content. So a file that lies in another's place is damaged too. The
place is the path in the store; of what a sweep has written since it was started, also which sweep that is, since another of
the same name in another store has the same paths.

- A JSON object has it as a member `sha256` beside its others, of which it is taken as canonical JSON.
- A YAML file ends with a line `# sha256: ...`.
- Other bytes (checkpoints, parts of an index) begin with a line `raylt sealed ...`.

A checksum finds damage, not malice: who can write a file can write its checksum.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from raylt.spec.canonical import JsonObject, digest_of

SUM = "sha256"
_HEADER = b"raylt sealed "
_WRONG = "its checksum is not that of its content in this place"
_YAML_SUM = re.compile(rb"# sha256: ([0-9a-f]{64})\n\Z")


class BadSeal(ValueError):
    """Content and checksum do not agree, or one of them is no more."""


def place_of(path: str, sweep: str) -> str:
    """The place of a file that belongs to a sweep, by what it was started with; to none where `sweep` is empty."""
    return f"{sweep}:{path}" if sweep else path


def seal(record: Mapping[str, object], place: str) -> JsonObject:
    """The record with its checksum."""
    content = {key: value for key, value in record.items() if key != SUM}
    return {**content, SUM: digest_of([place, content])}


def unseal(record: Any, place: str) -> tuple[JsonObject, bool]:
    """(the record without its checksum, whether it had one). Raises `BadSeal` where the two do not agree."""
    if not isinstance(record, dict):
        raise BadSeal("it is no JSON object")
    content = {key: value for key, value in record.items() if key != SUM}
    if SUM not in record:
        return content, False
    try:
        expected = digest_of([place, content])
    except ValueError as error:  # NaN is no JSON of ours
        raise BadSeal(str(error)) from None
    if record[SUM] != expected:
        raise BadSeal(_WRONG)
    return content, True


def seal_yaml(text: str, path: str) -> bytes:
    data = text.encode()
    data = data if data.endswith(b"\n") else data + b"\n"
    return data + f"# {SUM}: {_sum_of(data, path)}\n".encode()


def unseal_yaml(data: bytes, path: str) -> tuple[str, bool]:
    """(the text, whether it had a checksum). Raises `BadSeal`."""
    match = _YAML_SUM.search(data)
    body = data if match is None else data[: match.start()]
    if match is not None and _sum_of(body, path).encode() != match[1]:
        raise BadSeal(_WRONG)
    try:
        return body.decode(), match is not None
    except UnicodeDecodeError as error:
        raise BadSeal("it is no UTF-8 text") from error


def seal_bytes(data: bytes, place: str) -> bytes:
    return _HEADER + _sum_of(data, place).encode() + b"\n" + data


def unseal_bytes(sealed: bytes, place: str) -> bytes:
    """What `seal_bytes` was given. Raises `BadSeal`."""
    header, mark, _ = sealed[:96].partition(b"\n")
    if not mark or not header.startswith(_HEADER):
        raise BadSeal("it has no checksum, or was cut off")
    data = sealed[len(header) + 1 :]
    if _sum_of(data, place).encode() != header[len(_HEADER) :]:
        raise BadSeal(_WRONG)
    return data


def _sum_of(data: bytes, place: str) -> str:
    hasher = hashlib.sha256(place.encode() + b"\n")
    hasher.update(data)
    return hasher.hexdigest()
