"""Files on a local folder and on a real S3 server: whole or absent, and every fault in one line that says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raylt.errors import EnvironmentFailure, InputError, StoreFailure
from raylt.store import Store
from raylt.store import filesystem as module
from raylt.store.filesystem import Files, Found
from raylt.sweep.resume import refuse_read_only
from tests.support import s3


@pytest.fixture(scope="module")
def server():
    with s3.running() as running:
        yield running


@pytest.fixture
def bucket(request) -> str:
    return f"b{abs(hash(request.node.name))}"


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, bucket) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("server").root(bucket)


def test_what_is_written_is_read_listed_and_deleted(root):
    files = Files(root)
    assert files.read("a/b") is None
    assert files.names("a") == []
    files.write("a/b", b"1")
    files.write("a/b", b"22")
    files.write_record("a/c/d.json", {"x": 1.5})
    assert (files.read("a/b"), files.read_record("a/c/d.json")) == (b"22", {"x": 1.5})
    assert files.names("a") == ["b", "c"]
    assert files.all_files("") == [Found("a/b", 2), Found("a/c/d.json", len(files.read("a/c/d.json")))]
    files.delete("a/b")
    files.delete("a/b")
    assert files.names("a") == ["c"]
    files.delete_folder("a")
    files.delete_folder("a")
    assert files.all_files("") == []
    assert Files(files.uri).uri == files.uri


def test_a_large_object_is_whole(server, bucket):
    files, data = Files(server.root(bucket)), os.urandom(11 << 20)  # above one PUT
    files.write("large", data)
    assert files.read("large") == data


def test_a_file_that_is_no_json_is_not_taken_for_one(root):
    files = Files(root)
    files.write("a.json", b'{"x": 1')
    with pytest.raises(EnvironmentFailure, match=r"a\.json is damaged: it is no JSON; lost: .*raylt store verify"):
        files.read_record("a.json")


# --- addresses --------------------------------------------------------------------------------------------------------


def test_the_address_of_the_server_may_come_from_the_environment(server, bucket, monkeypatch):
    full = server.root(bucket)
    Files(full).write("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.address}")
    files = Files(f"s3://{bucket}/raylt")
    assert files.read("a") == b"1"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Files(files.uri).read("a") == b"1"  # what workers are given needs no environment
    monkeypatch.setenv("AWS_ENDPOINT_URL", "ftp://elsewhere")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL is no http"):
        Files(f"s3://{bucket}/raylt")


@pytest.mark.parametrize("root", ["s3://AKIAME:hunter2@bucket/x", "s3://AKIAME@bucket", "s3://bucket/x?secret_key=hunter2"])
def test_secrets_in_an_address_are_refused_and_not_repeated(root):
    with pytest.raises(InputError) as error:
        Files(root)
    assert error.value.exit_code == 2
    assert "hunter2" not in str(error.value) and "AKIAME" not in str(error.value)
    assert "secret_key" in root or "credentials come from the environment (AWS_ACCESS_KEY_ID" in str(error.value)


def test_a_password_in_a_spec_is_refused_by_validate_without_showing_it(tmp_path):
    spec = tmp_path / "secret.yaml"
    spec.write_text("schema: 1\nname: secret\nstorage:\n  root: s3://AKIAME:hunter2@bucket/x\n")
    done = subprocess.run([sys.executable, "-m", "raylt.cli", "validate", str(spec)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{spec}:4: storage.root: holds a user name, password or token; credentials come from")
    assert "hunter2" not in done.stderr + done.stdout


def test_who_stands_in_other_addresses_is_no_secret():
    from raylt.spec.paths import has_credentials

    assert not has_credentials("abfs://container@account.dfs.core.windows.net/x")
    assert not has_credentials("/home/me@work:here/x")
    assert has_credentials("abfs://container:key@account/x")


# --- faults -----------------------------------------------------------------------------------------------------------


def failure(action) -> str:
    with pytest.raises(StoreFailure) as error:
        action()
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_bucket_is_named(server):
    there = server.root("there")
    assert "no such bucket nowhere; create the bucket" in failure(lambda: Files(there.replace("there", "nowhere")).read("a"))
    files = Files(there)
    assert files.read("a") is None
    server.client.delete_bucket(Bucket="there")
    assert failure(lambda: files.write("a", b"")).startswith("cannot write s3://there/raylt/a: The specified bucket does not")


def test_a_server_that_is_down_is_an_error_in_seconds(monkeypatch):
    root = f"s3://bucket/x?endpoint_override=127.0.0.1:{s3.free_port()}&scheme=http"
    began = time.monotonic()
    said = failure(lambda: Files(root).read("a"))
    assert time.monotonic() - began < module.GIVE_UP_AFTER_S + 20
    assert said.startswith("cannot reach s3://bucket/x: Failed to connect to 127.0.0.1")
    assert said.endswith("see that the server is up and that its address is right, then give the same command again")


def test_a_server_that_never_answers_is_an_error_too(server, bucket, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 1.0)
    monkeypatch.setattr(module, "GIVE_UP_AFTER_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        said = failure(lambda: Files(f"s3://bucket/x?endpoint_override={address}&scheme=http").read("a"))
    assert "NETWORK_CONNECTION" in said and "see that the server is up" in said


def test_a_fault_that_passes_is_sat_out(bucket):
    with s3.running() as server:
        files = Files(server.root(bucket))
        server.stop()
        time.sleep(0.2)
        threading.Timer(1.0, server.start).start()
        files.write("a", b"1")
        assert files.read("a") == b"1"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
class TestLocalDisks:
    @pytest.fixture
    def mounted(self, tmp_path):
        """A file system of one megabyte of its own."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    def test_a_full_disk(self, mounted):
        files = Files(str(mounted))
        files.write("a", b"old")
        assert failure(lambda: files.write("a", b"x" * (2 << 20))) == (
            f"cannot write {mounted}/a: No space left on device; "
            "free space there (raylt store du, raylt store gc NAME), then give the same command again"
        )
        assert files.all_files("") == [Found("a", 3)]  # the old bytes, and no half file beside them
        assert files.read("a") == b"old"

    def test_a_disk_that_is_read_only(self, mounted):
        files = Files(str(mounted))
        files.write("a", b"1")
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        for action in (lambda: files.write("a", b"2"), lambda: files.delete("a"), lambda: files.write("new/b", b"")):
            assert "Read-only file system; make it writable, or choose another storage.root" in failure(action)
        assert files.read("a") == b"1"
        for folder in (mounted, mounted / "not" / "there"):  # what a dry run looks at
            assert "Read-only file system; make it writable" in failure(lambda at=folder: refuse_read_only(Store(str(at))))


def test_a_dry_run_says_where_nothing_could_be_written(tmp_path, monkeypatch):
    refuse_read_only(Store(str(tmp_path / "not" / "there")))
    (tmp_path / "file").write_bytes(b"")
    assert "cannot write" in failure(lambda: refuse_read_only(Store(str(tmp_path / "file" / "store"))))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as another user
    assert failure(lambda: refuse_read_only(Store(str(tmp_path)))).startswith(f"cannot write {tmp_path}: Permission denied")


def test_a_folder_where_a_file_is_expected(tmp_path):
    files = Files(str(tmp_path))
    files.write("a/b", b"1")
    assert failure(lambda: files.write("a", b"1")).startswith(f"cannot write {tmp_path}/a: Is a directory")
    assert failure(lambda: files.write("a/b/c", b"1")).startswith(f"cannot write {tmp_path}/a/b/c: ")
    assert Path(tmp_path, "a/b").read_bytes() == b"1"
