"""`raylt status`, `results`, `report` and `export`: what each prints and leaves behind."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from raylt.diffusion.unet import layers_of
from raylt.store import Store
from raylt.store.layout import SAMPLES, TICKET
from raylt.ticket.find import read_mask, read_trained
from raylt.ticket.ticket_file import load_ticket
from tests.support.commands import BROKEN_OFF, SEARCHED, paths

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("words", [("results",), ("status",), ("report", "-o", "page.html"), ("export",)], ids=" ".join)
def test_an_unknown_sweep_is_refused_with_those_there_are(words, call, here):
    more = ("0", "folder") if words == ("export",) else ()
    Path("raylt-data/sweeps/never-begun").mkdir()
    Path("raylt-data/sweeps/never-begun/lease.json").write_text("{}")
    before = paths()
    (line,) = call(words[0], "smal", *words[1:], *more).errors
    assert "'smal'" in line
    assert "there: small)" in line
    (line,) = call(words[0], "small", *words[1:], *more, "--root", "nowhere").errors
    assert "there: none)" in line
    assert paths() == before


@pytest.mark.parametrize(("options", "refusal"), [
    ("--json --csv", "--json and --csv contradict each other; give one of them"),
    ("--json --sort loss", "--json is by id, so --sort contradicts it; give --csv, or sort what --json prints"),
    ("--cost --json", "--cost is a table, and --json and --csv have its numbers anyway; give one of them"),
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused_in_these_words(options, refusal, call, here):
    (line,) = call("results", "small", *options.split()).errors
    assert line == refusal


def test_a_spec_file_that_is_another_than_the_sweep_of_its_name_is_said(call, here, caplog):
    text = Path("raylt-data/sweeps/small/spec.yaml").read_text()
    Path("same.yaml").write_text(text)
    Path("other.yaml").write_text(text.replace("learning_rate:", "learning_rate: 0.123  #", 1))
    assert call("status", "same.yaml").code == 0 and not caplog.messages
    assert call("status", "other.yaml").code == 0
    assert caplog.messages == ["sweep small was started with another spec than other.yaml; this is what is stored of it"]


def test_a_sweep_goes_by_its_name_or_its_spec_file_under_the_root_that_is_named(call, here, monkeypatch):
    expected = call("results", "small", "--json").out
    assert json.loads(expected)["name"] == "small"
    assert call("results", "small.yaml", "--json").out == expected
    root = Path("raylt-data").resolve()
    empty = here.resolve() / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert call("results", "small", "--json").errors
    assert call("results", "small", "--json", "--root", root).out == expected
    monkeypatch.setenv("RAYLT_ROOT", str(root))
    assert call("results", "small", "--json").out == expected
    assert call("results", "small", "--json", "--root", "elsewhere").errors


def test_status_counts_and_lists_causes(call, here):
    done = call("status", "small")
    assert done.code == 0
    first, *rest = done.out.splitlines()
    assert first == "small: complete (5 asked, 4 complete, 0 pruned, 1 failed, 0 running)"
    (failed,) = rest
    assert failed.split() == ["4", "search", "FAIL", "RuntimeError:", "the", "sky", "fell"]


def test_status_says_of_no_trial_that_it_runs_where_nobody_drives_it(call, here):
    assert call("retry", "small", "4").code == 0
    lines = call("status", "small").out.splitlines()
    assert lines[0] == "small: interrupted (6 asked, 4 complete, 0 pruned, 1 failed, 1 unfinished)"
    assert lines[2].split() == ["5", "search", "UNFINISHED"]
    assert lines[3].startswith("nothing runs") and "running" not in " ".join(lines).lower()


def test_results_as_tables_fit_a_terminal(call, here):
    done = call("results", "small")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert {"0", "1", "2", "3", "4"} <= {row[0] for row in rows if row}
    assert "RuntimeError: the sky fell" in done.out


def test_what_it_cost(call, here):
    document = json.loads(call("results", "small", "--json").out)
    asked, trained, shared = (document["steps"][key] for key in ("asked", "trained", "shared"))
    assert f"steps: {asked} asked, {trained} trained, {shared} shared; " in call("results", "small").out
    lines = call("results", "small", "--cost").out.splitlines()
    rows = [line.split() for line in lines if re.match(r" *(\d+|all) ", line)]
    assert max(map(len, lines)) <= 80
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "all"]
    assert rows[0][:7] == ["0", "dense", "-", "complete", "12", "12", "0"]
    assert rows[BROKEN_OFF][4:] == ["-"] * 4
    assert rows[-1][1:4] == [str(asked), str(trained), str(shared)]
    csv_rows = csv.DictReader(io.StringIO(call("results", "small", "--csv").out))
    assert [row["hours"] != "" for row in csv_rows] == [True] * 4 + [False]
    (line,) = call("results", "small", "--cost", "--csv").errors
    assert line.startswith("--cost is a table")


def test_results_of_the_front_alone(call, here):
    trials = json.loads(call("results", "small", "--json").out)["trials"]
    front = [trial for trial in trials if trial["pareto"]]
    assert 0 < len(front) < len(trials)
    assert json.loads(call("results", "small", "--json", "--pareto").out)["trials"] == front
    rows = list(csv.DictReader(io.StringIO(call("results", "small", "--csv", "--pareto").out)))
    assert [row["id"] for row in rows] == [str(trial["id"]) for trial in front]
    assert call("results", "small", "--pareto").code == 0


def test_results_as_csv_have_a_row_a_trial_and_nothing_where_there_is_no_number(call, here):
    trials = json.loads(call("results", "small", "--json").out)["trials"]
    rows = list(csv.DictReader(io.StringIO(call("results", "small", "--csv").out)))
    assert [(row["id"], row["kind"], row["state"]) for row in rows] == [
        (str(trial["id"]), trial["kind"], trial["state"]) for trial in trials
    ]
    for row, trial in zip(rows, trials, strict=True):
        assert None not in row
        for key in ("loss", "fid", "density"):
            assert (float(row[key]) if row[key] else None) == trial[key]
    assert rows[BROKEN_OFF]["loss"] == ""
    assert rows[BROKEN_OFF]["error"] == "RuntimeError: the sky fell"
    assert float(rows[SEARCHED]["density/mid_block"]) == trials[SEARCHED]["densities"]["mid_block"]


def test_report_writes_one_page(call, here):
    done = call("report", "small", "-o", "page.html")
    assert (done.code, done.out) == (0, "page.html\n")
    page = Path("page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "RuntimeError: the sky fell" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)  # readable without a network
    (line,) = call("report", "small", "-o", "nowhere/page.html").errors
    assert "nowhere/page.html" in line


def test_export_is_a_pipeline_that_diffusers_loads_with_its_ticket(call, here):
    done = call("export", "small", str(SEARCHED), "folder/deep")
    assert (done.code, done.out) == (0, "folder/deep\n")
    folder = Path("folder/deep")
    pipeline = DDPMPipeline.from_pretrained(folder)
    exported = dict(pipeline.unet.named_parameters())

    result = json.loads(Path(f"raylt-data/sweeps/small/trials/{SEARCHED:05d}/result.json").read_text())
    stage = Store("raylt-data").find(result["final_stage"])
    ema = read_trained(stage, read_mask(stage, layers_of(pipeline.unet.config)))["ema"]
    assert set(exported) == set(ema)
    assert all(torch.equal(exported[name], ema[name]) for name in ema)

    trial = json.loads(call("results", "small", "--json").out)["trials"][SEARCHED]
    ticket = load_ticket(folder / TICKET)
    assert ticket.mask.digest == trial["ticket"]
    assert (folder / TICKET).stat().st_size == trial["ticket_bytes"]
    for layer, keep in ticket.mask.layers.items():
        weight = exported[f"{layer}.weight"]
        assert [int(keep.sum()), keep.numel()] == trial["layers"][layer]
        assert torch.count_nonzero(weight[~keep]) == 0
        assert torch.count_nonzero(weight[keep]) > 0

    Path("begun/.raylt-killed").mkdir(parents=True)  # an export that was killed does not stand in the way of the next
    assert call("export", "small", str(SEARCHED), "begun").code == 0
    assert {path.name for path in Path("begun").iterdir()} == {path.name for path in folder.iterdir()} | {".raylt-killed"}

    images = np.load(folder / SAMPLES)["arr_0"]
    assert (images.shape, images.dtype) == ((80, 8, 8, 1), np.uint8)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("number", [99, BROKEN_OFF])
def test_export_of_a_trial_without_a_ticket_is_refused(number, call, here):
    (line,) = call("export", "small", str(number), "folder").errors
    assert f"trial {number} " in line
    assert "0, 1, 2, 3" in line
    assert not Path("folder").exists()


def test_export_overwrites_nothing(call, here):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = paths()
    (line,) = call("export", "small", "0", "full").errors
    assert "full" in line
    (line,) = call("export", "small", "0", "full/mine.txt").errors
    assert "mine.txt" in line
    assert paths() == before
    Path("empty").mkdir()
    assert call("export", "small", "0", "empty").code == 0
