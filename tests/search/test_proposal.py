"""Proposals of a long-lived proposer are those of one made from scratch, bit for bit."""

from __future__ import annotations

import random

import optuna
import pytest

from raylt.search.proposal import Proposer, frozen
from raylt.search.sampler import make_sampler
from raylt.search.space import at_base, distributions
from raylt.store.results import COMPLETE, FAIL, PRUNED
from tests.support.results import a_result
from tests.support.trials import a_trial

STARTUP = 5


def from_scratch(spec, number, history):
    """What `propose` promises, written down without any memory."""
    study = optuna.create_study(
        directions=["minimize"] * len(spec.search.objectives), sampler=make_sampler(spec, number, STARTUP)
    )
    study.add_trials([frozen(spec, distributions(spec), trial, result) for trial, result in history])
    asked = study.ask(fixed_distributions=distributions(spec))
    return {**at_base(spec), **asked.params}, dict(study.trials[asked.number].system_attrs)


def end(number, params, attrs, draw, states=(*6 * [COMPLETE], PRUNED, FAIL)):
    """A trial that was proposed, and how it ended."""
    state = draw.choice(states)
    loss = (params["gamma"] - 0.5) ** 2 + (params["delta/down"] + 0.2) ** 2 + 0.1 * draw.random()
    trial = a_trial(number + 5, "search", "searched", 0, params=params, sampler_attrs=attrs)
    return trial, a_result(state=state, loss=loss, flops=1000 + round(100 * params["gamma"]))


@pytest.mark.parametrize(
    ("sampler", "trials"), [("similarity", 60), ("tpe", 60), ("random", 60), ("nsga2", 60), ("gp", STARTUP + 5)]
)
@pytest.mark.parametrize("objectives", [["loss"], ["loss", "flops"]])
def test_a_proposal_depends_on_its_number_and_history_alone(tiny_spec, sampler, trials, objectives):
    """Histories grow, and where trials end out of order also shrink and differ in the middle."""
    spec = tiny_spec(search={"sampler": sampler, "objectives": objectives, "trials": trials})
    kept, history, draw = Proposer(spec, STARTUP), [], random.Random(0)
    for number in range(2, trials):
        seen = [item for item in history if number % 7 or draw.random() < 0.8]
        proposed = kept.propose(number, seen)
        assert proposed == from_scratch(spec, number, seen)
        assert kept.propose(number, seen) == proposed
        history.append(end(number, *proposed, draw))


def test_the_base_is_of_nsga2s_first_generation_and_its_generations_follow(tiny_spec):
    spec = tiny_spec(search={"sampler": "nsga2", "trials": 30})
    kept, history, draw = Proposer(spec, STARTUP), [], random.Random(2)
    for number in range(3 * STARTUP):
        history.append(end(number, *kept.propose(number, history), draw, states=[COMPLETE]))
    generations = [trial.proposal.sampler_attrs["NSGAIISampler:generation"] for trial, _ in history]
    assert generations == [0] * STARTUP + [1] * STARTUP + [2] * STARTUP
    assert set(history[0][0].proposal.params.values()) == {0.0}


@pytest.mark.parametrize(("pilots", "profile", "bends"), [(2, "excess", True), (0, "excess", False), (0, "movement", True)])
@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_gamma_is_searched_where_there_is_a_profile(tiny_spec, sampler, pilots, profile, bends):
    spec = tiny_spec(search={"sampler": sampler, "pilots": pilots, "profile": profile})
    assert ("gamma" in distributions(spec)) == bends
    params, _ = Proposer(spec, STARTUP).propose(3, [])
    assert (params["gamma"] != 0) == bends


def test_a_late_end_of_an_older_trial_begins_anew(tiny_spec):
    spec = tiny_spec(search={"trials": 30})
    draw, history = random.Random(1), []
    for number in range(2, 20):
        history.append(end(number, *from_scratch(spec, number, history), draw))
    kept = Proposer(spec, STARTUP)
    kept.propose(20, history[:5] + history[6:])  # trial 5 still ran
    assert kept.propose(21, history) == from_scratch(spec, 21, history)
