"""One trial: which files it leaves."""

from __future__ import annotations

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.store import Store
from raylt.store.layout import TICKET
from raylt.ticket.ticket_file import load_ticket
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from tests.support.trials import a_trial


def ran(spec, store, rule="uniform"):
    context = TrialContext.open(spec, Compute(), Inputs(load_images(spec.data)))
    run = TrialRun(a_trial(0, "baseline", rule, 0), context, store)
    return list(run), run.result


def files_of(store, result):
    tickets = [stage for stage in map(store.find, result.stages) if stage.key["kind"].startswith("ticket")]
    return [TICKET in stage.read_manifest().files for stage in tickets]


def test_the_dense_and_the_last_ticket_alone_are_files_and_every_size_is_known(tiny_spec, tmp_path):
    store = Store(str(tmp_path))
    rounds, result = ran(tiny_spec(ticket={"rounds": 3, "densities": [0.5, 0.2, 0.1]}), store)
    assert files_of(store, result) == [True, False, False, True]
    sizes = [scored.ticket_bytes for scored in rounds]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    file = tmp_path / store.find(result.ticket.ticket_stage).path / TICKET
    assert file.stat().st_size == sizes[-1]
    assert load_ticket(file).mask.digest == result.ticket.digest


def test_the_last_ticket_of_a_search_that_a_longer_one_went_through_is_a_file_too(tiny_spec, tmp_path):
    store = Store(str(tmp_path))
    longer, _ = ran(tiny_spec(ticket={"rounds": 3, "densities": [0.5, 0.2, 0.1]}), store)
    shorter, result = ran(tiny_spec(ticket={"rounds": 2, "densities": [0.5, 0.2]}), store)
    assert shorter[-1].ticket_bytes == longer[2].ticket_bytes
    file = tmp_path / store.find(result.ticket.ticket_stage).path / TICKET
    assert file.stat().st_size == shorter[-1].ticket_bytes
    assert load_ticket(file).mask.digest == result.ticket.digest
