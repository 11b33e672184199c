"""`raylt.results` and `raylt.confirmation`: DataFrames with the CSV's columns, numbers as numbers; and that names hold."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from importlib.machinery import PathFinder

import numpy as np
import pandas
import pytest

import raylt
from raylt.report.dataframes import confirmation_frame, csv_text, trials_frame
from raylt.report.document import results
from raylt.store import Ledger, Store
from tests.support.confirmed import begun, confirmed
from tests.support.trials import a_trial

FLOATS = [
    "density",
    "loss",
    "fid",
    "kid",
    "kid_sd",
    "flops",
    "ticket_bytes",
    "train_steps",
    "wall_s",
    "hours",
    "density/mid_block",
]


@pytest.mark.parametrize("name", ["results", "confirmation"])
def test_no_module_can_take_the_place_of_a_function(name):
    assert PathFinder.find_spec(f"raylt.{name}", raylt.__path__) is None


def test_a_sweep_as_a_frame(tiny_spec, tmp_path, monkeypatch):
    spec = tiny_spec(confirm={"steps": [12, 6]})
    document = results(spec, confirmed(tmp_path, spec))
    frame = raylt.results("tiny", root=str(tmp_path))
    assert frame.index.name == "id" and list(frame.index) == [trial["id"] for trial in document["trials"]]
    assert ["id", *frame.columns] == csv_text(document).splitlines()[0].split(",")
    assert all(frame[name].dtype == float for name in FLOATS)
    assert frame["seed"].dtype == np.int64 and frame["pareto"].dtype == bool and frame["broken"].dtype == "boolean"
    assert frame.loc[3, "loss"] == document["trials"][3]["loss"] and np.isnan(frame.loc[0, "train_steps"])
    assert frame.attrs["protocols"] == document["protocols"] and frame.attrs["objectives"] == ["loss", "flops"]
    assert set(frame[frame["protocol"] == "final"]["train_steps"]) == {12.0, 6.0}
    monkeypatch.setenv("RAYLT_ROOT", str(tmp_path))
    pandas.testing.assert_frame_equal(raylt.results("tiny"), frame)


def test_a_confirmation_as_a_frame(tiny_spec, tmp_path):
    spec = tiny_spec(confirm={"steps": [12, 6]})
    document = results(spec, confirmed(tmp_path, spec))
    frame = raylt.confirmation("tiny", str(tmp_path))
    assert len(frame) == len(document["confirmation"])
    for place, row in enumerate(document["confirmation"]):
        mine = frame.iloc[place]
        assert (mine["train_steps"], mine["seeds"], mine["loss_mean"]) == (row["train_steps"], 3, row["loss"]["mean"])
        if row["control"] is not None:
            assert mine["vs_ticket_fid_verdict"] == row["vs_ticket"]["fid"]["verdict"]
            assert mine["vs_dense_loss_margin"] == row["vs_dense"]["loss"]["margin"]
    assert frame["round"].dtype == np.int64 and frame["vs_dense_fid_high"].dtype == float
    assert frame["vs_dense_fid_high"].isna().sum() == 2  # the dense model at two budgets


def test_frames_of_a_sweep_that_has_nothing_yet(tiny_spec, tmp_path):
    spec = tiny_spec()
    ledger = Ledger(Store(str(tmp_path)), "tiny", lambda: None)
    assert len(trials_frame(results(spec, ledger))) == 0
    ledger.submit(a_trial(0, "dense", None, 0))
    frame = trials_frame(results(spec, ledger))
    assert np.isnan(frame.loc[0, "loss"]) and pandas.isna(frame.loc[0, "broken"])
    assert list(confirmation_frame(results(spec, ledger)).columns) == ["train_steps", "confirms", "rule", "control", "round"]


def test_the_csv_has_a_row_a_trial_with_its_protocol_and_budget(tiny_spec, tmp_path):
    spec = tiny_spec(confirm={"steps": [12]})
    document = results(spec, confirmed(tmp_path, spec))
    rows = list(csv.DictReader(io.StringIO(csv_text(document))))
    assert [(row["protocol"], row["train_steps"]) for row in rows] == [
        (trial["protocol"], str(trial["train_steps"] or "")) for trial in document["trials"]
    ]


@pytest.mark.parametrize(
    "first",
    ["raylt", "raylt.report.document", "raylt.report.lookup, raylt.report.dataframes, raylt.report.html_page, raylt.cli"],
)
def test_raylt_results_is_the_function_whatever_was_imported(first, tiny_spec, tmp_path):
    begun(tmp_path, tiny_spec())
    code = (
        f"import {first}\nimport sys, raylt\n"
        "assert callable(raylt.results) and callable(raylt.confirmation)\n"
        f"assert len(raylt.results('tiny', root={str(tmp_path)!r})) and callable(raylt.results)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)


def test_importing_the_package_imports_nothing_but_the_standard_library():
    code = "import sys; before = set(sys.modules); import raylt; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    assert {name.partition(".")[0] for name in out.split()} <= {"raylt", *sys.stdlib_module_names}
