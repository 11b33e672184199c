"""`raylt confirm` as a user runs it, with real Ray: through a kill, resumed, recorded, and said in a table."""

from __future__ import annotations

import os
import shutil
import signal

from raylt.store import Ledger, Store
from raylt.store.sweep_state import stored_spec
from raylt.sweep.dry_run import all_trials, work_of
from raylt.ticket.ticket_file import load_ticket
from tests.support import sabotage
from tests.support.sabotage import HOLD
from tests.support.sweeping import NAME, eventually

FINAL = {"samples": 60, "sampler": "dpm++", "steps": 3}
CONFIRM = {"seeds": 2, "top": 1, "steps": [9], "controls": ["shuffled", "small-dense"], "control_rounds": [2]}
KINDS = ["dense", "baseline", "control", "control"]  # of one seed
SEARCH = {"trials": 0, "pilots": 0, "baselines": ["erk"]}


def test_a_confirmation_through_a_kill(new_sweep):
    """One command searches and confirms; killed among the controls, `raylt sweep` ends it, and little is trained twice."""
    sweep = new_sweep(search=SEARCH, confirm=CONFIRM, metrics={"final": FINAL})
    first = sweep.start("tiny.yaml", command="confirm", plan={5: HOLD})
    flag = sabotage.held(sweep.folder, 5)
    eventually(lambda: flag.exists() or first.poll() is not None, "trial 5 is at work")
    assert first.poll() is None, sweep.end(first).err
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert sweep.results()["state"] == "interrupted"
    done = sweep.run()
    assert done.code == 0, done.err
    document = sweep.results()
    assert document["state"] == "complete"
    assert [trial["kind"] for trial in document["trials"]] == ["dense", "baseline", *KINDS, *KINDS]
    finals = document["trials"][2:]
    assert {(t["protocol"], t["train_steps"]) for t in finals} == {("final", 9)}
    assert [t["seed"] for t in finals] == [1000] * 4 + [1001] * 4
    assert not any(t["pareto"] for t in finals)

    rows = [(row["rule"], row["control"], row["round"]) for row in document["confirmation"]]
    assert rows == [(None, None, 0), ("erk", None, 1), ("erk", None, 2), ("erk", "shuffled", 2), ("erk", "small-dense", 2)]
    assert all(row["seeds"] == [1000, 1001] for row in document["confirmation"])
    again = sweep.steps().total() - document["steps"]["trained"]
    assert again <= 4 * 2  # a checkpoint interval of each worker

    # a dry run knows all of it
    ledger = Ledger(Store(str(sweep.folder / "raylt-data")), NAME)
    spec = stored_spec(ledger.store, NAME)
    work = work_of(spec, (item.trial for item in all_trials(spec, ledger)))
    assert (work.asked.steps, work.distinct.steps) == (document["steps"]["asked"], document["steps"]["trained"])
    assert work.asked.samples == sum(spec.protocol(t["protocol"]).samples * len(t["rounds"]) for t in document["trials"])

    # recorded as any other trial, under the protocol it was scored with
    record = sweep.record()
    assert {name for name in record if name != NAME} == {f"{t['id']:04d}-{t['kind']}" for t in document["trials"]}
    tags = record["0004-control"]["tags"]
    assert (tags["raylt.protocol"], tags["raylt.control"]) == ("final", "shuffled")
    assert (tags["fid.sampler"], tags["fid.samples"]) == ("dpm++", "60")

    # nothing is left to do: by its name, without the plan in the spec, it starts nothing
    before = sweep.files("sweeps/*/trials/*/*.json")
    assert sweep.end(sweep.start(NAME, command="confirm")).code == 0
    assert sweep.files("sweeps/*/trials/*/*.json") == before

    # a control can be taken out of the store like any ticket
    sweep.read("export", NAME, "5", str(sweep.folder / "out"))
    ticket = load_ticket(sweep.folder / "out/ticket.safetensors")
    assert ticket.mask.is_dense and max(ticket.unet_config["block_out_channels"]) < 16
    shutil.rmtree(sweep.folder / "out")
