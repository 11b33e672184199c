"""A notice to leave: training keeps the very step it has reached, leaves, and what resumes from there is the same run."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from raylt.diffusion import preemption
from raylt.diffusion.train import TrainState, run
from raylt.diffusion.unet import build_unet, parameters_of
from raylt.errors import Diverged, Preempted
from tests.diffusion.test_train import NOWHERE, trainer_for


@pytest.fixture(autouse=True)
def _nobody_asks(monkeypatch):
    monkeypatch.setattr(preemption, "_told", None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    preemption.watch(None)
    signal.signal(signal.SIGTERM, before)


def notice_at(monkeypatch, trainer, step):
    """A notice that is there from `step` on, and is asked for at every step."""
    monkeypatch.setattr(preemption, "ASK_EVERY_S", 0.0)
    preemption.watch(lambda: "the node goes away" if trainer.step >= step else None)


def start_of(spec):
    return TrainState.fresh(parameters_of(build_unet(spec.unet_config, 0)))


def test_training_leaves_with_the_step_it_has_reached_and_goes_on_from_there(tiny_spec, monkeypatch):
    spec, saved = tiny_spec(), []
    whole = run(trainer_for(spec, None, start_of(spec)), 12, save=NOWHERE)
    trainer = trainer_for(spec, None, start_of(spec))
    notice_at(monkeypatch, trainer, 6)  # between two checkpoints, which are at 4 and 8
    with pytest.raises(Preempted, match="left at step 6: the node goes away"):
        run(trainer, 12, save=saved.append)
    assert [TrainState.from_bytes(data).step for data in saved] == [4, 6]
    preemption.watch(None)
    resumed = run(trainer_for(spec, None, TrainState.from_bytes(saved[-1])), 12, save=NOWHERE)
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_notice_at_the_last_step_lets_the_stage_become_whole(tiny_spec, monkeypatch):
    spec = tiny_spec()
    trainer = trainer_for(spec, None, start_of(spec))
    notice_at(monkeypatch, trainer, 12)
    assert run(trainer, 12, save=NOWHERE).step == 12


def test_a_state_that_is_not_finite_is_not_kept(tiny_spec, monkeypatch):
    spec, saved = tiny_spec(train={"learning_rate": 1e30, "gradient_clip": None}), []
    trainer = trainer_for(spec, None, start_of(spec))
    notice_at(monkeypatch, trainer, 3)
    with pytest.raises(Diverged):
        run(trainer, 12, save=saved.append)
    assert not saved


def test_asking_is_once_a_second_at_most(monkeypatch):
    now, asked = [100.0], []
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    preemption.watch(lambda: asked.append(now[0]))
    for _ in range(24):
        assert preemption.notice() is None
        now[0] += 0.125  # exact in binary
    assert asked == [100.0, 101.0, 102.0]


def test_sigterm_is_a_notice_while_somebody_listens_and_ends_the_process_elsewhere():
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    preemption.on_terminate()
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    with preemption.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.notice() == "the worker received SIGTERM"
        assert received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)  # whoever sends it twice means it
        assert received == [signal.SIGTERM, signal.SIGTERM]


def test_a_thread_that_may_not_handle_signals_leaves_them_alone():
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=preemption.on_terminate)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_on_the_device_twice_after_a_notice(tiny_spec, monkeypatch):
    """The state that is kept is a copy: what the trainer does afterwards does not reach it."""
    spec, saved = tiny_spec(), []
    trainer = trainer_for(spec, None, start_of(spec))
    notice_at(monkeypatch, trainer, 5)
    with pytest.raises(Preempted):
        run(trainer, 12, save=saved.append)
    kept = TrainState.from_bytes(saved[-1])
    trainer.run_step()
    assert any(not torch.equal(kept.weights[name], value) for name, value in trainer.state().weights.items())
