"""The keys of a spec as a JSON Schema, which an editor completes from, and as a page: docs/spec.md.

    raylt validate --schema                             # the schema
    python -m raylt.spec.reference > docs/spec.md       # the page

Both come from `sections.py`: a key's description is the docstring below its field.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

from pydantic import BaseModel

from raylt.spec import schema, sections
from raylt.spec.canonical import JsonObject
from raylt.spec.schema import SweepSpec
from raylt.spec.vocabulary import MAX_COUNT

TOP = {
    "schema": "The version of the spec's format: 1. Required.",
    "name": "The sweep's name: letters, digits, `_` and `-`. Required.",
}


def json_schema() -> JsonObject:
    """The JSON Schema of a sweep's YAML file, with a description of every key."""
    found = SweepSpec.model_json_schema(by_alias=True)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    _describe(found["properties"], TOP)
    for name, section in found["$defs"].items():
        _describe(section.get("properties", {}), descriptions(getattr(sections, name)))
    return found


def _describe(properties: JsonObject, texts: dict[str, str]) -> None:
    for key, text in texts.items():
        properties[key]["description"] = text


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Key -> the docstring below its field, of a section and of those it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        texts |= docstrings_of(sections).get(cls.__name__, {})
    return texts


@lru_cache
def docstrings_of(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring below it, of every class of a module."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = {
                field.target.id: str(text.value.value)
                for field, text in pairs
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            }  # fmt: skip
    return found


def page() -> str:
    """docs/spec.md."""
    lines = [
        "# Spec", "", "Every key of a sweep's YAML file. This page is made from the code by",
        "`python -m raylt.spec.reference`. `raylt validate --schema` prints the same as a JSON Schema,",
        "from which an editor completes keys: begin a spec with",
        "`# yaml-language-server: $schema=raylt.schema.json`. Words are explained in",
        "[concepts](concepts.md).", "", *entry("schema", TOP["schema"]), *entry("name", TOP["name"]),
        "",
    ]  # fmt: skip
    for key, field in SweepSpec.model_fields.items():
        if isinstance(field.default, BaseModel):
            lines += [f"## {key}", "", *_section(key, field.default)]
    fixed = [key for key in schema.FREE if key not in ("schema", "name")]
    lines += ["## Keys that may change", "", "These keys may change between two runs of one sweep:", ""]
    lines += [f"- `{key}`" for key in fixed]
    return "\n".join(lines) + "\n"


def _section(prefix: str, section: BaseModel) -> Iterator[str]:
    yield from (*wrapped(inspect.getdoc(type(section)) or ""), "")
    inner: list[str] = []
    schema_of = type(section).model_json_schema(by_alias=True)
    for key, field in type(section).model_fields.items():
        if isinstance(field.default, BaseModel):
            inner += [f"### {prefix}.{key}", "", *_section(f"{prefix}.{key}", field.default)]
            continue
        values = _values(schema_of["properties"][key])
        takes = f"{values[0].upper()}{values[1:]}; default `{json.dumps(field.default)}`."
        yield from entry(f"{prefix}.{key}", f"{descriptions(type(section))[key]} {takes}")
    yield from ("", *inner)


def entry(key: str, text: str) -> Iterator[str]:
    """A list item of a page: what a key is."""
    first, *rest = wrapped(f"**`{key}`**: {text}")
    yield f"- {first}"
    yield from (f"  {line}" for line in rest)


def _values(property_schema: JsonObject) -> str:
    """What a key may be, in words."""
    if "anyOf" in property_schema:
        return " or ".join(_values(one) for one in property_schema["anyOf"])
    if "enum" in property_schema:
        return ", ".join(f"`{value}`" for value in property_schema["enum"])
    if "const" in property_schema:
        return f"`{property_schema['const']}`"
    kind = property_schema.get("type")
    if kind == "array":
        return f"a list of {_values(property_schema['items'])}"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(property_schema)
    return {"null": "`null`", "boolean": "`true` or `false`", "string": "text", "object": "a mapping"}[str(kind)]


def _bounds(property_schema: JsonObject) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    given = {name: property_schema[name] for name in words if property_schema.get(name, MAX_COUNT) != MAX_COUNT}
    return "".join(f" {words[name]} {bound:,}" for name, bound in given.items())


def wrapped(text: str) -> list[str]:
    """The lines of a page."""
    return textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(page(), end="")
