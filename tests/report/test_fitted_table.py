"""Whatever the width: a number stands whole in one line, and columns that are left out are named."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from raylt.cli import app
from raylt.report.confirmation_tables import confirmation_tables
from raylt.report.document import results
from raylt.report.fitted_table import WORDS, FittedTable
from raylt.report.tables import cost_table, pareto_table, similarity_table, trials_tables
from raylt.store import Ledger, Output, Store
from tests.support.begun import write_start
from tests.support.confirmed import confirmed

NUMBERS = st.one_of(
    st.integers(0, 10**12).map(lambda n: f"{n:,}"), st.integers(0, 10**9).map(str), st.just("-"), st.just("12.3 kB"),
    st.floats(-1e9, 1e9).map(lambda x: f"{x:.4f} ± {abs(x) / 7:.4f}"),
)  # fmt: skip
SPEC = {"confirm": {"steps": [12, 6], "control_rounds": [1, 2]}}
HEADER = ["id", "rule", "loss", "FID - uniform", "kappa\nmovement", "verdict", "steps"]


def drawn(table: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@given(st.lists(st.tuples(*[NUMBERS] * 7), max_size=6), st.sampled_from([20, 40, 60, 80, 120]), st.permutations(range(1, 7)))
def test_numbers_stand_whole(rows: list[tuple[str, ...]], width: int, least_first: list[int]) -> None:
    table = FittedTable("title", HEADER, least_first, "look elsewhere", "caption")
    for number, row in enumerate(rows):
        cells = [word if name not in WORDS else "lamp" for name, word in zip(HEADER, row, strict=True)]
        table.add_row([str(10_000 + number), *cells[1:]])
    lines = drawn(table, width)
    left_out = re.search(r"left out for want of width: (.*?); look elsewhere", " ".join(" ".join(lines).split()))
    missing = left_out[1].split(", ") if left_out else []
    num_left_out = len(missing)
    assert missing == [" ".join(HEADER[i].split()) for i in sorted(least_first[:num_left_out])]
    assert max(map(len, lines)) <= width
    for number, row in enumerate(rows):
        (line,) = (line for line in lines if line.split()[:1] == [str(10_000 + number)])
        kept = [cell for i, cell in enumerate(row) if i and HEADER[i] not in WORDS and i not in least_first[:num_left_out]]
        for cell in kept:
            assert cell in line
    if num_left_out:  # none without need
        kept_before = [i for i in range(7) if i not in least_first[: num_left_out - 1]]
        assert sum(table._least(i) + 1 for i in kept_before) - 1 > width


def test_one_column_is_never_left_out() -> None:
    table = FittedTable("", ["id", "loss"], (1,), "elsewhere")
    table.add_row(["123456789012", "0.5"])
    lines = drawn(table, 8)
    assert any("123456789012" in line for line in lines) and not any("0.5" in line for line in lines)


@pytest.fixture
def document(tiny_spec: Any, tmp_path: Any) -> dict[str, Any]:
    spec = tiny_spec(**SPEC)
    document = results(spec, confirmed(tmp_path, spec))
    for trial in document["trials"]:  # as of a sweep of 10 000 trials
        trial["id"] += 10_000
    for row in document["confirmation"]:
        row["confirms"] = None if row["confirms"] is None else 10_000 + row["confirms"]
    return document


def numbers_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w.-])[+-]?\d[\d,.]*(?![\w-])", text)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_every_table_at_every_width(document: dict[str, Any], width: int) -> None:
    tables = [
        *trials_tables(document), *trials_tables(document, "final"), pareto_table(document), cost_table(document),
        similarity_table(document), *confirmation_tables(document),
    ]  # fmt: skip
    for table in tables:
        wide, narrow = drawn(table, 200), drawn(table, width)
        assert max(map(len, narrow)) <= width
        assert not any("left out for" in line for line in wide)
        whole = set(numbers_in(" ".join(wide)))
        assert set(numbers_in(" ".join(narrow))) - {"-"} <= whole  # half a number would be another one
        for cells, _, _ in table.rows:
            assert any(line.strip().startswith(cells[0].split(" ")[0].strip() or cells[0].strip()) for line in narrow)


def test_what_is_left_out_is_named_with_the_command_that_has_it(
    tmp_path: Any, tiny_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(**SPEC)
    confirmed(tmp_path, spec)
    monkeypatch.setenv("COLUMNS", "40")
    text = " ".join(CliRunner().invoke(app, ["results", spec.name, "--root", str(tmp_path)]).stdout.split())
    assert f"left out for want of width: kind, rule, density, ticket; `raylt results {spec.name} --csv` has them" in text


def test_the_sizes_of_a_store_stand_whole(tmp_path: Any, tiny_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(name="n" * 100)
    store = Store(str(tmp_path))
    write_start(Ledger(store, spec.name, lambda: None), spec)
    store.stage({"kind": "none"}).make(lambda _: Output(files={"x": b"1" * 1_234_000}))
    monkeypatch.setenv("COLUMNS", "40")
    lines = CliRunner().invoke(app, ["store", "du", "--root", str(tmp_path)]).stdout.splitlines()
    assert max(map(len, lines[:6])) <= 40
    (row,) = (line.split() for line in lines if line.startswith("n") and "B" in line)
    assert row[1:3] == ["0", "B"] and row[-1].endswith("B")
    assert "left out for want of width: " in " ".join(lines)
