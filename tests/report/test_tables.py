"""Tables, CSV, HTML and pictures of a results document, also of one that lacks nearly everything."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from raylt.errors import without_secrets
from raylt.report.dataframes import csv_text
from raylt.report.document import results
from raylt.report.figures import allocation_png, pareto_png, samples_png, similarity_heat_png, similarity_png
from raylt.report.fitted_table import FittedTable
from raylt.report.html_page import html_page
from raylt.report.tables import bytes_text, cost_table, cost_text, pareto_rows, pareto_table, similarity_table, trials_tables
from raylt.report.text import in_forward_order
from raylt.spec import SweepSpec, plan
from raylt.spec.tracking_uri import split_sqlite
from raylt.store import Ledger, Store
from raylt.store.pareto import pareto_ids
from raylt.store.results import TrialResult
from tests.support.results import a_result
from tests.support.trials import a_trial

BLOCKS = ["conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "conv_out"]
KAPPAS = ["kappa", "kappa_start", "kappa_partial", "kappa_movement"]
FULL = {
    "kappa": 0.512, "kappa_low": 0.362, "kappa_high": 0.662, "kappa_start": 0.3, "excess": 0.212, "kappa_partial": 0.4,
    "kappa_movement": 0.45, "z": 12.0, "jaccard": 0.4, "jaccard_chance": 0.05, "movement": 0.2, "pairs": 3,
}  # fmt: skip
CAUSE = "a loss <script>alert('&')</script> that is not finite"


def ended(number: int, **changes: Any) -> TrialResult:
    numbers = {
        "density": 0.09999,
        "loss": 0.123456 - 0.001 * number,
        "fid": 56.789 + number,
        "kid": -0.01234,
        "flops": 6_000_000 + number,
    }
    found = {
        **numbers, "flops_dense": 9_876_543, "ticket_bytes": 123_456, "rounds": [{"round": 0, **numbers}],
        "densities": {block: 0.1 * (1 + i) for i, block in enumerate(BLOCKS)},
        "steps": {"asked": 3, "trained": 2, "shared": 1}, "timing": {"wall_s": 1.5, "stages_s": 0.0},
    }  # fmt: skip
    return a_result(**{**found, **changes})


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A sweep under way: complete, broken, pruned, failed and running trials; an id of four digits."""
    spec = SweepSpec.model_validate({"schema": 1, "name": "digits"})
    ledger = Ledger(Store(str(tmp_path)), "digits", check=lambda: None)
    for planned in plan(spec):
        ledger.submit(planned.trial)
        ledger.finish(planned.trial.id, ended(planned.trial.id))
    for number in (5, 6, 7, 8, 1234):
        ledger.submit(a_trial(number, "search", "searched", 0, params={"gamma": 0.5, "delta/up": -0.5}))
    ledger.finish(5, ended(5))
    ledger.finish(6, ended(6, broken=True, loss=1.0e9, fid=None, kid=None))
    ledger.finish(7, a_result(state="FAIL", cause=CAUSE))
    ledger.finish(8, ended(8, state="PRUNED"))
    numbers = {"kappa": 0.5, "kappa_start": 0.3, "movement": 0.2, "pairs": 1}
    dense = {"kappa": None, "kappa_start": None, "movement": None, "pairs": 0}
    ledger.write("similarity.json", {"blocks": {block: dense if block.startswith("conv") else numbers for block in BLOCKS}})
    return results(spec, ledger)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, Any]:
    """A sweep that was just begun: one trial, no number."""
    spec = SweepSpec.model_validate({"schema": 1, "name": "digits", "search": {"objectives": ["fid"]}})
    ledger = Ledger(Store(str(tmp_path / "bare")), "digits", check=lambda: None)
    ledger.submit(a_trial(0, "dense", None, 0))
    return results(spec, ledger)


def text_of(table: FittedTable, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_tables_fit_80_columns_and_lose_nothing(document: dict[str, Any]) -> None:
    text = text_of(*trials_tables(document))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "\x1b" not in text
    for word in (
        "1234",
        "baseline",
        "searched",
        "uniform",
        "COMPLETE".lower(),
        "broken",
        "pruned",
        "failed",
        "running",
        "123 kB",
        "60.8 %",
    ):
        assert word in text
    assert "digits-cnn features, 1000 samples, ddim in 10 steps" in " ".join(text.split())
    assert "trial 7 failed: a loss <script>" in text
    assert {line.split()[-1] for line in text.splitlines() if line.strip().startswith(("3 ", "5 "))} == {"*"}


def test_the_pareto_table_shows_the_front_under_the_dense_model(document: dict[str, Any]) -> None:
    assert [trial["id"] for trial in pareto_rows(document)] == [5, 4, 3]
    text = text_of(pareto_table(document))
    assert [line.split()[0] for line in text.splitlines() if re.match(r"\s*\d+ ", line)] == ["0", "5", "4", "3"]
    assert max(map(len, text.splitlines())) <= 80


def test_what_trials_cost_fits_80_columns(document: dict[str, Any]) -> None:
    many = {"asked": 12_345_678, "trained": 9_876_543, "shared": 2_469_135}
    document["trials"][5] |= {"steps": many, "timing": {"wall_s": 1.5, "stages_s": 4_500_000, "hours": 1250.0}}
    text = text_of(cost_table(document))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    rows = [line.split() for line in text.splitlines()]
    assert ["5", "search", "searched", "complete", "12,345,678", "9,876,543", "2,469,135", "1,250"] in rows
    assert ["7", "search", "searched", "failed", "-", "-", "-", "-"] in rows
    assert ["all", "12,345,699", "9,876,557", "2,469,142", "1,250"] in rows
    assert cost_text(document["trials"][:2]).startswith("steps: 6 asked, 4 trained, 2 shared; 0 trial-hours")
    assert text_of(cost_table({**document, "trials": []}))


def test_two_protocols_have_two_tables(document: dict[str, Any]) -> None:
    document["trials"][5] |= {"protocol": "final", "train_steps": 400, "confirms": 3}
    (search,), (final,) = trials_tables(document), trials_tables(document, "final")
    assert "50000" not in text_of(search) and "50000 samples" in text_of(final)
    ids = [re.findall(r"^ *(\d+) \S", text_of(table), re.M) for table in (search, final)]
    assert ids == [["0", "1", "2", "3", "4", "6", "7", "8", "1234"], ["5"]]


def test_the_similarity_table(document: dict[str, Any]) -> None:
    text = text_of(similarity_table(document))
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(tuple(BLOCKS))]
    assert [row[0] for row in rows] == BLOCKS  # in the order of the forward pass
    assert rows[0] == ["conv_in", *"--------", "0"]
    # kappa, its interval, kappa_start, excess, partial, movement masks, z, movement, pairs; this one was measured earlier
    assert rows[1] == ["time_embedding", "0.500", "-", "0.300", "0.200", "-", "-", "-", "0.2", "1"]


def test_the_similarity_table_fits_80_columns_with_long_numbers(document: dict[str, Any]) -> None:
    full = {**FULL, "kappa_partial": -0.123456, "kappa_movement": -0.12, "z": 1234.56, "movement": 0.0123456, "pairs": 10}
    text = text_of(similarity_table({**document, "similarity": dict.fromkeys([*BLOCKS, "down_blocks.10"], full)}))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    row = ["mid_block", "0.512", "0.150", "0.300", "0.212", "-0.123", "-0.120", "1234.6", "0.0123", "10"]
    assert row in [line.split() for line in text.splitlines()]


def test_html_is_one_file_and_escapes_what_it_shows(document: dict[str, Any]) -> None:
    page = html_page(document, "name: digits  # <b>&\n")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "# &lt;b&gt;&amp;" in page
    assert not re.search(r"(?:https?:)?//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    assert re.findall(r'src="(.{5})', page) == ["data:"] * 4  # front, allocations, similarity twice
    assert page.count("digits-cnn features, 1000 samples") >= 1
    assert all(f"<td>{name}</td>" in page for name in BLOCKS)


def test_csv_round_trips(document: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(document))))
    assert len(rows) == len(document["trials"])
    for row, trial in zip(rows, document["trials"], strict=True):
        for name in ("id", "density", "loss", "fid", "flops", "ticket_bytes", "pareto", "broken"):
            assert (json.loads(row[name]) if row[name] else None) == trial[name]
        assert row["error"] == (trial["error"] or "")
        assert {b: float(row[f"density/{b}"]) for b in BLOCKS if row[f"density/{b}"]} == (trial["densities"] or {})
        assert (row["fid_features"], row["fid_samples"], row["fid_reference"]) == ("digits-cnn", "1000", "all")
    assert rows[5]["gamma"] == "0.5" and rows[0]["gamma"] == ""


def test_a_sweep_without_numbers_is_shown(bare: dict[str, Any]) -> None:
    assert "running" in text_of(*trials_tables(bare))
    assert text_of(similarity_table(bare)) and pareto_rows(bare) == []
    assert csv_text(bare).splitlines()[1].startswith("0,dense,,,0,RUNNING,search,,,")
    assert html_page(bare, "").startswith("<!doctype html>")
    assert html_page({**bare, "trials": []}, "") and csv_text({**bare, "trials": []}) and trials_tables({**bare, "trials": []})


def test_pictures_open_and_repeat(document: dict[str, Any], bare: dict[str, Any]) -> None:
    one, three = {**document, "objectives": ["loss"]}, {**document, "objectives": ["fid", "loss", "flops"]}
    for shown in (document, one, three, bare, {**document, "trials": [], "similarity": {}}):
        assert Image.open(io.BytesIO(pareto_png(shown))).width > 300
        assert Image.open(io.BytesIO(similarity_png(shown))).width > 300
        assert Image.open(io.BytesIO(similarity_heat_png(shown))).width > 300
    for trial in document["trials"]:
        assert Image.open(io.BytesIO(allocation_png(trial))).width > 300
    assert pareto_png(document) == pareto_png(document)


def test_pictures_of_similarity_show_each_number_and_cope_with_none(document: dict[str, Any]) -> None:
    """A picture that left a number out would not change with it."""
    nothing = dict.fromkeys(FULL)
    for draw, names in ((similarity_png, [*KAPPAS, "kappa_low", "kappa_high"]), (similarity_heat_png, [*KAPPAS, "excess"])):
        whole = draw({**document, "similarity": {"conv_in": nothing, "mid_block": FULL}})
        for name in names:
            for value in (0.05, None):
                other = {"conv_in": nothing, "mid_block": {**FULL, name: value}}
                assert draw({**document, "similarity": other}) != whole, name
        assert draw({**document, "similarity": {"conv_in": nothing, "mid_block": {**nothing, "kappa": 0.5}}})
        assert draw({**document, "similarity": {"conv_in": nothing}})


@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 3, 32, 32), (5, 1, 16, 16), (1, 3, 4, 4)])
def test_samples_are_scaled_up_whole(shape: tuple[int, int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(samples_png(images))))
    height, width = shape[2:]
    scale = picture.shape[0] // (8 * (height + 1) - 1)
    assert picture.shape[:2] == (scale * (8 * (height + 1) - 1), scale * (8 * (width + 1) - 1))
    first = picture[: height * scale : scale, : width * scale : scale].reshape(height, width, -1)
    assert np.array_equal(first.transpose(2, 0, 1), images[0])
    assert picture.shape[0] >= 512


def test_names_and_sizes_for_people() -> None:
    assert in_forward_order(sorted([*BLOCKS, "down_blocks.10", "other"])) == [
        *BLOCKS[:4],
        "down_blocks.10",
        *BLOCKS[4:],
        "other",
    ]
    assert [bytes_text(n) for n in (None, 0, 999, 1000, 123_456, 999_999, 5e12)] == [
        "-",
        "0 B",
        "999 B",
        "1 kB",
        "123 kB",
        "1 MB",
        "5e+03 GB",
    ]


def test_secrets_leave_no_trace() -> None:
    assert (
        without_secrets("at http://me:p@ss@host:5000/x, postgresql://a:b@c/d.")
        == "at http://***@host:5000/x, postgresql://***@c/d."
    )
    assert "geheim" not in without_secrets("http://me:ge/heim@h, postgresql://h/d?user=me&password=geheim&sslmode=require 's'")
    assert without_secrets("postgresql://h/d?sslpassword=geheim&x=1") == "postgresql://h/d?sslpassword=***&x=1"
    assert without_secrets("http://me:ge/heim@host:5000") == "http://***@host:5000"
    assert without_secrets("https://host/a@b sqlite:///x.db") == "https://host/a@b sqlite:///x.db"


def test_only_sqlite_files_have_a_path() -> None:
    assert split_sqlite("sqlite:////a/b.db?timeout=9") == ("sqlite", Path("/a/b.db"), "?timeout=9")
    assert split_sqlite("sqlite:///m.db") == ("sqlite", Path.cwd() / "m.db", "")
    assert [split_sqlite(uri) for uri in ("sqlite://", "sqlite:///:memory:", "http://h", "./mlruns", "file:///x")] == [None] * 5


values = st.one_of(st.none(), st.integers(0, 3).map(float), st.floats(-1e3, 1e3))


@given(st.lists(st.tuples(values, values, values), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float | None, ...]]) -> None:
    front = pareto_ids(dict(enumerate(points)))
    usable = {i: point for i, point in enumerate(points) if None not in point}

    def dominates(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))

    assert front <= usable.keys()
    for number, point in usable.items():
        assert (number in front) == (not any(dominates(other, point) for other in usable.values()))
    assert not usable or front
    assert all(math.isfinite(value) for number in front for value in usable[number] if value is not None)
