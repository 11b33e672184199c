"""The keys of a spec as a JSON Schema, which an editor completes from, and as a page: docs/spec.md.

    raylt validate --schema                             # the schema
    python -m raylt.spec.reference > docs/spec.md       # the page

Both come from `sections.py` and `schema.py`: a key's description is the docstring below its field.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from raylt.spec import schema
from raylt.spec.canonical import JsonObject
from raylt.spec.schema import SweepSpec
from raylt.spec.vocabulary import MAX_COUNT

HEAD = """\
# Spec

Every key of a sweep's YAML file. This page is made from the code by
`python -m raylt.spec.reference`. `raylt validate --schema` prints the same as a JSON Schema,
from which an editor completes keys: begin a spec with
`# yaml-language-server: $schema=raylt.schema.json`. Words are explained in
[concepts](concepts.md).
"""


def json_schema() -> JsonObject:
    """The JSON Schema of a sweep's YAML file, with a description of every key."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **SweepSpec.model_json_schema(by_alias=True)}


def page() -> str:
    """docs/spec.md."""
    top = json_schema()["properties"]
    lines = [HEAD, *(line for key in ("schema", "name") for line in entry(key, top[key]["description"])), ""]
    for key, field in SweepSpec.model_fields.items():
        if isinstance(field.default, BaseModel):
            lines += [f"## {key}", "", *_section(key, field.default)]
    lines += ["## Keys that may change", "", "These keys may change between two runs of one sweep:", ""]
    lines += [f"- `{key}`" for key in schema.FREE if key not in ("schema", "name")]
    return "\n".join(lines) + "\n"


def _section(prefix: str, section: BaseModel) -> Iterator[str]:
    yield from (*wrapped(inspect.getdoc(type(section)) or ""), "")
    inner: list[str] = []
    properties = type(section).model_json_schema(by_alias=True)["properties"]
    for key, field in type(section).model_fields.items():
        if isinstance(field.default, BaseModel):
            inner += [f"### {prefix}.{key}", "", *_section(f"{prefix}.{key}", field.default)]
            continue
        values = _values(properties[key])
        takes = f"{values[0].upper()}{values[1:]}; default `{json.dumps(field.default)}`."
        yield from entry(f"{prefix}.{key}", f"{properties[key]['description']} {takes}")
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
    bounds = {name: property_schema[name] for name in words if property_schema.get(name, MAX_COUNT) != MAX_COUNT}
    return "".join(f" {words[name]} {bound:,}" for name, bound in bounds.items())


def wrapped(text: str) -> list[str]:
    """The lines of a page."""
    return textwrap.wrap(text, 96, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(page(), end="")
