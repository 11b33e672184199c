"""Whatever a byte of a store says that was not written: it is named, or it changes nothing; and it can be mended."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylt.cli.show import _refuse_records
from raylt.errors import InputError, StoreFailure
from raylt.report.document import results
from raylt.store import Store
from raylt.store.damage import Damaged
from raylt.store.layout import TICKET
from raylt.store.ledger import existing
from raylt.store.repair import repair
from raylt.store.stages import stage_of
from raylt.store.sweep_state import stored_spec
from raylt.store.verify import MissingStage, verify
from raylt.sweep.retry import Retried, retry
from raylt.sweep.single import export_trial
from tests.chaos.test_scripted import SPEC, comparable, drive

NO_RECORD = r"locks/|sweeps/tiny/(logs/|study\.db|lease|stop)|.*/claim\.json$"  # nothing is believed of these
MAY_BE_AWAY = ("result.json", "similarity.json", "mlflow.json")  # as of a trial that runs: away, and shown so
FLIPS = 3  # of each file


def sweep_said(folder: Path) -> dict[str, Any]:
    """What raylt says of the sweep."""
    store = Store(str(folder / "root"))
    existing(store, SPEC.name)
    assert stored_spec(store, SPEC.name).digest == SPEC.digest
    return comparable(folder)


def stage_said(store: Store, result: dict[str, Any], digest: str) -> list[Any]:
    """A stage as whoever uses it reads it."""
    stage = stage_of(store, result.stages, digest)
    return [dict(stage.key), stage.read_manifest().values, {name: stage.read(name) for name in stage.read_manifest().files}]


def said_by_file(folder: Path) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Every file that raylt believes, and what raylt says by it."""
    root, store = folder / "root", Store(str(folder / "root"))
    for path in sorted((root / "sweeps").rglob("*")):
        if path.is_file() and not re.match(NO_RECORD, str(path.relative_to(root))):
            yield path, lambda: sweep_said(folder)
    named = {digest: result for result in existing(store, SPEC.name).results.values() for digest in result.stages}
    for digest, result in named.items():
        for path in sorted((root / "stages" / digest[:2] / digest).iterdir()):
            yield path, lambda result=result, digest=digest: stage_said(store, result, digest)


def damages(data: bytes, draw: random.Random) -> dict[str, bytes | None]:
    """What may become of a file's bytes; None: it is lost."""
    flipped = {}
    for index in range(FLIPS):
        at = draw.randrange(len(data))
        flipped[f"flip {index} at {at}"] = data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    return {**flipped, "cut": data[: len(data) // 2], "empty": b"", "{}": b"{}", "[]": b"[]", "lost": None}


def test_no_damage_to_any_file_is_believed(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    draw, believed, unnamed, tried = random.Random(1), [], [], 0
    for path, say in list(said_by_file(folder)):
        right = say()
        data, own = path.read_bytes(), str(path.relative_to(folder / "root"))
        for what, damaged in damages(data, draw).items():
            path.unlink() if damaged is None else path.write_bytes(damaged)
            tried += 1
            try:
                if say() != right and not (what == "lost" and own.endswith(MAY_BE_AWAY)):
                    believed.append((own, what))
            except Damaged as error:
                if error.path != own and not (what == "lost" and own.endswith("asked.json")):
                    unnamed.append((own, what, error.path))
            path.write_bytes(data)
    assert tried > 300
    assert believed == []
    assert unnamed == []


def flip(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return path.name


def test_what_can_be_made_again_is_made_again_once_that_is_asked(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    root, store = folder / "root", Store(str(folder / "root"))
    sweep, result = root / "sweeps/tiny", existing(store, SPEC.name).results[0]
    stage = root / store.find(result.ticket.final_stage).path
    harmed = [
        *(sweep / name for name in ("spec.lock.json", "spec.yaml", "similarity.json", "mlflow.json")),
        *(sweep / "trials" / name for name in ("00001/result.json", "00004/asked.json", "00006/result.json")),
        stage / "trained.safetensors",
    ]
    for path in harmed:
        flip(path)
    found = verify(store)
    assert {error.path for error in found.damaged} == {str(path.relative_to(root)) for path in harmed}
    assert all("raylt store verify" in str(error) and "lost: " in str(error) for error in found.damaged)
    repair(store, found)
    assert verify(store).damaged == []
    assert drive(folder) == 0
    assert comparable(folder) == comparable(undisturbed)
    assert verify(store).damaged == []


def test_a_store_that_is_whole_is_found_whole(undisturbed):
    found = verify(Store(str(undisturbed / "root")))
    assert (found.damaged, found.unverified) == ([], 0)
    assert found.files > 100


def test_damage_to_one_sweep_does_not_keep_others_from_being_read(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    shutil.copytree(folder / "root/sweeps/tiny", folder / "root/sweeps/other")
    (folder / "root/sweeps/other/trials/00002/result.json").write_text("{}")
    from raylt.store.garbage import Survey

    survey = Survey(Store(str(folder / "root")))
    assert set(survey.damaged) == {"other"} and set(survey.usage()) == {"tiny"}
    assert comparable(folder) == comparable(undisturbed)
    assert results(SPEC, existing(Store(str(folder / "root")), "tiny"))["state"] == "complete"


def swapped(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


@pytest.mark.parametrize("name", ["result.json", "asked.json"])
def test_a_file_in_anothers_place_is_named(undisturbed, tmp_path, name):
    """Each is whole and has its checksum; it is of another trial."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    trials = folder / "root/sweeps/tiny/trials"
    swapped(trials / "00006" / name, trials / "00007" / name)
    store = Store(str(folder / "root"))
    with pytest.raises(Damaged, match=rf"trials/0000[67]/{name}"):
        existing(store, SPEC.name)
    assert {error.path[-len(name) - 6 :] for error in verify(store).damaged} == {f"00006/{name}", f"00007/{name}"}


def test_what_is_no_file_is_named_and_mended(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    path = folder / "root/sweeps/tiny/trials/00003/result.json"
    path.unlink()
    os.mkfifo(path)
    store = Store(str(folder / "root"))
    with pytest.raises(Damaged, match="a folder or a pipe lies in its place"):
        existing(store, SPEC.name)
    repair(store, verify(store))
    assert not path.exists() and verify(store).damaged == []


def test_a_report_does_not_overwrite_the_store(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    lock = folder / "root/sweeps/tiny/spec.lock.json"
    before = lock.read_bytes()
    with pytest.raises(InputError, match="lies among the records of the store"):
        _refuse_records(lock)
    _refuse_records(folder / "page.html")
    assert lock.read_bytes() == before


def test_stages_that_were_deleted_are_counted_and_are_no_damage(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    store = Store(str(folder / "root"))
    gone = existing(store, SPEC.name).results[6].ticket.ticket_stage
    shutil.rmtree(folder / "root" / store.find(gone).path)
    found = verify(store)
    assert (found.damaged, found.missing) == ([], {MissingStage("tiny", 6, gone)})
    assert verify(Store(str(undisturbed / "root"))).missing == set()


def test_a_complete_trial_whose_stage_was_damaged_runs_again_and_is_exported(undisturbed, tmp_path):
    folder, out = Path(shutil.copytree(undisturbed, tmp_path / "sweep")), tmp_path / "exported"
    store = Store(str(folder / "root"))
    before = existing(store, SPEC.name).results[6]
    harmed = folder / "root" / store.find(before.ticket.ticket_stage).path / TICKET
    data = harmed.read_bytes()
    harmed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Damaged, match="raylt retry NAME TRIAL"):
        export_trial(SPEC, existing(store, SPEC.name), 6, out)
    assert not out.exists()  # a half export would stand in the way of the next
    repair(store, verify(store))
    found = verify(store)
    assert (found.damaged, found.missing) == ([], {MissingStage("tiny", 6, before.ticket.ticket_stage)})
    with pytest.raises(StoreFailure, match="`raylt retry tiny 6`"):
        export_trial(SPEC, existing(store, SPEC.name), 6, out)
    assert not out.exists()

    assert retry(store, SPEC.name, [6]) == Retried({}, [6])
    assert drive(folder) == 0
    assert comparable(folder) == comparable(undisturbed)
    assert existing(store, SPEC.name).results[6].stages == before.stages
    assert verify(store).missing == set() and verify(store).damaged == []
    assert json.loads((folder / "root/sweeps/tiny/trials/00006/result-1.json").read_text())["loss"] == before.scores.loss
    export_trial(SPEC, existing(store, SPEC.name), 6, out)
    assert (out / TICKET).read_bytes() == data


def test_a_trial_with_nothing_to_do_again_is_refused(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    store = Store(str(folder / "root"))
    for number, words in {
        99: "has no trial 99; it has 0 to 7",
        5: "trial 5 of tiny is complete and has all its stages",
    }.items():
        with pytest.raises(InputError, match=words):
            retry(store, SPEC.name, [number])
    shutil.rmtree(folder / "root" / store.find(existing(store, SPEC.name).results[6].ticket.ticket_stage).path)
    with pytest.raises(InputError, match="trial 5"):
        retry(store, SPEC.name, [5, 6])
    assert not existing(store, SPEC.name).open_trials()  # all or none
    retry(store, SPEC.name, [6])
    with pytest.raises(InputError, match="trial 6 of tiny has not ended"):
        retry(store, SPEC.name, [6])


def test_another_sweeps_spec_is_named(undisturbed, tmp_path):
    """Whole, with its checksum, and of another place."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "sweep"))
    shutil.copytree(folder / "root/sweeps/tiny", folder / "root/sweeps/other")
    with pytest.raises(Damaged, match="sweeps/other/spec"):
        stored_spec(Store(str(folder / "root")), "other")
