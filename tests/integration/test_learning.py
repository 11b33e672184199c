"""The quickstart's model learns: real digits, the quickstart's own settings, no tuning of the test."""

from __future__ import annotations

import dataclasses

import pytest

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.tensors import pack
from raylt.diffusion.unet import build_unet, parameters_of
from raylt.spec import load_spec
from raylt.store import Output, Store
from raylt.store.layout import TRAINED
from raylt.ticket.find import find_ticket
from raylt.ticket.ticket_search import TicketSearch
from raylt.trial.score import Scorer


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """(untrained, trained): scores of the quickstart's dense model under its search protocol."""
    spec, compute = load_spec("digits"), Compute()
    images, store = load_images(spec.data), Store(str(tmp_path_factory.mktemp("store")))
    trained = next(find_ticket(TicketSearch(spec, compute, None, spec.train.seed), images, store))
    initial = parameters_of(build_unet(spec.unet_config, spec.train.seed))
    stage = store.stage({"kind": "untrained"})
    manifest = stage.make(lambda _: Output({"steps": 0}, {TRAINED: pack(ema=initial)}))
    untrained = dataclasses.replace(trained, stage=stage, manifest=manifest)
    scorer = Scorer(spec, compute, images, "search")
    return scorer.score(untrained, store), scorer.score(trained, store)


def test_fid_falls_at_least_fourfold(scores):
    untrained, trained = scores
    print(f"FID (digits-cnn features): untrained {untrained.fid:.0f}, trained {trained.fid:.0f}")
    assert trained.fid < untrained.fid / 4


def test_held_out_loss_falls_and_tells_the_living_from_the_broken(scores):
    untrained, trained = scores
    assert untrained.loss == pytest.approx(1.0, abs=0.4)  # knows nothing: as predicting zero
    assert trained.loss < 0.25
    assert untrained.broken
    assert not trained.broken
