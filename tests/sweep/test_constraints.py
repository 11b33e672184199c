"""Ceilings: what costs too much is foreseen where it can be, told to the sampler where it was trained, and never ranked."""

from __future__ import annotations

import optuna
import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.flops import count_flops
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.errors import SpecError
from raylt.report.document import results, trial_record
from raylt.report.tables import state_text, why_no_front
from raylt.search.cost_model import CostModel
from raylt.search.space import offsets
from raylt.search.study import StudyFile
from raylt.spec import plan
from raylt.spec.ceilings import violations
from raylt.store import Store
from raylt.store.results import TrialResult
from raylt.store.sweep_state import pareto_of
from raylt.sweep import dispatch, preflight
from raylt.ticket.allocation import Allocation
from raylt.ticket.mask import Mask
from raylt.ticket.prune import magnitude
from raylt.ticket.ticket_file import Ticket
from raylt.ticket.ticket_search import TicketSearch
from tests.support.driving import asked, drive
from tests.support.results import a_result

PROFILE = {"down": -1.0, "mid": -0.2, "up": 1.2}


@pytest.fixture(autouse=True)
def _profile(monkeypatch):
    monkeypatch.setattr(dispatch, "measure_similarity", lambda spec, ledger: {"profile": PROFILE})


def base_share(spec):
    """FLOPs of the base, as a share of the dense model's."""
    return CostModel(spec, None).flops({}, spec.ticket.rounds) / count_flops(spec.unet_config).dense


def costing(spec):
    """Results whose FLOPs are what the allocation costs, and whose losses are less where they are more."""
    model, dense = CostModel(spec, None), count_flops(spec.unet_config).dense

    def outcome(trial):
        flops = model.flops(trial.proposal.offsets, spec.ticket.rounds) if trial.is_search else dense
        return within(spec, {"loss": 1e4 / flops, "flops": flops, "flops_dense": dense, "ticket_bytes": 1000})

    return outcome


def within(spec, numbers):
    """The numbers, and by how much they break the ceilings."""
    over = violations(spec.search.constraints, numbers["flops"] / numbers["flops_dense"], numbers["ticket_bytes"])
    return {**numbers, "violations": over}


def test_a_violation_is_what_lies_above_the_ceiling(tiny_spec):
    spec = tiny_spec(search={"constraints": {"flops": 0.05, "ticket_bytes": 2000}})
    numbers = {"flops": 60, "flops_dense": 1000, "ticket_bytes": 1500}
    assert within(spec, numbers)["violations"] == {"flops": pytest.approx(0.2), "ticket_bytes": pytest.approx(-0.25)}
    assert not a_result(**within(spec, numbers)).is_feasible
    assert a_result(**within(spec, {**numbers, "flops": 50})).is_feasible
    assert within(tiny_spec(), numbers)["violations"] == {}
    knew_none = {key: value for key, value in a_result().to_json().items() if key != "violations"}
    assert TrialResult.from_json(knew_none).is_feasible  # of a sweep that knew no ceilings


@pytest.mark.parametrize("sampler", ["similarity", pytest.param("gp", marks=pytest.mark.slow), "nsga2"])
def test_no_proposal_that_would_break_the_ceiling_is_trained(tiny_spec, tmp_path, sampler):
    free = tiny_spec(search={"sampler": sampler, "trials": 6, "concurrency": 1})
    ceiling = round(base_share(free), 4)  # about half of all bends are dearer than the base
    ledger, _ = drive(free, tmp_path / "free", costing(free))
    dense = count_flops(free.unet_config).dense
    assert any(r.scores.flops > ceiling * dense for n, r in ledger.results.items() if ledger.submitted[n].is_search)
    spec = tiny_spec(search={"sampler": sampler, "trials": 6, "concurrency": 1, "constraints": {"flops": ceiling}})
    ledger, _ = drive(spec, tmp_path / "kept", costing(spec))
    found = [r.scores.flops for n, r in ledger.results.items() if ledger.submitted[n].is_search]
    assert len(found) == 6
    assert max(found) <= ceiling * dense
    again, _ = drive(spec, tmp_path / "again", costing(spec), order_seed=3)
    assert asked(again) == asked(ledger)


def test_where_no_proposal_keeps_the_ceiling_the_sweep_says_so_once_and_why_nothing_is_ranked(tiny_spec, tmp_path, caplog):
    least = preflight._least_flops(tiny_spec(), layers_of(tiny_spec().unet_config), count_flops(tiny_spec().unet_config))
    ceiling = 1.01 * least / count_flops(tiny_spec().unet_config).dense  # some ticket keeps it, and none that can be searched
    spec = tiny_spec(search={"trials": 3, "concurrency": 1, "constraints": {"flops": ceiling}})
    preflight.check(spec, Store(str(tmp_path / "checked")))
    with caplog.at_level("WARNING", "raylt.search"):
        ledger, _ = drive(spec, tmp_path / "root", costing(spec))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("no proposal found that keeps search.constraints.flops")
    assert pareto_of(spec, ledger) == set()
    assert why_no_front(results(spec, ledger)) == (
        "no ticket is ranked: of 5 baselines and search trials, 5 cost more than search.constraints allows"
    )


def test_a_ceiling_of_bytes_below_the_kept_weights_is_refused(tiny_spec, tmp_path):
    """The least there is: four bytes for each weight that is kept."""
    layers = layers_of(tiny_spec().unet_config)
    total = sum(layer.size for layer in layers)
    least = 4 * round(0.2 * total)
    with pytest.raises(SpecError, match=rf"search.constraints.ticket_bytes: .*{least:,} or more"):
        preflight.check(tiny_spec(search={"constraints": {"ticket_bytes": least - 1}}), Store(str(tmp_path)))
    preflight.check(tiny_spec(search={"constraints": {"ticket_bytes": least}}), Store(str(tmp_path)))
    mask = Mask({layer.name: torch.rand(layer.shape) < 0.2 for layer in layers})
    start = TrainState.fresh(mask.apply(parameters_of(build_unet(tiny_spec().unet_config, 0))))
    kept = sum(count for count, _ in mask.counts.values())
    assert len(Ticket(tiny_spec().unet_config, mask, start).to_bytes()) > total // 8 + 4 * kept


def test_what_was_trained_and_costs_too_much_is_told_and_not_ranked(tiny_spec, tmp_path):
    spec = tiny_spec(search={"trials": 4, "concurrency": 1, "constraints": {"ticket_bytes": 999}})
    cheap = next(item.trial.id for item in plan(spec) if item.trial.kind == "baseline")

    def outcome(trial):
        return within(spec, {**costing(spec)(trial), "ticket_bytes": 900 if trial.id == cheap else 1000})

    ledger, _ = drive(spec, tmp_path, outcome)
    assert pareto_of(spec, ledger) == {cheap}
    number = max(ledger.results)
    record = trial_record(ledger.submitted[number], ledger.results[number])
    assert (record["feasible"], record["pareto"], state_text(record)) == (False, False, "over")
    file = StudyFile(spec, tmp_path / "study.db")
    file.sync(ledger)
    file.close()
    study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.constraints for trial in study.trials] == [{"ticket_bytes": pytest.approx(1000 / 999 - 1)}] * 4
    feasible = {trial["id"]: trial["feasible"] for trial in results(spec, ledger)["trials"]}
    assert (feasible[0], feasible[cheap], feasible[number]) == (None, True, False)  # the dense model is no candidate


def test_a_ceiling_below_what_any_ticket_needs_is_refused_with_the_least_there_is(tiny_spec, tmp_path):
    spec = tiny_spec(search={"constraints": {"flops": 0.001}})
    with pytest.raises(
        SpecError, match=r"search.constraints.flops: is less than any ticket of the final density needs"
    ) as caught:
        preflight.check(spec, Store(str(tmp_path)))
    least = float(str(caught.value).split("); ")[1].split()[0])
    assert least < base_share(spec)
    preflight.check(tiny_spec(search={"constraints": {"flops": least}}), Store(str(tmp_path)))


@pytest.mark.parametrize("base", ["uniform", "erk", "lamp"])
@pytest.mark.parametrize("budget", ["density", "flops"])
@pytest.mark.parametrize("shared", [0, 2])
def test_what_is_foreseen_is_what_the_masks_will_cost(tiny_spec, base, budget, shared, monkeypatch):
    ticket = {"rounds": 3, "density": 0.1, "shared_rounds": shared}
    spec = tiny_spec(ticket=ticket, search={"base": base, "budget": budget})
    layers, draw = layers_of(spec.unet_config), torch.Generator().manual_seed(1)
    weights = {f"{layer.name}.weight": torch.randn(layer.shape, generator=draw) for layer in layers}
    bends = offsets(spec, {"gamma": 1.2, "delta/down": -0.8, "delta/mid": 0.9, "delta/up": 0.3}, PROFILE)
    model = CostModel(spec, None)
    monkeypatch.setattr(CostModel, "_dense_weights", weights)
    search = TicketSearch(spec, Compute(), Allocation("searched", base, bends), 0)
    mask = Mask.dense(layers)
    for index in (1, 2, 3):
        mask = search.cut(index, spec.ticket.density_of(index), magnitude(weights, layers, mask), weights)
        assert model.flops(bends, index) == count_flops(spec.unet_config).of(mask.counts)
