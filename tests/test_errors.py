"""Errors: what counts as a password, and that no message repeats it; and what is behind an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylt.cli import remote
from raylt.cli.sweep import Run
from raylt.cluster import ray_start
from raylt.cluster.ssh import Head
from raylt.diffusion import device
from raylt.errors import InputError, SpecError, chain_of, has_secret, without_secrets
from raylt.search import study
from raylt.spec import load_spec, parse_spec
from raylt.spec.paths import has_credentials
from raylt.tracking import client

WITH = [
    "http://me:hunter2@host:5000", "https://hunter2@host", "http://me:hun/ter2@host", "http://:hunter2@host/x",
    "postgresql://me:hunter2@db/mlflow", "postgresql+psycopg2://me:hun/ter2@db", "mysql://me:123@db/x",
    "postgresql://db/mlflow?user=me&password=hunter2", "http://host/?access_token=hunter2",
]  # fmt: skip
WITHOUT = [
    "sqlite:///mlflow.db", "sqlite:////srv/a@b/mlflow.db", "http://host:5000", "http://host:5000/a@b", "https://host/x?y=z",
    "postgresql://me@db/mlflow", "databricks", "databricks://profile", "./mlruns", "file:///srv/mlruns",
    "postgresql://db/mlflow?sslmode=require", "http://***@host:5000", "postgresql://db?password=***",
]  # fmt: skip


@pytest.mark.parametrize("uri", WITH)
def test_a_secret_in_the_tracking_uri_is_refused_and_not_repeated(uri: str) -> None:
    assert has_credentials(uri)
    assert not has_credentials(without_secrets(uri))  # so that specs in older stores, which are masked, are still read
    with pytest.raises(
        SpecError, match=r"^--set: tracking\.uri: holds a user name, password or token; a URI without; .*MLFLOW_"
    ):
        load_spec("digits", [f"tracking.uri={uri}"])
    for text in _messages(uri):
        assert "ter2" not in text and ":123@" not in text


def _messages(uri: str) -> list[str]:
    """What is said of a spec that has it at a right place, at a wrong one, or as a value of a wrong kind."""
    found = []
    for override in (f"tracking.uri={uri}", f"tracking.ury={uri}", f"tracking.uri=[{uri}]", f"tracking={uri}", f"x {uri}"):
        with pytest.raises(SpecError) as error:
            load_spec("digits", [override])
        found.append(str(error.value))
    return found


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_is_no_secret(uri: str) -> None:
    assert not has_credentials(uri) and not has_secret(uri)


def test_an_older_stores_spec_is_read() -> None:
    text = "schema: 1\nname: x\ntracking: {uri: 'http://***@host:5000'}\n"
    assert parse_spec(text, "spec.yaml").tracking.uri == "http://***@host:5000"


HEAD = Head("10.0.0.1", "me", None, None, "mine", 8265)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be sent to the head as a job."""
    jobs: list[object] = []
    monkeypatch.setattr(remote, "_run_job", lambda head, sent, again, detach: jobs.append(sent) or 0)
    return jobs


def test_a_job_never_holds_one(tmp_path: Path, sent: list[object]) -> None:
    """Its metadata and its package can be read by whoever has Ray's token, so a spec goes without its comments then."""
    spec = tmp_path / "x.yaml"
    spec.write_text("schema: 1\nname: x\n# was tracking.uri: http://me:hunter2@host\n")
    remote.sweep_on(HEAD, str(spec), None, new=False, dry_run=False, run=Run(detach=True))
    assert "hunter2" not in repr(sent) and "name: x" in sent[0].text  # type: ignore[attr-defined]
    spec.write_text("schema: 1\nname: x\n# kept\n")
    remote.sweep_on(HEAD, str(spec), None, new=False, dry_run=False, run=Run(detach=True))
    assert "# kept" in sent[1].text  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"^--set: tracking\.uri: holds a user name, password or token, and a job's"):
        remote.confirm_on(HEAD, "x", ["tracking.uri=http://me:hunter2@host"], [], Run(detach=True))
    assert len(sent) == 2


def looped() -> Exception:
    """As Tune raises: what an error was raised from was itself met while that error was handled."""
    outer, inner = RuntimeError("outer"), OSError("inner")
    outer.__cause__, inner.__context__ = inner, outer
    return outer


def test_a_chain_that_leads_back_into_itself_has_an_end():
    error = looped()
    assert [str(link) for link in chain_of(error)] == ["outer", "inner"]


@pytest.mark.parametrize(
    ("walk", "expected"),
    [(ray_start._of_ray, None), (device.is_lost, False), (study._is_passing, True), (client.words_of, "RuntimeError: outer")],
)
def test_whoever_looks_behind_an_error_comes_to_an_end(walk, expected):
    assert walk(looped()) == expected


def test_nobody_else_walks_along_a_chain():
    sources = Path(client.__file__).parents[1].rglob("*.py")
    assert [path.name for path in sources if "__cause__ or" in path.read_text()] == ["errors.py"]
