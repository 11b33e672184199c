"""`raylt export`: the ticket file with a seed in place of values, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.unet import build_unet
from raylt.errors import InputError
from raylt.spec import SweepSpec, TrialSpec
from raylt.spec.trials import TrainingRequest
from raylt.store import Ledger, Store
from raylt.store.layout import TICKET
from raylt.sweep.single import export_trial
from raylt.ticket import ticket_file
from raylt.ticket.ticket_file import load_ticket
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun


def a_finished_trial(spec: SweepSpec, root: Path) -> Ledger:
    store = Store(str(root), owner="here")
    trial = TrialSpec(0, "baseline", TrainingRequest("erk", spec.train.seed))
    run = TrialRun(trial, TrialContext.open(spec, Compute(), Inputs(load_images(spec.data))), store)
    assert len(list(run)) == 1 + spec.ticket.rounds
    ledger = Ledger(store, spec.name, lambda: None)
    ledger.submit(trial)
    ledger.finish(0, run.result)
    return ledger


def test_a_ticket_of_the_initialisation_is_exported_as_its_seed(
    tiny_spec: Callable[..., SweepSpec], warm_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(ticket={"rewind_step": 0})
    ledger = a_finished_trial(spec, warm_root)
    export_trial(spec, ledger, 0, tmp_path / "values")
    export_trial(spec, ledger, 0, tmp_path / "seed", as_seed=True)
    values, seed = (load_ticket(tmp_path / name / TICKET) for name in ("values", "seed"))
    assert seed.mask.digest == values.mask.digest and seed.init_sha256 == values.init_sha256
    sizes = [(tmp_path / name / TICKET).stat().st_size for name in ("values", "seed")]
    assert sizes[1] < sizes[0] / 2
    monkeypatch.setattr(ticket_file, "build_unet", lambda config, seed=None: build_unet(config, None if seed is None else 7))
    with pytest.raises(InputError, match=r"--seed-ticket: trial 0: .* this torch initialises otherwise"):
        export_trial(spec, ledger, 0, tmp_path / "other", as_seed=True)


def test_a_ticket_of_a_later_step_has_no_seed(tiny_spec: Callable[..., SweepSpec], warm_root: Path, tmp_path: Path) -> None:
    spec = tiny_spec(ticket={"rewind_step": 2})
    with pytest.raises(InputError, match="--seed-ticket: trial 0 rewinds to step 2; only one that rewinds to step 0 has"):
        export_trial(spec, a_finished_trial(spec, warm_root), 0, tmp_path / "out", as_seed=True)
    assert not (tmp_path / "out").exists()
