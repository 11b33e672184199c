"""The printed document is what `records` says it is: key by key, nothing more and nothing less."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from raylt.report.document import results
from raylt.report.records import SweepDocument
from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from tests.support.confirmed import begun

KEPT = Path(__file__).parents[1] / "data" / "kept"
DOCUMENTS = sorted(KEPT.glob("*.results.json"))


@pytest.fixture(scope="module")
def check() -> Callable[[object], object]:
    # A list, since pydantic takes no config beside a TypedDict.
    adapter = TypeAdapter(list[SweepDocument], config=ConfigDict(extra="forbid", strict=True))
    return lambda document: adapter.validate_python([document])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_kept_documents_have_the_keys_that_are_said_and_no_others(path, check):
    document = json.loads(path.read_text())
    check(document)
    loss = document["trials"][0].pop("loss")
    with pytest.raises(ValidationError, match="loss"):
        check(document)
    document["trials"][0] |= {"loss": loss, "lost": 1}
    with pytest.raises(ValidationError, match="lost"):
        check(document)


def test_so_has_the_document_of_a_confirmed_sweep(tiny_spec, tmp_path, check):
    begun(tmp_path, tiny_spec())
    store = Store(str(tmp_path))
    document = results(stored_spec(store, "tiny"), Ledger(store, "tiny", lambda: None))
    assert document["confirmation"] or document["trials"]
    check(json.loads(json.dumps(document)))
    check(document)
