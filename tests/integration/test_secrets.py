"""Secrets come from the environment and are found nowhere else: not in what is printed, stored, recorded or logged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylt.spec import dump_yaml
from tests.conftest import TINY, merged

SECRET = "pl4nted"
PLANTED = {  # every variable that raylt's parts take a secret from, and some that merely lie about
    "AWS_ACCESS_KEY_ID": f"{SECRET}-id", "AWS_SECRET_ACCESS_KEY": f"{SECRET}-key", "AWS_SESSION_TOKEN": f"{SECRET}-session",
    "MLFLOW_TRACKING_USERNAME": f"{SECRET}-user", "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-password",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-bearer", "RAY_AUTH_TOKEN": f"{SECRET}-ray", "HF_TOKEN": f"{SECRET}-hub",
}  # fmt: skip
URI = f"http://{SECRET}-name:{SECRET}-word@127.0.0.1:9"  # nobody answers there, so that it comes into a warning


def files_with_the_secret(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def sweep(_warm_store, tmp_path_factory):
    """A folder with a sweep that was run with planted secrets, and the command that ran it."""
    folder = tmp_path_factory.mktemp("secrets")
    ray = tmp_path_factory.mktemp("ray") if len(str(folder)) < 40 else Path(f"/tmp/raylt-{os.getpid()}")
    ray.mkdir(exist_ok=True)
    spec = merged(TINY, {"name": "secret", "search": {"trials": 0, "pilots": 0, "baselines": []}})
    (folder / "secret.yaml").write_text(dump_yaml(spec))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAYLT_", "MLFLOW_", "RAY_"))}
    env |= {**PLANTED, "RAY_TMPDIR": str(ray), "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "raylt.cli", *words]
        return subprocess.run(command, cwd=folder, env=env | more, capture_output=True, text=True, timeout=300, check=False)

    return folder, ray, run


def test_a_planted_secret_is_found_nowhere(sweep):
    folder, ray, run = sweep
    first = run("sweep", "secret.yaml", MLFLOW_TRACKING_URI=URI)
    assert first.returncode == 0, first.stderr
    assert "***@127.0.0.1:9" in first.stderr  # the warning that nobody answers there
    printed = [first, run("sweep", "secret.yaml")]  # now MLflow has it all
    printed += [run("status", "secret"), run("results", "secret", "--json"), run("report", "secret", "-o", "page.html")]
    printed += [run("logs", "secret", "0"), run("sweep", "secret.yaml", "--dry-run")]
    for done in printed:
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr, done.args
    assert (folder / "mlflow.db").exists()
    assert any(ray.rglob("*.log"))
    assert files_with_the_secret(folder) == []
    assert files_with_the_secret(ray) == []
