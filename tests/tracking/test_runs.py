"""The ledger shown as MLflow runs: what is there, and that replays add nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from raylt.store import Ledger
from raylt.store.layout import RUNS_FILE
from raylt.tracking.parent_run import sweep_points
from raylt.tracking.tracker import record
from tests.support.recording import (
    YAML,
    ask_search,
    begin,
    complete,
    count_rows,
    everything,
    history,
    make_spec,
    sqlite_uri,
)


def test_one_parent_and_one_child_a_trial(recorded: Any) -> None:
    _, spec, ledger, runs = recorded
    parent, runs = runs["digits"], {name: run for name, run in runs.items() if name != "digits"}
    assert sorted(runs) == [trial.name for _, trial in sorted(ledger.submitted.items())]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["raylt.kind"] == "sweep"
    for run in (parent, *runs.values()):
        tags = run.data.tags
        assert tags["raylt.sweep"] == "digits" and tags["raylt.digest"] == spec.digest
        assert (tags["fid.features"], tags["fid.samples"], tags["fid.sampler"]) == ("digits-cnn", "1000", "ddim")
        assert (tags["fid.steps"], tags["fid.reference"]) == ("10", "all")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    known = ledger.read(RUNS_FILE)
    assert known["parent"] == parent.info.run_id
    assert {known[run.data.tags["raylt.trial"]] for run in runs.values()} == {run.info.run_id for run in runs.values()}


def test_states_of_children(recorded: Any) -> None:
    *_, runs = recorded
    states = {
        name: (run.info.status, run.data.tags["raylt.state"], run.data.tags.get("raylt.cause"))
        for name, run in runs.items()
        if name != "digits"
    }
    assert states["0005-search"] == ("FINISHED", "COMPLETE", None)
    assert states["0006-search"] == ("FINISHED", "PRUNED", None)
    assert states["0007-search"] == ("FAILED", "FAIL", "loss is not finite")
    tags = runs["0000-dense"].data.tags
    assert [tags[f"raylt.{key}"] for key in ("trial", "kind", "rule", "protocol", "seed")] == [
        "0",
        "dense",
        "dense",
        "search",
        "0",
    ]


def test_params_name_the_allocation_and_the_identity(recorded: Any) -> None:
    _, spec, _, runs = recorded
    params = runs["0005-search"].data.params
    assert (params["gamma"], params["delta/down"], params["rule"], params["density/mid_block"]) == (
        "0.5",
        "-0.25",
        "searched",
        "0.05",
    )
    for run in runs.values():
        assert spec.identity().keys() <= run.data.params.keys()
    assert runs["digits"].data.params["search.objectives"] == '["loss", "flops"]'
    assert "density/mid_block" not in runs["0007-search"].data.params


def test_metrics_have_rounds_as_steps_and_the_times_of_the_ledger(recorded: Any) -> None:
    folder, _, ledger, runs = recorded
    uri, run_id = sqlite_uri(folder), runs["0005-search"].info.run_id
    expected = [(r.round, pytest.approx(r.loss), r.time_ms) for r in ledger.results[5].rounds]
    assert history(uri, run_id, "loss") == expected
    assert {"fid", "loss", "flops", "density", "ticket_bytes"} <= runs["0005-search"].data.metrics.keys()
    assert "kid" not in runs["0005-search"].data.metrics  # it was None
    assert history(uri, run_id, "density/mid_block") == [(2, 0.05, ledger.results[5].time_ms)]
    assert history(uri, runs["0007-search"].info.run_id, "loss") != []


def test_parent_metrics(recorded: Any) -> None:
    folder, _, ledger, runs = recorded
    uri, run_id = sqlite_uri(folder), runs["digits"].info.run_id
    shown = {"kappa": 0.5, "kappa_start": 0.25, "excess": 0.25, "kappa_partial": 0.4, "kappa_movement": 0.3, "z": 12.5}
    for name, value in shown.items():
        assert history(uri, run_id, f"{name}/mid_block") == [(0, value, ledger.results[2].time_ms)]
    named = set(runs["digits"].data.metrics)
    assert {name for name in named if name.endswith("/conv_in")} == set()  # kept dense
    assert {name for name in named if name.endswith("/down_blocks.0")} == {"kappa/down_blocks.0", "kappa_start/down_blocks.0"}
    best = {step: value for step, value, _ in history(uri, run_id, "best_loss")}
    # 3 and 4 are baselines; 5 is better; 6 is pruned and 7 failed, and neither is ranked
    losses = {number: result.scores.loss for number, result in ledger.results.items()}
    assert best == {3: losses[3], 4: losses[4], 5: losses[5], 6: losses[5], 7: losses[5]}
    assert [step for step, _, _ in history(uri, run_id, "best_fid")] == [3, 4, 5, 6, 7]


def test_similarity_has_one_time_whenever_the_ledger_was_read(recorded: Any) -> None:
    """The recorder reads similarity.json after the results: it may be there before its view has every pilot's end."""
    _, spec, ledger, _ = recorded

    def points(view: Ledger) -> list[tuple[str, int]]:
        return [(point.key, point.time_ms) for point in sweep_points(spec, view) if "/" in point.key]

    view = Ledger(ledger.store, ledger.name)
    late = view.results.pop(2)
    assert points(view) == []
    view.results[2] = late
    assert points(view) == points(ledger) != []


def test_best_points_stop_at_the_first_trial_that_runs(tmp_path: Path) -> None:
    spec = make_spec()
    ledger = begin(tmp_path, spec)
    for number in (5, 6):
        ask_search(ledger, number)
    ledger.finish(6, complete(ledger.store, 6, broken=False, loss=0.0))
    before = sweep_points(spec, ledger)
    assert max(point.step for point in before if point.key == "best_loss") == 4
    ledger.finish(5, complete(ledger.store, 5))
    assert set(before) < set(sweep_points(spec, ledger))


def test_artifacts_lie_beside_the_database(recorded: Any) -> None:
    folder, _, _, runs = recorded
    artifacts = folder / "mlartifacts"
    child, parent, dense = (
        artifacts / runs[name].info.run_id / "artifacts" for name in ("0005-search", "digits", "0000-dense")
    )
    assert sorted(path.name for path in child.iterdir()) == ["allocation.png", "samples.png", "ticket.safetensors"]
    assert (dense / "samples.npz").read_bytes() == b"npz"
    assert (child / "ticket.safetensors").read_bytes() == b"ticket of 5"
    with Image.open(child / "samples.png") as picture:
        assert picture.width >= 256 and np.asarray(picture)[0, 0] == 5
    files = ["allocations.png", "pareto.png", "report.html", "similarity.png", "similarity_heat.png", "spec.yaml"]
    assert sorted(path.name for path in parent.iterdir()) == files
    assert (parent / "spec.yaml").read_text() == YAML
    assert not (artifacts / runs["0007-search"].info.run_id).exists()


def test_replays_add_nothing(recorded: Any) -> None:
    folder, spec, ledger, runs = recorded
    uri, client = sqlite_uri(folder), MlflowClient(tracking_uri=sqlite_uri(folder))
    before, rows = everything(uri), count_rows(folder)
    record(spec, ledger, YAML, uri)
    assert count_rows(folder) == rows
    for run in runs.values():  # as if the driver had been killed before the last write of each run
        client.delete_tag(run.info.run_id, "raylt.record")
    record(spec, ledger, YAML, uri)
    assert count_rows(folder) == rows
    assert everything(uri) == before
