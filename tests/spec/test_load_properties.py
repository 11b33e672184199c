"""Whatever the text, a spec or a SpecError comes of it; whatever the file, a spec or an InputError."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.errors import InputError, SpecError
from raylt.spec import SweepSpec, dump_yaml, load_spec, parse_spec
from raylt.spec.load import builtin_sweeps, find_spec
from raylt.spec.yaml_text import read_yaml

DIGITS = (Path(__file__).parents[2] / "sweeps" / "digits.yaml").read_text()
HEAD = "schema: 1\nname: x\n"


class TestFindSpec:
    @pytest.fixture(autouse=True)
    def _bare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("RAYLT_SPEC", raising=False)

    def test_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert find_spec(None) == builtin_sweeps()["digits"] == find_spec("digits")
        Path("sweep.yaml").write_text(HEAD)
        assert find_spec(None) == Path("sweep.yaml")
        monkeypatch.setenv("RAYLT_SPEC", "mnist")
        assert find_spec(None) == builtin_sweeps()["mnist"]
        Path("mnist").write_text(HEAD)
        assert find_spec(None) == Path("mnist")
        assert find_spec("cifar10").stem == "cifar10"

    def test_a_folder_of_a_sweeps_name_is_not_in_its_way(self) -> None:
        Path("digits").mkdir()
        assert find_spec("digits") == builtin_sweeps()["digits"]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("digit", "'digit': no such file and no such sweep; did you mean 'digits'? sweeps that come with raylt: cifar10,"),
            ("sweeps/zzz.yaml", "'sweeps/zzz.yaml': no such file and no such sweep; sweeps that come with raylt: cifar10, "),
            (".", ".: is a folder; a spec is a YAML file"),
            ("", "the name of the spec is empty; a spec is a YAML file"),
            ("\0", r"'\x00': no such file"),
            ("x" * 5000, "'xxx"),
        ],
    )
    def test_unknown(self, source: str, message: str) -> None:
        with pytest.raises(InputError) as caught:
            load_spec(source)
        assert str(caught.value).startswith(message)

    def test_the_variable_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYLT_SPEC", "nowhere.yaml")
        with pytest.raises(InputError, match=r"^RAYLT_SPEC: 'nowhere.yaml'"):
            load_spec(None)

    def test_files_that_are_no_text(self) -> None:
        Path("latin.yaml").write_bytes(b"schema: 1\nname: caf\xe9\n")
        Path("big.yaml").write_bytes(b"#" * 200_000)
        with pytest.raises(SpecError, match=r"^latin.yaml:2: YAML: is not UTF-8 \(byte 0xe9\); a text file in UTF-8$"):
            load_spec("latin.yaml")
        with pytest.raises(InputError, match=r"^big.yaml: is over 100,000 bytes"):
            load_spec("big.yaml")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_file_that_cannot_be_read(self) -> None:
        Path("secret.yaml").write_text(HEAD)
        Path("secret.yaml").chmod(0)
        with pytest.raises(InputError, match=r"^secret.yaml: cannot be read: Permission denied"):
            load_spec("secret.yaml")

    def test_a_byte_order_mark_and_windows_lines_are_fine(self) -> None:
        Path("notepad.yaml").write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"zzz: 1\r\n")
        with pytest.raises(SpecError, match=r"^notepad.yaml:3: zzz: unknown key"):
            load_spec("notepad.yaml")


def _survives(text: str, overrides: tuple[str, ...] = ()) -> None:
    try:
        spec = parse_spec(text, "f.yaml", overrides)
    except SpecError as error:
        assert error.problems
        assert all(p.file in ("f.yaml", "--set") and "\n" not in str(p) for p in error.problems)
    else:
        assert parse_spec(dump_yaml(spec.dump()), "f.yaml").digest == spec.digest


@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,?\\ \n\t01.", max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    _survives(text)


PIECES = ["null", "true", "-1", "1e9", "[]", "{}", "*", "&a", "!!x", ": ", "\n", "\t", "- ", "'", "é", "\0", "gp", "9" * 20]
EDITS = st.tuples(st.integers(0, len(DIGITS)), st.integers(0, 30), st.sampled_from(PIECES) | st.text(max_size=5))
OVERRIDES = st.sampled_from(["train.steps=9", "ticket={}", "model.config={a: 1}", "search.groups="]) | st.text(max_size=20)


@given(edits=st.lists(EDITS, max_size=4), overrides=st.lists(OVERRIDES, max_size=2))
@settings(max_examples=150)
def test_any_change_of_a_spec_is_a_spec_or_a_spec_error(edits: list[tuple[int, int, str]], overrides: list[str]) -> None:
    text = DIGITS
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    _survives(text, tuple(overrides))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10)
KEYS = st.sampled_from(
    ["train", "ticket", "search", "model", "config", "groups", "down_block_types", "densities", "x", "steps"]
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4)
)


@given(st.dictionaries(KEYS, TREES, max_size=4))
@settings(max_examples=200)
def test_any_tree_is_a_spec_or_a_spec_error(tree: dict[str, object]) -> None:
    text = dump_yaml({"schema": 1, "name": "x", **tree})
    assert read_yaml(text, "f").data == {"schema": 1, "name": "x", **tree}
    _survives(text)


def integers_of(node: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole number that a spec may have, as its JSON schema describes it."""
    if node.get("type") == "integer":
        yield where, node
    for key, value in node.items():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                yield from integers_of(child, f"{where}/{key}")


def test_every_whole_number_is_bounded() -> None:
    """Without an upper bound a typing slip is planned, or allocated, before anybody sees it."""
    found = dict(integers_of(SweepSpec.model_json_schema()))
    assert len(found) > 20
    assert [
        where
        for where, node in found.items()
        if not {"const", "enum"} & set(node)
        and not ({"minimum", "exclusiveMinimum"} & set(node) and {"maximum", "exclusiveMaximum"} & set(node))
    ] == []
