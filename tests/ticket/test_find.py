"""find_ticket(): rewinding, sharing of stages, modes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.tensors import pack, unpack
from raylt.diffusion.train import TrainState, learning_rate_at
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.errors import Diverged
from raylt.store import Store
from raylt.store.layout import START, TRAINED
from raylt.ticket import find
from raylt.ticket.allocation import Allocation
from raylt.ticket.find import TicketRunner, find_ticket
from raylt.ticket.ticket_search import TicketSearch


def search_for(spec, rule="erk", seed=0):
    return TicketSearch(spec, Compute(), Allocation(rule) if rule else None, seed)


def run_all(search, store):
    return list(find_ticket(search, load_images(search.spec.data), store))


@pytest.mark.parametrize("rewind_step", [0, 2])
def test_rounds_nest_meet_their_density_and_start_from_the_rewind_point(tiny_spec, tmp_path, monkeypatch, rewind_step):
    spec = tiny_spec(ticket={"rewind_step": rewind_step, "rounds": 3})
    starts = []
    real = TicketRunner._run

    def spy(self, stage, state, stop, recipe, *index):
        if stop == spec.train.steps:
            starts.append((state, recipe.masks))
        return real(self, stage, state, stop, recipe, *index)

    monkeypatch.setattr(TicketRunner, "_run", spy)
    store = Store(str(tmp_path))
    rounds = run_all(search_for(spec), store)
    total = sum(layer.size for layer in layers_of(spec.unet_config))
    assert [r.mask.kept for r in rounds] == [round(spec.ticket.density_of(i) * total) for i in range(4)]
    assert all(later.mask.is_nested_in(earlier.mask) for earlier, later in zip(rounds, rounds[1:], strict=False))
    point = TrainState.from_bytes(TicketRunner(search_for(spec), load_images(spec.data), store).rewind_point.read(START))
    if rewind_step == 0:
        initial = parameters_of(build_unet(spec.unet_config, spec.train.seed))
        assert all(torch.equal(point.weights[n], v) for n, v in initial.items())
    for state, masks in starts:
        assert state.step == rewind_step
        for name, value in state.weights.items():
            keep = masks.get(name, torch.ones_like(value, dtype=torch.bool))
            for ours, theirs in ((value, point.weights[name]), (state.first_moments[name], point.first_moments[name])):
                assert torch.equal(ours[keep].view(torch.int32), theirs[keep].view(torch.int32))  # bit for bit
                assert not ours[~keep].view(torch.int32).any()
    for trained in rounds:
        for group in trained.trained.values():
            assert all(not group[f"{n}.weight"][~keep].any() for n, keep in trained.mask.layers.items())


def test_the_second_time_nothing_is_trained_and_shared_rounds_are_shared(tiny_spec, tmp_path, monkeypatch):
    spec, store = tiny_spec(), Store(str(tmp_path))
    trained = []
    real = TicketRunner._run
    monkeypatch.setattr(
        TicketRunner, "_run", lambda self, stage, *rest: (trained.append(stage.digest), real(self, stage, *rest))[1]
    )
    first = run_all(search_for(spec, "erk"), store)
    assert len(trained) == 4  # rewind point and three rounds
    again = run_all(search_for(spec, "erk"), store)
    assert len(trained) == 4
    assert [r.stage.digest for r in again] == [r.stage.digest for r in first]
    run_all(search_for(spec, None), store)
    run_all(search_for(spec, "uniform"), store)
    assert len(trained) == 5  # dense and the shared round are there; the last differs
    run_all(search_for(spec, "uniform", seed=1), store)
    assert len(trained) == 8  # another seed shares the rewind point alone


class _Watched(find.Trainer):
    """A Trainer that notes where it starts and its learning rates, and looks at its mask after every step."""

    seen: ClassVar[list[_Watched]] = []

    def __init__(self, model, images_NCHW, recipe, state):
        self.start, self.given_masks, self.rates = state, recipe.masks, []
        super().__init__(model, images_NCHW, recipe, state)
        self.seen.append(self)

    def run_step(self):
        loss = super().run_step()
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        now = self.state()
        for values in (now.weights, now.first_moments, now.second_moments, now.ema):
            assert all(not values[name][~keep].any() for name, keep in self.given_masks.items())
        return loss


@pytest.mark.parametrize("rewind_step", [0, 2])
@pytest.mark.parametrize("mode", ["rewind", "learning-rate-rewind", "fine-tune"])
def test_modes_follow_renda_et_al(tiny_spec, tmp_path, monkeypatch, mode, rewind_step):
    """Rewind: weights and schedule of step k. Learning-rate rewind: trained weights, schedule of step k. Fine-tune: trained
    weights, the schedule's last rate. Each for steps k..T, on the batches of those steps."""
    monkeypatch.setattr(_Watched, "seen", [])
    monkeypatch.setattr(find, "Trainer", _Watched)
    spec = tiny_spec(ticket={"mode": mode, "rounds": 2, "shared_rounds": 0, "rewind_step": rewind_step})
    store = Store(str(tmp_path))
    rounds = run_all(search_for(spec), store)
    point = TrainState.from_bytes(TicketRunner(search_for(spec), load_images(spec.data), store).rewind_point.read(START))
    assert len(_Watched.seen) == 3 + (rewind_step > 0)
    for index, trainer in enumerate(_Watched.seen[-2:], start=1):
        mask, start = rounds[index].mask, trainer.start
        origin = point.weights if mode == "rewind" else rounds[index - 1].trained["weights"]
        moments = point.first_moments if mode == "rewind" else {n: torch.zeros_like(v) for n, v in origin.items()}
        assert (start.step, start.ema_updates, trainer.step) == (rewind_step, 0, spec.train.steps)
        for ours, expected in ((start.weights, origin), (start.first_moments, moments), (start.ema, origin)):
            assert all(torch.equal(ours[n], value) for n, value in mask.apply(expected).items())
        steps = range(rewind_step, spec.train.steps)
        last = spec.train.steps - 1
        assert trainer.rates == [learning_rate_at(spec.train, last if mode == "fine-tune" else step) for step in steps]


def test_modes_share_the_dense_round_and_no_other(tiny_spec, tmp_path):
    stages = []
    for mode in ("rewind", "learning-rate-rewind", "fine-tune"):
        spec = tiny_spec(ticket={"mode": mode, "shared_rounds": 0})
        stages.append([trained.stage.digest for trained in run_all(search_for(spec), Store(str(tmp_path)))])
    assert [len(set(digests)) for digests in zip(*stages, strict=True)] == [1, 3, 3]


def test_keys_hold_what_decides_and_nothing_else(tiny_spec, tmp_path):
    def dense_stage(**changes):
        spec = tiny_spec(**changes)
        return run_all(search_for(spec, None), Store(str(tmp_path)))[0].stage.digest

    base = dense_stage()
    assert dense_stage(train={"checkpoint_every": 3}) == base
    assert dense_stage(search={"trials": 9}, resources={"cpus": 2}) == base  # threads are `Compute`'s
    assert dense_stage(ticket={"density": 0.3}) == base
    assert (
        len({base, dense_stage(train={"batch_size": 9}), dense_stage(train={"seed": 1}), dense_stage(train={"steps": 11})}) == 4
    )


def test_divergence_is_remembered(tiny_spec, tmp_path, monkeypatch):
    spec = tiny_spec(train={"learning_rate": 1e20, "gradient_clip": None, "warmup_steps": 0}, ticket={"rewind_step": 0})
    with pytest.raises(Diverged) as first:
        run_all(search_for(spec, None), Store(str(tmp_path)))
    monkeypatch.setattr(TicketRunner, "_run", lambda *a: pytest.fail("trained again"))
    with pytest.raises(Diverged) as second:
        run_all(search_for(spec, "uniform"), Store(str(tmp_path)))
    assert str(first.value) == str(second.value)


def same_bits(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[n].view(torch.int32), theirs[n].view(torch.int32)) for n in ours
    )


def test_trained_stages_keep_the_kept_values_alone_and_older_ones_are_read(tiny_spec, tmp_path, monkeypatch):
    spec = tiny_spec(ticket={"density": 0.05})
    states = []
    whole = find.pack_trained
    monkeypatch.setattr(find, "pack_trained", lambda state, mask: (states.append(state), whole(state, mask))[1])
    rounds = run_all(search_for(spec), Store(str(tmp_path / "now")))
    for ticket, state in zip(rounds, states, strict=True):
        assert same_bits(ticket.trained["weights"], state.weights) and same_bits(ticket.trained["ema"], state.ema)
    monkeypatch.setattr(find, "pack_trained", lambda state, mask: pack(weights=state.weights, ema=state.ema))
    before = run_all(search_for(spec), Store(str(tmp_path / "before")))
    monkeypatch.undo()
    again = run_all(search_for(spec), Store(str(tmp_path / "before")))  # read, not made again
    for ticket, old, read in zip(rounds, before, again, strict=True):
        assert ticket.stage.digest == old.stage.digest and read.manifest.owner == old.manifest.owner
        assert all(same_bits(ticket.trained[group], read.trained[group]) for group in ("weights", "ema"))
    values = [sum(t.numel() for t in unpack(r.stage.read(TRAINED))["ema"].values()) for r in (rounds[0], rounds[-1])]
    unmasked = values[0] - rounds[0].mask.total  # biases and norms, which no mask prunes
    assert values[1] == rounds[-1].mask.kept + unmasked


@pytest.mark.parametrize("rewind_step", [0, 2])
def test_a_rewind_point_has_what_rounds_read_of_it(tiny_spec, tmp_path, rewind_step):
    spec = tiny_spec(ticket={"rewind_step": rewind_step})
    stage = TicketRunner(search_for(spec), load_images(spec.data), Store(str(tmp_path))).rewind_point
    assert set(unpack(stage.read(START))) == ({"w", "n", "m", "v"} if rewind_step else {"w", "n"})
    state = TrainState.from_bytes(stage.read(START))
    assert (state.step, state.moment_updates) == (rewind_step, rewind_step)
    assert same_bits(state.ema, state.weights)
    assert all(bool(value.any()) == bool(rewind_step) for value in state.second_moments.values() if value.dim() > 1)


def test_a_checkpoint_under_a_mask_is_small_and_the_same_state(tiny_spec, tmp_path):
    spec = tiny_spec(ticket={"density": 0.05, "rewind_step": 2})
    last = run_all(search_for(spec), Store(str(tmp_path)))[-1]
    point = TrainState.from_bytes(last.start.read(START))
    state, masks = find._masked(point, last.mask), last.mask.of_pruned
    state = replace(state, ema={name: 0.5 * value for name, value in state.weights.items()}, ema_updates=3)
    small, whole = state.to_bytes(masks), state.to_bytes()
    assert len(small) < 0.5 * len(whole)
    for again in (TrainState.from_bytes(small, masks), TrainState.from_bytes(whole, masks)):
        assert (again.step, again.ema_updates, again.moment_updates) == (2, 3, 2)
        for group in ("weights", "first_moments", "second_moments", "ema"):
            assert same_bits(getattr(again, group), getattr(state, group))
