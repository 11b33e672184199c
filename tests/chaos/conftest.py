"""One undisturbed sweep without Ray, to which those that chaos befell are compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.chaos.test_scripted import drive


@pytest.fixture(scope="session")
def fresh(_warm_store, tmp_path_factory):
    """Makes folders with a warm store and an empty MLflow database, whose schema takes seconds to create."""
    template = tmp_path_factory.mktemp("template")
    shutil.copytree(_warm_store, template / "root")
    MlflowClient(f"sqlite:///{template / 'mlflow.db'}").search_experiments()
    return lambda: Path(shutil.copytree(template, tmp_path_factory.mktemp("sweep"), dirs_exist_ok=True))


@pytest.fixture(scope="session")
def undisturbed(fresh):
    folder = fresh()
    assert drive(folder) == 0
    return folder
