"""A sweep that raylt finished before its files had checksums: read to the same document, and not gone on with.

The data under tests/data are what that raylt wrote, and what its `results --json` printed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raylt.errors import InputError
from raylt.report.document import results
from raylt.search.confirm import Request
from raylt.store import Store
from raylt.store import ledger as ledger_module
from raylt.store.damage import Damaged
from raylt.store.ledger import existing
from raylt.store.sweep_state import stored_spec
from raylt.store.verify import verify
from raylt.sweep.resume import start
from raylt.sweep.retry import retry

DATA = Path(__file__).parents[1] / "data" / "sweep-of-code-schema-1"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(ledger_module, "_warned", set())
    shutil.copytree(DATA / "tiny", tmp_path / "sweeps/tiny")
    return Store(str(tmp_path))


def differences(then: Any, now: Any, where: str = "") -> list[str]:
    """What of a document is no more as it was; what was added since is left out."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [line for key in then for line in differences(then[key], now.get(key, "missing"), f"{where}.{key}")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [line for i, (a, b) in enumerate(zip(then, now, strict=True)) for line in differences(a, b, f"{where}[{i}]")]
    return [] if then == now else [f"{where}: {then!r} -> {now!r}"]


def test_it_reads_to_the_same_document_and_is_said_to_be_unverified_once(store, caplog):
    then = json.loads((DATA / "results.json").read_text())
    for _ in range(2):
        now = results(stored_spec(store, "tiny"), existing(store, "tiny"))
    assert differences(then, json.loads(json.dumps(now))) == []
    assert [record.message for record in caplog.records] == [
        "tiny was started by an earlier raylt: its files have no checksums and are read unverified"
    ]


def test_it_is_not_extended_and_says_why(store):
    spec = stored_spec(store, "tiny")
    assert start(spec, store) == spec  # complete: nothing would be computed
    longer = spec.model_copy(update={"search": spec.search.model_copy(update={"trials": spec.search.trials + 1})})
    for more in (
        lambda: start(longer, store),
        lambda: start(spec, store, confirm=Request(1, 1)),
        lambda: retry(store, "tiny"),
    ):
        with pytest.raises(InputError, match=r"code schema 1, .*start tiny-2 beside it with `raylt sweep --new`"):
            more()
    assert start(longer, store, new=True).name == "tiny-2"


def test_verify_counts_it_and_finds_nothing_wrong(store):
    found = verify(store)
    assert (found.damaged, found.unverified) == ([], 1)
    assert found.missing  # its stages are not part of the data


@pytest.mark.parametrize("content", ["{}", "[]", "", "null", '{"state": "COMPLETE"}'])
def test_a_result_that_is_none_is_named(store, content):
    store.write("sweeps/tiny/trials/00003/result.json", content.encode())
    with pytest.raises(Damaged, match=r"trials/00003/result\.json is damaged"):
        existing(store, "tiny")


@pytest.mark.parametrize("change", [{"surprise": 1}, {"id": 4}, {"kind": "strange"}, {"seed": "x"}])
def test_an_asked_file_that_is_none_is_named(store, change):
    path = "sweeps/tiny/trials/00003/asked.json"
    store.write(path, json.dumps({**store.read_record(path), **change}).encode())
    with pytest.raises(Damaged, match=r"trials/00003/asked\.json is damaged"):
        existing(store, "tiny")
