"""What pydantic finds wrong with a spec, in plain words: what is wrong, what was given, what would be right.

What would be right is read off the JSON schema of `SweepSpec`, so that it cannot drift from what is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from raylt.errors import Problem, as_yaml_value
from raylt.spec.canonical import JsonObject
from raylt.spec.schema import SweepSpec
from raylt.spec.vocabulary import GROUP_NAME_LENGTH
from raylt.spec.yaml_text import dotted

Path = tuple[str | int, ...]

_WHAT = {  # pydantic's error type -> what is wrong
    "missing": "is missing",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "string_type": "is not text",
    "list_type": "is not a list",
    "dict_type": "is not a section",
    "model_type": "is not a section",
    "literal_error": "is not known",
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
    "too_short": "has too few entries",
    "too_long": "has too many entries",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "has characters that a name cannot have",
}
_NAME = "letters, digits, - and _"


def wrong_keys(error: ValidationError, data: JsonObject) -> dict[Path, Problem]:
    """One problem for each key that is wrong; `data` is what was validated."""
    by_path: dict[Path, list[Any]] = {}
    for detail in error.errors(include_url=False, include_context=False):
        path = _path(detail["loc"], data)
        by_path.setdefault((*path, detail["loc"][-1]) if detail["type"] == "missing" else path, []).append(detail)
    # A key that is wrong as a whole and in parts is a union's: the branch that reached into it says more.
    wholes = {path[:length] for path in by_path for length in range(len(path))}
    return {path: _problem(path, min(details, key=_rank)) for path, details in by_path.items() if path not in wholes}


def meant_by(key: str, parent: Path) -> str:
    """The dotted key an unknown one is taken for: of its own section first, then of the others; "" for none."""
    near = get_close_matches(key.lower(), _children(parent), n=1)
    if near and key not in _leaves():
        return dotted(*parent, near[0])
    elsewhere = [leaf for leaf in _leaves() if key in (leaf, leaf.rpartition(".")[2])]
    return elsewhere[0] if elsewhere else ""


def _path(loc: tuple[str | int, ...], data: Any) -> Path:
    """The part of pydantic's location that is a path in the file: it also names the branches of unions."""
    path: list[str | int] = []
    for part in loc:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part]
    return tuple(path)


def _rank(detail: Any) -> int:
    """Of a union's errors, one for each branch, the lowest says most about what was given."""
    if detail["type"] == "literal_error":
        return 1 if isinstance(detail["input"], str) else 3
    return 2 if detail["type"].endswith("_type") else 0


def _problem(path: Path, detail: Any) -> Problem:
    kind, given, key = detail["type"], detail["input"], dotted(*path)
    if kind == "extra_forbidden":
        return Problem(key, "unknown key", _known(str(path[-1]), path[:-1]))
    if kind == "missing":
        return Problem(key, "is missing", f"a line `{path[-1]}: VALUE`, where VALUE is {_right(path, None)}")
    if detail["loc"][-1] == "[key]":
        return Problem(key, "is no name", f"{_NAME}, at most {GROUP_NAME_LENGTH}")
    what = _WHAT.get(kind) or detail["msg"].replace("Input should", "should").replace("String should", "should")
    return Problem(key, what, _right(path, given), given, has_given=True)


def _known(key: str, parent: Path) -> str:
    """What an unknown key might have been meant to be, else the keys that there are."""
    meant = meant_by(key, parent)
    if not meant:
        return f"known here: {', '.join(_children(parent))}"
    section, _, name = meant.rpartition(".")
    if key == meant:
        return f"{name} indented below {section}"
    return f"did you mean {name if section == dotted(*parent) else meant!r}?"


def _right(path: Path, given: object) -> str:
    """What would be right in place of `given`: the nearest name, then all that may stand there."""
    node = _schema_at(path)
    right = _describe(node)
    if isinstance(given, str) and len(choices := _choices(node)) > 1:
        near = get_close_matches(given.lower(), choices, n=1)
        return f"did you mean {near[0]!r}? {right}" if near else right
    if isinstance(given, float) and given.is_integer() and "a whole number" in right:
        return f"{right}: {int(given)}, without point or exponent"
    if isinstance(given, (bool, int, float)) and any(kind.get("type") == "string" for kind in _branches(node)):
        return f"{right}, in quotes" if not _choices(node) else right
    return right


def _describe(node: JsonObject) -> str:
    """A part of the JSON schema in words."""
    branches = [_describe_one(branch) for branch in _branches(node)]
    return ", or ".join(branches)


def _describe_one(node: JsonObject) -> str:
    if "const" in node:
        return _word(node["const"])
    if "enum" in node:
        return f"one of {', '.join(map(_word, node['enum']))}"
    kind = node.get("type")
    if kind == "array":
        count = f" of {node['minItems']}" if node.get("minItems", 0) == node.get("maxItems") else ""
        return f"a list{count}, each {_describe(node['items'])}"
    if kind == "object":
        keys = ", ".join(node["properties"]) if "properties" in node else "names of your choice"
        return f"a section: {keys}"
    if "pattern" in node:
        return f"{_NAME}, at most {node['maxLength']}, a letter or a digit first"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false", "null": "null"}
    return words.get(str(kind), "a value") + _bounds(node)


def _bounds(node: JsonObject) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
    bounds = [f"{word} {node[key]:g}" for key, word in words.items() if key in node]
    return f", {' and '.join(bounds)}" if bounds else ""


def _word(value: object) -> str:
    return value if isinstance(value, str) else as_yaml_value(value)


@cache
def _schema() -> JsonObject:
    return SweepSpec.model_json_schema()


def _branches(node: JsonObject) -> list[JsonObject]:
    """The alternatives of a union, or the node alone; references followed."""
    if "$ref" in node:
        definition: JsonObject = _schema()["$defs"][node["$ref"].rpartition("/")[2]]
        return [definition]
    return [part for branch in node["anyOf"] for part in _branches(branch)] if "anyOf" in node else [node]


def _choices(node: JsonObject) -> list[str]:
    allowed = [choice for branch in _branches(node) for choice in branch.get("enum", [branch.get("const")])]
    return [choice for choice in allowed if isinstance(choice, str)]


def _schema_at(path: Path) -> JsonObject:
    """The schema of a key; {} where anything may stand."""
    node = _schema()
    for part in path:
        for branch in _branches(node):
            of_any_name = next(iter(branch.get("patternProperties", {}).values()), None)
            inner = branch.get("properties", {}).get(part, of_any_name or branch.get("items"))
            if inner is not None:
                break
        node = inner if isinstance(inner, dict) else {}
    return node


def _children(path: Path) -> list[str]:
    return [key for branch in _branches(_schema_at(path)) for key in branch.get("properties", {})]


@cache
def _leaves() -> tuple[str, ...]:
    """Every key of a spec that is no section, dotted."""

    def below(path: Path) -> Iterator[str]:
        for key in _children(path):
            inner = [*below((*path, key))]
            yield from inner or [dotted(*path, key)]

    return tuple(below(()))
