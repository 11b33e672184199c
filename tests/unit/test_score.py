"""Scores of a round: memoised, of the EMA, from common noise, with the images kept where asked for."""

from __future__ import annotations

import io

import numpy as np
import torch

from raylt.diffusion import sample
from raylt.diffusion.data import load_images
from raylt.diffusion.train import Compute
from raylt.metrics import score as score_module
from raylt.metrics.fid import fid, statistics
from raylt.metrics.score import GRID, SAMPLES, Scorer
from raylt.store import Store
from raylt.tensors import unpack
from raylt.ticket.allocation import Allocation
from raylt.ticket.find import TicketSearch, find_ticket


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
    assert abs(fid(statistics(scorer.extractor(store)(kept_NCHW)), real) - first.fid) < 1e-6 * first.fid

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

    settings = {"sampler": "ddim", "steps": 1, "beta_schedule": "linear", "compute": Compute()}
    for count in (5, 250):
        sample.sample_chunk(Spy(), (1, 8, 8), 3, count, **settings)
    assert torch.equal(seen[0], seen[1][:5])
    sample.sample_chunk(Spy(), (1, 8, 8), 4, 5, **settings)
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

        for sampler, steps in (("ddim", 10), ("dpm++", 10), ("ddpm", 200)):
            found = sample.sample_chunk(
                Oracle(), (1, 8, 8), 0, 3, sampler=sampler, steps=steps, beta_schedule=beta_schedule, compute=Compute()
            )
            expected = ((image + 1) * 127.5).round()
            assert (found.float() - expected).abs().max() <= 6, (sampler, beta_schedule)


def test_held_out_loss_of_predicting_zero_is_the_zero_loss(tiny_spec):
    class Zero(torch.nn.Module):
        def forward(self, x, t):
            return type("Out", (), {"sample": torch.zeros_like(x)})()

    loss, zero = sample.held_out_loss(Zero(), load_images(tiny_spec().data).test_NCHW, "linear", Compute())
    assert loss == zero
    assert abs(zero - 1) < 0.02


def test_sampling_goes_on_from_whole_chunks():
    calls = []

    def chunk(index, count):
        calls.append((index, count))
        return torch.full((count, 1, 8, 8), index, dtype=torch.uint8)

    saved = []
    whole = sample.sample_images(600, (1, 8, 8), chunk, save=saved.append)
    assert calls == [(0, 250), (1, 250), (2, 100)]
    assert [len(images) for images in saved] == [250, 500]
    resumed = sample.sample_images(600, (1, 8, 8), chunk, done=saved[0])
    assert torch.equal(resumed, whole)
    assert calls[3:] == [(1, 250), (2, 100)]
