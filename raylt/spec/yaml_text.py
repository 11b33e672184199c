"""YAML text -> plain data, and the place of every key in it.

Scalars follow the core schema of YAML 1.2 whatever the file declares: `1e-4` is a number, `no` and `on` are text. The tree
is built from ruamel.yaml's nodes, below its constructors: those stop at the first duplicate key, and a spec is told
everything that is wrong with it at once.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from raylt.errors import Problem, SpecError
from raylt.spec.canonical import JsonObject

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_STANDARD = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _STANDARD}
_MERGE = "tag:yaml.org,2002:merge"

_MAX_DEPTH = 50  # of nesting: far over any spec, far below Python's stack
_MAX_VALUES = 20_000  # aliases can blow up a small text without end
_HINTS = {  # of what ruamel.yaml says: what would be right
    "mapping values are not allowed here": "one KEY: VALUE a line, a section's keys indented alike, quotes around ': '",
    r"'\t'": "spaces in place of tabs",
    "undefined alias": "quotes around text that begins with *",
    "single document": "one document in a file, no second ---",
    "special characters": "plain text",
}


@dataclass(frozen=True)
class SourceLocation:
    """Where a key stands. An override stands in no line of no file: its file is `--set`."""

    file: str
    line: int | None
    column: int = 0


@dataclass
class Document:
    """What a YAML text says. `places` goes by dotted key, "" being the whole; `twice` are keys given more than once."""

    data: Any = None
    places: dict[str, SourceLocation] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def place(self, key: str) -> SourceLocation:
        """Of a key, or of the nearest section around it that is there."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places[key]


def dotted(*parts: str | int) -> str:
    """`train.steps`; a part that is no plain word is quoted, so that a message stays one line and keys stay apart."""
    return ".".join(str(p) if re.fullmatch(r"[\w+/ -]+", str(p)) and str(p).strip() == str(p) else repr(p) for p in parts)


def read_yaml(text: str, file: str, prefix: tuple[str | int, ...] = (), has_lines: bool = True) -> Document:
    """The document in `text`; raises SpecError where it is not YAML. Keys are named below `prefix`."""
    reader = _Reader(text, file, has_lines)
    node = reader.compose(dotted(*prefix) or "YAML")
    reader.document.places[dotted(*prefix)] = SourceLocation(file, 1 if has_lines else None)
    if node is not None:
        reader.document.data = reader.value(node, prefix)
    return reader.document


def dump_yaml(data: JsonObject) -> str:
    """YAML in block style, keys in the order given: what `spec.yaml` in the store holds, and `read_yaml` reads back."""
    yaml = YAML()
    yaml.width = 10**6  # one value, one line
    yaml.representer.ignore_aliases = lambda *_: True
    out = io.StringIO()
    yaml.dump(_printable(data), out)
    return out.getvalue()


def _printable(data: Any) -> Any:
    """Odd characters are escaped: in other styles ruamel.yaml writes some so that they read back as a space."""
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_printable(item) for item in data]
    return DoubleQuotedScalarString(data) if isinstance(data, str) and not data.isprintable() else data


def scalar(text: str) -> Any:
    """The value of an unquoted scalar. Numbers that are not finite, or absurdly long, stay text."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if len(text) > 100:
        return text
    if _INT.fullmatch(text):
        return int(text.replace("_", ""), {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text.replace("_", ""))):
        return number
    return text


class _Reader:
    def __init__(self, text: str, file: str, has_lines: bool) -> None:
        self.text, self.file, self.has_lines = text, file, has_lines
        self.document = Document()
        self.num_values = 0

    def compose(self, key: str) -> Any:
        """ruamel.yaml's node tree of the text; None where it is empty."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return YAML().compose(self.text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(f"{error.context or ''} {error.problem or ''}".split())
            raise self.broken(key, what, mark.line + 1 if mark else 1) from None
        except ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise self.broken(key, "special characters are not allowed", line, error.character) from None
        except RecursionError:
            raise self.broken(key, "is nested too deeply", 1) from None
        except Exception as error:  # ruamel.yaml leaks others on odd texts: OverflowError for "\UFFFFFFFF"
            raise self.broken(key, f"cannot be read: {error}", 1) from None

    def broken(self, key: str, what: str, line: int, given: object = None) -> SpecError:
        usual = "KEY: VALUE lines, sections indented by spaces" if self.has_lines else "a value as in the file"
        expected = next((hint for part, hint in _HINTS.items() if part in what), usual)
        if isinstance(given, int):
            given = chr(given)
        where = line if self.has_lines else None
        return SpecError([Problem(key, what, expected, given, given is not None, self.file, where)])

    def note(self, node: Any, path: tuple[str | int, ...], what: str, expected: str) -> None:
        place = self.place(node)
        self.document.problems.append(Problem(dotted(*path) or "YAML", what, expected, file=place.file, line=place.line))

    def place(self, node: Any) -> SourceLocation:
        mark = node.start_mark
        return SourceLocation(self.file, mark.line + 1, mark.column) if self.has_lines else SourceLocation(self.file, None)

    def value(self, node: Any, path: tuple[str | int, ...]) -> Any:
        """Plain data of a node: dict with text keys, list, text, number, true or false, None."""
        self.count(node, path)
        if str(node.tag) not in _TAGS:
            self.note(node, path, f"has the tag {node.tag!s}", "a value without a tag")
        if isinstance(node, ScalarNode):
            is_text = node.style is not None or (node.ctag.handle, node.ctag.suffix) == ("!!", "str")
            return node.value if is_text else scalar(node.value)
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self.document.places[dotted(*path, index)] = self.place(item)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self.mapping(node, path)

    def count(self, node: Any, path: tuple[str | int, ...], num: int = 1) -> None:
        self.num_values += num
        if self.num_values > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise self.broken(dotted(*path[:3]) or "YAML", "is too large or nested too deeply", self.place(node).line or 1)

    def mapping(self, node: Any, path: tuple[str | int, ...]) -> JsonObject:
        data: JsonObject = {}
        pairs = [(key, value) for key, value in node.value if str(key.tag) != _MERGE]
        for key, value in pairs:
            if not isinstance(key, ScalarNode):
                self.note(key, path, "has a key that is a list or a section", "a word")
                continue
            name = dotted(*path, key.value)
            if key.value in data:
                first = self.document.places[name].line
                expected = f"one of them (the first is in line {first})" if first else "one of them"
                self.note(key, (*path, key.value), "is given twice", expected)
                self.document.twice.append(name)
                continue
            self.document.places[name] = self.place(key)
            data[key.value] = self.value(value, (*path, key.value))
        for key, value in self.merged(node, path):
            if key not in data:
                self.document.places[dotted(*path, key)] = self.place(value)
                data[key] = self.value(value, (*path, key))
        return data

    def merged(self, node: Any, path: tuple[str | int, ...], depth: int = 0) -> list[tuple[str, Any]]:
        """What `<<: *other` brings in, nearest first."""
        pairs: list[tuple[str, Any]] = []
        for key, value in node.value:
            if str(key.tag) != _MERGE:
                continue
            for other in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(other, MappingNode) or depth > _MAX_DEPTH:
                    self.note(key, (*path, "<<"), "is no section", "the alias of a section")
                    continue
                self.count(other, path, 1 + len(other.value))
                pairs += [(k.value, v) for k, v in other.value if isinstance(k, ScalarNode) and str(k.tag) != _MERGE]
                pairs += self.merged(other, path, depth + 1)
        return pairs
