"""The printed document is what `records` says it is: key by key, nothing more and nothing less."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from raylt.report import records
from raylt.report.document import results
from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from tests.support.confirmed import begun

KEPT = Path(__file__).parents[1] / "data" / "kept"
DOCUMENTS = sorted(KEPT.glob("*.results.json"))


@pytest.fixture(scope="module")
def document_type() -> TypeAdapter[records.SweepDocument]:
    for name in dir(records):
        if isinstance(getattr(records, name), type) and hasattr(getattr(records, name), "__total__"):
            with_config(ConfigDict(extra="forbid", strict=True))(getattr(records, name))
    return TypeAdapter(records.SweepDocument)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_kept_documents_have_the_keys_that_are_said_and_no_others(path, document_type):
    document = json.loads(path.read_text())
    document_type.validate_python(document)
    del document["trials"][0]["loss"]
    with pytest.raises(ValidationError, match="loss"):
        document_type.validate_python(document)


def test_so_has_the_document_of_a_confirmed_sweep(tiny_spec, tmp_path, document_type):
    begun(tmp_path, tiny_spec())
    store = Store(str(tmp_path))
    document = results(stored_spec(store, "tiny"), Ledger(store, "tiny", lambda: None))
    assert document["confirmation"] or document["trials"]
    document_type.validate_python(json.loads(json.dumps(document)))
    document_type.validate_python(document)
