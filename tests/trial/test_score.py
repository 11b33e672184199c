"""Scores of a round: memoised, of the EMA, from common noise, with the images kept where asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from raylt.diffusion import sample
from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.tensors import unpack
from raylt.store import Store
from raylt.store.layout import GRID, SAMPLES
from raylt.ticket.allocation import Allocation
from raylt.ticket.find import find_ticket
from raylt.ticket.ticket_search import TicketSearch
from raylt.trial import score as score_module
from raylt.trial.fid import fid, statistics
from raylt.trial.score import Scorer


def rounds_of(spec, store):
    return list(find_ticket(TicketSearch(spec, Compute(), Allocation("erk"), 0), load_images(spec.data), store))


def test_a_score_is_of_the_kept_images_and_is_made_once(tiny_spec, warm_root, monkeypatch):
    spec, store = tiny_spec(metrics={"keep_samples": True}), Store(str(warm_root))
    images = load_images(spec.data)
    last = rounds_of(spec, store)[-1]
    scorer = Scorer(spec, Compute(), images, "search")
    first = scorer.score(last, store)
    with np.load(io.BytesIO(first.sample_stage.read(SAMPLES)), allow_pickle=False) as file:
        kept_NHWC = file["arr_0"]
    assert (kept_NHWC.dtype, kept_NHWC.shape) == (np.uint8, (80, 8, 8, 1))
    kept_NCHW = torch.from_numpy(kept_NHWC).permute(0, 3, 1, 2)
    assert torch.equal(unpack(first.sample_stage.read(GRID))["images"]["first"], kept_NCHW[:64])
    real = statistics(scorer.extractor(store)(images.train_NCHW[:200]))  # `metrics.reference` of them
    assert abs(fid(scorer.extractor(store)(kept_NCHW), real) - first.fid) < 1e-6 * first.fid

    monkeypatch.setattr(score_module, "sample_chunk", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(score_module, "held_out_loss", lambda *a, **k: 1 / 0)
    again = Scorer(spec, Compute(), images, "search").score(last, store)
    assert (again.loss, again.fid, again.kid) == (first.loss, first.fid, first.kid)


def test_all_tickets_start_from_the_same_noise_and_chunks_do_not_depend_on_how_many_there_are(tiny_spec):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t):
            seen.append(x.clone())
            return type("Out", (), {"sample": torch.zeros_like(x)})()

    how = sample.Sampling("ddim", 1, "linear", Compute())
    for count in (5, 250):
        sample.sample_chunk(Spy(), (1, 8, 8), 3, count, how)
    assert torch.equal(seen[0], seen[1][:5])
    sample.sample_chunk(Spy(), (1, 8, 8), 4, 5, how)
    assert not torch.equal(seen[0], seen[2])


def test_every_sampler_denoises_a_perfect_model_to_its_image():
    """A model that knows the one image there is: every sampler must arrive at it."""
    image = torch.linspace(-0.9, 0.9, 64).reshape(1, 1, 8, 8)
    for beta_schedule in ("linear", "squaredcos_cap_v2"):
        alpha_bars = sample.noise_schedule(beta_schedule).alphas_cumprod

        class Oracle(torch.nn.Module):
            def forward(self, x, t, alpha_bars=alpha_bars):
                a = alpha_bars[int(t)]
                return type("Out", (), {"sample": (x - a.sqrt() * image) / (1 - a).sqrt()})()

        ways = [("ddim", 10, "leading"), ("ddim", 10, "trailing"), ("dpm++", 10, None)]
        for sampler, steps, spacing in [*ways, ("ddpm", 200, None)]:
            how = sample.Sampling(sampler, steps, beta_schedule, Compute(), spacing)
            found = sample.sample_chunk(Oracle(), (1, 8, 8), 0, 3, how)
            expected = ((image + 1) * 127.5).round()
            assert (found.float() - expected).abs().max() <= 6, (sampler, spacing, beta_schedule)


def test_held_out_loss_of_predicting_zero_is_the_zero_loss(tiny_spec):
    class Zero(torch.nn.Module):
        def forward(self, x, t):
            return type("Out", (), {"sample": torch.zeros_like(x)})()

    loss, zero = sample.held_out_loss(Zero(), load_images(tiny_spec().data).test_NCHW, "linear", Compute())
    assert loss == zero
    assert abs(zero - 1) < 0.02


class Counting(Store):
    """Counts the bytes of checkpoints, and may be killed before one of them."""

    def __init__(self, root, kill_at=None):
        super().__init__(root)
        self.written, self.kill_at = {}, kill_at

    def write(self, path, data):
        if "/checkpoint-" in path:
            if len(self.written) == self.kill_at:
                raise KeyboardInterrupt
            assert path not in self.written, "a part is written once"
            self.written[path] = len(data)
        super().write(path, data)


def test_samples_are_kept_in_parts_and_a_kill_costs_one(tiny_spec, warm_root, monkeypatch):
    """What is written grows with the samples, not with their square."""
    samples, size, shape = 5_300, 250, (1, 8, 8)
    spec = tiny_spec(metrics={"search": {"samples": samples}, "keep_samples": True})
    trained, made = rounds_of(spec, Store(str(warm_root)))[0], []

    def chunk(model, shape_CHW, index, count, how):
        made.append((index, count))
        return torch.randint(256, (count, *shape_CHW), generator=torch.Generator().manual_seed(index)).to(torch.uint8)

    monkeypatch.setattr(score_module, "sample_chunk", chunk)
    scorer = Scorer(spec, Compute(), load_images(spec.data), "search")
    killed = Counting(str(warm_root), kill_at=7)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(trained, killed)
    assert made == [(index, size) for index in range(8)]  # the eighth had not been kept yet
    again = Counting(str(warm_root))
    score = scorer.score(trained, again)
    assert made[8:] == [(index, min(size, samples - index * size)) for index in range(7, 22)]
    images = samples * shape[1] * shape[2]
    assert 0.9 * images < sum([*killed.written.values(), *again.written.values()]) < 1.1 * images
    with np.load(io.BytesIO(score.sample_stage.read(SAMPLES)), allow_pickle=False) as file:
        kept = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
    whole = torch.cat([chunk(None, shape, index, count, None) for index, count in made[:7] + made[8:23]])
    assert torch.equal(kept, whole)
    assert not [name for name in again.names(score.sample_stage.path) if name.startswith("checkpoint-")]


def test_features_of_the_reference_are_kept_in_parts_too(tiny_spec, warm_root, monkeypatch):
    monkeypatch.setattr(score_module, "REFERENCE_CHUNK", 100)
    spec, store = tiny_spec(metrics={"reference": 1_150}), Counting(str(warm_root))
    scorer = Scorer(spec, Compute(), load_images(spec.data), "search")
    scorer.reference(store)
    assert len(store.written) == 11
    features = 1_100 * scorer.extractor(store).dims * 4
    assert features < sum(store.written.values()) < 1.1 * features


def test_fewer_samples_are_made_again_rather_than_kept(tiny_spec, warm_root):
    spec, store = tiny_spec(), Counting(str(warm_root))
    trained = rounds_of(spec, Store(str(warm_root)))[0]
    Scorer(spec, Compute(), load_images(spec.data), "search").score(trained, store)
    assert not store.written


# --- a confirmation's own questions -----------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """Keeps what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x.clone(), t.clone()))
        return type("Out", (), {"sample": torch.zeros_like(x)})()


def asked_for_loss(test_NCHW, protocol):
    model = Recorder()
    sample.held_out_loss(model, test_NCHW, "linear", Compute(), protocol)
    return torch.cat([x for x, _ in model.asked]), torch.cat([t for _, t in model.asked])


def test_a_confirmation_draws_noise_and_timesteps_of_its_own(tiny_spec):
    test_NCHW = load_images(tiny_spec().data).test_NCHW
    (x, t), (own_x, own_t) = (asked_for_loss(test_NCHW, protocol) for protocol in ("search", "final"))
    assert len(x) == len(own_x) == 8 * 360  # 360 are too few for another part
    assert not torch.equal(t, own_t)
    assert float((x == own_x).float().mean()) < 0.01
    starts = []
    for protocol in ("search", "final"):
        model = Recorder()
        sample.sample_chunk(model, (1, 8, 8), 0, 250, sample.Sampling("ddim", 1, "linear", Compute(), protocol=protocol))
        starts.append(model.asked[0][0])
    correlation = float(torch.corrcoef(torch.stack([start.flatten() for start in starts]))[0, 1])
    assert abs(correlation) < 0.05


@pytest.mark.parametrize(
    ("held_out", "search", "final"),
    [
        (360, (0, 360), (0, 360)),
        (512, (0, 512), (0, 512)),
        (639, (0, 512), (0, 512)),
        (640, (0, 512), (512, 640)),
        (10_000, (0, 512), (512, 1024)),
    ],
)
def test_a_confirmation_has_other_held_out_images_where_there_are_some(held_out, search, final):
    for protocol, (first, end) in (("search", search), ("final", final)):
        assert sample.held_out_part(held_out, protocol) == slice(first, end)
    marked_NCHW = torch.arange(700).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).div(3).to(torch.uint8)
    seen = [asked_for_loss(marked_NCHW, protocol)[0] for protocol in ("search", "final")]
    assert [len(x) for x in seen] == [8 * 512, 8 * 188]


def test_only_a_confirmations_stages_say_whose_noise_it_is(tiny_spec, warm_root):
    spec, store = tiny_spec(metrics={"final": {"samples": 80, "steps": 2}}), Store(str(warm_root))
    trained, images = rounds_of(spec, store)[0], load_images(spec.data)
    by_search, by_final = (Scorer(spec, Compute(), images, protocol).score(trained, store) for protocol in ("search", "final"))
    for stage, own in ((by_search.loss_stage, by_final.loss_stage), (by_search.sample_stage, by_final.sample_stage)):
        assert own.key == {**stage.key, "noise": "final"}
        assert "noise" not in stage.key
    assert by_search.loss != by_final.loss and by_search.fid != by_final.fid


# --- spacing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "steps", "first", "last"), [("leading", 10, 900, 0), ("trailing", 10, 999, 99), ("trailing", 61, 999, 15)]
)
def test_spacing_decides_where_sampling_begins(spacing, steps, first, last):
    model = Recorder()
    how = sample.Sampling("ddim", steps, "squaredcos_cap_v2", Compute(), spacing)
    sample.sample_chunk(model, (1, 8, 8), 0, 1, how)
    times = [int(t) for _, t in model.asked]
    assert (len(times), times[0], times[-1]) == (steps, first, last)


def test_spacing_is_of_the_key_where_it_is_not_leading(tiny_spec, warm_root):
    keys, store = {}, Store(str(warm_root))
    for steps, spacing in ((2, None), (2, "leading"), (2, "trailing"), (21, None)):
        spec = tiny_spec(metrics={"search": {"samples": 2, "steps": steps, "spacing": spacing}})
        trained = rounds_of(spec, store)[0]
        score = Scorer(spec, Compute(), load_images(spec.data), "search").score(trained, store)
        keys[steps, spacing] = score.sample_stage.key
    assert keys[2, None] == keys[2, "trailing"] == {**keys[2, "leading"], "spacing": "trailing"}
    assert "spacing" not in keys[2, "leading"].keys() | keys[21, None].keys()
