"""What `raylt sweep` leaves: its results, its record, its steps. With real Ray."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from raylt.report.document import SIMILARITY_NUMBERS
from raylt.spec.presets import block_of
from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from raylt.sweep.dry_run import all_trials, work_of
from raylt.ticket.ticket_file import load_ticket
from tests.support.sweeping import (
    BLOCKS,
    KEPT_DENSE,
    KINDS,
    NAME,
)

NUMBER = (int, float)
DOCUMENT = {
    "schema": int, "name": str, "digest": str, "state": str, "objectives": list, "protocols": dict, "counts": dict,
    "steps": dict, "similarity": dict, "similarity_layers": dict, "groups": dict, "trials": list,
}  # fmt: skip
TRIAL = {
    "id": int, "kind": str, "rule": (str, type(None)), "control": type(None), "seed": int, "state": str, "protocol": str,
    "density": float, "densities": dict, "kept": dict, "layers": dict, "loss": float, "fid": float, "kid": float,
    "flops": NUMBER, "flops_dense": NUMBER, "ticket_bytes": int, "pareto": bool, "broken": bool, "rounds": list,
    "steps": dict, "params": dict, "error": type(None), "ticket": str, "timing": dict, "mlflow_run_id": str,
}  # fmt: skip
RULES = [None, "uniform", "uniform", "uniform", "erk", "searched", "searched", "searched"]


def assert_types(record: dict[str, Any], types: dict[str, Any]) -> None:
    assert set(types) <= set(record)
    wrong = {key: record[key] for key, kind in types.items() if not isinstance(record[key], kind)}
    assert not wrong


def test_results_have_every_key_of_the_schema(document):
    assert_types(document, DOCUMENT)
    assert (document["schema"], document["name"], document["state"]) == (1, NAME, "complete")
    assert re.fullmatch("[0-9a-f]{64}", document["digest"])
    assert document["objectives"] == ["loss", "flops"]
    behind = {"sampler": "ddim", "features": "digits-cnn", "reference": 200}
    assert document["protocols"]["search"] == {"samples": 80, "steps": 2, "spacing": "trailing", **behind}
    assert document["protocols"]["final"] == {"samples": 50_000, "steps": 50, "spacing": "leading", **behind}
    assert document["counts"] == {"asked": 8, "complete": 8, "pruned": 0, "failed": 0, "running": 0}
    for trial in document["trials"]:
        assert_types(trial, TRIAL)
        assert set(trial["steps"]) == {"asked", "trained", "shared"}
        for row in trial["rounds"]:
            assert_types(row, {"round": int, "density": float, "fid": float, "loss": float})


def test_trials_are_those_of_the_plan_by_id(document):
    trials = document["trials"]
    assert [trial["id"] for trial in trials] == list(range(8))
    assert [trial["kind"] for trial in trials] == KINDS
    assert [trial["rule"] for trial in trials] == RULES
    assert [trial["seed"] for trial in trials] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert {(trial["state"], trial["protocol"], trial["control"]) for trial in trials} == {("COMPLETE", "search", None)}
    params = {"gamma", "delta/down", "delta/mid", "delta/up"}
    assert [set(trial["params"]) for trial in trials] == [set()] * 5 + [params] * 3
    assert set(trials[5]["params"].values()) == {0.0}  # the base itself, ERK, comes first
    assert trials[5]["ticket"] == trials[4]["ticket"]
    assert len({trial["ticket"] for trial in trials}) == 6  # and the uniform baseline is the first pilot
    assert len({trial["mlflow_run_id"] for trial in trials}) == 8


def test_what_a_trial_keeps_adds_up(document):
    for trial in document["trials"]:
        layers, blocks = trial["layers"], trial["kept"]
        kept, total = (sum(count[i] for count in layers.values()) for i in (0, 1))
        asked = 1.0 if trial["kind"] == "dense" else 0.2
        assert kept == round(asked * total)
        assert trial["density"] == trial["rounds"][-1]["density"] == kept / total
        assert set(blocks) == set(trial["densities"]) == BLOCKS
        for block, counts in blocks.items():
            own = [count for layer, count in layers.items() if layer == block or layer.startswith(f"{block}.")]
            assert counts == [sum(count[i] for count in own) for i in (0, 1)]
            assert trial["densities"][block] == counts[0] / counts[1]
            assert counts[0] == counts[1] or block not in KEPT_DENSE
        assert all(1 <= kept <= total for kept, total in layers.values())
        assert kept == sum(counts[0] for counts in blocks.values())
        rounds = 1 if trial["kind"] == "dense" else 3
        assert [row["round"] for row in trial["rounds"]] == list(range(rounds))
        for row in trial["rounds"]:
            assert abs(row["density"] - 0.2 ** (row["round"] / 2)) <= 0.5 / total
        assert all(trial[key] == trial["rounds"][-1][key] for key in ("loss", "fid"))
        assert 0 < trial["flops"] <= trial["flops_dense"]
        assert (trial["flops"] == trial["flops_dense"]) == (trial["kind"] == "dense")


def test_the_front_is_what_no_ranked_trial_beats(document):
    ranked = [trial for trial in document["trials"] if trial["kind"] in ("baseline", "search") and not trial["broken"]]

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = [(a[key], b[key]) for key in document["objectives"]]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    front = {trial["id"] for trial in ranked if not any(beats(other, trial) for other in ranked)}
    assert front
    assert {trial["id"] for trial in document["trials"] if trial["pareto"]} == front


def test_similarity_has_a_number_for_every_block_that_may_be_pruned(document):
    assert set(document["similarity"]) == BLOCKS
    for block, numbers in document["similarity"].items():
        if block in KEPT_DENSE:
            assert numbers == {**dict.fromkeys(SIMILARITY_NUMBERS), "pairs": 0}
        else:
            interval = {"kappa_low": type(None), "kappa_high": type(None)}  # two pilots are too few for one
            numeric = dict.fromkeys(set(SIMILARITY_NUMBERS) - set(interval), NUMBER)
            assert set(numbers) == set(SIMILARITY_NUMBERS)
            assert_types(numbers, interval | numeric)
            assert 0 < numbers["kappa"] < 1  # not by chance alone, and not one ticket twice
            assert numbers["movement"] > 0
            assert numbers["pairs"] == 1
    assert {block_of(layer) for layer in document["similarity_layers"]} == BLOCKS


def test_every_step_was_trained_once(finished, document):
    steps = finished.steps()
    assert set(steps.values()) == {1}
    trials = document["trials"]
    assert all(trial["steps"]["trained"] + trial["steps"]["shared"] == trial["steps"]["asked"] for trial in trials)
    assert sum(trial["steps"]["trained"] for trial in trials) == len(steps)
    assert document["steps"] == {key: sum(trial["steps"][key] for trial in trials) for key in ("asked", "trained", "shared")}
    assert [trial["steps"]["asked"] for trial in trials] == [12] + [2 + 3 * 10] * 7


def test_a_dry_run_knew_how_much_would_be_asked_and_trained(finished, document, tmp_path):
    store = Store(str(finished.folder / "raylt-data"))
    spec = stored_spec(store, NAME)
    for ledger in (Ledger(Store(str(tmp_path)), NAME), Ledger(store, NAME)):
        work = work_of(spec, (item.trial for item in all_trials(spec, ledger)))
        assert (work.asked.steps, work.distinct.steps) == (document["steps"]["asked"], document["steps"]["trained"])
        assert work.asked.trainings == sum(len(trial["rounds"]) for trial in document["trials"])
    assert work.distinct.samples == 80 * len({path.split("/")[2] for path in finished.files("stages/*/*/grid.safetensors")})


def test_hours_add_up(document):
    hours = [trial["timing"]["hours"] for trial in document["trials"]]
    assert all(trial["timing"]["hours"] == round(trial["timing"]["stages_s"] / 3600, 6) for trial in document["trials"])
    assert min(hours) >= 0 < hours[0]


def test_mlflow_has_a_run_for_the_sweep_and_one_below_it_for_each_trial(finished, document, tmp_path):
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raylt/tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(NAME)
    assert sorted(runs) == [f"{number:04d}-{kind}" for number, kind in enumerate(KINDS)]
    assert len(client.search_runs([experiment.experiment_id])) == 9
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    for trial in document["trials"]:
        run = runs[f"{trial['id']:04d}-{trial['kind']}"]
        assert run.info.run_id == trial["mlflow_run_id"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["raylt.state"] == "COMPLETE"
        assert "raylt.cause" not in run.data.tags
        numbers = ("loss", "fid", "kid", "flops", "density", "ticket_bytes")
        assert {key: run.data.metrics[key] for key in numbers} == {key: trial[key] for key in numbers}
        points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss"))
        assert points == [(row["round"], row["loss"]) for row in trial["rounds"]]
        folder = tmp_path / str(trial["id"])
        folder.mkdir()
        ticket = Path(client.download_artifacts(run.info.run_id, "ticket.safetensors", str(folder)))
        assert ticket.stat().st_size == trial["ticket_bytes"]
        mask = load_ticket(ticket).mask
        assert mask.digest == trial["ticket"]
        assert {layer: list(counts) for layer, counts in mask.counts.items()} == trial["layers"]
    assert (finished.folder / "mlartifacts").is_dir()
