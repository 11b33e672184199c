"""The report: one well-formed page with every picture in it, of a confirmed sweep and of one that has next to nothing."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raylt
from raylt.report.comparison_figures import allocated, allocations_png, confirmation_png
from raylt.report.document import results
from raylt.report.figures import pareto_png, small_grid_png
from raylt.report.html_page import html_page, sweep_page
from raylt.report.sample_grids import sample_grids
from raylt.report.verdicts import confirmation
from raylt.store import Ledger, Store
from raylt.store.sweep_lock import SweepLock
from raylt.tracking.runs import sweep_files
from tests.support.confirmed import LOCK, begun, confirmed
from tests.support.results import a_result
from tests.support.trials import a_trial

STYLE = (Path(raylt.__file__).parent / "report/templates/report.css").read_text()
VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Tags that close as they opened, and what an element could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open and page.startswith("<!doctype html>")
    assert "script" not in checker.seen and "link" not in checker.seen
    assert not re.search(r"(?:https?:)?//|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    for link in checker.links:
        assert link.startswith("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).width > 10
    return checker


@pytest.fixture
def sweep(tiny_spec, tmp_path):
    spec = tiny_spec(confirm={"steps": [12, 6], "controls": ["reinit", "small-dense"], "control_rounds": [1, 2]})
    ledger = confirmed(tmp_path, spec)
    return spec, ledger, results(spec, ledger)


def test_the_page_of_a_confirmed_sweep(sweep):
    spec, ledger, document = sweep
    page = sweep_page(document, ledger, "name: tiny  # <b>&\n")
    checker = checked(page)
    # confirmation, front, allocations, similarity twice; dense, three tickets and two controls at each of two budgets
    assert len(checker.links) == 5 + 2 * 6
    assert len(page) < 1_500_000
    for text in (
        "digits-cnn features, 80 samples, ddim in 2 trailing steps",
        "Protocol final",
        "Protocol search",
        "torch 9.8.7",
        "fp32",
    ):
        assert text in page
    assert "# &lt;b&gt;&amp;" in page
    for row in document["confirmation"]:
        assert row["rule"] is None or row["vs_dense"]["loss"]["verdict"] in page
    assert "small-dense</b>, density 0.2<br>" in page
    assert page == sweep_page(results(spec, ledger), ledger, "name: tiny  # <b>&\n")


def test_no_table_of_the_page_has_two_protocols(sweep):
    _, ledger, document = sweep
    page = sweep_page(document, ledger, "")
    trials = page[page.index("Trials of the search") : page.index("Spec and versions")]
    listed = {int(number) for number in re.findall(r'<tr class="\w*"><td class="number">(\d+)</td>', trials)}
    assert listed == {trial["id"] for trial in document["trials"] if trial["protocol"] == "search"}
    search = {**document, "trials": [trial for trial in document["trials"] if trial["protocol"] == "search"]}
    assert pareto_png(document) == pareto_png(search)  # nor has the picture
    assert {trial["protocol"] for trial in allocated(document)} == {"search"}


def test_the_page_reads_in_the_dark_and_on_paper():
    assert "prefers-color-scheme: dark" in STYLE and "@media print" in STYLE
    assert re.search(r"figure, table[^{]*{ break-inside: avoid", STYLE) and "image-rendering: pixelated" in STYLE
    assert STYLE.count("{") == STYLE.count("}")


def test_samples_that_were_collected_leave_a_note(sweep, tmp_path):
    _, ledger, document = sweep
    shutil.rmtree(Path(tmp_path) / "stages")
    grids = sample_grids(ledger, document)
    assert all(grid.png is None for group in grids for grid in group)
    page = sweep_page(document, ledger, "")
    assert len(checked(page).links) == 5 and page.count("no longer in the store") == 12


def test_samples_share_a_seed_and_a_budget(sweep):
    _, ledger, document = sweep
    groups = sample_grids(ledger, document)
    assert [{(g.trial["seed"], g.trial["train_steps"]) for g in group} for group in groups] == [{(1000, 12)}, {(1000, 6)}]
    for group in groups:
        names = [(g.trial["rule"], g.trial["control"]) for g in group]
        assert names[0] == (None, None) and names.index(("searched", "reinit")) == names.index(("searched", None)) + 1


def test_before_a_confirmation_the_search_is_shown(tiny_spec, tmp_path):
    spec = tiny_spec(search={"pilots": 0, "sampler": "random", "profile": "movement"})
    ledger = begun(tmp_path, spec)
    document = results(spec, ledger)
    (group,) = sample_grids(ledger, document)
    assert [grid.trial["id"] for grid in group][:1] == [0] and {g.trial["protocol"] for g in group} == {"search"}
    page = sweep_page(document, ledger, "")
    assert "raylt confirm tiny" in page and checked(page)
    assert sorted(sweep_files(spec, ledger, "", "running")) == [
        "allocations.png", "pareto.png", "report.html", "similarity.png", "similarity_heat.png", "spec.yaml"
    ]  # fmt: skip


def test_a_sweep_with_next_to_nothing_has_a_page(tiny_spec, tmp_path):
    spec = tiny_spec()
    ledger = Ledger(Store(str(tmp_path)), "tiny", lambda: None)
    assert checked(sweep_page(results(spec, ledger), ledger, ""))
    ledger.submit(a_trial(0, "dense", None, 0))
    assert checked(sweep_page(results(spec, ledger), ledger, ""))
    cause = "a loss <script>alert('&')</script> that is not finite"
    ledger.finish(0, a_result(state="FAIL", cause=cause))
    page = sweep_page(results(spec, ledger), ledger, "")
    assert checked(page) and "&lt;script&gt;" in page and "trial 0 failed" in page


def test_a_confirmation_that_has_just_begun_has_a_page(sweep):
    """One seed of the dense model and of a control, whose ticket has not ended."""
    _, ledger, document = sweep
    early = [t for t in document["trials"] if t["seed"] == 1000 and t["kind"] in ("dense", "control")]
    kept = [*(t for t in document["trials"] if t["protocol"] == "search"), *early]
    begun_one = {**document, "trials": kept, "confirmation": confirmation(kept)}
    assert checked(html_page(begun_one, "", SweepLock(LOCK), sample_grids(ledger, begun_one)))
    nothing = [
        {**row, "fid": {"n": 0, "mean": None, "sd": None, "low": None, "high": None}} for row in document["confirmation"]
    ]
    assert confirmation_png({**document, "confirmation": nothing})


def test_mlflow_has_the_same_figures(sweep):
    spec, ledger, document = sweep
    files = sweep_files(spec, ledger, "name: tiny\n", document["state"])
    assert files["confirmation.png"] == confirmation_png(document) and files["allocations.png"] == allocations_png(document)
    page = files["report.html"].decode()
    for name in ("confirmation.png", "allocations.png", "pareto.png", "similarity.png", "similarity_heat.png"):
        assert base64.b64encode(files[name]).decode() in page
    assert files == sweep_files(spec, ledger, "name: tiny\n", document["state"])


def test_small_grids_hold_fewer_large_images():
    for side, width in ((8, 8 * 9 - 1), (16, 8 * 17 - 1), (32, 4 * 33 - 1)):
        images = np.zeros((64, 3, side, side), np.uint8)
        assert Image.open(io.BytesIO(small_grid_png(images))).width == width
