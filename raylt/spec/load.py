"""A spec's file: which one is meant, and how it becomes a `SweepSpec`.

Whatever is wrong with it is said at once, one line each: `FILE:LINE: KEY: what is wrong (got what was given); what would
be right`. What `--set` gives counts as if it stood in the file; in errors it is `--set: KEY: ...`.

`~` and variables in paths are replaced here, for whoever runs the sweep on this machine: not in a spec that a store keeps,
which has been through it, nor in one that goes to a cluster's head, where they may mean other places.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from raylt.errors import InputError, Problem, SpecError, as_yaml_value
from raylt.spec.canonical import JsonObject
from raylt.spec.checks import cross_key_problems, place_problems
from raylt.spec.messages import meant_by, wrong_keys
from raylt.spec.paths import EXPECTED, expanded, literal
from raylt.spec.schema import SweepSpec
from raylt.spec.tracking_uri import expanded_uri, with_path
from raylt.spec.yaml_text import Document, SourceLocation, dotted, dump_yaml, read_yaml

__all__ = ["builtin_sweeps", "dump_yaml", "find_spec", "load_spec", "parse_again", "parse_spec", "read_spec"]

DEFAULT_FILE = "sweep.yaml"
DEFAULT_SWEEP = "digits"
_SET = "--set"
_MAX_BYTES = 100_000  # a spec has some 3 kB; what is larger is another file
_PATHS = {  # keys with a path: how a user's words become one, and the way back
    ("storage", "root"): (expanded, literal),
    ("data", "root"): (expanded, literal),
    ("tracking", "uri"): (expanded_uri, lambda uri: with_path(uri, literal)),
}


def builtin_sweeps() -> dict[str, Path]:
    """The sweeps that come with raylt: in an installed wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "sweeps", package.parent / "sweeps"):
        specs = list(folder.glob("*.yaml"))
        if specs:
            return dict(sorted((path.stem, path) for path in specs))
    return {}


def find_spec(source: str | None) -> Path:
    """The file that is meant: a path, or the name of a sweep that comes with raylt; None is what the shell suggests."""
    if source is not None:
        return _find(source, "")
    if named := os.environ.get("RAYLT_SPEC"):
        return _find(named, "RAYLT_SPEC: ")
    return Path(DEFAULT_FILE) if _kind(Path(DEFAULT_FILE)) == "file" else _find(DEFAULT_SWEEP, "")


def load_spec(source: str | None, overrides: Sequence[str] = (), *, here: bool = True) -> SweepSpec:
    """The spec that `source` names, with `KEY=VALUE` overrides. Raises InputError or SpecError with all that is wrong.

    `here`: whether it is to be run on this machine, so that its paths are this machine's.
    """
    path = find_spec(source)
    return parse_spec(read_spec(path), str(path), overrides, here=here)


def located(problems: Sequence[Problem], source: str | None, overrides: Sequence[str] = ()) -> SpecError:
    """Problems found later, by who knows shapes, data or the cluster, with the lines of the keys they name."""
    path = find_spec(source)
    return SpecError(_in_order(_document(read_spec(path), str(path), overrides), list(problems)))


def read_spec(path: Path) -> str:
    """The text of a spec's file. Raises InputError, or SpecError where it is no text."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{path}: is over {_MAX_BYTES:,} bytes; a spec is a short YAML file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 (byte 0x{raw[error.start]:02x})"
        raise SpecError([Problem("YAML", what, "a text file in UTF-8", file=str(path), line=line)]) from None


def parse_spec(
    text: str, file: str, overrides: Sequence[str] = (), *, here: bool = False, was_started: bool = False
) -> SweepSpec:
    """The spec in `text`; `file` is its name in errors. Raises SpecError with all that is wrong, in the order of lines.

    `here`: whether the text is a user's, whose paths may have `~` and variables of this machine.
    `was_started`: it is a sweep's own, in a store. It is not held to checks that were added after it was started.
    """
    document = _document(text, file, overrides)
    data = document.data
    unknown = _expand(data) if here else {}
    wrong: dict[tuple[str | int, ...], Problem] = dict(unknown)
    spec: SweepSpec | None = None
    try:
        spec = SweepSpec.model_validate(data)
    except ValidationError as error:
        wrong |= wrong_keys(error, data)
    crossed = [] if was_started else _cross(spec or _repaired(data), _doubtful(document, wrong), here)
    problems = [*wrong.values(), *crossed]
    if problems or document.problems or spec is None:
        raise SpecError(_in_order(document, problems))
    return spec


def parse_again(spec: SweepSpec, file: str, overrides: Sequence[str] = ()) -> SweepSpec:
    """A spec with overrides, as if it stood in a user's file. Raises SpecError."""
    data = spec.dump()
    for (section, key), (_, written) in _PATHS.items():
        if data[section][key] is not None:
            data[section][key] = written(data[section][key])
    return parse_spec(dump_yaml(data), file, overrides, here=True)


def _expand(data: JsonObject) -> dict[tuple[str | int, ...], Problem]:
    """Replaces `~` and variables in the paths; what cannot be replaced is a problem of its key."""
    wrong: dict[tuple[str | int, ...], Problem] = {}
    for (section, key), (replaced, _) in _PATHS.items():
        inner = data.get(section)
        text = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(text, str):
            continue
        try:
            inner[key] = replaced(text)
        except LookupError as error:
            wrong[section, key] = Problem(dotted(section, key), str(error), EXPECTED, text, has_given=True)
    return wrong


def _document(text: str, file: str, overrides: Sequence[str]) -> Document:
    """The text with its overrides in place, and where every key came from."""
    document = read_yaml(text, file)
    data = document.data
    if not isinstance(data, dict):
        what = "is empty" if data is None else "is not a section"
        expected = "KEY: VALUE lines, of which schema: 1 and name: NAME are required"
        raise SpecError([Problem("YAML", what, expected, data, data is not None, file, document.place("").line)])
    for override in overrides:
        _override(document, override)
    _drop_empty_sections(data, SweepSpec)
    return document


def _find(source: str, blame: str) -> Path:
    path, builtin = Path(source), builtin_sweeps()
    kind = _kind(path)
    if kind == "file":
        return path
    if source in builtin:
        return builtin[source]
    names = f"sweeps that come with raylt: {', '.join(builtin)}"
    if kind == "folder":
        what = f"{source}: is a folder" if source else "the name of the spec is empty"
        raise InputError(f"{blame}{what}; a spec is a YAML file, or one of the {names}")
    near = get_close_matches(path.stem.lower(), builtin, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"{blame}{source!r}: no such file and no such sweep; {hint}{names}")


def _kind(path: Path) -> Literal["file", "folder", "nothing"]:
    """Pipes count as files, as in `raylt validate <(...)`; names no file can have are nothing."""
    try:
        return "folder" if path.is_dir() else "file" if path.exists() else "nothing"
    except (OSError, ValueError):
        return "nothing"


def _override(document: Document, override: str) -> None:
    """Puts KEY=VALUE into the document, as if it stood there; sections that are missing are made."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problem = Problem(as_yaml_value(override), "is no override", "KEY=VALUE, for example search.trials=20", file=_SET)
        document.problems.append(problem)
        return
    try:
        value = read_yaml(text, _SET, tuple(parts), has_lines=False)
    except SpecError as error:
        document.problems += error.problems
        return
    document.problems += value.problems
    document.twice += value.twice
    path = _put(document, parts, value.data)
    for place in [k for k in document.places if k == path or k.startswith(f"{path}.")]:
        del document.places[place]
    document.places |= value.places


def _put(document: Document, parts: list[str], value: Any) -> str:
    """Sets a key of the data, and gives its dotted name. What lies on the way and is no section becomes one."""
    data = document.data
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        slot: Any = int(part) if isinstance(data, list) else part
        if last:
            data[slot] = value
            break
        inner = data[slot] if isinstance(data, list) else data.get(slot)
        following = parts[index + 1]
        is_entry = isinstance(inner, list) and following.isdecimal() and int(following) < len(inner)
        if not isinstance(inner, dict) and not is_entry:
            inner = data[slot] = {}
            document.places[dotted(*parts[: index + 1])] = SourceLocation(_SET, None)
        data = inner
    return dotted(*parts)


def _drop_empty_sections(data: JsonObject, model: type[BaseModel]) -> None:
    """`train:` with nothing below it means that all of it is left out."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = data.get(name, {})
            if inner is None:
                del data[name]
            elif isinstance(inner, dict):
                _drop_empty_sections(inner, kind)


def _repaired(data: JsonObject) -> SweepSpec | None:
    """The spec with the keys that are wrong at their defaults, so that the others can still be held against each other."""
    data = copy.deepcopy(data)
    for _ in range(3):
        try:
            return SweepSpec.model_validate(data)
        except ValidationError as error:
            for path in wrong_keys(error, data):
                _remove(data, path)
    return None


def _remove(data: JsonObject, path: tuple[str | int, ...]) -> None:
    """Takes a key out, the whole list where it is an entry; puts in what has no default."""
    if path in (("schema",), ("name",)):
        data[str(path[0])] = {"schema": 1, "name": "unnamed"}[str(path[0])]
        return
    *sections, key = [str(part) for part in takewhile(lambda part: isinstance(part, str), path)]
    for section in sections:
        data = data.get(section, {})
    data.pop(key, None)


def _doubtful(document: Document, wrong: dict[tuple[str | int, ...], Problem]) -> list[str]:
    """Keys whose value is not known: wrong ones, those given twice, and what a key that is unknown was meant to be."""
    meant = [meant_by(str(path[-1]), path[:-1]) for path in wrong]
    return [*(problem.key for problem in wrong.values()), *document.twice, *filter(None, meant)]


def _cross(spec: SweepSpec | None, doubtful: list[str], here: bool) -> list[Problem]:
    """The contradictions between keys, but for those that rest on a doubtful one; and places that are none."""

    def overlap(a: str, b: str) -> bool:
        return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")

    problems = [] if spec is None else [*cross_key_problems(spec), *(place_problems(spec) if here else [])]
    return [p for p in problems if not any(overlap(key, doubt) for key in (p.key, *p.about) for doubt in doubtful)]


def _in_order(document: Document, problems: list[Problem]) -> list[Problem]:
    """With their places; the file's by line, then those of `--set`."""
    placed = []
    for problem in problems:
        place = document.place(problem.key)
        placed.append((place.line is None, place.line or 0, place.column, replace(problem, file=place.file, line=place.line)))
    placed += [(p.line is None, p.line or 0, 0, p) for p in document.problems]
    ordered = [entry[-1] for entry in sorted(placed, key=lambda entry: entry[:3])]
    return list({str(problem): problem for problem in ordered}.values())
