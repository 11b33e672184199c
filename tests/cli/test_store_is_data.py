"""What is read from a store chooses nothing outside it: no address, no folder, no file's name, without the user's own word."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from raylt.cli import app
from raylt.cli.stored_spec import spec_to_confirm
from raylt.diffusion.data import ImageSet, load_images
from raylt.errors import EnvironmentFailure, InputError, SpecError
from raylt.spec import dump_yaml, load_spec, parse_spec
from raylt.spec.sections import DataSpec
from raylt.store import Store
from raylt.store.sweep_state import write_spec
from raylt.tracking.recorder import record_address
from raylt.trial import inputs
from raylt.trial.inputs import FILE, IMAGES, InputDigests, Inputs, gather
from tests.support.confirmed import begun

DEFAULT = "sqlite:///mlflow.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands, who has said nothing yet."""
    for name in [name for name in os.environ if name.startswith(("RAYLT", "RAY_", "MLFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def stored(folder: Path, *overrides: str) -> Store:
    """A store with a sweep `digits` whose spec says so."""
    begun(folder / "raylt-data", load_spec("digits", ["search.trials=1", *overrides]))
    return Store("./raylt-data")


class TestTheRecordsPlace:
    @pytest.mark.parametrize("uri", ["http://attacker:5000", "sqlite:////home/me/other.db"])
    def test_that_of_the_store_alone_is_refused_with_the_option_that_confirms_it(self, folder: Path, uri: str) -> None:
        store = stored(folder, f"tracking.uri={uri}")
        for option in ("--uri ", "--set tracking.uri="):
            with pytest.raises(InputError) as error:
                record_address(store, "digits", None, option)
            assert f"if you mean that place: {option}{uri}; for one in this folder: {option}{DEFAULT}" in str(error.value)
        assert error.value.exit_code == 2
        assert record_address(store, "digits", uri) == uri

    def test_the_default_needs_no_word(self, folder: Path) -> None:
        assert record_address(stored(folder), "digits", None) == f"sqlite:///{folder}/mlflow.db"

    def test_the_environment_is_the_users_word(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = stored(folder, "tracking.uri=http://attacker:5000")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
        assert record_address(store, "digits", None) == "http://mine:5000"
        assert record_address(store, "digits", "http://other:5000") == "http://other:5000"

    def test_a_masked_one_cannot_be_given_as_it_stands(self, folder: Path) -> None:
        store = stored(folder, "tracking.uri=http://***@host:5000")
        with pytest.raises(InputError, match=re.escape("set MLFLOW_TRACKING_URI to it, with what *** stands for; for one")):
            record_address(store, "digits", None)

    def test_no_token_leaves_and_no_file_is_made(self, folder: Path) -> None:
        """`raylt record` and `raylt confirm`, for real: a server that the store names hears nothing."""
        heard: list[Any] = []
        with socket.create_server(("127.0.0.1", 0)) as server:

            def listen() -> None:
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    heard.append(connection.recv(4096))
                    connection.close()

            threading.Thread(target=listen, daemon=True).start()
            stored(folder, f"tracking.uri=http://127.0.0.1:{server.getsockname()[1]}")
            environment = {**os.environ, "MLFLOW_TRACKING_TOKEN": "hunter2", "PYTHONPATH": str(Path(__file__).parents[2])}
            for words in (["record"], ["record", "digits"], ["confirm", "digits"]):
                command = [sys.executable, "-m", "raylt.cli", *words]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
                assert (done.returncode, done.stdout) == (2, ""), done.stderr
                assert done.stderr.startswith("digits: its spec in the store names http://127.0.0.1:")
        assert heard == []
        assert [path.name for path in folder.iterdir()] == ["raylt-data"]

    def test_the_option_and_the_users_own_spec_file_count(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored(folder, "tracking.uri=http://attacker:5000")
        places: list[str] = []
        monkeypatch.setattr("raylt.tracking.recorder.record_sweep", lambda store, name, uri: places.append(uri) or 1)
        own = load_spec("digits", ["search.trials=1", "tracking.uri=http://mine:5000"])
        (folder / "mine.yaml").write_text(dump_yaml(own.dump()))
        for words in (["record", "--uri", "http://a:1"], ["record", "digits", "--uri=http://b:1"], ["record", "mine.yaml"]):
            assert CliRunner().invoke(app, words).exit_code == 0
        assert places == ["http://a:1", "http://b:1", "http://mine:5000"]
        (folder / "mine.yaml").write_text(dump_yaml(load_spec("digits", ["search.trials=1"]).dump()))  # which says nothing
        assert isinstance(CliRunner().invoke(app, ["record", "mine.yaml"]).exception, InputError)
        secret = CliRunner().invoke(app, ["record", "--uri", "http://me:hunter2@host"])
        assert isinstance(secret.exception, InputError) and "hunter2" not in str(secret.exception)

    def test_of_all_sweeps_none_is_recorded_where_one_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored(folder)
        begun(folder / "raylt-data", load_spec("digits", ["name=z", "tracking.uri=http://attacker:5000"]))
        monkeypatch.setattr("raylt.tracking.recorder.record_sweep", pytest.fail)
        assert isinstance(CliRunner().invoke(app, ["record"]).exception, InputError)


class TestWhatIsConfirmed:
    def test_the_record_goes_where_the_user_says(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored(folder, "tracking.uri=http://attacker:5000")
        with pytest.raises(InputError, match=r"if you mean that place: --set tracking\.uri=http://attacker:5000; for one"):
            spec_to_confirm("digits", None, None)
        assert spec_to_confirm("digits", ["tracking.uri=http://mine:5000"], None)[0].tracking.uri == "http://mine:5000"
        assert spec_to_confirm("digits", ["tracking={uri: http://mine:5000}"], None)[0].tracking.uri == "http://mine:5000"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
        spec_to_confirm("digits", None, None)

    @pytest.mark.parametrize(
        ("overrides", "is_the_stores"),
        [(None, True), (["confirm.seeds=4"], True), (["data.root=/mine"], False), (["data={name: mnist, root: /m}"], False)],
    )
    def test_whose_word_the_folder_of_the_images_is(
        self, folder: Path, overrides: list[str] | None, is_the_stores: bool
    ) -> None:
        stored(folder, "data.name=mnist", "metrics=null", "data.root=/home/me/secret")
        assert spec_to_confirm("digits", overrides, None)[1] is is_the_stores

    def test_it_is_the_sweep_that_was_named(self, folder: Path) -> None:
        store = stored(folder)
        spec = load_spec("digits", ["search.trials=1", "name=another"])
        write_spec(store, "digits", dump_yaml(spec.dump()))
        assert spec_to_confirm("digits", None, None)[0].name == "digits"


def pictures(folder: Path) -> DataSpec:
    from PIL import Image

    folder.mkdir()
    for index in range(40):
        Image.new("RGB", (8, 8), (6 * index, 0, 0)).save(folder / f"{index:02d}.png")
    return DataSpec(name="images", root=str(folder), size=8)


class TestTheImages:
    """A sweep that is gone on with by its name takes them from the store, checked; the folder is for the user to name."""

    def test_they_come_from_the_store_and_the_folder_is_not_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = DataSpec(name="digits")
        store, images = Store("./raylt-data"), load_images(data)
        Inputs(images).put(store)
        monkeypatch.setattr(inputs, "load_images", pytest.fail)
        spec = load_spec("digits").model_copy(update={"data": DataSpec(name="mnist", root="/home/me/secret")})
        assert gather(spec, store, InputDigests(images.digest, None), True).images.digest == images.digest
        with pytest.raises(
            SpecError, match=r"^--set: data\.root: is not given, and the store lacks .* names '/home/me/secret'"
        ):
            gather(spec, store, InputDigests("0" * 64, None), True)

    def test_a_sweep_of_a_folder_goes_on_without_the_folder(self, folder: Path) -> None:
        data = pictures(folder / "pictures")
        store, images = Store("./raylt-data"), load_images(data)
        Inputs(images).put(store)
        for path in (folder / "pictures").iterdir():
            path.write_bytes(b"")  # would be an error if it were read
        spec = load_spec("digits").model_copy(update={"data": data})
        assert gather(spec, store, InputDigests(images.digest, None), True).images.digest == images.digest

    @pytest.mark.parametrize("name", ["../../../../owned", "{root}/owned", "", "0" * 63])
    def test_the_manifest_names_no_file_of_the_nodes_cache(self, folder: Path, name: str) -> None:
        images = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        store = Store("./raylt-data")
        Inputs(images).put(store)
        path = folder / "raylt-data" / inputs._stage(store, IMAGES, images.digest).path / "manifest.json"
        content = json.loads(path.read_text())
        content["files"][FILE]["sha256"] = name.format(root=folder)
        path.write_text(json.dumps(content))
        before = set(folder.parent.rglob("*"))
        fresh = Store("./raylt-data")
        fresh.is_local = False
        with pytest.raises(EnvironmentFailure):
            inputs._fetched(inputs._stage(fresh, IMAGES, images.digest))
        assert set(folder.parent.rglob("*")) == before


def test_a_spec_that_merges_itself_without_end_ends_at_once() -> None:
    """Nine sections, each of which merges the one before ten times: a thousand million keys."""
    lines = ["schema: 1", "name: x", "a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    with pytest.raises(SpecError, match="is too large or nested too deeply"):
        parse_spec("\n".join(lines), "spec.yaml")
