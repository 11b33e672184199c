"""Tables of a confirmation and of its trials: what stands in a row, and that two protocols or budgets never share a table."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raylt.cli import app
from raylt.cli.options import print_confirmation
from raylt.errors import InputError, RayltError
from raylt.report.confirmation_tables import confirmation_tables, interval, plus_minus, rows_at
from raylt.report.document import results
from raylt.report.tables import selected, trials_tables
from raylt.report.verdicts import confirmation
from tests.support.confirmed import begun, confirmed

SPEC = {"confirm": {"steps": [12, 6], "controls": ["reinit", "small-dense"], "control_rounds": [1, 2]}}


@pytest.fixture
def document(tiny_spec, tmp_path):
    spec = tiny_spec(**SPEC)
    return results(spec, confirmed(tmp_path, spec))


def text_of(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def call(monkeypatch, *words):
    """Exit code, stdout and the refusal of a command, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, [*words])
    code = done.exception.exit_code if isinstance(done.exception, RayltError) else done.exit_code
    return code, done.stdout, str(done.exception or "")


def rows_of(text, first):
    """The lines of the tables after the first title that matches, up to the next table."""
    body = re.split(r"─{10,}", text[text.index(first) :])[1]
    return [line.split() for line in body.splitlines() if line.strip()]


def test_each_table_has_one_budget_and_fits_80_columns(document):
    texts = [text_of(table) for table in confirmation_tables(document)]
    budget = [re.findall(r"at (\d+) training steps", text) for text in texts]
    assert budget == [["12"]] * 5 + [["6"]] * 5  # loss, FID, controls, rules at equal density and at equal FLOPs
    for text in texts:
        assert max(map(len, text.splitlines())) <= 80 and "…" not in text
        flat = " ".join(text.split())
        assert ("FID" not in text) or "FID (final): digits-cnn features" in flat
        assert "(search)" not in text


def test_a_row_says_what_the_document_says(document):
    (loss, fid, *_) = confirmation_tables(document)
    rows = rows_at(document, 12)
    lines = rows_of(text_of(loss), "at 12")
    ticket = next(row for row in rows if row["rule"] == "searched" and row["control"] is None and row["round"] == 2)
    line = next(line for line in lines if line[:3] == ["searched", str(ticket["confirms"]), "0.2"])
    summary, against = ticket["loss"], ticket["vs_dense"]["loss"]
    assert line[3] == "3"
    assert float(line[4]) == pytest.approx(summary["mean"], abs=1e-3)
    assert float(line[6]) == pytest.approx(summary["high"] - summary["mean"], rel=0.1)
    assert float(line[7]) == pytest.approx(against["mean"], abs=1e-3) and line[7][0] in "+-"
    assert " ".join(line[line.index("±", 6) + 2 :]).startswith(against["verdict"]) and line[-2:] == ["20.0", "%"]
    dense = next(line for line in lines if line[0] == "dense")
    assert dense[1:3] == ["1", "3"] and dense[-2:] == ["100.0", "%"]
    assert f"Margin: {against['margin']:.3g}, of {against['margin_df']} degrees of freedom" in " ".join(text_of(loss).split())
    assert "KID (sd)" in text_of(fid)


def test_a_sweep_begun_before_is_read_as_it_was_meant(tiny_spec, tmp_path):
    """Its margin is the dense model's own deviation, and it sampled before there was a choice of spacing."""
    spec = tiny_spec(**SPEC)
    ledger = confirmed(tmp_path, spec)
    now = results(spec, ledger)
    before = results(spec, confirmed(tmp_path / "before", spec, first_schema=True))
    flat = [" ".join(" ".join(text_of(table) for table in confirmation_tables(found)).split()) for found in (before, now)]
    said = [
        "dense model's own standard deviation from seed to seed",
        "The dense model's standard deviation from seed to seed: ",
    ]
    assert [all(words in text for words in said) for text in flat] == [True, False]
    assert ["pooled over the dense model" in text and "degrees of freedom" in text for text in flat] == [False, True]
    assert ["in 50 steps" in text for text in flat] == [True, False]
    assert "ddim in 50 leading steps" in flat[1] and "ddim in 2 trailing steps" in " ".join(
        text_of(trials_tables(now)[0]).split()
    )
    assert "spacing" not in before["protocols"]["search"]
    for was, row in zip(before["confirmation"], now["confirmation"], strict=True):
        if "vs_dense" in row:
            own = was["vs_dense"]["loss"]
            dense = next(r for r in before["confirmation"] if r["rule"] is None and r["train_steps"] == row["train_steps"])
            assert own["margin"] == dense["loss"]["sd"] and "margin_of" not in own
            assert row["vs_dense"]["loss"]["margin_of"] == "pooled"
    stated = tiny_spec(confirm={**SPEC["confirm"], "margin": {"loss": 0.01, "fid": None}})
    text = " ".join(" ".join(map(text_of, confirmation_tables(results(stated, ledger)))).split())
    assert "the margin that confirm.margin states" in text and "pooled over the dense model" in text


def test_a_small_dense_model_stands_at_the_density_of_its_ticket(document):
    rows = rows_at(document, 12)
    small = [row for row in rows if row["control"] == "small-dense"]
    assert [trial["density"] for trial in document["trials"] if trial["control"] == "small-dense"] == [1.0] * 6
    assert [row["density"] for row in small] == pytest.approx([0.2**0.5, 0.2])
    alone = confirmation([trial for trial in document["trials"] if trial["control"]])  # its ticket has not ended yet
    assert [row["density"] for row in alone if row["control"] == "small-dense"] == [None] * 4
    assert all(text_of(table) for table in confirmation_tables({**document, "confirmation": alone}))


def test_numbers_have_as_many_digits_as_their_interval():
    summary = {"n": 5, "mean": 0.090712, "sd": 0.001, "low": 0.0889, "high": 0.092524}
    assert plus_minus(summary, "") == "0.0907 ± 0.0018" and plus_minus(summary, "+") == "+0.0907 ± 0.0018"
    assert interval(summary, "") == "0.0907 [0.0889, 0.0925]"
    one = {"n": 1, "mean": 123.456, "sd": None, "low": None, "high": None}
    assert plus_minus(one, "+") == interval(one, "+") == "+123.5" and plus_minus({**one, "mean": None}, "") == "-"
    assert plus_minus({**summary, "high": summary["mean"]}, "") == "0.0907 ± 0.0000"
    assert plus_minus({**summary, "high": summary["mean"] + 0.00018}, "") == "0.0907 ± 0.0002"
    assert plus_minus({**summary, "mean": 561.4, "high": 1143.4}, "") == "561 ± 582"


def test_absurd_numbers_cost_columns_not_digits(document):
    for row in document["confirmation"]:
        row["fid"] = {"n": 3, "mean": 1.23456789e9, "sd": 1.0e9, "low": -1.0e9, "high": 4.0e9}
    for table in confirmation_tables(document):
        assert max(map(len, text_of(table).splitlines())) <= 80 and "…" not in text_of(table)
    assert "1234567890" in text_of(confirmation_tables(document)[1])


def test_trials_are_listed_protocol_by_protocol(document):
    (search,) = trials_tables(document)
    final = trials_tables(document, "final")
    assert [re.findall(r", (\d+) training steps", text_of(table)) for table in final] == [["12"], ["6"]]
    listed = [[int(line[0]) for line in rows_of(text_of(table), "tiny")[1:] if line[0].isdigit()] for table in (search, *final)]
    for ids, protocol, steps in zip(listed, ("search", "final", "final"), (None, 12, 6), strict=True):
        expected = [t["id"] for t in document["trials"] if (t["protocol"], t["train_steps"]) == (protocol, steps)]
        assert ids == expected or ids == expected[1:]


def test_nothing_is_sorted_across_protocols(document):
    for key in ("loss", "fid", "kid"):
        with pytest.raises(InputError, match=r"--protocol search.*--protocol final"):
            selected(document, sort=key)
        for protocol in ("search", "final"):
            trials = selected(document, protocol=protocol, sort=key)["trials"]
            assert {trial["protocol"] for trial in trials} == {protocol}
            for steps in {trial["train_steps"] for trial in trials}:
                values = [trial[key] for trial in trials if trial["train_steps"] == steps]
                assert values == sorted(values)
            budgets = [trial["train_steps"] for trial in trials]
            assert budgets == sorted(budgets, key=lambda steps: -(steps or 0))  # one after the other, never mixed
    assert [t["protocol"] for t in selected(document, sort="density")["trials"]] == sorted(
        (t["protocol"] for t in document["trials"]), reverse=True
    )


def test_a_search_alone_is_sorted_as_it_is(tiny_spec, tmp_path):
    spec = tiny_spec()
    document = results(spec, begun(tmp_path, spec, trials=2))
    document["trials"][1]["loss"] = None
    losses = [trial["loss"] for trial in selected(document, sort="loss")["trials"]]
    assert losses[-1] is None and losses[:-1] == sorted(losses[:-1])
    assert confirmation_tables(document) == []


def test_the_command_sorts_or_refuses(tiny_spec, tmp_path, monkeypatch):
    spec = tiny_spec(**SPEC)
    root = str(confirmed(tmp_path / "root", spec).store.root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYLT_ROOT", raising=False)
    words = ("results", "tiny", "--root", root)
    code, out, _ = call(monkeypatch, *words)
    assert code == 0 and max(map(len, out.splitlines())) <= 80 and "at 6 training steps" in out
    code, out, error = call(monkeypatch, *words, "--sort", "fid")
    assert code == 2 and not out and "--protocol final" in error
    assert call(monkeypatch, *words, "--sort", "fid", "--csv")[0] == 2
    assert call(monkeypatch, *words, "--sort", "loss", "--json")[0] == 2
    assert call(monkeypatch, *words, "--pareto", "--protocol", "final")[0] == 2
    assert call(monkeypatch, *words, "--sort", "colour")[0] == 2
    assert call(monkeypatch, *words, "--pareto", "--sort", "fid")[0] == 0
    code, out, _ = call(monkeypatch, *words, "--protocol", "search")
    assert code == 0 and "final" not in out
    code, out, _ = call(monkeypatch, *words, "--protocol", "final", "--sort", "loss")
    assert code == 0 and "(search)" not in out
    code, out, _ = call(monkeypatch, *words, "--protocol", "final", "--sort", "loss", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["train_steps"] for row in rows] == ["12"] * (len(rows) // 2) + ["6"] * (len(rows) // 2)


def test_before_a_confirmation_the_command_says_how_to_get_one(tiny_spec, tmp_path, monkeypatch, capsys):
    spec = tiny_spec()
    ledger = begun(tmp_path, spec)
    monkeypatch.delenv("RAYLT_ROOT", raising=False)
    code, out, _ = call(monkeypatch, "results", "tiny", "--root", str(ledger.store.root), "--protocol", "final")
    assert code == 0 and "raylt confirm tiny" in out
    print_confirmation(results(spec, ledger))
    assert capsys.readouterr().out == ""
