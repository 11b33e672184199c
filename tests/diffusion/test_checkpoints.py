"""Checkpoints written while training goes on: what they hold, that they come in order, and whose error it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from raylt.diffusion import checkpoints as module
from raylt.diffusion import train as train_module
from raylt.diffusion.checkpoints import Checkpoints, to_host
from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.train import Recipe, Trainer, TrainState, run
from raylt.diffusion.unet import build_unet, parameters_of
from raylt.errors import Diverged, StoreFailure
from raylt.spec import SweepSpec

SpecMaker = Callable[..., SweepSpec]


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(train_module, "Checkpoints", lambda save, in_background: Checkpoints(save, in_background=True))


def trainer_of(spec: SweepSpec, state: TrainState | None = None) -> Trainer:
    model = build_unet(spec.unet_config, 0)
    start = state or TrainState.fresh(parameters_of(model))
    return Trainer(model, load_images(spec.data).train_NCHW, Recipe(spec.train, Compute(), 0), start)


def same(ours: TrainState, theirs: TrainState) -> bool:
    groups = ("weights", "first_moments", "second_moments", "ema")
    return ours.step == theirs.step and all(
        torch.equal(getattr(ours, group)[name], value) for group in groups for name, value in getattr(theirs, group).items()
    )


def test_a_training_whose_checkpoints_are_written_late_is_the_same_and_goes_on_alike(
    tiny_spec: SpecMaker, in_background: None
) -> None:
    spec, saved = tiny_spec(), []

    def slowly(data: bytes) -> None:
        time.sleep(0.3)  # several steps
        saved.append((data, threading.current_thread().name))

    whole = run(trainer_of(spec), 12, save=slowly)
    assert [thread.startswith("checkpoints") for _, thread in saved] == [True, True]  # both are there when it ends
    assert [TrainState.from_bytes(data).step for data, _ in saved] == [4, 8]
    for data, _ in saved:
        assert same(run(trainer_of(spec, TrainState.from_bytes(data)), 12, save=lambda data: None), whole)


def test_training_does_not_wait_for_a_checkpoint_but_for_the_one_before_it(tiny_spec: SpecMaker, in_background: None) -> None:
    spec, gate, steps_at_save = tiny_spec(), threading.Event(), []
    trainer = trainer_of(spec)
    step = trainer.run_step

    def stepping() -> torch.Tensor:
        if trainer.step == 6:  # two steps on, the first one is still being written
            assert not steps_at_save
            gate.set()
        return step()

    trainer.run_step = stepping  # type: ignore[method-assign]
    run(trainer, 12, save=lambda data: (gate.wait(30), steps_at_save.append(trainer.step))[0])
    assert steps_at_save[0] >= 6


@pytest.mark.parametrize("background", [False, True])
def test_what_saving_raises_ends_the_training(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, background: bool) -> None:
    monkeypatch.setattr(train_module, "Checkpoints", lambda save, in_background: Checkpoints(save, in_background=background))
    trainer = trainer_of(tiny_spec())

    def full(data: bytes) -> None:
        raise StoreFailure("no space left")

    with pytest.raises(StoreFailure, match="no space left"):
        run(trainer, 12, save=full)
    assert trainer.step == (8 if background else 4)


def test_the_last_one_s_failure_is_not_lost(tiny_spec: SpecMaker, in_background: None) -> None:
    saves: list[int] = []

    def full_at_last(data: bytes) -> None:
        saves.append(len(data))
        if len(saves) == 2:
            raise StoreFailure("no space left")

    with pytest.raises(StoreFailure, match="no space left"):
        run(trainer_of(tiny_spec()), 12, save=full_at_last)


def test_an_error_of_the_training_stays_its_own_and_nothing_is_written_after_it(
    tiny_spec: SpecMaker, in_background: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, written = tiny_spec(), []
    trainer = trainer_of(spec)
    monkeypatch.setattr(trainer, "_loss_of", lambda *batch: torch.tensor(float("nan"), requires_grad=True))

    def slowly(data: bytes) -> None:
        time.sleep(0.2)
        written.append(data)

    with pytest.raises(Diverged, match="at step 0"):
        run(trainer, 12, save=slowly)
    num = len(written)
    time.sleep(0.5)
    assert len(written) == num


def test_copies_are_of_the_moment_they_are_taken_at() -> None:
    tensor = torch.arange(6.0).reshape(1, 2, 3, 1).to(memory_format=torch.channels_last)
    there = to_host([tensor])
    tensor.zero_()
    (copy,) = there()
    assert torch.equal(copy.flatten(), torch.arange(6.0)) and copy.is_contiguous()
    assert module.to_host([])() == []
