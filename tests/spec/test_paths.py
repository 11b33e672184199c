"""`~` and variables in paths mean what they mean in a shell, once, and only in what the user of this machine wrote."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylt.cli import app
from raylt.errors import InputError, SpecError
from raylt.report.lookup import find_sweep, load, name_of
from raylt.spec import dump_yaml, load_spec, parse_spec
from raylt.spec.load import parse_again, read_spec
from raylt.spec.paths import expanded, literal, root_problem
from raylt.spec.sections import StorageSpec
from raylt.spec.tracking_uri import absolute_uri, sqlite_uri
from raylt.store import Ledger, Store
from raylt.store.layout import SPEC_FILE
from raylt.store.sweep_state import stored_spec
from raylt.sweep.resume import with_free_name
from tests.conftest import TINY
from tests.support.begun import write_start
from tests.support.nasty import NAMES


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/a b")
    for name in ("RAYLT_ROOT", "NOWHERE", "RAYLT_SPEC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMPTY", "")


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("~/x", "/home/me/x"), ("$HOME/x", "/home/me/x"), ("${HOME}x", "/home/mex"), ("$SCRATCH", "/scratch/a b"),
        ("a~b", "a~b"),
        ("./x", "./x"), ("x/", "x/"), ("/x//y", "/x//y"), ("s3://b/$USERNAME_", None), ("s3://bucket//x/", "s3://bucket//x/"),
        ("$$x", "$x"), ("./~", "./~"), ("$NOWHERE/x", None), ("$EMPTY/x", None), ("a$", None), ("$1", None),
        ("~nobody_here/x", None),
    ],
)  # fmt: skip
def test_words_and_paths(words: str, path: str | None) -> None:
    if path is None:
        with pytest.raises(LookupError):
            expanded(words)
    else:
        assert expanded(words) == path


@pytest.mark.parametrize("name", NAMES)
def test_any_path_can_be_written(name: str, tmp_path: Path) -> None:
    for path in (name, f"{tmp_path}/{name}", f"./{name}/x"):
        assert Path(expanded(literal(path))) == Path(path)


def test_the_keys_that_have_paths(tmp_path: Path) -> None:
    Path("s.yaml").write_text(
        "schema: 1\nname: x\nstorage: {root: $SCRATCH/s}\ndata: {name: mnist, size: 16, root: ~/d}\ntracking: {uri: 'sqlite:///~/m%20x.db?timeout=3'}\n"
    )
    spec = load("s.yaml", None)
    assert (spec.storage.root, spec.data.root) == ("/scratch/a b/s", "/home/me/d")
    assert spec.tracking.uri == "sqlite:////home/me/m x.db?timeout=3"
    assert load("s.yaml", ["storage.root=~/y"]).storage.root == "/home/me/y"
    assert parse_again(spec, "s", ["data.root=$SCRATCH"]).data.root == "/scratch/a b"


def test_what_is_unknown_is_refused_with_line_and_key() -> None:
    Path("s.yaml").write_text("schema: 1\nname: x\nstorage:\n  root: $NOWHERE/s\ndata:\n  root: ~nobody_here/d\n")
    with pytest.raises(SpecError) as refused:
        load("s.yaml", ["tracking.uri=sqlite:///$EMPTY/m.db"])
    first, second, third = str(refused.value).splitlines()
    assert first.startswith("s.yaml:4: storage.root: names the variable NOWHERE, which is not set (got '$NOWHERE/s'); ")
    assert second.startswith("s.yaml:6: data.root: names the home of a user") and "~nobody_here" in second
    assert third.startswith("--set: tracking.uri: names the variable EMPTY, which is not set")
    done = CliRunner().invoke(app, ["validate", "s.yaml"])
    assert isinstance(done.exception, SpecError) and not Path("$NOWHERE").exists()


def test_what_a_store_or_another_machine_has_is_taken_as_it_stands(tmp_path: Path) -> None:
    Path("s.yaml").write_text("schema: 1\nname: x\nstorage: {root: $NOWHERE/s}\ndata: {name: mnist, size: 16, root: ~/d}\n")
    assert load_spec("s.yaml", here=False).storage.root == "$NOWHERE/s"  # for a cluster's head to read
    assert name_of("s.yaml") == "x"
    store = Store(str(tmp_path / "store"))
    store.write(f"sweeps/x/{SPEC_FILE}", Path("s.yaml").read_bytes())  # as an earlier raylt left it
    spec = stored_spec(store, "x")
    assert (spec.storage.root, spec.data.root) == ("$NOWHERE/s", "~/d")
    again = parse_again(spec, "x")
    assert (again.storage.root, again.data.root) == ("$NOWHERE/s", "./~/d")


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_read_again_is_the_same(name: str, tiny_spec: Any) -> None:
    uri = sqlite_uri(Path(f"/x/{name}/m.db"))
    spec = tiny_spec(
        storage={"root": f"/x/{name}"}, data={"name": "mnist", "size": 16, "root": f"/y/{name}"}, tracking={"uri": uri}
    )
    again = parse_again(spec, "x")
    assert (again.storage, again.data) == (spec.storage, spec.data)
    assert absolute_uri(again.tracking.uri) == uri


def test_roots_from_the_environment_and_the_command_line(tmp_path: Path, monkeypatch: Any) -> None:
    Path("s.yaml").write_text(dump_yaml(TINY))
    monkeypatch.setenv("RAYLT_ROOT", "")  # as after `export RAYLT_ROOT=$NOTHING`: not this folder
    assert load("s.yaml", None).storage.root == "./raylt-data"
    assert find_sweep("tiny", None)[0].root == find_sweep("s.yaml", None)[0].root == "./raylt-data"
    monkeypatch.setenv("RAYLT_ROOT", "$SCRATCH/$$r")
    assert load("s.yaml", None).storage.root == "/scratch/a b/$r"
    assert find_sweep("tiny", None)[0].root == find_sweep("s.yaml", None)[0].root == "/scratch/a b/$r"
    assert find_sweep("s.yaml", "~/z")[0].root == find_sweep("tiny", "~/z")[0].root == "/home/me/z"
    for source in ("RAYLT_ROOT", "--root"):
        monkeypatch.setenv("RAYLT_ROOT", "$NOWHERE")
        with pytest.raises(InputError, match=f"{source}: names the variable NOWHERE"):
            find_sweep("tiny", "$NOWHERE" if source == "--root" else None)
    with pytest.raises(InputError, match="--root: is empty"):
        find_sweep("tiny", "")


def test_a_slash_at_the_end_names_the_same_store(tmp_path: Path) -> None:
    Store("s/").write("a", b"1")
    assert Store("s").read("a") == Store(str(tmp_path / "s") + "//").read("a") == b"1"


@pytest.mark.parametrize(
    ("root", "right"),
    [
        ("", "a folder"), (" ", "a folder"), ("file:x", "file:///x"), ("file:/tmp/x", "file:///tmp/x"), ("s3:/bucket/x", "s3://bucket/x"),
        ("S3://bucket/x", "s3://bucket/x"), ("s3:bucket", "s3://bucket"), ("s3://b/a#b", "without #"), ("file:///a#b", "%23"),
        ("file:///a?b", "%3F"), ("s3://b/a?b", "without ?"), ("s3://b/a\nb", "a folder"),
    ],
)  # fmt: skip
def test_roots_that_would_be_another_place(root: str, right: str) -> None:
    problem = root_problem(root)
    assert problem is not None and right in problem[1]
    done = CliRunner().invoke(app, ["validate", "digits", "--set", f"storage.root={json.dumps(root)}"])
    assert isinstance(done.exception, SpecError) and right in str(done.exception)


@pytest.mark.parametrize(
    "root", ["a?b", "a#b", "job:main", "x:y", "s3://b/a+b c%20?region=x&scheme=http", "file:///a%20b", "gs://b/x"]
)
def test_roots_that_are_left_alone(root: str) -> None:
    assert root_problem(root) is None


# --- other words that mean something elsewhere ------------------------------------------------------------------------


def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path) -> None:
    text = dump_yaml(TINY)
    plain = parse_spec(text, "x")
    for encoded in (
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r\n").encode("utf-8-sig"),
    ):
        (tmp_path / "s.yaml").write_bytes(encoded)
        assert parse_spec(read_spec(tmp_path / "s.yaml"), "x") == plain


def test_an_override_may_have_equals_signs() -> None:
    assert load("mnist", ["data.root=a=b=c"]).data.root == "a=b=c"
    assert load("digits", ["tracking.uri=sqlite:///m.db?timeout=5"]).tracking.uri == "sqlite:///m.db?timeout=5"


def test_a_sweep_beside_one_of_the_longest_name(tmp_path: Path, tiny_spec: Any) -> None:
    store = Store(str(tmp_path))
    spec = tiny_spec(name="n" * 100)
    store.write(f"sweeps/{spec.name}/{SPEC_FILE}", dump_yaml(spec.dump()).encode())
    assert stored_spec(store, spec.name) == spec
    with pytest.raises(InputError, match=r"more than 100 characters.*--set name=NAME"):
        with_free_name(spec, store)
    assert with_free_name(tiny_spec(name="n" * 98), store).name == "n" * 98


def test_group_names_fit_into_params_of_mlflow(tiny_spec: Any) -> None:
    with pytest.raises(SpecError, match=r"is no name; .*at most 200"):
        parse_spec(dump_yaml({**TINY, "search": {"groups": {"g" * 201: ["*"]}}}), "x")


def test_paths_of_ssh_are_not_read_for_tokens(monkeypatch: Any, tmp_path: Path) -> None:
    from raylt.cluster.ssh import Head

    monkeypatch.setenv("HOME", str(tmp_path / "job%h"))
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/ssh")
    words = Head("h", "u", "/k/%d/key", None, "c", 1).ssh()
    assert any(word == f'UserKnownHostsFile="{tmp_path}/job%%h/.raylt/known_hosts/c"' for word in words)
    assert "/k/%%d/key" in words


def test_the_version_and_help_everywhere(monkeypatch: Any) -> None:
    said = CliRunner().invoke(app, ["--version"]).stdout
    assert re.fullmatch(r"raylt \S+ \(Python \S+, torch \S+, Ray \S+, Optuna \S+, MLflow \S+\)\n", said)
    for words in ([], ["sweep"], ["store"], ["store", "du"], ["results"], ["record"], ["ui"], ["confirm"]):
        done = CliRunner().invoke(app, [*words, "-h"])
        assert done.exit_code == 0 and "Usage:" in done.stdout


def test_the_default_store_is_known_once() -> None:
    assert find_sweep("tiny", None)[0].root == StorageSpec().root


def test_the_store_that_a_sweep_names_at_its_end_is_found_by_its_words(tmp_path: Path, tiny_spec: Any, capsys: Any) -> None:
    from raylt.cli.sweep import _print_end
    from raylt.sweep.driver import SweepEnd

    spec = tiny_spec(storage={"root": str(tmp_path / "$x ~")})
    store = Store(spec.storage.root)
    write_start(Ledger(store, "tiny", lambda: None), spec)
    _print_end(SweepEnd(spec, 0, is_recorded=False), False, None)
    said = capsys.readouterr()
    for line, command in ((said.out, "results"), (said.err, "record")):
        (words,) = re.findall(rf"(raylt {command} tiny --root '.*?')", line)
        _, _, _, _, root = shlex.split(words)
        assert find_sweep("tiny", root)[0].read(f"sweeps/tiny/{SPEC_FILE}") is not None
