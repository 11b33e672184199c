"""What many tests share: a spec that runs in a second on one core, and a store that already knows its features."""

from __future__ import annotations

import copy
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # tests are not timed: machines are shared
settings.load_profile("untimed")

TINY: dict[str, Any] = {
    "schema": 1,
    "name": "tiny",
    "data": {"name": "digits"},
    "model": {
        "config": {
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "add_attention": False,
        }
    },
    "train": {"steps": 12, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 4, "precision": "fp32"},
    "ticket": {"rounds": 2, "density": 0.2, "rewind_step": 2, "shared_rounds": 1},
    "search": {"trials": 3, "concurrency": 2},
    "metrics": {"search": {"samples": 80, "steps": 2}, "reference": 200},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A deep copy of `base` with the nested `changes` laid over it."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


STORIES = ("integration", "chaos")  # folders of tests that take real clusters, servers and disks
EVERYDAY = "test_kill.py"  # of them: a real sweep, a kill and a resume


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` leaves the stories to `make integration`, but for `EVERYDAY`."""
    for item in items:
        if item.path.parent.name in STORIES and item.path.name != EVERYDAY:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def tiny_spec() -> Callable[..., Any]:
    """`tiny_spec(train={...}, ...)`: the tiny spec with changes."""
    from raylt.spec import SweepSpec

    def make(**changes: Any) -> SweepSpec:
        return SweepSpec.model_validate(merged(TINY, changes))

    return make


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _heed_signals() -> None:
    """A shell starts what it puts in the background without SIGINT, nohup without SIGHUP; our drivers would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def _warm_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tiny spec's classifier and reference statistics: they take longer than its trials."""
    from raylt.diffusion.compute import Compute
    from raylt.diffusion.data import load_images
    from raylt.spec import SweepSpec
    from raylt.store import Store
    from raylt.trial.score import Scorer

    root = tmp_path_factory.mktemp("warm")
    spec = SweepSpec.model_validate(TINY)
    Scorer(spec, Compute(), load_images(spec.data), "search").reference(Store(str(root), owner="warm"))
    return root


@pytest.fixture
def warm_root(_warm_store: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh root for one test, with features and reference made."""
    root = tmp_path / "root"
    shutil.copytree(_warm_store, root)
    yield root


@pytest.fixture(scope="session")
def empty_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_record: Path) -> str:
    """The URI of an empty MLflow database of this test's own."""
    shutil.copy(empty_record, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def fresh(_warm_store: Path, empty_record: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes folders with a warm store and an empty MLflow database."""
    template = tmp_path_factory.mktemp("template")
    shutil.copytree(_warm_store, template / "root")
    shutil.copy(empty_record, template / "mlflow.db")
    return lambda: Path(shutil.copytree(template, tmp_path_factory.mktemp("sweep"), dirs_exist_ok=True))


@pytest.fixture(scope="session")
def undisturbed(fresh: Callable[[], Path]) -> Path:
    """One undisturbed sweep without Ray, to which those that chaos befell are compared. Nobody writes into it."""
    from tests.chaos.test_scripted import drive

    folder = fresh()
    assert drive(folder) == 0
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """A real S3 server, of which one serves all tests that do not stop it."""
    from tests.support import s3

    with s3.running() as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Stores of both kinds that raylt knows: a local folder, and a bucket."""
    bucket = f"b{abs(hash(request.node.name))}"
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("server").root(bucket)
