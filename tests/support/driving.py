"""A sweep driven without Ray: trials end in random order, with invented results, until the driver dies or all is done."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from raylt.search.confirm import Request
from raylt.search.sampler import default_startup
from raylt.spec import SweepSpec, TrialSpec
from raylt.store import Ledger, Store
from raylt.sweep.dispatch import Dispatcher, Finished, Wait
from tests.support.results import a_result


def drive(
    spec: SweepSpec, root: Any, results: Callable[[TrialSpec], dict[str, Any]], *, request: Request | None = None,
    crash_after: int | None = None, order_seed: int = 0,
) -> tuple[Ledger, Dispatcher] | None:  # fmt: skip
    """`results`: how a trial ends, as keys of `a_result`.

    Up to `concurrency` live trials; None where the driver dies, after so many have ended: the live ones never do."""
    ledger = Ledger(Store(str(root)), spec.name, lambda: None)
    dispatcher = Dispatcher(spec, ledger, default_startup(spec), lambda trial, result: None, request)
    draw, live, ended = random.Random(order_seed), {}, 0
    while True:
        while len(live) < spec.search.concurrency:
            chosen = dispatcher.next_trial(live)
            if isinstance(chosen, (Wait, Finished)):
                break
            assert chosen.id not in live
            live[chosen.id] = chosen
        if not live:
            assert isinstance(chosen, Finished)
            return ledger, dispatcher
        if ended == crash_after:
            return None
        number = draw.choice(sorted(live))
        dispatcher.finish(number, a_result(**results(live.pop(number))))
        ended += 1


def asked(ledger: Ledger) -> list[dict[str, Any]]:
    """Every asked trial in full, by id."""
    return [trial.dump() for _, trial in sorted(ledger.submitted.items())]
