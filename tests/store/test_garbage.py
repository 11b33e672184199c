"""Whose what is in a store, and what may go: on a local store and a real S3 server. What a result needs always stays."""

from __future__ import annotations

import threading
from dataclasses import asdict

import pytest

from raylt.errors import in_units
from raylt.store import Lease, Ledger, Output, Store, stage_lock
from raylt.store.garbage import Survey, delete
from raylt.store.stage_lock import CLAIM, Claim
from tests.support.results import a_result
from tests.support.trials import a_trial


def made(root: str, owner: str, **key) -> str:
    """A whole stage of 100 kB by `owner`; its address."""
    stage = Store(root, owner).stage(key)
    stage.make(lambda _: Output(files={"a.bin": b"x" * 100_000}))
    return stage.digest


def begun(root: str, owner: str, **key) -> str:
    """A stage whose maker died, with a checkpoint."""
    stage = Store(root, owner).stage(key)

    def dies(stage):
        stage.checkpoint("state", b"c" * 50_000)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        stage.make(dies)
    return stage.digest


def write_sweep(root: str, name: str, data: str, results: dict[int, tuple[str, list[str]] | None]) -> None:
    """A ledger: trial -> (state, stages that its result names), or None while it is open."""
    ledger = Ledger(Store(root), name, lambda: None)
    ledger.write("spec.lock.json", {"data_sha256": data})
    for number, result in results.items():
        ledger.submit(a_trial(number, "search", None, 0))
        if result is not None:
            ledger.finish(number, a_result(state=result[0], stages=dict.fromkeys(result[1], "hash")))


@pytest.fixture
def stages(root, monkeypatch) -> dict[str, str]:
    """Two sweeps on one data set and what may lie around them; name -> address."""
    monkeypatch.setattr(stage_lock, "SETTLE_S", 0.0)  # nobody else is there
    found = {
        "good": made(root, "one/0", kind="train", n=0),
        "shared": made(root, "one/1", kind="train", n=1),
        "failed": made(root, "one/1", kind="train", n=2),
        "died": made(root, "one/2", kind="train", n=3),  # its worker died, so no result names it
        "open": made(root, "one/3", kind="train", n=4),
        "other": made(root, "two/0", kind="train", n=5),
        "ticket": made(root, "ticket/ab", kind="train", n=6),
        "images": made(root, "one/driver", kind="images", sha256="d1"),
        "reference": made(root, "one/0", kind="reference", data={"sha256": "d1"}),
        "classifier": made(root, "one/1", kind="classifier", data={"sha256": "d1"}),
        "half": begun(root, "one/3", kind="train", n=7),
        "half of two": begun(root, "two/1", kind="train", n=8),
    }
    Store(root).write(f"{Store(root).stage({'kind': 'train', 'n': 0}).path}/checkpoint-state", b"c" * 1000)  # left behind
    write_sweep(
        root, "one", "d1",
        {0: ("COMPLETE", [found["good"]]), 1: ("FAIL", [found["shared"], found["failed"]]), 2: ("FAIL", []), 3: None},
    )  # fmt: skip
    write_sweep(root, "two", "d1", {0: ("COMPLETE", [found["shared"], found["other"]]), 1: None})
    return found


def left(root: str, stages: dict[str, str]) -> set[str]:
    on_disk = Survey(Store(root)).stages
    return {name for name, digest in stages.items() if digest in on_disk}


def test_what_a_sweep_left_and_no_result_needs_goes_and_nothing_else(root, stages):
    lease = Lease.acquire(Store(root), "one")
    garbage = Survey(Store(root)).garbage("one")
    assert {stage.digest for stage in garbage.unfinished} == {stages["half"]}
    assert {stage.digest for stage in garbage.failed} == {stages["failed"], stages["died"]}
    assert list(garbage.files.values()) == [1000]
    before = sum(stage.bytes for stage in Survey(Store(root)).stages.values())
    freed = delete(Store(root, "one/gc", lease.check), garbage)
    lease.release()
    after = Survey(Store(root))
    assert freed == garbage.bytes == before - sum(stage.bytes for stage in after.stages.values())
    assert freed > 251_000
    assert left(root, stages) == set(stages) - {"failed", "died", "half"}
    assert Store(root).find(stages["shared"]).read("a.bin") == b"x" * 100_000
    assert Survey(Store(root)).garbage("one").bytes == 0
    assert after.usage()["one"].unfinished == 0


def test_usage_adds_up(root, stages):
    survey = Survey(Store(root))
    one, two = survey.usage()["one"], survey.usage()["two"]
    size = {name: survey.stages[digest].bytes for name, digest in stages.items()}
    of_data_set = size["images"] + size["reference"] + size["classifier"]
    assert one.whole == size["good"] - 1000 + size["open"] + of_data_set
    assert two.whole == size["shared"] + size["other"] + of_data_set
    assert one.shared == two.shared == of_data_set
    assert one.unfinished == size["half"] + 1000
    assert two.unfinished == size["half of two"]
    assert survey.unnamed_bytes() == size["failed"] + size["died"] + size["ticket"]
    assert one.ledger > 100


@pytest.mark.parametrize("folder", ["aa/x", "aa/" + 64 * "b", "aa/" + 64 * "a" + ".bak"])
def test_a_folder_put_aside_among_the_stages_is_none_and_stays(root, stages, folder):
    store = Store(root)
    before = Survey(store).usage()
    store.write(f"stages/{folder}/manifest.json", b"{}")
    survey = Survey(store)
    assert survey.usage() == before
    delete(store, survey.garbage("one"))
    assert store.read(f"stages/{folder}/manifest.json") == b"{}"


def test_a_stage_that_somebody_makes_right_now_stays(root, stages):
    garbage = Survey(Store(root)).garbage("one")
    other, at_work, done = Store(root, "two/1"), threading.Event(), threading.Event()
    half = other.find(stages["half"])

    def compute(_):
        at_work.set()
        done.wait(60)
        return Output()

    maker = threading.Thread(target=lambda: half.make(compute))
    maker.start()
    assert at_work.wait(60)
    if not other.is_local:  # its claim is another sweep's now, and fresh
        assert Claim(**other.read_record(f"{half.path}/{CLAIM}")).owner == "two/1"
    freed = delete(Store(root, "one/gc"), garbage)
    done.set()
    maker.join(60)
    assert freed < garbage.bytes
    assert Store(root).find(stages["half"]).read_manifest()


def test_a_stage_made_whole_since_the_survey_stays(root, stages):
    garbage = Survey(Store(root)).garbage("one")
    Store(root, "two/1").find(stages["half"]).make(lambda _: Output({"x": 1}))
    delete(Store(root, "one/gc"), garbage)
    assert Store(root).find(stages["half"]).read_manifest().values == {"x": 1}


def test_another_sweep_on_the_same_data_that_runs_is_noticed(root, stages):
    assert Survey(Store(root)).runs_beside("one") == []
    lease = Lease.acquire(Store(root), "two")
    assert Survey(Store(root)).runs_beside("one") == ["two"]
    lease.release()


def test_claims_of_the_dead_are_known_by_their_owner(root, stages):
    left = Store(root).read_record(f"{Store(root).find(stages['half']).path}/{CLAIM}")
    assert left == asdict(Claim("one/3", left["token"], 0))


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (25_300, "25 kB"),
        (3_400_000, "3.4 MB"),
        (7e13, "70 TB"),
        (5e16, "50000 TB"),
    ],
)
def test_units(num_bytes, text):
    assert in_units(num_bytes) == text
