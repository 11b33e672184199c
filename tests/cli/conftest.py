"""Commands called in this process, and a small sweep that has ended for them to read."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from raylt import cli
from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.spec import SweepSpec, dump_yaml
from raylt.store import Ledger, Store
from raylt.sweep.dispatch import Dispatcher, Finished
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun, failure
from tests.support.begun import write_start
from tests.support.commands import BROKEN_OFF, SMALL, Call, Done


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in an empty folder of its own, with nothing in the environment."""
    for name in [name for name in os.environ if name.startswith(("RAYLT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("results", "small")`: the command in this process, which has its heavy imports behind it."""

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["raylt", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Done(left.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def small(_warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the spec and the store of a sweep that has ended; its last trial failed."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(dump_yaml(SMALL))
    shutil.copytree(_warm_store, folder / "raylt-data")
    spec, store = SweepSpec.model_validate(SMALL), Store(str(folder / "raylt-data"))
    ledger = Ledger(store, spec.name, lambda: None)
    write_start(ledger, spec, startup=1)
    dispatcher, bench = (
        Dispatcher(spec, ledger, 1, lambda trial, result: None),
        TrialContext.open(spec, Compute(), Inputs(load_images(spec.data))),
    )
    while not isinstance(trial := dispatcher.next_trial(()), Finished):
        run = TrialRun(trial, bench, Store(store.root, owner=f"small/{trial.id}"))
        if trial.id == BROKEN_OFF:
            dispatcher.finish(trial.id, failure(RuntimeError("the sky\nfell")))
            continue
        for _ in run:
            pass
        dispatcher.finish(trial.id, run.result)
    return folder


@pytest.fixture
def here(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `small`, to work in."""
    folder = Path(shutil.copytree(small, Path("small")))
    monkeypatch.chdir(folder)
    return Path()
