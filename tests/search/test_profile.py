"""The similarity of a sweep, measured from the stages that its trials left in the store."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.flops import count_flops
from raylt.diffusion.tensors import unpack
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import layers_of
from raylt.report.document import SIMILARITY_NUMBERS, results
from raylt.search.groups import grouped, with_chosen_groups
from raylt.search.profile import load_mask, measure_similarity
from raylt.spec import SweepSpec, plan
from raylt.store import Ledger, Store
from raylt.store.layout import SIMILARITY_FILE, START, TRAINED
from raylt.ticket.allocation import Allocation
from raylt.ticket.find import TicketRunner
from raylt.ticket.overlap import NestedMasks, movement
from raylt.ticket.ticket_search import TicketSearch
from tests.support.kappas import kappa_between, kappa_with_start
from tests.support.results import a_result
from tests.support.trials import a_trial

KEPT_DENSE = ("conv_in", "conv_out")


def run_trial(spec, store, trial):
    """What the ledger would keep of a trial's masks and trainings, without the scores."""
    search = TicketSearch(
        spec, Compute(), Allocation(trial.training.rule) if trial.training.rule else None, trial.training.seed
    )
    runner = TicketRunner(search, load_images(spec.data), store)
    stages, start = [trained.stage for trained in runner.rounds()], runner.rewind_point
    named = {stage.digest: stage.read_manifest().digest for stage in [start, *stages]}
    ends = {"start_stage": start.digest, "final_stage": stages[-1].digest}
    return a_result(stages=named, **ends)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Dense and three pilots of the tiny spec, trained; nothing measured yet."""
    from tests.conftest import TINY, merged

    spec = SweepSpec.model_validate(merged(TINY, {"search": {"pilots": 3, "baselines": []}}))
    ledger = Ledger(Store(str(tmp_path_factory.mktemp("swept"))), spec.name, check=lambda: None)
    for planned in plan(spec):
        ledger.submit(planned.trial)
        ledger.finish(planned.trial.id, run_trial(spec, ledger.store, planned.trial))
    return spec, ledger


@pytest.fixture
def measured(swept, tmp_path):
    spec, ledger = swept
    ledger.store.delete(f"{ledger.folder}/{SIMILARITY_FILE}")
    return spec, ledger, measure_similarity(spec, ledger)


def free_layers(spec):
    return [layer for layer in layers_of(spec.unet_config) if layer.block not in KEPT_DENSE]


def largest(values, count):
    """Positions of the `count` largest values, as a boolean array."""
    keep = np.zeros(values.size, bool)
    keep[np.argsort(-values.reshape(-1), kind="stable")[:count]] = True
    return keep


def pooled(pairs):
    """kappa from (a, b) of boolean arrays, one of each layer, counted here anew."""
    over = sum((a & b).sum() - a.sum() * b.sum() / a.size for a, b in pairs)
    return over / sum(min(a.sum(), b.sum()) - a.sum() * b.sum() / a.size for a, b in pairs)


def test_blocks_and_layers_have_every_number_and_what_is_dense_has_none(measured):
    spec, _, found = measured
    assert set(found["blocks"]) == set(spec.blocks)
    assert set(found["layers"]) == {layer.name for layer in layers_of(spec.unet_config)}
    for place, numbers in itertools.chain(found["blocks"].items(), found["layers"].items()):
        assert set(numbers) == set(SIMILARITY_NUMBERS)
        if place in KEPT_DENSE:
            assert numbers == {**dict.fromkeys(SIMILARITY_NUMBERS), "pairs": 0}
        else:
            assert numbers["pairs"] == 3 and None not in numbers.values()
            assert numbers["kappa_low"] <= numbers["kappa"] <= numbers["kappa_high"]


def test_plain_numbers_and_the_profile_are_what_they_were_before_there_were_others(measured):
    spec, ledger, found = measured
    pilots, store = [ledger.results[number] for number in (1, 2, 3)], ledger.store
    masks = [load_mask(store, result, layers_of(spec.unet_config)) for result in pilots]
    start = TrainState.from_bytes(store.find(pilots[0].ticket.start_stage).read(START)).weights
    trained = unpack(store.find(ledger.results[0].ticket.final_stage).read(TRAINED))["weights"]
    for block in set(spec.blocks) - set(KEPT_DENSE):
        layers = [layer for layer in free_layers(spec) if layer.block == block]
        numbers = found["blocks"][block]
        assert numbers["kappa"] == kappa_between(masks, layers)
        assert numbers["kappa_start"] == kappa_with_start(masks, start, layers)
        assert numbers["movement"] == movement(start, trained, layers)
    raw = []
    for blocks in spec.groups.values():
        layers = [layer for layer in free_layers(spec) if layer.block in blocks]
        raw.append(kappa_between(masks, layers) - kappa_with_start(masks, start, layers))
    expected = (np.array(raw) - np.mean(raw)) / np.std(raw)
    assert found["profile"] == dict(zip(spec.groups, expected.tolist(), strict=True))


def test_movement_masks_are_of_the_dense_training_of_each_pilot(measured):
    """Of round 0, found here by the seed in its key: the weights of the last round moved only where the ticket kept them."""
    spec, ledger, found = measured
    layers, rounds_0 = layers_of(spec.unet_config), []
    for number in (1, 2, 3):
        stages = [ledger.store.find(digest) for digest in ledger.results[number].stages]
        rounds_0 += [s for s in stages if s.key["kind"] == "train" and s.key["mask"] is None]
        assert rounds_0[-1].key["seed"] == spec.train.seed + number - 1
    assert len(rounds_0) == 3 and rounds_0[0].digest == ledger.results[0].ticket.final_stage
    start = TrainState.from_bytes(ledger.store.find(ledger.results[1].ticket.start_stage).read(START)).weights
    ends = [unpack(stage.read(TRAINED))["weights"] for stage in rounds_0]
    mask = load_mask(ledger.store, ledger.results[1], layers)  # uniform: all pilots keep the same counts
    moved = {
        layer.name: [
            largest((end[f"{layer.name}.weight"] - start[f"{layer.name}.weight"]).abs().numpy(), mask.counts[layer.name][0])
            for end in ends
        ]
        for layer in free_layers(spec)
    }
    for block in set(spec.blocks) - set(KEPT_DENSE):
        names = [layer.name for layer in free_layers(spec) if layer.block == block]
        kappas = [pooled([(moved[n][i], moved[n][j]) for n in names]) for i, j in itertools.combinations(range(3), 2)]
        assert found["blocks"][block]["kappa_movement"] == pytest.approx(np.mean(kappas))


def test_partial_kappa_splits_each_layer_by_the_start(measured):
    spec, ledger, found = measured
    masks = [load_mask(ledger.store, ledger.results[n], layers_of(spec.unet_config)) for n in (1, 2, 3)]
    start = TrainState.from_bytes(ledger.store.find(ledger.results[1].ticket.start_stage).read(START)).weights
    for layer in free_layers(spec):
        tickets = [mask.layers[layer.name].numpy().reshape(-1) for mask in masks]
        inside = largest(start[f"{layer.name}.weight"].abs().numpy(), tickets[0].sum())
        kappas = [pooled([(a[inside], b[inside]), (a[~inside], b[~inside])]) for a, b in itertools.combinations(tickets, 2)]
        assert found["layers"][layer.name]["kappa_partial"] == pytest.approx(np.mean(kappas))


@pytest.fixture
def chosen(swept):
    """`chosen(profile)`: the spec with groups: auto, and what is measured of the sweep under it."""
    spec, ledger = swept

    def make(profile):
        search = spec.search.model_copy(update={"groups": "auto", "profile": profile})
        auto = spec.model_copy(update={"search": search})
        ledger.store.delete(f"{ledger.folder}/{SIMILARITY_FILE}")
        assert results(auto, ledger)["groups"] is None
        return auto, measure_similarity(auto, ledger)

    return make


@pytest.mark.parametrize("profile", ["excess", "kappa", "movement", "cost", "size"])
def test_auto_groups_are_the_breaks_of_the_profile_block_by_block(swept, chosen, profile):
    ledger = swept[1]
    spec, found = chosen(profile)
    size = {block: sum(layer.size for layer in free_layers(spec) if layer.block == block) for block in spec.free_blocks}
    flops = count_flops(spec.unet_config).layers
    cost = {b: sum(flops[la.name] for la in free_layers(spec) if la.block == b) / size[b] for b in spec.free_blocks}
    others = {"size": lambda b, _: -math.log(size[b]), "cost": lambda b, _: math.log(cost[b])}
    others["movement"] = lambda _, numbers: math.log(numbers["movement"])
    raw = {
        block: others.get(profile, lambda _, numbers: numbers[profile])(block, numbers)
        for block, numbers in found["blocks"].items()
        if block not in KEPT_DENSE
    }
    assert found["groups"] == grouped(raw)
    assert 2 <= len(found["groups"]) <= 4
    assert results(spec, ledger)["groups"] == found["groups"]
    assert measure_similarity(spec, ledger) == found  # as it was written
    assert list(found["profile"]) == list(found["groups"])
    values = [*found["profile"].values()]
    assert (np.mean(values), np.std(values)) == pytest.approx((0, 1))
    ledger.store.delete(f"{ledger.folder}/{SIMILARITY_FILE}")
    named = with_chosen_groups(spec, found)
    assert measure_similarity(named, ledger)["profile"] == found["profile"]  # the same groups, given by hand


def test_a_placebo_has_the_groups_of_excess_and_their_values_shuffled(chosen):
    (_, excess), (_, placebo) = chosen("excess"), chosen("shuffled")
    assert placebo["groups"] == excess["groups"]
    assert sorted(placebo["profile"].values()) == sorted(excess["profile"].values())


def test_a_profile_that_tells_nothing_leaves_the_usual_groups_and_says_so(swept, caplog):
    spec, ledger = swept
    auto = spec.model_copy(update={"search": spec.search.model_copy(update={"groups": "auto"})})
    alone = Ledger(ledger.store, "alone", check=lambda: None)  # its pilots have failed
    alone.submit(a_trial(0, "dense", None, spec.train.seed))
    alone.finish(0, ledger.results[0])
    found = measure_similarity(auto, alone)
    assert found["groups"] == spec.groups
    assert found["profile"] == dict.fromkeys(spec.groups, 0.0)
    assert "groups: auto: the profile excess is not known of every block; groups are down, mid, up" in caplog.text


def test_what_an_earlier_raylt_measured_has_the_groups_of_its_spec(measured):
    spec, ledger, found = measured
    assert found["groups"] == spec.groups
    ledger.write(SIMILARITY_FILE, {"blocks": {}, "profile": {}})
    assert results(spec, ledger)["groups"] == spec.groups


def test_it_is_measured_once_and_results_shows_it(measured):
    spec, ledger, found = measured
    document = results(spec, ledger)
    assert (document["similarity"], document["similarity_layers"]) == (found["blocks"], found["layers"])
    ledger.write(SIMILARITY_FILE, {"blocks": {}, "profile": {"down": 1.0}})
    assert measure_similarity(spec, ledger) == {"blocks": {}, "profile": {"down": 1.0}}


def test_what_an_earlier_raylt_measured_has_nulls_for_the_rest(measured):
    spec, ledger, _ = measured
    old = {"kappa": 0.5, "kappa_start": 0.2, "movement": 0.1, "pairs": 1}
    ledger.write(SIMILARITY_FILE, {"blocks": {"mid_block": old}, "profile": {}})
    document = results(spec, ledger)
    assert document["similarity_layers"] == {}
    assert document["similarity"]["mid_block"] == {**dict.fromkeys(SIMILARITY_NUMBERS), **old, "excess": 0.3}


def test_pilots_of_one_search_are_refused(swept, tmp_path):
    """It cannot come about by planning: every pilot has a seed of its own."""
    spec, ledger = swept
    twins = Ledger(ledger.store, "twins", check=lambda: None)
    for number, trial in enumerate((1, 1, 2)):
        twins.submit(a_trial(number, "pilot", "uniform", spec.train.seed))
        twins.finish(number, ledger.results[trial])
    with pytest.raises(NestedMasks, match="tickets 0 and 1 come from one search"):
        measure_similarity(spec, twins)
