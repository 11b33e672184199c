"""Two sweeps that an earlier version of this code wrote: read to the same document, proposed to and gone on with alike.

tests/data/kept has their ledgers, as `raylt sweep` and `raylt confirm` left them, and what `raylt results --json` printed:
`finished`, guided by similarity and confirmed; `half`, with rungs, whose driver was killed with -9 in its eleventh trial.
`next.json` has what was proposed next. However the code is laid out, all of it stays. Their stages are not kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.errors import InputError
from raylt.report.document import results
from raylt.spec import SweepSpec, TrialSpec
from raylt.store import Ledger, Store
from raylt.store.ledger import existing
from raylt.store.ledger_files import read_lock
from raylt.store.results import COMPLETE, PRUNED, TrialResult
from raylt.store.stages import CODE_SCHEMA
from raylt.store.sweep_state import is_complete, stored_spec
from raylt.store.verify import verify
from raylt.sweep.dispatch import Dispatcher, Finished
from raylt.sweep.resume import refuse_other_numbers
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun

DATA = Path(__file__).parents[1] / "data" / "kept"
SWEEPS = ("finished", "half")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in SWEEPS:
        shutil.copytree(DATA / name, tmp_path / "sweeps" / name)
    return Store(str(tmp_path))


def longer(spec: SweepSpec) -> SweepSpec:
    return spec.model_copy(update={"search": spec.search.model_copy(update={"trials": spec.search.trials + 1})})


def dispatcher_of(store: Store, spec: SweepSpec) -> Dispatcher:
    lock = read_lock(store, spec.name)
    assert lock is not None
    return Dispatcher(spec, Ledger(store, spec.name, lambda: None), lock.startup, lambda trial, result: None)


def files_of(store: Store) -> dict[str, bytes]:
    root = Path(store.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.json")}


@pytest.mark.parametrize("name", SWEEPS)
def test_it_reads_to_the_same_document(store: Store, name: str) -> None:
    then = (DATA / f"{name}.results.json").read_text()
    now = results(stored_spec(store, name), existing(store, name))
    assert json.dumps(now, separators=(",", ":"), allow_nan=False) + "\n" == then


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_refused_for_resuming_with_the_reason_and_what_to_do(store: Store, name: str) -> None:
    with pytest.raises(InputError) as refused:
        refuse_other_numbers(store, name)
    assert f"code schema 2, this has {CODE_SCHEMA}; see the CHANGELOG" in str(refused.value)
    assert f"start {name}-2 beside it with `raylt sweep --new`" in str(refused.value)


def test_nothing_of_it_is_damaged(store: Store) -> None:
    found = verify(store)
    assert (found.damaged, found.unverified) == ([], 0) and found.missing


@pytest.mark.parametrize(("file", "kind"), [("asked.json", TrialSpec), ("result.json", TrialResult)])
def test_its_records_are_written_as_they_were(store: Store, file: str, kind: type) -> None:
    """To the byte: an index believes a file that is as long as its record would be."""
    paths = [path for path in Path(store.root).rglob(file) if path.parent.parent.name == "trials"]
    assert len(paths) > 10
    for path in paths:
        record = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
        read = kind.load(record) if kind is TrialSpec else kind.from_json(record)
        assert (read.dump() if kind is TrialSpec else read.to_json()) == record


@pytest.mark.parametrize("name", SWEEPS)
def test_the_next_proposal_is_the_same(store: Store, name: str) -> None:
    dispatcher = dispatcher_of(store, longer(stored_spec(store, name)))
    if name == "half":
        dispatcher.finish(10, dispatcher.ledger.results[8])  # as the eighth did
    trial = dispatcher.next_trial(set())
    assert isinstance(trial, TrialSpec)
    then, now = json.loads((DATA / "next.json").read_text())[name], trial.dump()
    for numbers in ("params", "offsets", "thresholds"):
        assert now.pop(numbers) == pytest.approx(then.pop(numbers))
    assert now.pop("sampler_attrs").keys() == then.pop("sampler_attrs").keys()  # the same numbers, as text
    assert now == then


def test_the_half_finished_one_is_gone_on_with(store: Store) -> None:
    """Its stages are made again on the way; what had ended stays as it was.

    Only its code schema forbids it (above): its numbers would not compare. That its records can be gone on with is the point.
    """
    spec, before = stored_spec(store, "half"), files_of(store)
    inputs = Inputs(load_images(spec.data))
    inputs.put(store)
    dispatcher, bench, numbers = dispatcher_of(store, spec), TrialContext.open(spec, Compute(), inputs), []
    while not isinstance(trial := dispatcher.next_trial(set()), Finished):
        run = TrialRun(trial, bench, Store(store.root, owner=f"half/{trial.id}"))
        for _ in run:
            pass
        dispatcher.finish(trial.id, run.result)
        numbers.append(trial.id)
    assert numbers == [10, 11, 12, 13]
    ledger = existing(store, "half")
    assert is_complete(spec, ledger)
    assert {ledger.results[number].state for number in numbers} <= {COMPLETE, PRUNED}
    assert {path: content for path, content in files_of(store).items() if path in before} == before
    then: dict[str, Any] = json.loads((DATA / "half.results.json").read_text())
    now = json.loads(json.dumps(results(spec, ledger)))
    assert now["trials"][:10] == then["trials"][:10]
